"""Does a series that came again say what it said before? Instances are compared where their bytes differ."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import (
    IdentityConflict,
    ImagesAway,
    SeriesRejected,
    Stopping,
    StoredBytesChanged,
    StoreUnavailable,
)
from dicom_node.store.spool import StoredFile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dicom_node.reading.reader import ImageReader
    from dicom_node.reconstruct.content import InstanceContent
    from dicom_node.store.revisions import Member, Repeated
    from dicom_node.store.spool import Spool


class Likeness(Enum):
    """How much of a series is as it was."""

    CONTENT = auto()
    """All of it."""
    IMAGES = auto()
    """All but patient and study."""
    NONE = auto()


class Comparing:
    """Compares the instances of one revision of a series with those of earlier ones; each is decoded at most once."""

    def __init__(self, spool: Spool, reader: ImageReader, series_instance_uid: str) -> None:
        self._spool = spool
        self._reader = reader
        self._series_instance_uid = series_instance_uid
        self._contents: dict[tuple[str, bool], InstanceContent | None] = {}

    def likeness(self, changed: Iterable[tuple[Member, Member]]) -> Likeness:
        """Of two revisions, by the instances whose bytes differ.

        Raises:
            ImagesAway: a file of the newer one can't be read now.
            Stopping: the node is stopping.
        """
        likeness = Likeness.CONTENT
        for before, now in changed:
            with_pixels = not now.stores_pixels_of(before)  # an archive that corrects a name leaves them as they are
            second = self._content(now, with_pixels=with_pixels, is_needed=True)
            first = self._content(before, with_pixels=with_pixels)
            if first is None or second is None or first.image != second.image:
                return Likeness.NONE
            if first.identity != second.identity:
                likeness = Likeness.IMAGES
        return likeness

    def refuse_other_pixels(self, repeated: Iterable[Repeated]) -> None:
        """Check that what one association sent under one SOP Instance UID shows one image.

        The listener refuses another image whose pixels have other bytes; in another transfer syntax that says nothing
        before they are decoded.

        Raises:
            IdentityConflict: there are two images, or one of them can't be decoded, so that nobody can tell.
            ImagesAway: a file is missing or the disk fails.
            StoredBytesChanged: a file is not what was received.
            ReaderLost: the child died or took too long.
        """
        for each in repeated:
            if each.now.stores_pixels_of(each.before):
                continue
            where = f"SOP Instance UID {each.sop_instance_uid} was sent twice in one association"
            try:
                first, second = (self._checked_content(member) for member in (each.before, each.now))
            except StoreUnavailable as error:
                raise ImagesAway(str(error)) from error
            except SeriesRejected as error:
                raise IdentityConflict(f"{where}, and the two images can't be compared: {error}") from error
            if first.pixels != second.pixels:
                raise IdentityConflict(f"{where} with different pixels: two images, one UID")

    def _checked_content(self, member: Member) -> InstanceContent:
        key = (member.spool_name, True)
        content = self._contents.get(key)
        if content is None:
            file = StoredFile(member.spool_name, member.dataset_sha256, member.transfer_syntax_uid)
            if changed := self._spool.changed([file]):
                raise StoredBytesChanged(changed, 1)
            content = self._contents[key] = self._reader.content(self._spool.path(member.spool_name))
        return content

    def _content(self, member: Member, *, with_pixels: bool, is_needed: bool = False) -> InstanceContent | None:
        """None where it can't be read: such an instance is known by its bytes only, and they differ."""
        key = (member.spool_name, with_pixels)
        if key not in self._contents:
            try:
                path = self._spool.path(member.spool_name)
                self._contents[key] = self._reader.content(path, with_pixels=with_pixels)
            except Stopping:
                raise
            except StoreUnavailable as error:
                if is_needed:
                    raise ImagesAway(str(error)) from error
                self._not_compared(key, error)
            except Exception as error:  # noqa: BLE001 - see above
                self._not_compared(key, error)
        return self._contents[key]

    def _not_compared(self, key: tuple[str, bool], error: Exception) -> None:
        self._contents[key] = None
        structlog.get_logger().info("series.not_compared", series=self._series_instance_uid, error=type(error).__name__)
