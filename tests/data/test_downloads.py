"""Downloads and archives: whatever is wrong with them, nothing false keeps an official name."""

import hashlib
import http.server
import io
import socket
import sys
import tarfile
import threading
import time
import types
from pathlib import Path

import pytest

from bench.data import downloads
from bench.data.downloads import OfficialFile, torchvision_datasets, unpack
from bench.errors import BenchError

CONTENT = bytes(range(256)) * 40


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def file(tmp_path):
    return OfficialFile(tmp_path / "root" / "images.bin", md5(CONTENT), "cats")


@pytest.fixture
def server(monkeypatch):
    """A server on this machine: `/whole`, and `/cut` which breaks off, and `/silent` which never answers."""
    asked = []
    ended = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append((self.command, self.path))
            if self.path == "/silent":
                ended.wait(10)
                return
            self.send_response(200 if self.path in {"/whole", "/cut"} else 404)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write({"/whole": CONTENT, "/cut": CONTENT[:5000]}.get(self.path, b""))

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield types.SimpleNamespace(url=f"http://127.0.0.1:{running.server_port}", asked=asked)
        ended.set()
        running.shutdown()


@pytest.fixture
def offline(monkeypatch):
    def unknown(*_args, **_kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_only_with_its_sum(file):
    file.path.parent.mkdir()
    file.path.write_bytes(CONTENT)
    file.verify()
    assert file.is_whole()
    assert file.read() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], b"", CONTENT + b" ", b"\1" + CONTENT[1:]])
def test_a_file_with_another_sum_is_named(file, content):
    file.path.parent.mkdir()
    file.path.write_bytes(content)
    assert not file.is_whole()
    for use in (file.verify, file.read):
        with pytest.raises(BenchError) as caught:
            use()
        assert str(caught.value) == (
            f"{file.path} is damaged or not the official file: its MD5 sum is another; delete it and run "
            "`bench data prepare cats`"
        )


def test_a_missing_file_is_named(file):
    assert not file.is_whole()
    for use in (file.verify, file.read):
        with pytest.raises(BenchError, match=r"images\.bin is missing; run `bench data prepare cats`$"):
            use()


def test_a_file_that_cannot_be_read_is_named(file):
    file.path.mkdir(parents=True)
    with pytest.raises(BenchError, match=r"images\.bin cannot be read: .*directory"):
        file.read()


@pytest.mark.parametrize(
    "error", [RuntimeError("operator torchvision::nms does not exist"), ImportError("no\nsuch module"), OSError("lib")]
)
def test_a_torchvision_that_does_not_fit_is_one_sentence(monkeypatch, error):
    def broken(_name):
        raise error

    monkeypatch.setattr(downloads.importlib, "import_module", broken)
    with pytest.raises(BenchError) as caught:
        torchvision_datasets()
    assert str(caught.value).startswith("torchvision does not fit the installed torch (")
    assert "pip install --force-reinstall torch torchvision" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- downloads --------------------------------------------------------------------------------------------------------


def test_fetch(file, server, capsys):
    file.fetch(f"{server.url}/whole")
    assert file.path.read_bytes() == CONTENT
    assert names(file.path.parent) == ["images.bin"]
    assert capsys.readouterr() == ("", "")  # a progress bar is for terminals
    asked = len(server.asked)
    file.fetch(f"{server.url}/whole")
    assert len(server.asked) == asked  # what is there is not fetched again


def test_a_terminal_sees_progress(file, server, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    file.fetch(f"{server.url}/whole")
    assert "100%" in sys.stderr.getvalue()


def test_a_damaged_file_is_replaced(file, server):
    file.path.parent.mkdir()
    file.path.write_bytes(CONTENT[:100])
    file.fetch(f"{server.url}/whole")
    assert file.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("page", "why"),
    [("cut", r"it was cut short or is another file"), ("nothing", "404")],
)
@pytest.mark.parametrize("before", [None, b"an older file"])
def test_what_does_not_come_whole_gets_no_name(file, server, page, why, before):
    if before:
        file.path.parent.mkdir()
        file.path.write_bytes(before)
    with pytest.raises(BenchError) as caught:
        file.fetch(f"{server.url}/{page}")
    sentence = str(caught.value)
    assert sentence.startswith(f"cats cannot be downloaded from {server.url}/{page} (")
    assert why in sentence
    assert sentence.endswith(
        f"; download it by other means, put it at {file.path}, and run `bench data prepare cats` again"
    )
    assert (file.path.read_bytes() if file.path.exists() else None) == before
    assert names(file.path.parent) == (["images.bin"] if before else [])


