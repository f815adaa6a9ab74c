"""A series arrives by C-STORE and its SEG and SR end up in the PACS: real CT, real Orthanc, real DCMTK."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from typing import TYPE_CHECKING

import highdicom
import numpy as np
import pytest
import yaml
from pydicom import dcmread

from dicom_node.demo.pacs import Peer, outgoing_files
from dicom_node.demo.phantom_series import write_series
from dicom_node.demo.processes import Program
from dicom_node.reconstruct import reconstruct
from dicom_node.results import read_report
from dicom_node.standard.files import read_series_folder
from dicom_node.store.spool import Spool
from dicom_node.store.states import DeliveryState, JobState
from inference.phantom import phantom
from inference.tissue import TissueSegmenter
from tests.support.ports import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.acceptance

REAL_SERIES = (
    "derived/totalsegmentator_example_sendable",
    "theibsi+data_sets/STS_008_CT",
    "ShahinSHH+COVID-CT-MD/cap001_subset",
)
PROPOSE = {"1.2.840.10008.1.2.4.90": ("-xv",), "1.2.840.10008.1.2.4.70": ("-xs",)}
"""The storescu option that proposes the files' transfer syntax."""


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def the_series(folder: Path):
    (series,) = read_series_folder(folder)
    return series


def propose(series) -> tuple[str, ...]:
    return PROPOSE.get(str(series.instances[0].header.file_meta.TransferSyntaxUID), ())


def fetched(pacs, study_uid, folder):
    """The study's only SEG and only SR, as returned by the PACS."""
    (seg,) = pacs.fetch(study_uid, "SEG", folder)
    (report,) = pacs.fetch(study_uid, "SR", folder)
    return seg, report


def labels_by_source_image(seg: Path, reconstruction):
    """The label map, one plane per source image, and its segment names, as read by highdicom."""
    read = highdicom.seg.segread(seg)
    labels_zyx = read.get_pixels_by_source_instance(
        [frame.sop_instance_uid for frame in reconstruction.frames],
        combine_segments=True,
        relabel=False,
        assert_missing_frames_are_empty=True,
    )
    names = {number: read.get_segment_description(number).segment_label for number in read.segment_numbers}
    return labels_zyx, names


def plain(name: str) -> str:
    return name.replace("_", " ").casefold()


@pytest.fixture(scope="module")
def chest(tmp_path_factory) -> Path:
    """A coarse chest phantom as a CT series."""
    folder = tmp_path_factory.mktemp("ct")
    write_series(phantom(11, (3.0, 3.0, 6.0), "chest"), folder)
    return folder


@pytest.mark.parametrize("name", REAL_SERIES)
def test_real_ct_yields_seg_and_sr_in_its_own_study(name, shared_data, orthanc, make_node, tmp_path):
    node = make_node({"pacs": orthanc.peer})
    node.start()
    series = the_series(shared_data / name)
    sent = node.send(files_of(shared_data / name), *propose(series))
    assert sent.returncode == 0, sent.stderr[-2000:]
    node.wait_for_state(series.series_instance_uid, JobState.DELIVERED)

    seg, report = fetched(orthanc, series.study_instance_uid, tmp_path / "results")
    reconstruction = reconstruct(series)
    truth = TissueSegmenter().segment(reconstruction.volume, lambda *_: None)
    labels_zyx, names = labels_by_source_image(seg, reconstruction)
    for label, own_name in truth.names_by_label.items():
        received = [number for number, title in names.items() if plain(title) == plain(own_name)]
        assert len(received) == int((truth.labels_zyx == label).any()), own_name
        for number in received:
            np.testing.assert_array_equal(labels_zyx == number, truth.labels_zyx == label, err_msg=own_name)
    assert dcmread(seg).get("PatientID") == series.instances[0].header.get("PatientID")
    assert len(read_report(report)) == len(names)


