"""The errors of the segmentation engine.

::

    InferenceError
    ├── UnknownStructureError       a name that is not in inference/structures.csv
    ├── ModelPackageError           the model's files are missing, malformed, oversized or name disallowed code
    │   └── ModelDigestError        the model's files are not the ones that were approved
    ├── SegmentationRefusedError    this model can't segment this volume: too small, constant, NaN, too large
    └── TrainingError               a configuration, data set or state that can't be trained with

Messages say what was seen and what was expected. Retrying with the same model and volume never helps.

An exception of Python or of another package becomes one of this tree in these modules, and only there:

======================  ==========================================================  ========================
border                  exceptions below                                            errors of this tree
======================  ==========================================================  ========================
models.archive          OSError, zipfile, zlib                                      ModelPackageError
models.checkpoint       pickle, zipfile, and what torch raises on a damaged file    ModelPackageError
models.checks           OSError, ValueError (JSON), RecursionError                  ModelPackageError
models.download         OSError, http.client, urllib                                ModelPackageError
models.install          OSError, safetensors                                        ModelPackageError
models.nnunet_folder    KeyError, TypeError, ValueError and others (plans.json)     ModelPackageError
models.package          OSError                                                     ModelPackageError
models.tasks            KeyError                                                    ModelPackageError
models.weights          OSError, safetensors, TypeError                             ModelPackageError
nnunet.engine           a network that overflows in every precision                 SegmentationRefusedError
structures              KeyError                                                    UnknownStructureError
training.configuration  OSError, yaml, RecursionError                               TrainingError
training.planning       OSError, ValueError (JSON), KeyError                        TrainingError
training.run            BlockingIOError, ValueError (JSON)                          TrainingError
training.trainer        what torch raises on a damaged checkpoint                   TrainingError
======================  ==========================================================  ========================
"""

from __future__ import annotations


class InferenceError(Exception):
    """Base class; the message is the reason shown to users."""


class UnknownStructureError(InferenceError):
    """A structure that is not in the catalogue."""


class ModelPackageError(InferenceError):
    """A model folder that can't be loaded; nothing in it was executed."""


class ModelDigestError(ModelPackageError):
    """The SHA-256 of the model's files differs from the approved one."""


class SegmentationRefusedError(InferenceError):
    """The volume does not meet the model's requirements, or would not fit in memory."""


class TrainingError(InferenceError):
    """A configuration, data set or state of a training that can't be used."""
