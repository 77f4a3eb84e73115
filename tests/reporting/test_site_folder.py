import pytest

from bench.errors import BenchError
from bench.reporting.site.folder import MARKER, write_site


def test_a_site_is_written_and_replaced(tmp_path):
    folder = tmp_path / "a" / "site"
    write_site(folder, {"index.html": b"1", "runs/x.html": b"2"})
    write_site(folder, {"index.html": b"3"})
    assert (folder / "index.html").read_bytes() == b"3"
    assert {path.name for path in folder.rglob("*")} == {"index.html", MARKER}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["site"]


def test_an_empty_folder_is_taken(tmp_path):
    write_site(tmp_path, {"index.html": b"1"})
    assert (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    "marker", [None, "{}", "[]", "{", '{"format": "bench-site"}', '{"format": "x", "files": ["note"]}']
)
def test_a_folder_with_other_files_is_refused(tmp_path, marker):
    (tmp_path / "note").write_text("keep")
    if marker is not None:
        (tmp_path / MARKER).write_text(marker)
    with pytest.raises(BenchError, match="not a site"):
        write_site(tmp_path, {"index.html": b"1"})
    assert (tmp_path / "note").read_text() == "keep"


@pytest.mark.parametrize("added", ["CNAME", "runs/note", ".git/config", "empty/"])
def test_a_site_to_which_something_was_added_is_refused(tmp_path, added):
    folder = tmp_path / "site"
    write_site(folder, {"index.html": b"1"})
    (folder / added).parent.mkdir(exist_ok=True)
    (folder / added).mkdir() if added.endswith("/") else (folder / added).write_text("keep")
    with pytest.raises(BenchError, match=added.rstrip("/")):
        write_site(folder, {"index.html": b"2"})
    assert (folder / "index.html").read_bytes() == b"1"


def test_a_file_is_refused(tmp_path):
    (tmp_path / "site").write_text("keep")
    with pytest.raises(BenchError, match="is no folder"):
        write_site(tmp_path / "site", {"index.html": b"1"})


def test_a_failure_leaves_the_old_site(tmp_path):
    folder = tmp_path / "site"
    write_site(folder, {"index.html": b"1"})
    with pytest.raises(BenchError, match="cannot be written"):
        write_site(folder, {"index.html": b"2", "x" * 300: b""})
    assert (folder / "index.html").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_failure_between_the_two_renames_leaves_the_old_site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    write_site(folder, {"index.html": b"1"})
    rename = type(folder).rename

    def fail(self, target):
        if self.name.endswith(".new"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(type(folder), "rename", fail)
    with pytest.raises(BenchError, match="No space left"):
        write_site(folder, {"index.html": b"2"})
    assert (folder / "index.html").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
