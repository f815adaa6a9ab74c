"""All errors of the node in one tree. Each class determines what happens to the work that failed.

::

    DicomNodeError
    ├── ConfigurationError          FAIL    node.yaml or rules.yaml is wrong; nothing starts
    ├── NodeInUse                   FAIL    another process has this role on this data folder; nothing starts
    ├── InstanceRefused             REJECT  a C-STORE is answered with ``status``; nothing is kept
    ├── MalformedDataset            REJECT  bytes that are no data set; receive and standard.files translate it
    ├── StoreUnavailable            RETRY   spool or ledger can't take a write now (answered 0xA700 on the wire)
    │   ├── StoreFull                       there is no space
    │   └── ImagesAway                      files of received images can't be read now
    ├── StoredBytesChanged          FAIL    files of received images are not what was received
    ├── SeriesRejected              REJECT  this series can't be segmented; the reason is kept and shown
    │   ├── NotEligible                     localizer, secondary capture, too few slices, not CT ...
    │   ├── GeometryRefused                 missing slice, duplicate position, several orientations ...
    │   ├── FileUnreadable                  no DICOM file, or one that contradicts itself
    │   ├── IdentityConflict                two patients, studies, Frames of Reference in a series, or images of a UID
    │   ├── PixelDataInvalid                truncated, wrong dimensions, not decodable, no valid HU
    │   └── LimitExceeded                   more bytes, elements, items, memory or CPU time than any CT needs
    ├── ReaderLost                  RETRY   the process that reads images died or took too long
    ├── ReadingFailed               FAIL    that process met a fault of ours
    ├── Stopping                    RETRY   the node is stopping; the attempt does not count
    ├── SegmentationError
    │   ├── WorkerLost              RETRY   the worker process died, hung or ran out of memory
    │   └── SegmentationImpossible  FAIL    the model refuses (volume too small or too large, bad package)
    ├── ResultUnreadable            FAIL    a file is not a result, or can't be read
    ├── EncodingError               FAIL    a result object could not be built, or differed when read back
    ├── NetworkError                        an association failed; deliver and count translate it
    │   ├── ConnectionLost          RETRY   peer away or silent, connection closed or reset, association aborted
    │   ├── ProtocolFault           RETRY   the peer violated PS3.7, PS3.8 or one of our limits
    │   ├── AssociationRejected     RETRY   the peer rejected us, transiently or (``permanent``) permanently
    │   └── NotSendable             FAIL    no presentation context for this object, or its file cannot be read
    └── DeliveryError
        ├── DeliveryDelayed         RETRY   peer away, busy or out of resources; tried again later
        └── DeliveryRefused         FAIL    peer does not accept this object; a person must look

Messages say what was seen and what was expected, with numbers and UIDs, and never contain patient data.

An exception of Python, of another package or of ``inference`` becomes one of this tree in the modules below, and only
there: what is raised above them is ours, or a bug. ``Exception`` means that the library answers bad input with whatever
that leads to. ``tests/test_borders.py`` provokes each of them.

=========================  ===============================================  ===========================================
border                     exceptions below                                 errors of this tree
=========================  ===============================================  ===========================================
settings.loader            OSError, UnicodeDecodeError, yaml                ConfigurationError
settings.validation        pydantic.ValidationError                         ConfigurationError
app.listening              OSError                                          ConfigurationError
app.stores                 OSError                                          ConfigurationError
app.places                 OSError                                          ConfigurationError
analysis                   inference.errors.SegmentationRefusedError,       SegmentationImpossible
                           inference.types.InvalidValueError
segment.inputs             OSError                                          StoreUnavailable
segment.model              inference.errors.InferenceError                  ConfigurationError
segment.outputs            OSError                                          ConfigurationError
segment.case               inference.errors.InferenceError                  ConfigurationError
evaluate.predicting        inference.errors.InferenceError                  ConfigurationError
evaluate.tables            ModuleNotFoundError                              ConfigurationError
compare.scores             ModuleNotFoundError, OSError, ValueError,        ConfigurationError
                           KeyError, TypeError
age_study.sources          OSError, ValueError, pyarrow                     ConfigurationError
constancy.baseline         OSError, ValueError, LookupError, TypeError,     ConfigurationError
                           pydantic.ValidationError
constancy.subject          inference.errors.InferenceError                  ConfigurationError
cohort.definition          OSError                                          ConfigurationError
cohort.dicomweb            httpx, ValueError, KeyError, TypeError,          ConnectionLost, NetworkError,
                           python_multipart, OSError, NetrcParseError       ConfigurationError
cohort.intake              Exception (pydicom), OSError                     FileUnreadable
cohort.pseudonym           OSError                                          ConfigurationError
cohort.run                 OSError                                          ConfigurationError
cohort.sources             OSError, UnicodeDecodeError                      ConfigurationError
cohort.table               OSError, ValueError, pyarrow                     ConfigurationError, StoreUnavailable
dataset.conversion         OSError                                          ConfigurationError
dataset.files              OSError                                          ConfigurationError
dataset.processes          concurrent.futures.process.BrokenProcessPool     WorkerLost
labelmaps.contours         inference.types.InvalidValueError                ResultUnreadable
labelmaps.finding          OSError, ValueError, LookupError, TypeError      ConfigurationError
labelmaps.nifti_files      OSError, ValueError, TypeError, AttributeError,  ResultUnreadable
                           inference.types.InvalidValueError
labelmaps.sources          inference.types.InvalidValueError                ResultUnreadable
nifti                      OSError, EOFError, zlib.error, ValueError,       StoreUnavailable, PixelDataInvalid,
                           expat.ExpatError                                 GeometryRefused
results                    OSError, Exception (pydicom, numpy)              ResultUnreadable
encode.codes               KeyError                                         EncodingError
encode.run                 Exception (highdicom, pydicom)                   EncodingError
encode.segments            inference.errors.UnknownStructureError           EncodingError
encode.source.planes       Exception (pydicom)                              EncodingError
encode.source.values       Exception (pydicom)                              EncodingError
encode.sr.notice           Exception (highdicom, pydicom)                   EncodingError
reconstruct                OSError                                          StoreUnavailable
reconstruct.pixels         Exception (pydicom and its decoders)             PixelDataInvalid
reading.reader             OSError, RuntimeError                            ReaderLost
work.local                 OSError                                          WorkerLost
work.models                inference.errors.InferenceError                  ConfigurationError
store.database             sqlalchemy, the driver                           StoreUnavailable, ConfigurationError
store.disk                 OSError                                          StoreUnavailable
store.spool                OSError                                          StoreUnavailable, StoreFull
store.workers              OSError                                          ConfigurationError
network.pdu                ValueError, Exception (pynetdicom)               ProtocolFault
network.requestor          OSError, Exception (pydicom)                     ConnectionLost, NotSendable, ProtocolFault
network.transport          OSError                                          ConnectionLost
standard.attributes        Exception (pydicom)                              SeriesRejected
standard.files             OSError, InvalidDicomError, Exception (pydicom)  StoreUnavailable, PixelDataInvalid,
                                                                            FileUnreadable
standard.opening           zlib.error                                       FileUnreadable
standard.raw_elements      Exception (pydicom)                              EncodingError
standard.part10            Exception (pydicom), struct.error                EncodingError
percentiles                OSError, ValueError, LookupError, TypeError,     ConfigurationError
                           AttributeError, pydantic.ValidationError
=========================  ===============================================  ===========================================

``settings.models`` and ``route.rules_file`` raise ValueError for pydantic, whose ValidationError
``settings.validation`` translates. What reaches the top ends in ``receive.reception`` (a DIMSE status),
``receive.scp`` (A-ABORT), ``network.questions`` (silence), ``deliver.scu`` (a delivery outcome), ``work.worker`` and
``reading.child`` (a message to the node), ``pipeline.outcomes`` (a job state), ``operate.schedule`` (a log line) or the
commands (an exit code).
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Disposition(Enum):
    """What happens to work that ended with an error."""

    REJECT = "reject"
    """Not for this node: keep the reason and continue."""
    RETRY = "retry"
    """May resolve itself: try again, a limited number of times."""
    FAIL = "fail"
    """A person must look."""


class DicomNodeError(Exception):
    """Root of the tree; ``disposition`` is fixed per class."""

    disposition: ClassVar[Disposition] = Disposition.FAIL


class ConfigurationError(DicomNodeError):
    """The configuration contradicts itself or names something that does not exist."""


class NodeInUse(DicomNodeError):
    """Another process of the same role runs on this data folder; the message names it."""


class InstanceRefused(DicomNodeError):
    """A received instance is refused with a DIMSE ``status`` (PS3.4 Table B.2-1, PS3.7 annex C)."""

    disposition = Disposition.REJECT

    def __init__(self, status: int, reason: str) -> None:
        """``status``: the 16-bit DIMSE status to answer; ``reason``: what was seen and expected."""
        super().__init__(reason)
        self.status = status


class MalformedDataset(DicomNodeError):
    """The bytes are no data set in their transfer syntax; the message says where and why."""

    disposition = Disposition.REJECT


class StoreUnavailable(DicomNodeError):
    """Spool or ledger is unavailable (disk full, file missing, database down)."""

    disposition = Disposition.RETRY


class StoreFull(StoreUnavailable):
    """There is no space for a file; work that needs it waits without a limit."""


class ImagesAway(StoreUnavailable):
    """Files of received images can't be read now: missing, a failing disk, a file system that is away."""


