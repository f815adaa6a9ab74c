"""Model packages: what an installed model is, and how a foreign model folder becomes one without being trusted.

============== ================================================================================================
package        the values of an installed package, read from its manifest.json; digests; identity
============== ================================================================================================
"""
