"""Run the command line inside the test process."""

import sys
from typing import NamedTuple

import pytest

from bench.cli.main import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def bench(monkeypatch, capsys):
    """Call it with the words after `bench`; returns exit code, stdout and stderr."""

    def call(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def suite(tmp_path, tiny_suite):
    """Write the tiny suite with some of its text replaced, and return its path."""

    def write(changes: dict[str, str] | None = None):
        text = tiny_suite
        for old, new in (changes or {}).items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / "suite.yaml"
        path.write_text(text)
        return path

    return write
