"""The papers' figures that a suite names as those it should meet."""

from __future__ import annotations

from collections.abc import Sequence

from bench.config.cell import ResolvedMethod
from bench.config.suite import LoadedSuite, PublishedRow
from bench.errors import BenchError, NotComparable, did_you_mean
from bench.reporting.published import Published
from bench.reporting.published_comparison import plain, threat_text


def published_rows(loaded: LoadedSuite, lines: Sequence[Published]) -> list[tuple[ResolvedMethod, Published]]:
    """Return each row of the suite that its key `published` names, with the line of the papers' figures.

    Raises:
        BenchError: the suite names none, or an entry fits no row of the suite, or not exactly one of `lines`.
        NotComparable: an entry fits lines of other threats only.
    """
    entries = loaded.suite.published
    if not entries:
        raise BenchError(f"suite '{loaded.suite.name}' names no published figures; add the key 'published'")
    return [_pair(loaded, f"published.{index}", entry, lines) for index, entry in enumerate(entries)]


def _pair(
    loaded: LoadedSuite, where: str, entry: PublishedRow, lines: Sequence[Published]
) -> tuple[ResolvedMethod, Published]:
    suite = loaded.suite
    wanted = entry.row or entry.method
    rows = [row for row in loaded.methods if wanted is None or wanted in (row.name, row.label)]
    if len(rows) != 1:
        labels = ", ".join(row.label for row in loaded.methods)
        hint = did_you_mean(wanted, [row.label for row in loaded.methods]) if wanted else ""
        raise BenchError(f"{where}: name one row of the suite in 'row' ({labels}){hint}")
    threat = threat_text(suite.threat.norm, suite.threat.eps)
    near = [
        line
        for line in lines
        if (line.dataset, plain(line.architecture)) == (suite.dataset.name, plain(suite.model))
        and line.method == (entry.method or rows[0].name)
        and entry.source in line.source
        and entry.selection in (None, line.selection)
        and entry.pgd_steps in (None, line.pgd_steps)
    ]
    found = [line for line in near if line.threat == threat]
    if near and not found:
        others = ", ".join(sorted({line.threat for line in near}))
        raise NotComparable(
            f"{where}: not comparable: the published figures are for {others}, the suite is for {threat}"
        )
    if len(found) != 1:
        count = f"{len(found)} lines" if found else "no line"
        raise BenchError(
            f"{where}: {count} of the papers' figures for {suite.dataset.name}, {suite.model}, {threat} "
            f"{'have' if found else 'has'} the method '{entry.method or rows[0].name}' and this source"
        )
    return rows[0], found[0]
