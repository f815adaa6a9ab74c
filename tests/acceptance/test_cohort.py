"""A cohort from a real Orthanc, killed with SIGKILL while it runs: each series appears once, and all counts agree."""

from __future__ import annotations

import json
import operator
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from dicom_node.cohort.pseudonym import write_new_key
from dicom_node.cohort.table import read_rows, read_without_rows
from dicom_node.demo.pacs import OrthancPacs, Peer, outgoing_files
from dicom_node.demo.phantom_series import write_series
from inference.phantom import phantom
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance

SERIES = 4
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SPACING_MM = (10.0, 10.0, 15.0)


class CohortRun:
    """`dicom-node cohort run` next to a running node."""

    def __init__(self, node, folder, **definition):
        self.node = node
        name = definition.get("name", "ages")
        self.file = folder / f"{name}.yaml"
        self.data_set = folder / name
        if not (folder / "key").exists():
            write_new_key(folder / "key")
        limits = {"free_disk_gib": 0, "at_once": 2, "in_queue": 4}
        self.file.write_text(
            yaml.safe_dump({"name": name, "data_set": name, "key_file": "key", "limits": limits} | definition)
        )

    def start(self, *options) -> subprocess.Popen:
        command = [sys.executable, "-m", "dicom_node.cli", "--config", str(self.node.config), "cohort", "run"]
        return subprocess.Popen(
            [*command, str(self.file), "--json", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self, *options) -> dict:
        run = self.start(*options)
        out, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
        return json.loads(out)

    def kill_after(self, written: int) -> None:
        """Send SIGKILL as soon as that many series have rows."""
        run = self.start()
        wait_until(
            lambda: len(list((self.data_set / "measurements").glob("*.parquet"))) >= written or run.poll() is not None
        )
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
        assert run.returncode == -signal.SIGKILL, "the run had ended before it was killed"


def fill(orthanc, folder, count):
    """Store phantoms of different patients in the archive; return their Series Instance UIDs."""
    uids, files = [], []
    for seed in range(count):
        uids.append(write_series(phantom(seed, SPACING_MM, "chest"), folder / str(seed)))
        files += sorted((folder / str(seed)).iterdir())
    orthanc.take(outgoing_files(files), lambda _: None)
    return uids


def know(orthanc, peer):
    """Tell the archive the node's address, the C-MOVE destination."""
    place, known = f"{orthanc._http}/modalities/node", json.dumps([peer.ae_title, "127.0.0.1", peer.port])
    with urllib.request.urlopen(urllib.request.Request(place, data=known.encode(), method="PUT")):
        pass


def archive_of(orthanc, retrieve):
    peer = orthanc.peer
    if retrieve == "wado-rs":
        return {"web_archive": {"url": f"{orthanc._http}/dicom-web"}}
    return {"archive": {"retrieve": retrieve, "host": "127.0.0.1", "port": peer.port, "ae_title": peer.ae_title}}


@pytest.fixture
def orthanc(tmp_path):
    """Orthanc, with its DICOMweb plugin if installed."""
    program = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("Orthanc is not installed (apt: orthanc)")
    pacs = OrthancPacs(program, tmp_path / "orthanc", Peer("TESTNODE", free_port()))
    pacs._configuration["Plugins"] = [str(DICOMWEB)] if DICOMWEB.exists() else []
    with pacs:
        yield pacs


@pytest.mark.parametrize("retrieve", ["c-get", "c-move", "wado-rs"])
def test_cohort_killed_twice_contains_each_series_once(orthanc, make_node, tmp_path, retrieve):
    if retrieve == "wado-rs" and not DICOMWEB.exists():
        pytest.skip("the DICOMweb plugin is not installed (apt: orthanc-dicomweb)")
    uids = fill(orthanc, tmp_path / "ct", SERIES)
    node = make_node({"pacs": orthanc.peer})
    know(orthanc, node.peer)
    node.start()
    cohort = CohortRun(
        node,
        tmp_path,
        model="tissue",
        **archive_of(orthanc, retrieve),
        query={"StudyDate": "20200101-20201231", "Modality": "CT"},
        destinations=["pacs"],
    )
    cohort.kill_after(1)
    cohort.kill_after(2)
    summary = cohort.finish()
    assert {key: summary[key] for key in ("selected", "done", "refused", "failed", "waiting")} == {
        "selected": SERIES,
        "done": SERIES,
        "refused": 0,
        "failed": 0,
        "waiting": 0,
    }
    rows = read_rows(cohort.data_set).to_pylist()
    keys = [(row["series"], row["structure"]) for row in rows]
    assert len(keys) == len(set(keys)) == summary["rows"]
    assert len({row["series"] for row in rows}) == len({row["pseudonym"] for row in rows}) == SERIES
    assert read_without_rows(cohort.data_set).num_rows == 0
    jobs = node.jobs()
    assert sorted(job["series_instance_uid"] for job in jobs) == sorted(uids), "one job for each series"
    assert {(job["rule"], job["priority"], job["state"]) for job in jobs} == {("cohort ages", -1000, "DELIVERED")}
    assert orthanc._get("/statistics")["CountSeries"] == 3 * SERIES, "one CT, SEG and SR for each series"
    text = cohort.data_set.joinpath("dataset.json").read_text() + str(rows)
    assert "PHANTOM" not in text
    assert not any(uid in text for uid in uids)

    if retrieve == "c-move":  # the listener accepts CT only
        return
    reports = CohortRun(
        node,
        tmp_path,
        name="reports",
        stored_reports=True,
        query={"StudyDate": "20200101-20201231"},
        **archive_of(orthanc, retrieve),
    )
    read = reports.finish()
    assert (read["selected"], read["done"], read["rows"]) == (SERIES, SERIES, len(rows))
    scanned = ("manufacturer", "scanner_model", "kernel", "contrast", "slice_thickness_mm", "kvp")
    unknown = dict.fromkeys(scanned) | {"origin": "stored report"}
    order = operator.itemgetter("series", "structure")
    assert sorted(read_rows(reports.data_set).to_pylist(), key=order) == sorted(
        (row | unknown for row in rows), key=order
    )
