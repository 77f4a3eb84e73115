import json
import math

import pytest

from bench.errors import BenchError, DamagedFile
from bench.utils import files
from bench.utils.files import canonical_json, file_sha256, fingerprint, read_record, write_atomically, write_record


def test_canonical_json_is_one_text_for_equal_values():
    assert canonical_json({"b": 1, "a": [0.1, "é", None]}) == '{"a":[0.1,"é",null],"b":1}'
    assert canonical_json({"a": {"d": 1, "c": 2}}) == canonical_json({"a": {"c": 2, "d": 1}})


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_canonical_json_refuses_what_json_cannot_hold(number):
    with pytest.raises(ValueError):
        canonical_json({"loss": number})


def test_digests_are_plain_sha256(tmp_path):
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # printf '{}' | sha256sum
    assert fingerprint({}) == digest
    (tmp_path / "file").write_bytes(b"{}")
    assert file_sha256(tmp_path / "file") == digest


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("durable", "flushes"), [(True, 2), (False, 0)])
def test_a_durable_write_flushes_the_file_and_its_folder(tmp_path, monkeypatch, durable, flushes):
    flushed = []
    monkeypatch.setattr(files.os, "fsync", flushed.append)
    write_atomically(tmp_path / "file", b"data", durable=durable)
    assert len(flushed) == flushes
    assert (tmp_path / "file").read_bytes() == b"data"


def test_record_round_trip(tmp_path):
    content = {"accuracy": 0.1 + 0.2, "name": "SAT — smooth", "none": None, "nested": [{"a": 1}]}
    write_record(tmp_path / "record.json", content)
    assert read_record(tmp_path / "record.json") == content


def test_a_record_that_cannot_be_written_leaves_no_file(tmp_path):
    with pytest.raises(ValueError):
        write_record(tmp_path / "record.json", {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("0.5", "0.6"),
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace("0.5", "NaN"),
        lambda text: text.replace('"content"', '"contents"'),
        lambda text: "[1]",
        lambda text: "[" * 100_000,
        lambda text: json.dumps({"sha256": fingerprint([1]), "content": [1]}),
        lambda text: text.replace("half", r"\ud800"),
    ],
    ids=["changed", "cut", "empty", "nan", "renamed", "list", "deep", "no-mapping", "surrogate"],
)
def test_a_damaged_record_is_one_sentence(tmp_path, damage):
    path = tmp_path / "record.json"
    write_record(path, {"accuracy": 0.5, "name": "half"})
    path.write_text(damage(path.read_text()))
    with pytest.raises(DamagedFile, match=r"record\.json is damaged: "):
        read_record(path)


def test_a_missing_record_is_not_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "record.json")


def test_an_error_stays_on_its_line():
    assert str(BenchError("no file 'a\nb\x1b[31m'")) == "no file 'a b [31m'"
