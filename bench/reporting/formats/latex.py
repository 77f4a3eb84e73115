r"""Leaderboards as LaTeX: one table each, with the rules of the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from bench.reporting.leaderboard import Leaderboard
from bench.reporting.table import Cell, Column, Table, tables

PREAMBLE = r"""\documentclass{article}
\usepackage[landscape,margin=1cm]{geometry}
\usepackage{booktabs,graphicx,fontspec}
\directlua{luaotfload.add_fallback("others", {"DejaVuSans:mode=harf;script=arab;", "DroidSansFallback:mode=harf;"})}
\setmainfont{Latin Modern Roman}[RawFeature={fallback=others}]
\usepackage[bidi=basic,english]{babel}
\babelprovide[import,onchar=ids]{arabic}
\babelfont[arabic]{rm}{DejaVu Sans}"""
"""What a document needs before its text, for LuaLaTeX and names in any script."""

_HEAD = (
    "Needs booktabs and graphicx. Where all names are in Latin letters any engine does, pdfLaTeX with fontenc's T1.",
    "Names in Arabic, Chinese and other scripts are not converted: use LuaLaTeX and fonts that have them.",
    "On Debian: apt-get install texlive-luatex texlive-latex-recommended fonts-dejavu-core fonts-droid-fallback",
    "A document for this file, board.tex, compiled with lualatex:",
    "",
    *PREAMBLE.split("\n"),
    r"\begin{document}",
    r"\input{board}",
    r"\end{document}",
)

_LETTERS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "#": r"\#", "$": r"\$", "%": r"\%", "&": r"\&", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
    "±": r"$\pm$", "†": r"\dag{}", "‡": r"\ddag{}", "§": r"\S{}",
}  # fmt: skip
_ESCAPES = str.maketrans(_LETTERS)
_LIGATURES = re.compile(r"([-,])(?=\1)")  # two of them are one other letter in some fonts


def render_latex(boards: Sequence[Leaderboard]) -> str:
    """Return a comment that says how to compile, and a table environment for each board, without a newline at the end.

    Tables are scaled to the width of the line.
    """
    head = "\n".join(f"% {line}".rstrip() for line in _HEAD)
    return "\n\n".join([head, *(_render(shown) for board in boards for shown in tables(board))])


def escape(text: str) -> str:
    """Return one line of plain text as LaTeX that shows it as it is."""
    return _LIGATURES.sub(r"\1\/", text.translate(_ESCAPES)).replace("–", "--")


def _cell(cell: Cell, *, numeric: bool) -> str:
    text = str(cell)
    return f"$-${escape(text[1:])}" if numeric and text.startswith("-") else escape(text)


def _render(shown: Table) -> str:
    lines = [r"\begin{table}[htbp]", r"\centering", rf"\caption{{{escape(shown.title)}}}"]
    if shown.rows:
        align = "".join("r" if column.numeric else "l" for column in shown.columns)
        lines += [
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}",
            r"\toprule",
            *_groups(shown.columns),
            _line([escape(column.title) for column in shown.columns]),
            r"\midrule",
        ]
        for row in shown.rows:
            lines.append(
                _line([_cell(cell, numeric=column.numeric) for cell, column in zip(row, shown.columns, strict=True)])
            )
        lines += [r"\bottomrule", r"\end{tabular}}"]
    notes = [rf"\par {escape(note)}" for note in shown.notes]
    return "\n".join([*lines, r"\par\medskip\begin{minipage}{\linewidth}\footnotesize", *notes, r"\end{minipage}",
                      r"\end{table}"])  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    start = "{}" if cells[0].startswith(("[", "*")) else ""  # else they would belong to the end of the line before
    return rf"{start}{' & '.join(cells)} \\"


def _groups(columns: Sequence[Column]) -> list[str]:
    """Return the line of headings over several columns, and the rules below them."""
    cells, rules, place = [], [], 1
    for group, members in groupby(columns, key=lambda column: column.group):
        width = len(list(members))
        if group:
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(group)}}}")
            rules.append(rf"\cmidrule(lr){{{place}-{place + width - 1}}}")
        else:
            cells += [""] * width
        place += width
    return [_line(cells), " ".join(rules)] if rules else []