def test_phantom_results_keep_left_and_right(orthanc, make_node, tmp_path):
    node = make_node({"pacs": orthanc.peer}, model="demo")
    node.start()
    made = phantom(901, (2.0, 2.0, 4.0))
    write_series(made, tmp_path / "ct")
    series = the_series(tmp_path / "ct")
    assert node.send(files_of(tmp_path / "ct")).returncode == 0
    job = node.wait_for_state(series.series_instance_uid, JobState.DELIVERED, limit_s=300)
    assert node.job(job["id"])["model_identity"]["name"] == "phantom_demo_104"
    told = json.loads(node.ask("job", str(job["id"]), "--json").stdout)
    assert told == node.job(job["id"])

    seg, _ = fetched(orthanc, series.study_instance_uid, tmp_path / "results")
    reconstruction = reconstruct(series)
    labels_zyx, names = labels_by_source_image(seg, reconstruction)
    number_by_name = {plain(title): number for number, title in names.items()}
    dice = {}
    for label, own_name in made.truth.names_by_label.items():
        true = made.truth.labels_zyx == label
        if true.any():
            found = labels_zyx == number_by_name.get(plain(own_name), 255)
            dice[own_name] = 2 * (true & found).sum() / (true.sum() + found.sum())
    assert np.mean(list(dice.values())) > 0.7
    assert centroid_lps(labels_zyx == number_by_name["liver"], reconstruction)[0] < 0, "the liver is on the right"
    assert centroid_lps(labels_zyx == number_by_name["spleen"], reconstruction)[0] > 0, "the spleen is on the left"
    for left, right in ((name, name.replace("left", "right")) for name in dice if "left" in name):
        if right in dice:
            crossed = made.truth.labels_zyx == label_of(made, left)
            wrong = (labels_zyx == number_by_name.get(plain(right), 255)) & crossed
            # paired structures that share a wall (the atria) overlap a little; after a swap nearly all would be wrong
            assert wrong.sum() <= 0.1 * crossed.sum(), f"{left} labelled as {right}"


def label_of(made, name):
    return next(label for label, title in made.truth.names_by_label.items() if title == name)


def centroid_lps(mask_zyx, reconstruction):
    z, y, x = (axis.mean() for axis in np.nonzero(mask_zyx))
    return (reconstruction.source.geometry.affine_lps @ [x, y, z, 1.0])[:3]


def test_late_image_creates_a_superseding_revision_and_a_resend_changes_nothing(chest, orthanc, make_node, tmp_path):
    node = make_node({"pacs": orthanc.peer})
    node.start()
    series, files = the_series(chest), files_of(chest)
    early = sorted(files, key=lambda path: float(dcmread(path, stop_before_pixels=True).ImagePositionPatient[2]))
    assert node.send(early[:-1]).returncode == 0
    node.wait_for_state(series.series_instance_uid, JobState.DELIVERED)
    assert node.send(early[:-1]).returncode == 0
    wait_until(lambda: node.log_text().count('"association.closed"') == 2)
    assert node.ledger().overview.counts().series == {"ROUTED": 1}  # nothing is left that could become a job
    assert len(node.jobs()) == 1
    assert node.send(early[-1:]).returncode == 0
    node.wait_for_state(series.series_instance_uid, JobState.DELIVERED, revision=2)

    segs = [dcmread(path) for path in orthanc.fetch(series.study_instance_uid, "SEG", tmp_path / "results")]
    assert len(segs) == 2
    planes = [
        len({str(i.PlanePositionSequence[0].ImagePositionPatient) for i in seg.PerFrameFunctionalGroupsSequence})
        for seg in segs
    ]
    old, new = (segs[index] for index in np.argsort(planes))
    assert old.SeriesInstanceUID != new.SeriesInstanceUID
    assert str(old.SeriesInstanceUID) in str(new.to_json()), "the new result names the result it replaces"
    reports = [dcmread(path) for path in orthanc.fetch(series.study_instance_uid, "SR", tmp_path / "reports")]
    replaced = {
        str(report.SOPInstanceUID): [
            str(sop.ReferencedSOPInstanceUID)
            for study in report.get("PredecessorDocumentsSequence") or ()
            for named in study.ReferencedSeriesSequence
            for sop in named.ReferencedSOPSequence
        ]
        for report in reports
    }
    (first,) = (uid for uid, named in replaced.items() if not named)
    assert [named for named in replaced.values() if named] == [[first]]


