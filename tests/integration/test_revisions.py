"""What a late image means for results that a destination already has, and what a notice of refusal states."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import yaml
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, JPEGLSLossless, SegmentationStorage

from dicom_node.app.stores import open_store
from dicom_node.app.working import open_pipeline
from dicom_node.reading.reader import ImageReader
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.standard.files import read_headers
from dicom_node.store.states import JobState
from dicom_node.work.pool import WorkerPool
from tests.support.ct_series import Stack, write
from tests.support.dicom_peers import scripted_pacs
from tests.support.ports import free_port
from tests.support.received_series import receive_instances

REPORT_AND_SEG = (SegmentationStorage, Comprehensive3DSRStorage)
EVERY_CT = {"name": "every", "model": "tissue", "when": []}


class Node:
    """A node with a PACS, run step by step; ``late`` is an unreachable destination."""

    def __init__(self, folder, cleanup, *rules):
        port, self._stored = cleanup.enter_context(scripted_pacs(classes=REPORT_AND_SEG))
        self._late_port = free_port()
        settings = {
            "node": {"data_folder": "data"},
            "completion": {"regular_quiet_s": 0, "otherwise_quiet_s": 0},
            "delivery": {"first_retry_s": 0, "longest_retry_s": 0},
            "models": {"tissue": {"kind": "tissue"}},
            "destinations": {
                "pacs": {"host": "127.0.0.1", "port": port, "ae_title": "PACS"},
                "late": {"host": "127.0.0.1", "port": self._late_port, "ae_title": "LATE"},
            },
        }
        (folder / "node.yaml").write_text(yaml.safe_dump(settings))
        (folder / "rules.yaml").write_text(yaml.safe_dump({"rules": list(rules)}))
        self._settings = load_settings(folder / "node.yaml")
        self._cleanup = cleanup
        self.spool, self.ledger = open_store(self._settings)
        cleanup.callback(self.ledger.close)
        self.restart()

    def restart(self):
        """Continue from what a killed process leaves behind: spool and ledger."""
        workers = WorkerPool(self._settings.models, self._settings.work)
        self._cleanup.callback(workers.close)
        rules = load_rules(self._settings.rules_file, self._settings)
        self.pipeline = open_pipeline(self._settings, self.ledger, self.spool, rules, workers)

    def take(self, instances):
        receive_instances(self.spool, self.ledger, instances)
        self.pipeline.completing.complete_due()
        self.pipeline.routing.route_complete()

    def deliver(self, name="pacs"):
        """Deliver; return what was sent."""
        before = len(self._stored)
        self.pipeline.delivering.deliver(name)
        return [event.dataset for event, _ in self._stored[before:]]

    def run(self, instances):
        """Receive, process and deliver; return what the PACS received."""
        self.take(instances)
        while self.pipeline.running.run_next_job():
            pass
        return self.deliver()

    def open_late(self):
        """Start the unreachable destination; gives what it receives."""
        _, stored = self._cleanup.enter_context(scripted_pacs(classes=REPORT_AND_SEG, port=self._late_port))
        return stored


@pytest.fixture
def node(tmp_path):
    with ExitStack() as cleanup:
        yield lambda *rules: Node(tmp_path, cleanup, *rules)


@pytest.fixture
def slices(tmp_path):
    """Five planes of soft tissue, from the bottom up."""
    (tmp_path / "ct").mkdir()
    return write(tmp_path / "ct", Stack(np.full((5, 8, 8), 1064, np.uint16))).instances


def predecessors(sr):
    return [
        (str(series.SeriesInstanceUID), str(sop.ReferencedSOPInstanceUID))
        for study in sr.get("PredecessorDocumentsSequence") or ()
        for series in study.ReferencedSeriesSequence
        for sop in series.ReferencedSOPSequence
    ]


def test_report_after_a_late_image_names_the_report_it_replaces(node, slices) -> None:
    node = node(EVERY_CT | {"destinations": ["pacs"]})
    old_seg, old = node.run(slices[:4])
    assert predecessors(old) == []
    seg, sr = node.run(slices[4:])
    assert predecessors(sr) == [(old.SeriesInstanceUID, old.SOPInstanceUID)]
    assert sr.PredecessorDocumentsSequence[0].StudyInstanceUID == old.StudyInstanceUID
    assert f"Supersedes the results of revision 1 (series {old_seg.SeriesInstanceUID})." in seg.ImageComments
    assert {"rev 2" in each.SeriesDescription for each in (seg, sr)} == {True}
    assert "supersedes earlier results" in seg.ContentDescription
    assert len({each.SeriesInstanceUID for each in (old, old_seg, seg, sr)}) == 4


def test_predecessor_in_another_study_is_referenced_in_that_study(node, slices) -> None:
    node = node(EVERY_CT | {"destinations": ["pacs"]})
    _, old = node.run(slices)
    for each in slices:  # as after two studies were merged
        image = dcmread(each.path)
        image.StudyInstanceUID = "1.2.3.4"
        image.save_as(each.path)
    _, sr = node.run(slices)
    assert sr.StudyInstanceUID == "1.2.3.4"
    (study,) = sr.PredecessorDocumentsSequence
    assert study.StudyInstanceUID == old.StudyInstanceUID
    assert predecessors(sr) == [(old.SeriesInstanceUID, old.SOPInstanceUID)]


def test_each_destination_is_told_only_of_predecessors_it_has(node, slices) -> None:
    node = node(EVERY_CT | {"destinations": ["pacs", "late"]})
    _, old = node.run(slices[:4])
    assert node.deliver("late") == []  # nothing listens there
    seg, sr = node.run(slices[4:])
    stored = node.open_late()
    node.pipeline.delivering.deliver("late")
    late_seg, late = [event.dataset for event, _ in stored]
    assert predecessors(sr) == [(old.SeriesInstanceUID, old.SOPInstanceUID)]
    assert predecessors(late) == []
    assert "Replaces" not in late_seg.ImageComments
    # different text means a different object; both describe the same structures
    assert not {seg.SOPInstanceUID, sr.SOPInstanceUID} & {late_seg.SOPInstanceUID, late.SOPInstanceUID}
    assert [s.TrackingUID for s in seg.SegmentSequence] == [s.TrackingUID for s in late_seg.SegmentSequence]


def test_reports_and_notices_replace_each_other(node, slices) -> None:
    node = node(EVERY_CT | {"destinations": [{"to": "pacs", "notice": True}]})
    seg, first = node.run(slices[:3])
    (notice,) = node.run(slices[4:])  # without the plane below it
    assert notice.SeriesDescription.startswith("Not processed by tissue rev 2: gap of")
    assert predecessors(notice) == [(first.SeriesInstanceUID, first.SOPInstanceUID)]
    last_seg, last = node.run(slices[3:4])
    assert predecessors(last) == [(notice.SeriesInstanceUID, notice.SOPInstanceUID)]
    assert f"Supersedes the results of revision 1 (series {seg.SeriesInstanceUID})." in last_seg.ImageComments


REFUSE = {"name": "no-derived", "refuse": "only originals", "destinations": [{"to": "pacs", "notice": True}]}


def test_destination_gets_the_notice_of_a_refusal_once(node, slices) -> None:
    node = node(REFUSE | {"when": [{"attribute": "Modality", "equals": "CT"}]}, EVERY_CT)
    (notice,) = node.run(slices)
    assert notice.SeriesDescription == "Not processed: only originals"
    assert notice.StudyInstanceUID == slices[0].header.StudyInstanceUID
    (job,) = node.ledger.overview.jobs(2)
    assert (job.state, job.model) == (JobState.REJECTED, None)
    assert node.run(slices) == []


def test_notice_of_a_refusal_survives_the_end_of_the_process(node, slices) -> None:
    node = node(REFUSE | {"when": []})
    node.take(slices)
    node.restart()
    (notice,) = node.deliver()
    assert notice.SOPClassUID == Comprehensive3DSRStorage


def test_refusal_without_destination_sends_no_notice(node, slices) -> None:
    node = node({"name": "no", "refuse": "no", "when": []})
    assert node.run(slices) == []


def resent(instances, folder, change):
    """The same instances as an archive would send them again."""
    folder.mkdir()
    paths = []
    for number, each in enumerate(instances):
        image = dcmread(each.path)
        change(image)
        paths.append(folder / f"{number}.dcm")
        image.save_as(paths[-1], enforce_file_format=True)
    return read_headers(paths)


def by_the_archive(time):
    def change(image):
        image.private_block(0x0009, "ARCHIVE", create=True).add_new(0x01, "LO", f"sent at {time}")
        image.RetrieveAETitle = "PACS"
        image.InstanceAvailability = "ONLINE"

    return change


def as_jpeg_ls(image):
    image.compress(JPEGLSLossless, encoding_plugin="pyjpegls", generate_instance_uid=False)


def shifted(image):
    image.RescaleIntercept = float(image.RescaleIntercept) + 5


def test_series_resent_with_other_bytes_and_the_same_content_changes_nothing(node, slices, tmp_path) -> None:
    node = node(EVERY_CT | {"destinations": ["pacs"]})
    assert len(node.run(slices)) == 2
    assert node.run(resent(slices, tmp_path / "1", by_the_archive("noon"))) == []
    assert node.run(resent(slices, tmp_path / "2", by_the_archive("night"))) == []
    assert node.run(resent(slices, tmp_path / "3", as_jpeg_ls)) == []
    assert node.run(resent(slices[:2], tmp_path / "4", by_the_archive("dawn"))) == []
    (job,) = node.ledger.overview.jobs(9)
    series = node.ledger.overview.job(job.id).series
    assert series.bytes_digest == series.content_digest
    assert node.ledger.routing.due_revisions() == ()


@pytest.mark.parametrize("again", [None, by_the_archive("noon"), as_jpeg_ls], ids=["as before", "archive", "JPEG-LS"])
def test_content_received_last_has_the_newest_results(node, slices, tmp_path, again) -> None:
    node = node(EVERY_CT | {"destinations": ["pacs"]})
    first = node.run(slices)
    _, other = node.run(resent(slices, tmp_path / "b", shifted))
    back = resent(slices, tmp_path / "a", again) if again else slices
    seg, sr = node.run(back)
    assert not {each.SOPInstanceUID for each in first} & {seg.SOPInstanceUID, sr.SOPInstanceUID}
    assert predecessors(sr) == [(other.SeriesInstanceUID, other.SOPInstanceUID)]
    assert "rev 3" in seg.SeriesDescription
    assert "Supersedes the results of revision 2" in seg.ImageComments
    assert node.run(resent(slices, tmp_path / "c", by_the_archive("night"))) == []


def test_series_with_one_changed_image_is_segmented_again(node, slices, tmp_path) -> None:
    node = node(EVERY_CT | {"destinations": ["pacs"]})
    node.run(slices)

    def change(image):
        by_the_archive("noon")(image)
        if image.SOPInstanceUID == slices[2].header.SOPInstanceUID:
            pixels = bytearray(image.PixelData)
            pixels[0] ^= 1
            image.PixelData = bytes(pixels)

    assert len(node.run(resent(slices, tmp_path / "1", change))) == 2


def test_damaged_file_of_an_earlier_revision_does_not_prevent_the_new_one(node, slices, tmp_path) -> None:
    node = node(EVERY_CT | {"destinations": ["pacs"]})
    node.run(slices)
    for name in node.spool.names(older_than_s=-1):
        path = node.spool.path(name)
        path.write_bytes(path.read_bytes()[:200])
    assert len(node.run(resent(slices, tmp_path / "1", by_the_archive("noon")))) == 2


def test_identical_pixel_bytes_are_not_decoded_for_comparison(node, slices, tmp_path, monkeypatch) -> None:
    node = node(EVERY_CT | {"destinations": ["pacs"]})
    node.run(slices)
    asked = []
    content = ImageReader.content

    def noted(reader, path, *, with_pixels):
        asked.append(with_pixels)
        return content(reader, path, with_pixels=with_pixels)

    monkeypatch.setattr(ImageReader, "content", noted)
    assert node.run(resent(slices, tmp_path / "1", by_the_archive("noon"))) == []
    assert asked == [False] * 2 * len(slices)
    assert node.run(resent(slices, tmp_path / "2", as_jpeg_ls)) == []
    assert asked[2 * len(slices) :] == [True] * 2 * len(slices)


def corrected(image):
    image.PatientID = "T1-MERGED"
    image.PatientName = "Merged^Name"
    image.StudyInstanceUID = "1.2.3.4"


def inferences(monkeypatch):
    """Volumes passed to the model from now on."""
    seen = []
    prepare = WorkerPool.prepare
    monkeypatch.setattr(WorkerPool, "prepare", lambda *args: (seen.append(args[2]), prepare(*args))[1])
    return seen


@pytest.fixture
def tissues(tmp_path):
    """Five planes with several tissues."""
    (tmp_path / "tissues").mkdir()
    hu = np.full((5, 16, 16), 40 + 1024, np.uint16)
    hu[:, 4:8, 4:8], hu[1:4, 10:14, 10:14] = 900, 1024 + 600
    return write(tmp_path / "tissues", Stack(hu, row_spacing_mm=8.0, column_spacing_mm=8.0)).instances


@pytest.mark.parametrize("form", ["binary", "labelmap", "both"])
def test_corrected_patient_gets_new_results_with_the_existing_labels(
    node, tissues, tmp_path, monkeypatch, form
) -> None:
    node = node(EVERY_CT | {"destinations": [{"to": "pacs", "segmentation": form}]})
    *_, old = before = node.run(tissues)
    inferred = inferences(monkeypatch)
    *_, sr = after = node.run(resent(tissues, tmp_path / "1", corrected))
    assert inferred == []
    assert {str(each.PatientID) for each in after} == {"T1-MERGED"}
    assert {str(each.StudyInstanceUID) for each in after} == {"1.2.3.4"}
    assert not {each.SOPInstanceUID for each in before} & {each.SOPInstanceUID for each in after}
    assert predecessors(sr) == [(old.SeriesInstanceUID, old.SOPInstanceUID)]
    for earlier, later in zip(before[:-1], after[:-1], strict=True):
        assert later.PixelData == earlier.PixelData
        assert [s.SegmentLabel for s in later.SegmentSequence] == [s.SegmentLabel for s in earlier.SegmentSequence]
    # a second correction reuses the labels of the first
    assert len(node.run(resent(tissues, tmp_path / "2", lambda image: setattr(image, "PatientID", "T1-AGAIN"))))
    assert inferred == []
    third, second, _ = (node.ledger.overview.job(job.id).run_report for job in node.ledger.overview.jobs(9))
    assert [note.text for note in second.notes] == ["labels taken from job 1, which has the same images"]
    assert [note.text for note in third.notes[1:]] == ["labels taken from job 2, which has the same images"]
    assert second.stage_seconds == third.stage_seconds == {}


def test_correction_received_in_two_parts_reuses_the_labels_of_the_original(
    node, tissues, tmp_path, monkeypatch
) -> None:
    node = node(EVERY_CT | {"destinations": ["pacs"]})
    node.run(tissues)
    inferred = inferences(monkeypatch)
    assert node.run(resent(tissues[:2], tmp_path / "1", corrected)) == []  # two patients in one series
    assert len(node.run(resent(tissues[2:], tmp_path / "2", corrected))) == 2
    assert inferred == []


def without_labels(node):
    for job in node.ledger.overview.jobs(9):
        for result in node.ledger.overview.job(job.id).results:
            node.spool.delete(result.spool_name)


def with_damaged_labels(node):
    for job in node.ledger.overview.jobs(9):
        for result in node.ledger.overview.job(job.id).results:
            path = node.spool.path(result.spool_name)
            content = bytearray(path.read_bytes())
            content[-20] ^= 0xFF
            path.write_bytes(content)


@pytest.mark.parametrize("forget", [without_labels, with_damaged_labels])
def test_corrected_patient_without_usable_labels_is_segmented_again(
    node, tissues, tmp_path, monkeypatch, forget
) -> None:
    node = node(EVERY_CT | {"destinations": ["pacs"]})
    node.run(tissues)
    forget(node)
    inferred = inferences(monkeypatch)
    assert len(node.run(resent(tissues, tmp_path / "1", corrected))) == 2
    assert len(inferred) == 1


@pytest.mark.parametrize(
    "request_", [{"structures": ["bone_tissue"]}, {"split": "group"}, {"segmentation": "none"}], ids=str
)
def test_labels_only_partly_in_the_spool_are_not_reused(node, tissues, tmp_path, monkeypatch, request_) -> None:
    node = node(EVERY_CT | {"destinations": [{"to": "pacs"} | request_]})
    node.run(tissues)
    inferred = inferences(monkeypatch)
    assert node.run(resent(tissues, tmp_path / "1", corrected))
    assert len(inferred) == 1


def test_labels_of_another_version_of_the_node_are_not_reused(node, tissues, tmp_path, monkeypatch) -> None:
    node = node(EVERY_CT | {"destinations": ["pacs"]})
    node.run(tissues)
    inferred = inferences(monkeypatch)
    monkeypatch.setattr("dicom_node.pipeline.reusing.NODE_SOFTWARE", "dicom-node 99.0.0")
    assert len(node.run(resent(tissues, tmp_path / "1", corrected))) == 2
    assert len(inferred) == 1


def test_labels_of_a_tilted_gantry_are_not_reused(node, tmp_path, monkeypatch) -> None:
    (tmp_path / "tilted").mkdir()
    hu = np.full((5, 16, 16), 40 + 1024, np.uint16)
    hu[:, 4:8, 4:8] = 900
    stack = Stack(hu, step_mm=(0.0, 1.0, 2.5), row_spacing_mm=8.0, column_spacing_mm=8.0)
    tilted = write(tmp_path / "tilted", stack).instances
    node = node(EVERY_CT | {"destinations": ["pacs"]})
    seg, _ = node.run(tilted)
    inferred = inferences(monkeypatch)
    again, _ = node.run(resent(tilted, tmp_path / "1", corrected))
    assert len(inferred) == 1
    assert again.PixelData == seg.PixelData


def test_labels_of_another_model_or_of_other_images_are_not_reused(node, tissues, tmp_path, monkeypatch) -> None:
    node = node(EVERY_CT | {"destinations": ["pacs"]})
    node.run(tissues)
    inferred = inferences(monkeypatch)

    def other(image):
        corrected(image)
        shifted(image)

    assert len(node.run(resent(tissues, tmp_path / "1", other))) == 2
    assert len(inferred) == 1
    monkeypatch.setattr("inference.tissue.VERSION", "2")  # the model as currently installed
    assert len(node.run(resent(tissues, tmp_path / "2", shifted))) == 2
    assert len(inferred) == 2
