"""Untrusted zip files."""

import stat
import struct
import zipfile

import pytest

from inference.errors import ModelPackageError
from inference.models import archive
from inference.models.archive import unpack_model

SOUND = {
    "Dataset/m/plans.json": b"{}",
    "Dataset/m/dataset.json": b"{}",
    "Dataset/m/fold_0/checkpoint_final.pth": b"x" * 99,
}


def write(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def unpacked(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "below" / "target"
    folder.mkdir(parents=True)
    return folder


def test_only_the_files_of_a_model_are_unpacked(tmp_path, target):
    extras = {"Dataset/m/progress.png": b"png", "Dataset/m/fold_0/checkpoint_best.pth": b"best", "README": b"hello"}
    unpack_model(write(tmp_path / "m.zip", SOUND | extras), target)
    assert unpacked(target) == SOUND


@pytest.mark.parametrize(
    "name",
    [
        "../plans.json",
        "a/../../plans.json",
        "/tmp/plans.json",
        "..\\plans.json",
        "C:/plans.json",
        "a/b\nplans.json",
        "../../evil.txt",
    ],
)
def test_member_outside_the_folder_is_refused_by_name_and_nothing_is_written(tmp_path, target, name):
    path = write(tmp_path / "m.zip", SOUND | {name: b"evil"})
    before = unpacked(tmp_path)
    with pytest.raises(ModelPackageError, match="outside its folder"):
        unpack_model(path, target)
    assert unpacked(tmp_path) == before


def test_links_are_refused(tmp_path, target):
    link = zipfile.ZipInfo("Dataset/m/fold_1")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write(tmp_path / "m.zip", SOUND)
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr(link, "/etc")
    with pytest.raises(ModelPackageError, match="fold_1' is a link"):
        unpack_model(path, target)
    assert unpacked(target) == {}


def test_two_members_of_one_name_are_refused(tmp_path, target):
    path = write(tmp_path / "m.zip", SOUND)
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr("Dataset/m/PLANS.json", b"{}")
    with pytest.raises(ModelPackageError, match="two members with the same name"):
        unpack_model(path, target)


def test_zip_bomb_is_refused_by_its_declared_size(tmp_path, target):
    path = write(tmp_path / "m.zip", SOUND | {"Dataset/m/fold_1/checkpoint_final.pth": bytes(50 * 1024**2)})
    assert path.stat().st_size < 100_000
    with pytest.raises(ModelPackageError, match="zip bomb"):
        unpack_model(path, target)
    assert unpacked(target) == {}


def test_too_many_members_and_too_many_bytes_are_refused(tmp_path, target, monkeypatch):
    path = write(tmp_path / "m.zip", SOUND)
    monkeypatch.setattr(archive, "TOTAL_LIMIT_BYTES", 100)
    with pytest.raises(ModelPackageError, match="unpacks to 103 bytes; at most 100"):
        unpack_model(path, target)
    monkeypatch.setattr(archive, "MEMBER_LIMIT", 2)
    with pytest.raises(ModelPackageError, match="3 members; at most 2"):
        unpack_model(path, target)


def test_member_larger_than_declared_is_refused(tmp_path, target):
    """The central directory states too small a size; the stream is longer."""
    path = write(tmp_path / "m.zip", {"m/plans.json": b"{}" * 500}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 10)
    path.write_bytes(content)
    with pytest.raises(ModelPackageError):
        unpack_model(path, target)
    assert sum(len(part) for part in unpacked(target).values()) <= 10


@pytest.mark.parametrize("keep", [0, 10, 200, -30])
def test_truncated_zip_is_refused(tmp_path, target, keep):
    path = write(tmp_path / "m.zip", SOUND)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelPackageError, match=r"m\.zip is not a valid zip"):
        unpack_model(path, target)


def test_damaged_member_is_refused(tmp_path, target):
    path = write(tmp_path / "m.zip", SOUND, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(b"xxxx")] = ord("y")
    path.write_bytes(content)
    with pytest.raises(ModelPackageError, match="not a valid zip"):
        unpack_model(path, target)


def test_zip_without_a_model_is_reported(tmp_path, target):
    with pytest.raises(ModelPackageError, match=r"has no nnU-Net model"):
        unpack_model(write(tmp_path / "m.zip", {"a.txt": b"a"}), target)


def test_oversized_central_directory_is_not_read(tmp_path, target, monkeypatch):
    path = write(tmp_path / "m.zip", SOUND | {f"{number:05}": b"" for number in range(2000)})
    monkeypatch.setattr(archive, "_LONGEST_READ_BYTES", 100_000)
    with pytest.raises(ModelPackageError, match=r"m\.zip is not a valid zip file: its table of members has more than"):
        unpack_model(path, target)
