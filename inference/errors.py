"""What the segmentation engine says no to.

::

    InferenceError
    ├── UnknownStructureError       a name that inference/structures.csv does not hold
    ├── ModelPackageError           the model's files are missing, malformed, oversized or name foreign code
    │   └── ModelDigestError        the model's files are not the ones that were approved
    └── SegmentationRefusedError    this volume can't be segmented by this model: too small, constant, NaN, too large

Messages say what was seen and what was expected. None passes by trying again with the same model and volume.
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
