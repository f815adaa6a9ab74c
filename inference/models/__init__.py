"""Model packages: what an installed model is, and how a foreign model folder becomes one without being trusted.

============== ================================================================================================
package        the values of an installed package, read from its manifest.json; digests; identity
nnunet_folder  plans.json and dataset.json of a model folder of nnU-Net, checked against closed lists and bounds
checkpoint     the weights of a checkpoint, nothing of it executed
install        a model folder -> a package in a library, whole or not at all
checks         the bounds that all of them share
============== ================================================================================================
"""
