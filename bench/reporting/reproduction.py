"""How to run a leaderboard's rows again: a suite made of their stored identity, and a command for each row."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from bench.config.protocol import Protocol
from bench.reporting.leaderboard import Leaderboard
from bench.reporting.rows import Row

MAX_LABEL = 80  # characters that a suite allows


@dataclass(frozen=True)
class Reproduction:
    """A suite file with its name, the command that reruns each row, and the protocol in the order of its settings.

    The suite gives the same fingerprints as the runs, if the methods are those that they used; `exact` is False if this
    version of the package reads the protocol differently, so that it does not.
    """

    file: str
    suite: str
    commands: tuple[str, ...]
    protocol: dict[str, Any]
    exact: bool


class _Dumper(yaml.SafeDumper):
    """Writes every value out: a suite may not hold aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def reproduction(board: Leaderboard, threads: int | None = None) -> Reproduction:
    """Return how to run the rows of `board` again; `threads`: of each worker, where all runs had as many.

    Each command selects its row by the method's name, or if several rows have it, by a label. A network that was only
    evaluated is no part of the suite, and its command needs the network's file.
    """
    name = f"protocol-{board.fingerprint[:12]}"
    labels = _labels(board.rows)
    protocol, exact = _in_order(board)
    counts = Counter(row.method for row in board.rows)
    trained = [(row, label) for row, label in zip(board.rows, labels, strict=True) if not row.evaluated_only]
    suite = {
        "name": name,
        **protocol,
        "methods": [
            {"name": row.method, "label": label} | ({"params": row.params} if row.params else {})
            for row, label in trained
        ]
        or [{"name": "pgd_at"}],  # a suite needs one
        "seeds": sorted({seed for row, _ in trained for seed in seeds_of(row)}) or [0],
    }
    if threads is not None:
        suite["execution"] = {"threads": threads}
    commands = []
    for row, label in zip(board.rows, labels, strict=True):
        if row.evaluated_only:
            commands.append(_evaluation(row, label, f"{name}.yaml"))
            continue
        selected = shlex.quote(row.method if counts[row.method] == 1 else label)
        seeds = ",".join(map(str, seeds_of(row)))
        commands.append(f"bench run {name}.yaml --methods {selected} --seeds {seeds}")
    text = yaml.dump(suite, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    return Reproduction(f"{name}.yaml", text, tuple(commands), protocol, exact)


def _evaluation(row: Row, label: str, suite: str) -> str:
    """Return the command that judges a network again; where its file is, only its owner knows."""
    model, stated = str(row.params.get("model")), ""
    source = model
    if "activation" in row.params:  # a weights file does not state it
        source = "FOLDER"
    elif "code_sha256" not in row.params and not model.startswith("robustbench:"):
        source, how = "WEIGHTS", "none"
        if "mean" in row.params:
            how = "/".join(",".join(map(repr, row.params[key])) for key in ("mean", "std"))
        stated = f" --model {shlex.quote(model)} --normalisation {shlex.quote(how)}"
    return f"bench evaluate {shlex.quote(source)} --suite {suite} --name {shlex.quote(label)}{stated}"


def seeds_of(row: Row) -> list[int]:
    """Return every seed that was run of a row, however it ended."""
    shown = (seed.seed for seed in row.collapsed)
    return sorted({*row.seeds, *shown, *row.diverged, *row.unfinished})


def _labels(rows: Sequence[Row]) -> list[str]:
    """Return the rows' labels; in place of one that a suite or a command line cannot hold, the method and a number."""
    methods, labels = Counter(row.method for row in rows), Counter(row.label for row in rows)
    shown = []
    for number, row in enumerate(rows, start=1):
        label = row.label
        plain = label.isprintable() and label.strip() == label and 0 < len(label) <= MAX_LABEL
        alone = labels[label] == 1 and label not in methods.keys() - {row.method}
        selects = methods[row.method] == 1 or ("," not in label and label != row.method)
        shown.append(label if plain and alone and selects else f"{row.method} (row {number})")
    return shown


def _in_order(board: Leaderboard) -> tuple[dict[str, Any], bool]:
    """Return the protocol as a suite's author would order it, and whether it is the same to this package."""
    try:
        protocol = Protocol.model_validate(board.protocol)
    except ValidationError:
        return board.protocol, False
    exact = protocol.fingerprint == board.fingerprint
    return (protocol.identity() if exact else board.protocol), exact