def test_a_silent_server_is_given_up(file, server, monkeypatch):
    monkeypatch.setattr(downloads, "SILENCE", 0.2)
    before, start = socket.getdefaulttimeout(), time.monotonic()
    with pytest.raises(BenchError, match="silent .*timed out"):
        file.fetch(f"{server.url}/silent")
    assert time.monotonic() - start < 5
    assert socket.getdefaulttimeout() == before


@pytest.mark.usefixtures("offline")
def test_no_network(file):
    with pytest.raises(BenchError, match=r"from https://example\.org/images\.bin \(.*Name or service not known.*\); "):
        file.fetch("https://example.org/images.bin")
    assert names(file.path.parent) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_download_leaves_nothing(file, server, monkeypatch, error):
    def stop(_url, path, *_args, **_kwargs):
        Path(path).write_bytes(CONTENT[:10])
        raise error

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", stop)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else BenchError):
        file.fetch(f"{server.url}/whole")
    assert names(file.path.parent) == []


def test_a_root_that_cannot_be_written_is_one_sentence(file, server):
    file.path.parent.write_text("a file in the way")
    with pytest.raises(BenchError, match=r"cats cannot be downloaded from .*exists"):
        file.fetch(f"{server.url}/whole")


# --- archives ---------------------------------------------------------------------------------------------------------

MEMBERS = {"cats/one": b"1" * 3000, "cats/two": b"2" * 3000}


def archive_of(root, members):
    """Write a tar.gz of `members`, in that order."""
    with tarfile.open(root / "cats.tar.gz", "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return OfficialFile(root / "cats.tar.gz", md5((root / "cats.tar.gz").read_bytes()), "cats")


def files_in(root):
    return [OfficialFile(root / name, md5(content), "cats") for name, content in MEMBERS.items()]


@pytest.mark.parametrize("turned", [False, True])
def test_unpack(tmp_path, turned):
    members = {"cats/readme": b"read me", "../evil": b"!", "/evil": b"!", **MEMBERS}
    unpack(archive_of(tmp_path, dict(reversed(members.items())) if turned else members), files_in(tmp_path))
    assert {f"cats/{path.name}": path.read_bytes() for path in (tmp_path / "cats").iterdir()} == MEMBERS
    assert names(tmp_path) == ["cats", "cats.tar.gz"]
    assert not (tmp_path.parent / "evil").exists()


def test_unpack_replaces_what_is_damaged_and_leaves_the_rest(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "one").write_bytes(b"half")
    (tmp_path / "cats" / "mine").write_bytes(b"mine")
    unpack(archive_of(tmp_path, MEMBERS), files_in(tmp_path))
    assert (tmp_path / "cats" / "one").read_bytes() == MEMBERS["cats/one"]
    assert names(tmp_path / "cats") == ["mine", "one", "two"]


@pytest.mark.parametrize(
    "members",
    [
        {"cats/one": MEMBERS["cats/one"]},
        {**MEMBERS, "cats/two": b"2" * 2999},
        {**MEMBERS, "cats/two": None},
        {"cats/one": MEMBERS["cats/one"], "dogs/two": MEMBERS["cats/two"]},
    ],
    ids=["missing", "another", "link", "elsewhere"],
)
def test_an_archive_of_other_files_is_refused_whole(tmp_path, members):
    with pytest.raises(BenchError, match=r"cats\.tar\.gz is damaged .*: cats/two is missing in it or has another MD5"):
        unpack(archive_of(tmp_path, members), files_in(tmp_path))
    assert names(tmp_path) == ["cats.tar.gz"]


def test_an_archive_with_another_sum_is_not_opened(tmp_path):
    archive = archive_of(tmp_path, MEMBERS)
    archive.path.write_bytes(archive.path.read_bytes()[:-20])
    with pytest.raises(BenchError, match=r"cats\.tar\.gz is damaged or not the official file: its MD5 sum is another"):
        unpack(archive, files_in(tmp_path))


@pytest.mark.parametrize("length", [0, 5, 30, 70])
def test_an_archive_that_cannot_be_parsed_is_one_sentence(tmp_path, length):
    whole = archive_of(tmp_path, MEMBERS).path
    whole.write_bytes(whole.read_bytes()[:length])
    with pytest.raises(BenchError, match=r"cats\.tar\.gz (is damaged|cannot be unpacked)"):
        unpack(OfficialFile(whole, md5(whole.read_bytes()), "cats"), files_in(tmp_path))
    assert names(tmp_path) == ["cats.tar.gz"]
