"""Two files with one SOP Instance UID: copies of an image, or two images? Where their bytes don't tell, pixels do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node.errors import ReaderLost, ReadingFailed, SeriesRejected, StoreUnavailable
from dicom_node.standard.files import COPY, NOT_COMPARED, RECODED, UID_REUSED, PassedOver, read_repeated

if TYPE_CHECKING:
    from dicom_node.reading.reader import ImageReader
    from dicom_node.types import SourceInstance


def compared(known: SourceInstance, other: SourceInstance, reader: ImageReader) -> PassedOver:
    """What becomes of ``other``, whose SOP Instance UID is that of the ``known`` instance.

    As :func:`~dicom_node.standard.files.read_repeated`, but copies in two transfer syntaxes are decoded, as the node
    does with those that one association sends. Those that can't be decoded count as another image.

    Raises:
        OSError: a file is missing or the disk fails.
        Stopping: the reader was closed.
    """
    repeated = read_repeated(known, other)
    if repeated.reason != RECODED:
        return repeated
    try:
        first, second = (reader.content(instance.path).pixels for instance in (known, other))
    except (SeriesRejected, StoreUnavailable, ReaderLost, ReadingFailed) as error:
        return PassedOver(other.path, NOT_COMPARED, str(error))
    if first != second:
        return PassedOver(other.path, UID_REUSED, "with other pixels, in another transfer syntax")
    return PassedOver(other.path, COPY, "in another transfer syntax", is_dicom=False)
