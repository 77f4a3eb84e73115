"""Scalars that YAML 1.1 reads as another value than people do are refused; plain ones keep their value."""

import pytest

from bench.config.yaml_file import read_suite_file
from bench.errors import BenchError


def read(tmp_path, text):
    path = tmp_path / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return read_suite_file(path).data


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("030", "24"), ("010", "8"), ("-017", "-15"), ("1:30", "90"), ("1:30.5", "90.5"), ("-1:00", "-60"),
        ("0x10", "16"), ("0b11", "3"), ("1_000", "1000"), ("1_0.5", "10.5"), ("00", "0"),
        ("yes", "true"), ("No", "false"), ("ON", "true"), ("off", "false"), ("2024-01-01", "date"),
        ("2024-01-01 10:00:00", "date"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["epochs: {}", "training: {{epochs: {}}}", "seeds: [0, {}]", "a:\n  - b: {}"])
def test_refuses_what_yaml_reads_differently(tmp_path, scalar, value, place):
    with pytest.raises(BenchError, match=rf"suite\.yaml:[12]: '{scalar}' is .*{value}\b.* in YAML 1\.1; "):
        read(tmp_path, place.format(scalar))


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("30", 30), ("0", 0), ("-5", -5), ("0.5", 0.5), (".5", 0.5), ("1.", 1.0), ("1.0e-3", 0.001), ("5e-4", "5e-4"),
        ("8/255", "8/255"), ("true", True), ("False", False), ("'030'", "030"), ("'yes'", "yes"), ('"1:30"', "1:30"),
        ("2.05", 2.05), ("~", None), ("y", "y"), ("0-99,500-599", "0-99,500-599"), ("007a", "007a"),
    ],
)  # fmt: skip
def test_keeps_plain_scalars(tmp_path, scalar, value):
    got = read(tmp_path, f"key: {scalar}")["key"]
    assert (type(got), got) == (type(value), value)
