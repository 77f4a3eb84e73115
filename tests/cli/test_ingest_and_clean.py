"""`bench ingest`, `bench clean` and what `bench doctor` says of runs."""

import json
import re

from bench.utils.formatting import byte_size


def figures(bench, results):
    """Return the rows of the leaderboard as data, without their costs, which a rerun changes."""
    (board,) = json.loads(bench("report", "--results", results, "--format", "json").out)["boards"]
    assert board["rows"]
    return [{key: value for key, value in row.items() if key != "costs"} for row in board["rows"]]


def test_a_store_is_lost_and_made_again(bench, suite, copy_of_results):
    path, results = suite(), copy_of_results
    table = bench("report", "--results", results).out
    before = figures(bench, results)
    assert "all digests and accuracies match" in bench("doctor", "--results", results).out
    for left in results.glob("bench.sqlite*"):
        left.unlink()
    doctor = bench("doctor", "--results", results)
    assert doctor.code == 2
    assert "`bench ingest` rebuilds it" in doctor.out
    ingested = bench("ingest", "--results", results)
    assert (ingested.code, ingested.out) == (0, "1 of 1 run folder imported\n")
    assert bench("report", "--results", results).out == table

    weights = next(results.glob("runs/*/checkpoints/*.safetensors"))
    weights.write_bytes(b"")
    doctor = bench("doctor", "--results", results)
    assert doctor.code == 2
    assert re.search(rf"^BAD  runs +{re.escape(str(weights))} is damaged", doctor.out, re.MULTILINE)
    assert "--rerun failed` repairs it" in doctor.out

    record = next(results.glob("runs/*/outcomes/*.json"))
    record.write_text("")
    ingested = bench("ingest", "--results", results)
    assert ingested.code == 3
    assert f"bench: {record} is damaged" in ingested.err
    (row,) = json.loads(bench("ingest", "--results", results, "--json").out)
    assert (row["ok"], record.name in row["reason"]) == (False, True)
    assert bench("report", "--results", results).out == table, "what is damaged replaces nothing"

    assert bench("run", path, "--results", results, "--rerun", "failed").code == 0
    assert figures(bench, results) == before
    assert bench("doctor", "--results", results).code == 0
    assert len(list(results.glob("runs/*.aside-1"))) == 1


def test_ingest_without_runs(bench, tmp_path):
    result = bench("ingest", "--results", tmp_path)
    assert result.code == 4
    assert "there is no run folder" in result.err


def test_clean_says_how_much_and_removes_nothing_unasked(bench, tmp_path):
    copy = tmp_path / "bench.sqlite.schema-0001"
    copy.write_bytes(bytes(3 * 2**20))
    result = bench("clean", "--results", tmp_path)
    assert result.out.strip() == f"3.0 MiB  {copy}: a copy of the database in an older schema"
    assert "3.0 MiB can be freed; add --yes to remove it" in result.err
    (row,) = json.loads(bench("clean", "--results", tmp_path, "--json").out)
    assert row == {"path": str(copy), "bytes": 3 * 2**20, "what": "a copy of the database in an older schema"}
    assert copy.exists()
    assert "3.0 MiB freed" in bench("clean", "--results", tmp_path, "--yes").err
    assert not copy.exists()
    assert "nothing to remove" in bench("clean", "--results", tmp_path).err


def test_sizes():
    assert [byte_size(count) for count in (0, 1023, 1024, 1536, 2**30, 2**50)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 GiB", "1024.0 TiB",
    ]  # fmt: skip
