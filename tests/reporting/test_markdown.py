"""Markdown as GitHub's own renderer reads it."""

from html.parser import HTMLParser

import pytest

from bench.reporting.formats.markdown import render_markdown
from bench.reporting.leaderboard import leaderboards
from bench.reporting.table import table

from .conftest import NAMES

cmarkgfm = pytest.importorskip("cmarkgfm")


class Reader(HTMLParser):
    """Collects the tables' cells, the headings, the list items, and every element's name."""

    def __init__(self):
        super().__init__()
        self.texts: dict[str, list[str]] = {"th": [], "td": [], "li": [], "h3": []}
        self.elements: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        if tag in self.texts:
            self.open.append(tag)
            self.texts[tag].append("")

    def handle_endtag(self, tag):
        if tag in self.texts:
            self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data


def rendered(board) -> Reader:
    reader = Reader()
    reader.feed(cmarkgfm.github_flavored_markdown_to_html(render_markdown(board)))
    return reader


@pytest.mark.parametrize(
    "name", [*NAMES, "# x", "- x", "1. x", "+ x", "> x", "===", "---", "![a](b) **c** <b>d</b> &lt;"]
)
def test_every_cell_heading_and_note_comes_out(make_run, store, name):
    store.ingest(make_run(label=name, seed=0))
    store.ingest(make_run({}, label=name, seed=1, status="diverged", done={"epoch": 1}))
    store.ingest(make_run({"best": (150, 100, 20), "last": (160, 90, 40)}, method="b", label="plain"))
    (board,) = leaderboards(store)
    shown, read = table(board), rendered(board)
    assert read.texts["h3"] == [shown.title]
    assert read.texts["th"] == [f"{column.group} {column.title}".strip() for column in shown.columns]
    assert read.texts["td"] == [" ".join(str(cell).split()) for row in shown.rows for cell in row]
    assert [" ".join(note.split()) for note in read.texts["li"]] == [" ".join(note.split()) for note in shown.notes]
    assert read.elements <= {"h3", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
