"""Derived UIDs: the same run of the same model over the same instances makes the same UIDs, anything else makes others.

Another version of the node is another run, too: its objects say so in Software Versions and may differ in more, and two
objects that differ must not share a SOP Instance UID (PS3.5 section 9). An upgrade alone runs nothing again.

A UID is ``2.25.<n>`` (PS3.5 section B.2) where ``n`` is a UUID filled from a SHA-256, so that a rerun after a crash, on
this node or another, gives the archive the very instances it may already hold, and a PACS sees no duplicates.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from dicom_node import __version__

if TYPE_CHECKING:
    from dicom_node.types import ResultContext
    from inference.types import ModelIdentity


def derived_uid(*parts: str | int) -> str:
    """The UID that belongs to ``parts``; no two different lists of parts share one (up to collisions of SHA-256)."""
    digest = hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode("ascii")).digest()
    return f"2.25.{UUID(bytes=digest[:16], version=5).int}"


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What makes a run of the node different from every other run, and the UIDs that follow from it.

    ``variant`` tells objects of one kind apart, which several destinations want differently; empty for the default.
    ``deviations`` say what went otherwise than planned and may have changed the labels (the notes of a
    :class:`~inference.types.RunReport` with ``changes_answer``): other voxels need other UIDs. A run that went as
    planned has none, and the UIDs do not depend on what it ran on.
    """

    source_series_uid: str
    content_digest: str
    model: ModelIdentity
    revision: int
    variant: str = ""
    deviations: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        source_series_uid: str,
        model: ModelIdentity,
        context: ResultContext,
        deviations: tuple[str, ...] = (),
    ) -> RunIdentity:
        """The identity of the run that ``context`` describes."""
        return cls(source_series_uid, context.content_digest, model, context.revision, deviations=deviations)

    def uid(self, kind: str) -> str:
        """The UID of the one object of this ``kind`` and variant in the run, e.g. ``"SEG series"``."""
        return self._uid(f"{kind} {self.variant}" if self.variant else kind)

    def _uid(self, what: str) -> str:
        model = self.model
        return derived_uid(
            "dicom-node result",
            __version__,
            self.source_series_uid,
            self.content_digest,
            model.name,
            model.version,
            model.digest,
            self.revision,
            what,
            *self.deviations,
        )

    def tracking_uid(self, structure_name: str) -> str:
        """Tracking UID (PS3.3 C.8.20.2, TID 4108) of one structure, the same in all objects of a run."""
        return self._uid(f"tracking {structure_name}")


def algorithm_device_uid(device_uid: str, model: ModelIdentity) -> str:
    """Device UID of one model on one installation: another model or version is another device (IHE AIR)."""
    return derived_uid("dicom-node algorithm", device_uid, model.name, model.version, model.digest)
