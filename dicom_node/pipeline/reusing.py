"""Spares an inference where an earlier job has the labels already: those of the same images by the same model.

They are read back from its SEG. A SEG of another version of the node doesn't count, because that version may have found
others. Nor does that of a tilted gantry, which is not on the grid of the volume.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import file_digest
from typing import TYPE_CHECKING

import numpy as np
import structlog

from dicom_node.encode.provenance import NODE_SOFTWARE
from dicom_node.errors import ResultUnreadable
from dicom_node.results import read_segmentation
from inference.types import RunNote, Segmentation

if TYPE_CHECKING:
    from dicom_node.results import StoredSegmentation
    from dicom_node.store.results import KnownLabels, Results
    from dicom_node.store.revisions import CompleteRevision
    from dicom_node.store.spool import Spool
    from dicom_node.work.pool import WorkerPool
    from inference.types import Geometry, Volume


class Reusing:
    """Finds labels of earlier jobs.

    Args:
        earlier: the results of earlier jobs.
        spool: where their files are.
        workers: which know the models as they are installed now.
    """

    def __init__(self, earlier: Results, spool: Spool, workers: WorkerPool) -> None:
        self._earlier = earlier
        self._spool = spool
        self._workers = workers

    def labels(self, revision: CompleteRevision, model: str, volume: Volume) -> Segmentation | None:
        """The labels of ``volume``, the images of ``revision``, by ``model`` in an earlier job; None if there are none.

        Raises:
            ConfigurationError: the files of the model are damaged or not the approved ones.
        """
        known = self._earlier.known_labels(revision, model)
        if known is None or known.model != self._workers.identity(model):
            return None
        stored = self._stored(known, volume.geometry)
        labels = None if stored is None else _relabelled(stored, known)
        if labels is None:
            structlog.get_logger().info("labels.not_reused", job=known.job_id)
        return labels

    def _stored(self, known: KnownLabels, geometry: Geometry) -> StoredSegmentation | None:
        """The SEG, if it is as it was written, by this version, and on ``geometry``."""
        path = self._spool.path(known.spool_name)
        try:
            with path.open("rb") as file:
                if file_digest(file, "sha256").hexdigest() != known.sha256:
                    return None
            stored = read_segmentation(path, geometry)
        except (OSError, ResultUnreadable):
            return None
        return stored if NODE_SOFTWARE in stored.software else None


def _relabelled(stored: StoredSegmentation, known: KnownLabels) -> Segmentation | None:
    """``stored`` with the labels of the model: a SEG numbers its segments anew. None if it has others."""
    labels = {name: label for label, name in known.names_by_label.items()}
    if not {segment.name for segment in stored.segments} <= labels.keys():
        return None
    label_of_segment = np.zeros(256, np.uint8)
    for segment in stored.segments:
        label_of_segment[segment.label] = labels[segment.name]
    note = RunNote(f"labels taken from job {known.job_id}, which has the same images")
    return Segmentation(
        labels_zyx=label_of_segment[stored.labels_zyx],
        geometry=stored.geometry,
        names_by_label=known.names_by_label,
        model=known.model,
        run=known.run and replace(known.run, notes=(*known.run.notes, note), stage_seconds={}),
    )