def test_pacs_that_was_down_gets_everything_later_and_delays_no_other_destination(chest, orthanc, make_node, tmp_path):
    dead = Peer("LATEPACS", free_port())
    node = make_node({"pacs": orthanc.peer, "late": dead})
    node.start()
    series = the_series(chest)
    assert node.send(files_of(chest)).returncode == 0
    job = node.wait_for(lambda job: job["state"] == JobState.ENCODED)
    wait_until(lambda: orthanc.fetch(series.study_instance_uid, "SR", tmp_path / "first"))
    states = {(d["destination"], d["state"]) for d in node.job(job["id"])["deliveries"]}
    assert ("late", DeliveryState.WAITING) in states

    (tmp_path / "late").mkdir()
    command = ["storescp", "-aet", dead.ae_title, "-od", str(tmp_path / "late"), "+xa", str(dead.port)]
    with Program("late PACS", command, tmp_path / "late.log"):
        node.wait_for_state(series.series_instance_uid, JobState.DELIVERED)
    late = {dcmread(path).SOPInstanceUID for path in files_of(tmp_path / "late")}
    first = {
        dcmread(p).SOPInstanceUID
        for m in ("SEG", "SR")
        for p in orthanc.fetch(series.study_instance_uid, m, tmp_path / "r")
    }
    assert late == first


def test_sigkill_loses_nothing_and_leaves_one_result_set(chest, orthanc, make_node, tmp_path):
    rng = random.Random("receive")
    node = make_node({"pacs": orthanc.peer})
    node.start()
    series, files = the_series(chest), files_of(chest)
    acknowledged: set[str] = set()
    for _ in range(3):
        sending = start_sending(node, files)
        time.sleep(rng.uniform(0.2, 1.2))
        node.kill()
        acknowledged |= acknowledged_files(sending)
        node.start()
        assert acknowledged <= kept_files(node, files)
    assert node.send(files).returncode == 0
    node.wait_for_state(series.series_instance_uid, JobState.DELIVERED, latest_revision(node, series), limit_s=180)
    delivered = [job for job in node.jobs() if job["state"] == JobState.DELIVERED]
    segs = orthanc.fetch(series.study_instance_uid, "SEG", tmp_path / "results")
    reports = orthanc.fetch(series.study_instance_uid, "SR", tmp_path / "results")
    assert (len(segs), len(reports)) == (len(delivered), len(delivered))
    labels_zyx, _ = labels_by_source_image(segs[-1], reconstruct(series))
    assert labels_zyx.any()


def latest_revision(node, series) -> int:
    """Wait for the job of the revision that contains the whole series."""
    count = len(series.instances)
    job = node.wait_for(lambda job: node.job(job["id"])["series"]["evidence"]["instance_count"] == count)
    return job["revision"]


def start_sending(node, files):
    command = [
        "storescu",
        "-v",
        "-aet",
        "SCANNER",
        "-aec",
        node.peer.ae_title,
        "127.0.0.1",
        str(node.peer.port),
        *map(str, files),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "TCP_NODELAY": "1"}
    )


def acknowledged_files(sending) -> set[str]:
    """SOP Instance UIDs of the files whose C-STORE response was Success."""
    output, _ = sending.communicate(timeout=60)
    found, current = set(), None
    for line in output.splitlines():
        if "Sending file:" in line:
            current = line.rpartition(" ")[2]
        if "Received Store Response (Success)" in line and current:
            found.add(str(dcmread(current, stop_before_pixels=True).SOPInstanceUID))
    return found


def kept_files(node, files) -> set[str]:
    """SOP Instance UIDs that the node has stored byte for byte, according to its ledger and spool."""
    spool = Spool(node.folder / "data" / "spool")
    series_uid = str(dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID)
    names, _ = node.ledger().arrivals.current_instances(series_uid)
    pixels = {str(ds.SOPInstanceUID): ds.PixelData for ds in map(dcmread, files)}
    kept = {str(ds.SOPInstanceUID): ds.PixelData for ds in (dcmread(spool.path(name)) for name in names)}
    assert all(pixels[uid] == kept[uid] for uid in kept)
    return set(kept)


def test_bad_input_is_rejected_with_a_reason_and_the_node_runs_on(shared_data, chest, orthanc, make_node, tmp_path):
    node = make_node({"pacs": orthanc.peer})
    node.start()
    refused = {
        "truncated": node.send([shared_data / "derived/truncated/implicit_cut_in_header.dcm"]),
        "wrong class": node.send([shared_data / "pydicom+pydicom/non-CT_and_broken/MR_small.dcm"]),
    }
    for what, sent in refused.items():
        assert "Success" not in sent.stdout + sent.stderr, what
    rejected = {
        "icometrix+dicom2nifti/failing_sliceincrement_001": "gap",
        "pydicom+pydicom/CT_small": "planes: 1",
    }
    for name, word in rejected.items():
        series = the_series(shared_data / name)
        assert node.send(files_of(shared_data / name), *propose(series)).returncode == 0
        job = node.wait_for_state(series.series_instance_uid, JobState.REJECTED)
        assert word in job["reason"], job["reason"]
    two = two_patients(chest, tmp_path / "two")
    assert node.send(files_of(two)).returncode == 0
    job = node.wait_for_state(the_series(two).series_instance_uid, JobState.REJECTED)
    assert "patient" in job["reason"].casefold()
    assert "Intruder" not in node.log_text()

    assert node.send(files_of(chest)).returncode == 0
    node.wait_for_state(the_series(chest).series_instance_uid, JobState.DELIVERED)


