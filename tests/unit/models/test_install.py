"""Installation from folders, zips and URLs into the library: complete or not at all."""

import json
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from inference.errors import ModelDigestError, ModelPackageError
from inference.models import sources, tasks
from inference.models.install import Stated, install
from inference.models.library import installed, read, remove
from inference.models.package import Crop
from inference.models.tasks import Task, TaskPart
from inference.structures import catalogue, paper_labels
from tests.support.nnunet_models import plans, write_model
from tests.unit.models.web import serving

ROOT = Path(__file__).parents[3]
MODEL = "nnUNetTrainer__nnUNetPlans__3d_fullres"
TWO = Task(
    name="two",
    title="two small parts",
    version="2.0.0",
    licence="Apache-2.0",
    folds=("0",),
    spacing_xyz_mm=(4.0, 4.0, 4.0),
    window_step=0.8,
    crop=Crop("total_6mm", ("liver",), (20.0, 20.0, 20.0)),
    structures=("aorta", "liver", "spleen"),
    parts=(
        TaskPart("Dataset901_a", MODEL, "v2.0.0-weights", ("liver", "spleen")),
        TaskPart("Dataset902_b", MODEL, "v2.0.0-weights", ("aorta",)),
    ),
)
ONE = replace(
    TWO, name="one", structures=("liver",), parts=(TaskPart("Dataset903_c", MODEL, None, ("liver",)),), crop=None
)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    table = {"two": TWO, "one": ONE, "total_v1": tasks.task("total_v1")}
    monkeypatch.setattr(sources, "tasks", lambda: table)
    monkeypatch.setattr(tasks, "tasks", lambda: table)
    return table


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    results = tmp_path_factory.mktemp("made") / "nnunet" / "results"
    write_model(results / "Dataset901_a" / MODEL, names=("liver", "spleen"), folds=(0, 1))
    write_model(results / "Dataset902_b" / MODEL, names=("aorta",))
    write_model(results / "Dataset903_c" / MODEL, names=("liver",))
    return results


@pytest.fixture
def results(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "home" / "nnunet" / "results"))


@pytest.fixture
def library(tmp_path):
    return tmp_path / "library"


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def put(library, *given, **stated):
    return install([str(source) for source in given], library, Stated(**stated), lambda *_: None)


def visible(library):
    return sorted(path.name for path in library.iterdir() if path.name not in (".lock", "pins.json", ".downloads"))


def test_task_is_found_in_totalsegmentators_folder(results, library):
    package = put(library, results.parents[1], task="two")
    assert installed(library) == ("two",)
    assert package.names_by_label == {1: "aorta", 2: "liver", 3: "spleen"}
    assert [dict(part.names_by_channel) for part in package.parts] == [{1: "liver", 2: "spleen"}, {1: "aorta"}]
    assert [len(part.weights) for part in package.parts] == [1, 1]  # fold 0, as stated by the task
    assert (package.resampling, package.window_step, package.crop) == ("corners", 0.8, TWO.crop)
    assert (package.licence, package.identity.version) == ("Apache-2.0", "2.0.0")
    assert package.source.startswith(f"Dataset901_a/{MODEL}, Dataset902_b/{MODEL} (checkpoints: SHA-256 ")


def test_task_is_inferred_from_folder_names_only_if_unambiguous(results, library):
    assert put(library, results / "Dataset903_c").identity.name == "one"
    with pytest.raises(ModelPackageError, match="found models of two, one"):
        put(library, results)
    with pytest.raises(ModelPackageError, match="parts of two are missing: Dataset902_b"):
        put(library, results / "Dataset901_a")


def test_missing_parts_are_refused_by_name(results, library):
    shutil.rmtree(results / "Dataset902_b")
    with pytest.raises(ModelPackageError, match=f"parts of two are missing: Dataset902_b/{MODEL}"):
        put(library, results, task="two")
    (results / "Dataset903_c" / MODEL / "fold_0" / "checkpoint_final.pth").unlink()
    with pytest.raises(ModelPackageError, match="has no fold_0/checkpoint_final"):
        put(library, results, task="one")
    assert visible(library) == []


def test_labels_other_than_the_tasks_are_refused_by_name(results, library):
    file = results / "Dataset901_a" / MODEL / "dataset.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"labels": {"background": 0, "liver": 1, "brain": 2}}))
    with pytest.raises(ModelPackageError, match=r"Dataset901_a: dataset\.json lacks spleen; not in the task: brain"):
        put(library, results, task="two")
    file.write_text(json.dumps(content | {"labels": {"background": 0, "liver": 2, "spleen": 1}}))
    with pytest.raises(ModelPackageError, match=r"label 1 of dataset\.json is spleen, expected liver"):
        put(library, results, task="two")
    assert visible(library) == []


