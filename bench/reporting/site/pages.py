"""The pages of a site: an index, one for each leaderboard, method and run, and one that compares two runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.reporting.formats.html import Member, Section, asset, policy, section_of, template
from bench.reporting.leaderboard import Leaderboard
from bench.reporting.method_card import ORIGINS, show_method
from bench.reporting.notes import percent
from bench.reporting.rows import complete_run, row_key
from bench.reporting.site.comparisons import comparison_data
from bench.reporting.site.downloads import downloads
from bench.reporting.site.runs import RunReader
from bench.reporting.table import NONE, Cell, Column, Table
from bench.storage.run_folder import run_folders
from bench.storage.schema import RunRow
from bench.storage.store import Epoch, Store
from bench.utils.progress import ProgressCallback, no_progress

ASSETS = Path(__file__).parent / "assets"

LONGEST = 120  # characters of the name of a file

_PLAIN = re.compile(r"[a-z0-9_]+(-[a-z0-9_]+)*")


def page_name(text: str) -> str:
    """Return a name of a file for any text: the text if it is plain, otherwise what is plain of it with its digest."""
    if len(text) <= LONGEST and _PLAIN.fullmatch(text):
        return text
    plain = re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")[:60]
    return f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".strip("-")


def board_page(fingerprint: str) -> str:
    """Return the path of the page of a protocol."""
    return f"boards/{page_name(fingerprint[:12])}.html"


def method_page(name: str) -> str:
    """Return the path of the page of a method."""
    return f"methods/{page_name(name)}.html"


def run_page(run: RunRow) -> str:
    """Return the path of the page of a run."""
    return f"runs/{page_name(f'{run.method}-seed{run.seed}-{run.fingerprint[:12]}')}.html"


@dataclass(frozen=True)
class Entry:
    """One run of a row of a leaderboard."""

    run: RunRow
    member: Member

    @property
    def name(self) -> str:
        return f"{self.member.row.label}, seed {self.run.seed}"


class Site:
    """The leaderboards of a store as a site."""

    def __init__(self, store: Store, boards: Sequence[Leaderboard]) -> None:
        """Take `boards`, which were made from `store`."""
        self._store, self._boards = store, boards

    @cached_property
    def _sections(self) -> list[Section]:
        return [
            section_of(
                self._store,
                board,
                f"p{board.fingerprint[:12]}",
                draw=True,
                page_of=lambda method: f"../{method_page(method)}",
            )
            for board in self._boards
        ]

    @cached_property
    def _entries(self) -> dict[str, list[Entry]]:
        """The runs of each protocol, in the order of the rows of its leaderboard."""
        entries = {}
        for section in self._sections:
            members = {row_key(member.row): member for member in section.members}
            order = list(members)
            runs = [
                run
                for run in self._store.runs(protocol=section.board.fingerprint, bits=True)
                if row_key(run) in members
            ]
            runs.sort(key=lambda run: (order.index(row_key(run)), run.seed, run.fingerprint))
            entries[section.board.fingerprint] = [Entry(run, members[row_key(run)]) for run in runs]
        return entries

    @cached_property
    def _curves(self) -> dict[str, list[Epoch]]:
        return self._store.curves([entry.run.fingerprint for some in self._entries.values() for entry in some])

    def files(
        self,
        results: Sequence[Path] = (),
        data: Path | None = None,
        images: int = 8,
        progress: ProgressCallback = no_progress,
    ) -> dict[str, bytes]:
        """Return every file of the site by its path: equal ones at every call.

        Args:
            results: the results folders, for adversarial examples.
            data: root folder of the datasets, for adversarial examples and accuracies per class.
            images: how many adversarial examples to compute of each run whose weights are there.
            progress: called after each page.
        """
        files = {f"downloads/{name}": content for name, content in downloads(self._store, self._boards).items()}
        reader = RunReader({folder.path.name: folder for one in results for folder in run_folders(one)}, data, images)
        methods = {entry.run.method for some in self._entries.values() for entry in some}
        total = 2 + len(self._boards) + len(methods) + sum(map(len, self._entries.values()))
        for done, (path, text) in enumerate(self._pages(reader, sorted(methods), sorted(files)), start=1):
            files[path] = text.encode()
            progress(done, total)
        return files

    def _pages(self, reader: RunReader, methods: Sequence[str], files: Sequence[str]) -> Iterator[tuple[str, str]]:
        details = {name: _details(name) for name in methods}
        yield (
            "index.html",
            self._render("index", boards=self._board_list(), methods=self._method_list(details), files=files),
        )
        for section in self._sections:
            path = board_page(section.board.fingerprint)
            yield path, self._render("board", path, section=section, runs=self._run_list(section.board))
        for name in methods:
            yield (
                method_page(name),
                self._render(
                    "method", method_page(name), name=name, details=details[name], rows=list(self._rows_of(name))
                ),
            )
        for section in self._sections:
            for entry in self._entries[section.board.fingerprint]:
                epochs = self._curves.get(entry.run.fingerprint, [])
                shown = reader.details(entry.run, entry.name, epochs, section.board.selection)
                path = run_page(entry.run)
                yield path, self._render("run", path, entry=entry, section=section, shown=shown)
        yield "compare.html", self._compare()

    def _render(self, kind: str, path: str = "index.html", script: str = "report.js", **values: Any) -> str:
        code = asset("compare.js", ASSETS) if script == "compare.js" else asset(script)
        return template(f"{kind}.html.jinja", ASSETS).render(
            values,
            root="../" * path.count("/"),
            page=path,
            policy=policy(code),
            style=asset("report.css") + asset("site.css", ASSETS),
            script=code,
            origins=ORIGINS,
            version=version("robust-overfitting-bench"),
            board_page=board_page,
            method_page=method_page,
            run_page=run_page,
        )

    def _compare(self) -> str:
        runs = {fingerprint: [entry.run for entry in some] for fingerprint, some in self._entries.items()}
        names = {entry.run.fingerprint: entry.name for some in self._entries.values() for entry in some}
        data = comparison_data(self._boards, runs, self._curves, lambda run: names[run.fingerprint], run_page)
        return self._render("compare", "compare.html", "compare.js", data=data)

    # --- lists -------------------------------------------------------------------------------------------------------

    def _board_list(self) -> tuple[Table, list[str]]:
        titles = ("Leaderboard", "Rows", "Runs", "Ranked by", "First", "At best, %", "Smallest gap", "Points")
        rows = []
        for section in self._sections:
            board, attack = section.board, section.board.ranked_by
            ranked = [row for row in board.rows if row.figures]
            measured = [row for row in ranked if not row.gap_by_construction]
            gaps = [(under.gap.mean, row.label) for row in measured if (under := row.figures[attack]).gap]
            first = ranked[0] if ranked else None
            gap, least = min(gaps) if gaps else (None, NONE)
            rows.append(
                (
                    Cell(section.title),
                    *(Cell(str(count), count) for count in (len(board.rows), len(self._entries[board.fingerprint]))),
                    Cell(board.attacks[attack].title),
                    Cell(first.label if first else NONE),
                    _percent(first.figures[attack].best.mean if first else None),
                    Cell(least),
                    _percent(gap),
                )
            )
        texts = {"Leaderboard", "Ranked by", "First", "Smallest gap"}
        columns = tuple(Column("", title, numeric=title not in texts) for title in titles)
        return Table("Leaderboards", columns, tuple(rows), ()), [
            board_page(board.fingerprint) for board in self._boards
        ]

    def _method_list(self, details: dict[str, dict[str, Any] | None]) -> tuple[Table, list[str]]:
        rows = []
        for name, known in details.items():
            boards = sum(any(row.method == name for row in board.rows) for board in self._boards)
            year = known["year"] if known else None
            rows.append(
                (
                    Cell(known["title"] if known else name),
                    Cell(known["description"] if known else NONE),
                    Cell(str(year) if year else NONE, year),
                    Cell(str(boards), boards),
                )
            )
        columns = tuple(
            Column("", title, numeric=title in ("Year", "Leaderboards"))
            for title in ("Method", "Idea", "Year", "Leaderboards")
        )
        return Table("Methods", columns, tuple(rows), ()), list(map(method_page, details))

    def _run_list(self, board: Leaderboard) -> tuple[Table, list[str]]:
        attack = board.attacks[board.ranked_by].title
        settings = board.protocol["evaluation"]["final"]
        rows = []
        for entry in self._entries[board.fingerprint]:
            complete = complete_run(entry.run, settings, board.selection)
            result = complete.at(board.ranked_by) if complete else None
            rows.append(
                (
                    Cell(entry.name),
                    Cell(entry.run.status),
                    Cell(str(entry.run.epochs), entry.run.epochs),
                    _percent(result.best if result else None),
                    _percent(result.last if result else None),
                )
            )
        columns = (
            *(Column("", title, numeric=title == "Epochs") for title in ("Run", "Status", "Epochs")),
            *(Column(attack, title) for title in ("best", "last")),
        )
        links = [f"../{run_page(entry.run)}" for entry in self._entries[board.fingerprint]]
        return Table("Runs", columns, tuple(rows), ()), links

    def _rows_of(self, method: str) -> Iterator[tuple[Section, Member, Table, list[Entry]]]:
        """Yield each row of a method: its leaderboard, itself, its line of the table, its runs."""
        for section in self._sections:
            for member in section.members:
                if member.row.method == method:
                    kept = [index for index, column in enumerate(section.shown.columns) if column.title != "Method"]
                    line = Table(
                        section.title,
                        tuple(section.shown.columns[index] for index in kept),
                        (tuple(member.cells[index] for index in kept),),
                        (),
                    )
                    entries = self._entries[section.board.fingerprint]
                    yield section, member, line, [entry for entry in entries if entry.member is member]


def _percent(share: float | None) -> Cell:
    return Cell(NONE) if share is None else Cell(percent(share), share)


def _details(name: str) -> dict[str, Any] | None:
    """Return what `bench show method` shows, None if the method is not installed."""
    try:
        return show_method(name)
    except (BenchError, AttributeError, TypeError):
        return None