def two_patients(source: Path, folder: Path) -> Path:
    """The series under another UID, half of its images with another patient's identity."""
    folder.mkdir()
    for number, path in enumerate(files_of(source)):
        ds = dcmread(path)
        ds.SeriesInstanceUID += ".9"
        ds.SOPInstanceUID += ".9"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        if number % 2:
            ds.PatientID, ds.PatientName = "INTRUDER", "Intruder^In"
        ds.save_as(folder / path.name)
    return folder


def test_results_sent_back_to_the_node_start_no_job(chest, orthanc, make_node, tmp_path):
    node = make_node({"pacs": orthanc.peer})
    node.start()
    series = the_series(chest)
    assert node.send(files_of(chest)).returncode == 0
    node.wait_for_state(series.series_instance_uid, JobState.DELIVERED)
    for result in fetched(orthanc, series.study_instance_uid, tmp_path / "results"):
        returned = node.send([result])
        assert returned.returncode != 0, "SEG and SR are not negotiated"
    assert len(node.jobs()) == 1


def test_series_without_matching_rule_is_listed_with_the_failed_condition(chest, orthanc, make_node):
    node = make_node({"pacs": orthanc.peer})
    rules = node.folder / "rules.yaml"
    rules.write_text(rules.read_text().replace("equals: CT", "equals: NM"))
    node.start()
    series = the_series(chest)
    assert node.send(files_of(chest)).returncode == 0
    job = node.wait_for_state(series.series_instance_uid, JobState.REJECTED)
    assert "Modality" in job["reason"]
    explained = node.ask("rules", "explain", series.series_instance_uid)
    assert explained.returncode == 0
    assert "no rule matched" in explained.stdout


def test_unknown_peers_are_rejected_and_check_reports_the_cause(orthanc, make_node):
    node = make_node({"pacs": orthanc.peer, "gone": Peer("GONE", free_port())})
    node.start()
    stranger = subprocess.run(
        ["echoscu", "-aet", "STRANGER", "-aec", node.peer.ae_title, "127.0.0.1", str(node.peer.port)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert stranger.returncode != 0
    assert "Calling AE Title Not Recognized" in stranger.stderr + stranger.stdout
    checked = node.ask("check", "--json")
    assert checked.returncode == 3
    findings = {line["check"]: line["ok"] for line in json.loads(checked.stdout)}
    assert findings["destination pacs"] is True
    assert findings["destination gone"] is False
    assert findings["rules"]
    assert findings["ledger"]
    assert findings["model tissue"]


def test_senders_instance_count_completes_the_series_at_once(chest, orthanc, make_node):
    node = make_node({"pacs": orthanc.peer})
    settings = yaml.safe_load(node.config.read_text())
    settings["sources"] = [{"ae_title": "DEMOPACS", "count_host": "127.0.0.1", "count_port": orthanc.peer.port}]
    settings["completion"] = {"regular_quiet_s": 600, "otherwise_quiet_s": 600}
    node.config.write_text(yaml.safe_dump(settings))
    node.start()
    series, files = the_series(chest), files_of(chest)
    orthanc.take(outgoing_files(files), lambda _: None)
    assert node.send(files, sender="DEMOPACS").returncode == 0
    job = node.wait_for_state(series.series_instance_uid, JobState.DELIVERED)
    reason = node.job(job["id"])["series"]["reason"]
    assert f"{len(files)} of {len(files)} instances reported by the sender" in reason


def test_no_log_line_contains_the_patient_name(chest, orthanc, make_node):
    node = make_node({"pacs": orthanc.peer})
    node.start()
    series = the_series(chest)
    assert node.send(files_of(chest)).returncode == 0
    node.wait_for_state(series.series_instance_uid, JobState.DELIVERED)
    header = series.instances[0].header
    text = node.log_text()
    assert '"event": "job"' in text
    for value in (str(header.PatientName), str(header.PatientID), str(header.AccessionNumber)):
        assert not value or value not in text
