"""Downloads from a real server that cuts connections, changes files and redirects."""

import hashlib
import random
import socket

import pytest

from inference.errors import ModelPackageError
from inference.models.download import check_url, download
from tests.unit.models.web import serving

CONTENT = random.Random(0).randbytes(1_000_000)


@pytest.fixture
def site():
    with serving() as running:
        running.files["/m.zip"] = CONTENT
        yield running


def fetch(site, folder, path="/m.zip", **options):
    seen = []
    digest = download(site.url + path, folder / "m.zip", lambda done, size: seen.append((done, size)), **options)
    assert (folder / "m.zip").read_bytes() == site.files.get("/m.zip")
    assert digest == hashlib.sha256(site.files["/m.zip"]).hexdigest()
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert sorted(path.name for path in folder.iterdir()) == ["m.zip"]
    return seen


def test_download_is_complete_with_digest_and_progress(site, tmp_path):
    assert len(fetch(site, tmp_path)) > 1


def test_interrupted_download_is_resumed(site, tmp_path):
    site.cut_after = [300_000, 300_000]
    fetch(site, tmp_path)
    assert [wanted for _, wanted in site.requests] == [None, "bytes=300000-", "bytes=600000-"]


def test_later_process_resumes_an_earlier_download(site, tmp_path):
    site.cut_after = [400_000]
    with pytest.raises(ModelPackageError, match="after 400000 of 1000000 bytes"):
        download(site.url + "/m.zip", tmp_path / "m.zip", lambda *_: None, attempts=0)
    assert not (tmp_path / "m.zip").exists()
    fetch(site, tmp_path)
    assert site.requests[-1][1] == "bytes=400000-"


def test_file_changed_in_between_is_downloaded_from_the_start(site, tmp_path):
    site.cut_after = [400_000]
    with pytest.raises(ModelPackageError):
        download(site.url + "/m.zip", tmp_path / "m.zip", lambda *_: None, attempts=0)
    site.files["/m.zip"] = CONTENT[::-1]
    fetch(site, tmp_path)


@pytest.mark.parametrize("lacks", ["etags", "ranges"])
def test_server_without_resume_sends_the_whole_file_again(site, tmp_path, lacks):
    setattr(site, lacks, False)
    site.cut_after = [400_000]
    fetch(site, tmp_path)
    assert len(site.requests) == 2


def test_download_without_progress_is_given_up(site, tmp_path):
    site.cut_after = [0] * 9
    with pytest.raises(ModelPackageError, match=r"cannot download .* the connection ended after 0 of 1000000"):
        download(site.url + "/m.zip", tmp_path / "m.zip", lambda *_: None, attempts=3)
    assert len(site.requests) == 3


def test_redirects_are_followed_but_not_to_another_protocol(site, tmp_path):
    site.redirects["/moved"] = f"{site.url}/m.zip"
    fetch(site, tmp_path, "/moved")
    for elsewhere in ("http://example.com/m.zip", "file:///etc/passwd", "ftp://example.com/m.zip"):
        site.redirects["/away"] = elsewhere
        with pytest.raises(ModelPackageError, match=r"is not (an https URL|allowed)"):
            download(site.url + "/away", tmp_path / "n.zip", lambda *_: None)


def test_error_of_the_server_is_quoted(site, tmp_path):
    with pytest.raises(ModelPackageError, match="the server answered 404"):
        download(site.url + "/gone.zip", tmp_path / "m.zip", lambda *_: None)


def test_silent_server_times_out(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/m.zip"
        with pytest.raises(ModelPackageError, match="timed out"):
            download(url, tmp_path / "m.zip", lambda *_: None, timeout_s=0.2, attempts=2)


@pytest.mark.parametrize(
    "url",
    ["http://example.com/m.zip", "ftp://127.0.0.1/m.zip", "file:///m.zip", "https:///m.zip", "https://u:p@h/m.zip"],
)
def test_unsafe_addresses_are_refused(url):
    with pytest.raises(ModelPackageError):
        check_url(url)