class StoredBytesChanged(DicomNodeError):
    """Files of received images no longer have the bytes that were received."""

    def __init__(self, spool_names: tuple[str, ...], files: int) -> None:
        """``spool_names`` of those that changed, among ``files``."""
        first = spool_names[0].rpartition("/")[2]
        super().__init__(
            f"the stored bytes of {len(spool_names)} of {files} images changed on the disk (first: {first})"
        )
        self.spool_names = spool_names


class SeriesRejected(DicomNodeError):
    """The series can't or must not be segmented; the message is the reason shown to people."""

    disposition = Disposition.REJECT


class NotEligible(SeriesRejected):
    """Not a kind of series that the model is made for."""


class GeometryRefused(SeriesRejected):
    """The slices do not form one regular volume."""


class IdentityConflict(SeriesRejected):
    """One Series Instance UID holds more than one patient, study or Frame of Reference."""


class PixelDataInvalid(SeriesRejected):
    """Pixel data are truncated, contradict their description or give no valid Hounsfield units."""


class LimitExceeded(SeriesRejected):
    """Reading the series takes more than any CT needs; the message names the limit."""


class ReaderLost(DicomNodeError):
    """The process that reads headers and decodes pixels died, or took longer than allowed."""

    disposition = Disposition.RETRY


class FileUnreadable(SeriesRejected):
    """A file is none that can be read as DICOM. ``is_dicom``: it is, or was meant as, a DICOM file."""

    def __init__(self, what: str, *, is_dicom: bool) -> None:
        """``what``: what was seen, without values."""
        super().__init__(what)
        self.is_dicom = is_dicom


