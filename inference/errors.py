"""What the segmentation engine says no to.

::

    InferenceError
    ├── UnknownStructureError       a name that inference/structures.csv does not hold
    ├── ModelPackageError           the model's files are missing, malformed, oversized or name foreign code
    │   └── ModelDigestError        the model's files are not the ones that were approved
    └── SegmentationRefusedError    this volume can't be segmented by this model: too small, constant, NaN, too large

Messages say what was seen and what was expected. None passes by trying again with the same model and volume.

An exception of Python or of another package becomes one of this tree in these modules, and only there:

=====================  ==========================================================  =====================
border                 exceptions below                                            errors of this tree
=====================  ==========================================================  =====================
models.archive         OSError, zipfile, zlib                                      ModelPackageError
models.checkpoint      pickle, zipfile, and what torch raises on a damaged file    ModelPackageError
models.checks          OSError, ValueError (JSON), RecursionError                  ModelPackageError
models.download        OSError, http.client, urllib                                ModelPackageError
models.install         OSError, safetensors                                        ModelPackageError
models.nnunet_folder   KeyError, TypeError, ValueError and others (plans.json)     ModelPackageError
models.package         OSError                                                     ModelPackageError
models.tasks           KeyError                                                    ModelPackageError
models.weights         OSError, safetensors, TypeError                             ModelPackageError
structures             KeyError                                                    UnknownStructureError
=====================  ==========================================================  =====================
"""

from __future__ import annotations


class InferenceError(Exception):
    """Root of the tree; the message is the reason shown to people."""


class UnknownStructureError(InferenceError):
    """A structure that the catalogue does not hold."""


class ModelPackageError(InferenceError):
    """A model folder that is not loaded; nothing of it was executed."""


class ModelDigestError(ModelPackageError):
    """The SHA-256 over the model's files differs from the one that was approved."""


class SegmentationRefusedError(InferenceError):
    """The volume does not meet what the model needs, or would not fit into memory."""
