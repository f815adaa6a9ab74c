"""Model packages: what an installed model is, and how an untrusted model folder becomes one.

============== ================================================================================================
package        an installed package, read from its manifest.json; digests; identity
architecture   the design of a network as checked data
weights        the weights that an architecture has, and the file that holds exactly these
network        builds the network of an architecture with torch
nnunet_folder  plans.json and dataset.json of an nnU-Net model folder, checked against closed lists and bounds
checkpoint     the weights of a checkpoint, read without executing anything
tasks          how TotalSegmentator uses each of its models, as data (tasks.json)
download       downloads one large file over https and resumes interrupted downloads
archive        unpacks an untrusted zip file
sources        folders, zips, URLs and task names -> model folders on this disk
install        model folders -> a package in a library, completely or not at all
library        the installed packages: list, read, remove
checks         the checks and bounds that all modules share
============== ================================================================================================
"""