class ReadingFailed(DicomNodeError):
    """Reading headers or decoding pixels met a fault of ours; the log has its place."""


class Stopping(DicomNodeError):
    """The node is stopping: running work is queued again, and the attempt does not count."""

    disposition = Disposition.RETRY

    def __init__(self) -> None:
        """The message is always the same."""
        super().__init__("the node is being stopped")


class SegmentationError(DicomNodeError):
    """Inference did not produce a label map."""


class WorkerLost(SegmentationError):
    """The worker process died, froze or ran out of memory."""

    disposition = Disposition.RETRY


class SegmentationImpossible(SegmentationError):
    """The model can't segment this volume, or can't be loaded; another attempt would not help."""


class ResultUnreadable(DicomNodeError):
    """A file is not a result of a node, or does not match the images."""


class EncodingError(DicomNodeError):
    """A result object could not be built, or differed from its input when read back."""


class NetworkError(DicomNodeError):
    """An association failed."""


class ConnectionLost(NetworkError):
    """The peer is away, closed or reset the connection, aborted, or was silent too long."""

    disposition = Disposition.RETRY


class ProtocolFault(NetworkError):
    """The peer violated PS3.7, PS3.8 or a limit; it gets an A-ABORT with ``abort_reason`` (PS3.8 table 9-26)."""

    disposition = Disposition.RETRY

    def __init__(self, abort_reason: int, what: str) -> None:
        """``what``: what was seen and expected."""
        super().__init__(what)
        self.abort_reason = abort_reason


class AssociationRejected(NetworkError):
    """The peer answered with an A-ASSOCIATE-RJ, ``permanent`` or transient (PS3.8 table 9-21)."""

    disposition = Disposition.RETRY

    def __init__(self, what: str, *, permanent: bool) -> None:
        """``what``: the peer and its stated reason."""
        super().__init__(what)
        self.permanent = permanent


class NotSendable(NetworkError):
    """This request can't be sent on this association; others can."""


class DeliveryError(DicomNodeError):
    """A destination did not accept a result."""


class DeliveryDelayed(DeliveryError):
    """The destination may accept it later."""

    disposition = Disposition.RETRY


class DeliveryRefused(DeliveryError):
    """The destination refused this object."""
