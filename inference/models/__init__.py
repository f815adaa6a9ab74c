"""Model packages: what an installed model is, and how a foreign model folder becomes one without being trusted.

============== ================================================================================================
package        the values of an installed package, read from its manifest.json; digests; identity
architecture   the design of a network as data, checked
weights        which weights an architecture has, and a file that holds exactly those
network        the network of an architecture, built by torch
nnunet_folder  plans.json and dataset.json of a model folder of nnU-Net, checked against closed lists and bounds
checkpoint     the weights of a checkpoint, nothing of it executed
tasks          what TotalSegmentator does with each of its weights, as data (tasks.json)
download       one large file over https, continued where it was cut
archive        a zip file, unpacked without trusting it
sources        folders, zips, addresses and names of tasks -> model folders on this disk
install        model folders -> a package in a library, whole or not at all
library        the installed packages: list, read, remove
checks         the bounds that all of them share
============== ================================================================================================
"""
