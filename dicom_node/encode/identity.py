"""Derived UIDs: the same model on the same instances gives the same UIDs, and any other run gives different ones.

The version of the node is part of the derivation, because objects of another version differ at least in Software
Versions, and different objects must not share a SOP Instance UID (PS3.5 section 9). An upgrade alone reruns nothing.

A UID is ``2.25.<n>`` (PS3.5 section B.2) where ``n`` is a UUID filled from a SHA-256. A rerun after a crash, on this
node or another, therefore makes the instances that the archive may already hold: a PACS sees no duplicates.
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
    """The UID that follows from ``parts``; different lists of parts have different UIDs (up to SHA-256 collisions)."""
    digest = hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode("ascii")).digest()
    return f"2.25.{UUID(bytes=digest[:16], version=5).int}"


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What distinguishes a run from every other run, and the UIDs that follow from it.

    ``variant`` distinguishes objects of one kind that destinations want in different forms; empty for the default.
    ``deviations`` are the notes of a :class:`~inference.types.RunReport` that may have changed the labels
    (``changes_answer``): other voxels need other UIDs. A regular run has none, whatever engine and device it ran on.
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
    """Device UID of a model on an installation; each version of a model is a device of its own (IHE AIR)."""
    return derived_uid("dicom-node algorithm", device_uid, model.name, model.version, model.digest)