def test_spacing_other_than_the_tasks_is_refused(results, library):
    shutil.rmtree(results / "Dataset903_c")
    write_model(results / "Dataset903_c" / MODEL, names=("liver",), described=plans(spacing=(4.0, 4.0, 3.0)))
    with pytest.raises(ModelPackageError, match=r"was trained at \(3.0, 4.0, 4.0\) mm; one uses \(4.0, 4.0, 4.0\)"):
        put(library, results, task="one")


def test_parts_with_other_names_are_recognised_by_their_labels(results, library, tmp_path):
    a = shutil.move(results / "Dataset901_a" / MODEL, tmp_path / "first")
    b = shutil.move(results / "Dataset902_b" / MODEL, tmp_path / "second")
    assert put(library, b, a, task="two").parts[0].names_by_channel == {1: "liver", 2: "spleen"}


def test_any_nnunet_model_is_installed_under_the_given_name(tmp_path, library):
    folder = write_model(tmp_path / "mine", names=("liver", "brain"), folds=(0, 1))
    with pytest.raises(ModelPackageError, match="give it a name"):
        put(library, folder)
    package = put(
        library, folder, name="mine", licence="ours", intended_use="Study 7 only", minimum_slices=5, version="3"
    )
    assert (package.identity.name, package.identity.version, package.licence) == ("mine", "3", "ours")
    assert (package.identity.intended_use, package.minimum_slices) == ("Study 7 only", 5)
    assert (package.resampling, package.window_step, len(package.parts[0].weights)) == ("nnunet", 0.5, 2)
    with pytest.raises(ModelPackageError, match="already has a model named 'mine'"):
        put(library, folder, name="mine")
    with pytest.raises(ModelPackageError, match="letters, digits"):
        put(library, folder, name="../mine")


def test_104_structures_of_the_paper_may_be_divided_into_any_parts(tmp_path, library):
    names = list(paper_labels().values())
    described = plans(spacing=(1.5, 1.5, 1.5))
    a = write_model(tmp_path / "a", names=names[60:], described=described)
    b = write_model(tmp_path / "b", names=names[:59], described=described)
    with pytest.raises(ModelPackageError, match=f"lacks {names[59]};"):
        put(library, a, b, task="total_v1")
    c = write_model(tmp_path / "c", names=names[:60], described=described)
    assert put(library, a, c, task="total_v1").names_by_label == paper_labels()
    with pytest.raises(ModelPackageError, match="no nnU-Net v2 weights have been released"):
        put(tmp_path / "other", "total_v1")


def test_zips_are_found_in_a_folder_or_named(results, library, tmp_path):
    sticks = tmp_path / "stick"
    sticks.mkdir()
    a = zipped(results / "Dataset901_a", sticks / "Dataset901_a.zip")
    b = zipped(results / "Dataset902_b", sticks / "Dataset902_b.zip")
    from_folder = put(library, results, task="two")
    remove(library, "two")
    from_zips = put(library, a, b)
    assert from_zips.identity == from_folder.identity  # the same model, whatever it was installed from
    assert from_zips.source.startswith("Dataset901_a.zip (SHA-256 ")
    remove(library, "two")
    assert put(library, sticks, task="two").identity == from_folder.identity
    assert visible(library) == ["two"]


def test_auxiliary_structures_of_a_task_are_not_labels(results, library, known):
    known["two"] = replace(TWO, structures=("aorta", "liver"), auxiliary=("spleen",))
    package = put(library, results, task="two")
    assert (package.names_by_label, package.auxiliary) == ({1: "aorta", 2: "liver"}, ("spleen",))
    assert package.parts[0].names_by_channel == {1: "liver", 2: "spleen"}
    assert read(library, "two") == package


def test_any_name_may_be_given(results, library, tmp_path):
    path = zipped(results / "Dataset903_c", tmp_path / "c.zip")
    for name in ("sources", "removed-sources"):
        assert put(library, path, name=name).identity.name == name
    remove(library, "sources")
    assert visible(library) == ["removed-sources"]


def test_zip_must_have_the_stated_digest(results, library, tmp_path):
    path = zipped(results / "Dataset903_c", tmp_path / "c.zip")
    with pytest.raises(ModelDigestError, match=r"c\.zip has the SHA-256"):
        put(library, path, sha256="0" * 64)
    with pytest.raises(ModelPackageError, match="a single zip only"):
        put(library, results / "Dataset903_c", sha256="0" * 64)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ModelPackageError, match=r"^c\.zip "):
        put(library, path)
    assert visible(library) == []


