"""A cohort from a real Orthanc, killed -9 on its way: every series once, and all counts agree."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest
import yaml

from dicom_node.cohort.pseudonym import write_new_key
from dicom_node.cohort.table import read_rows, read_without_rows
from dicom_node.demo.pacs import outgoing_files
from dicom_node.demo.phantom_series import write_series
from inference.phantom import phantom
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance

SERIES = 6
SPACING_MM = (10.0, 10.0, 15.0)


class CohortRun:
    """`dicom-node cohort run` beside a node."""

    def __init__(self, node, folder, **definition):
        self.node = node
        self.file = folder / "cohort.yaml"
        self.data_set = folder / "table"
        write_new_key(folder / "key")
        limits = {"free_disk_gib": 0, "at_once": 2, "in_queue": 4}
        self.file.write_text(
            yaml.safe_dump(
                {"name": "ages", "data_set": "table", "key_file": "key", "model": "tissue", "limits": limits}
                | definition
            )
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
        """kill -9 as soon as that many series have their rows."""
        run = self.start()
        wait_until(
            lambda: len(list((self.data_set / "measurements").glob("*.parquet"))) >= written or run.poll() is not None
        )
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
        assert run.returncode == -signal.SIGKILL, "it had ended before it was killed"


def fill(orthanc, folder, count):
    """Phantoms of different patients in the archive; their Series Instance UIDs."""
    uids, files = [], []
    for seed in range(count):
        uids.append(write_series(phantom(seed, SPACING_MM, "chest"), folder / str(seed)))
        files += sorted((folder / str(seed)).iterdir())
    orthanc.take(outgoing_files(files), lambda _: None)
    return uids


def know(orthanc, peer):
    """Tell the archive where the node listens, to which it moves instances."""
    place, known = f"{orthanc._http}/modalities/node", json.dumps([peer.ae_title, "127.0.0.1", peer.port])
    with urllib.request.urlopen(urllib.request.Request(place, data=known.encode(), method="PUT")):
        pass


def archive_of(orthanc, retrieve):
    peer = orthanc.peer
    return {"retrieve": retrieve, "host": "127.0.0.1", "port": peer.port, "ae_title": peer.ae_title}


@pytest.mark.parametrize("retrieve", ["c-get", "c-move"])
def test_a_cohort_that_is_killed_twice_has_every_series_once(orthanc, make_node, tmp_path, retrieve):
    uids = fill(orthanc, tmp_path / "ct", SERIES)
    node = make_node({"pacs": orthanc.peer})
    know(orthanc, node.peer)
    node.start()
    cohort = CohortRun(
        node,
        tmp_path,
        archive=archive_of(orthanc, retrieve),
        query={"StudyDate": "20200101-20201231", "Modality": "CT"},
        destinations=["pacs"],
    )
    cohort.kill_after(1)
    cohort.kill_after(3)
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
    assert orthanc._get("/statistics")["CountSeries"] == 3 * SERIES, "CT, SEG and SR of each, none twice"
    text = cohort.data_set.joinpath("dataset.json").read_text() + str(rows)
    assert "PHANTOM" not in text
    assert not any(uid in text for uid in uids)