def test_task_is_downloaded_by_name_and_its_files_are_pinned(results, library, tmp_path, monkeypatch):
    with serving() as site:
        monkeypatch.setattr(tasks, "_RELEASES", site.url)
        for part in TWO.parts:
            content = zipped(results / part.dataset, tmp_path / "part.zip").read_bytes()
            site.files[f"/v2.0.0-weights/{part.dataset}.zip"] = content
        site.cut_after = [1000]
        package = put(library, "two")
        assert package.source.count("/v2.0.0-weights/Dataset90") == 2
        assert list((library / ".downloads").iterdir()) == []
        assert visible(library) == ["two"]
        remove(library, "two")
        assert put(library, "two").identity == package.identity
        remove(library, "two")
        (results / "Dataset902_b" / MODEL / "readme").write_text("another file, so another zip")
        changed = zipped(results / "Dataset902_b", tmp_path / "part.zip").read_bytes()
        site.files["/v2.0.0-weights/Dataset902_b.zip"] = changed + b"x"
        with pytest.raises(ModelDigestError, match=r"Dataset902_b\.zip gave a file with the SHA-256 .* before"):
            put(library, "two")
        assert visible(library) == []


def test_without_a_network_the_error_says_what_to_do(library, monkeypatch):
    monkeypatch.setattr(tasks, "_RELEASES", "http://127.0.0.1:9")
    with pytest.raises(ModelPackageError, match="Without network access, download the file elsewhere"):
        put(library, "two")
    with pytest.raises(ModelPackageError, match="its weights are not public"):
        put(library, "one")
    with pytest.raises(ModelPackageError, match="unknown task 'three'; known tasks: two, one"):
        put(library, "three")


KILLED = """
import os, signal, sys
import safetensors.torch
from pathlib import Path
from inference.models.install import Facts, install_folders
write = safetensors.torch.save_file
def save(weights, file):
    write(weights, file)
    if "part2" in str(file):
        os.kill(os.getpid(), signal.SIGKILL)
safetensors.torch.save_file = save
install_folders([Path(p) for p in sys.argv[2:]], Path(sys.argv[1]), Facts("two", "tests"))
"""


def test_killed_installation_leaves_nothing_and_does_not_block_the_next(results, library):
    folders = [str(results / part.dataset / part.model) for part in TWO.parts]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(library), *folders], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in library.glob(".installing-*/*")] != []  # it was killed half-way
    assert installed(library) == ()
    put(library, results, task="two")
    assert visible(library) == ["two"]


def test_two_processes_do_not_change_a_library_at_the_same_time(results, library):
    program = (
        "import sys, time; from pathlib import Path; from inference.models.install import locked\n"
        f"with locked(Path({str(library)!r})):\n print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(ModelPackageError, match="another process is installing"):
                put(library, results, task="two")
        finally:
            other.kill()
    put(library, results, task="two")


def test_library_lists_verifies_and_removes_models(results, library, tmp_path):
    assert installed(library) == ()
    put(library, results / "Dataset903_c")
    assert read(library, "one").identity.name == "one"
    shutil.copytree(library / "one", library / "copy")
    with pytest.raises(ModelPackageError, match="contains the model 'one', not 'copy'"):
        read(library, "copy")
    for name in ("nothing", "../library/one", ".."):
        with pytest.raises(ModelPackageError):
            read(library, name)
        with pytest.raises(ModelPackageError):
            remove(library, name)
    remove(library, "copy")
    assert installed(library) == ("one",)


def test_links_in_a_folder_are_not_followed(results, library, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "results").symlink_to(results)
    with pytest.raises(ModelPackageError, match="contains no nnU-Net model"):
        put(library, tmp_path / "linked", task="two")


def test_table_of_tasks_is_consistent():
    table = json.loads((ROOT / "inference" / "models" / "tasks.json").read_text())
    table = {name: tasks._task(name, entry) for name, entry in table.items()}
    assert {"total", "total_3mm", "total_6mm", "total_v1"} <= set(table)
    by_label = {entry.total117_index: name for name, entry in catalogue().items() if entry.total117_index}
    for name in ("total", "total_3mm", "total_6mm"):
        assert table[name].names_by_label == by_label
    assert dict(enumerate(table["total_v1"].structures, 1)) == paper_labels()
    for task in table.values():
        assert len(set(task.structures)) == len(task.structures)
        if task.parts is not None:
            given = {name for part in task.parts for name in part.structures}
            assert given == {*task.structures, *task.auxiliary}
        if task.crop is not None:
            assert set(task.crop.structures) <= set(table[task.crop.model].structures)
        assert task.downloadable == (task.licence == "Apache-2.0")
