"""A report on a store made by hand, which the tests of its structure and those in a browser share."""

from html.parser import HTMLParser

import pytest

from bench.config.suite import MethodEntry, Suite, resolve_method
from bench.reporting.formats.html import render_html
from bench.reporting.leaderboard import leaderboards
from bench.reporting.published import Published
from bench.reporting.published_comparison import compare_with_published
from bench.storage.store import Store

from ..storage.conftest import Maker, protocol_of

ENVIRONMENT = {
    "device": "cpu", "cpu": "A & B <Processor>", "threads": 2, "system": "Linux", "host": "secret-host",
    "git": {"revision": "0123456789abcdef", "dirty": True}, "versions": {"python": "3.12.1", "torch": "2.6.0"},
}  # fmt: skip
HOSTILE = "</script><script>alert(1)</script> | 100 % \"x\" 'y' & {{ 7 * 7 }} 方法"
HOSTILE_METHOD = {"method": "lab/x", "label": HOSTILE, "params": {"a<b": "&"}, "origin": None}
ARABIC = "طريقة الدفاع"
VOID = {"meta", "link", "br", "hr", "input", "img", "path", "use", "rect", "circle", "line"}


def resolved(protocol, name: str, **entry) -> dict:
    """Return a method as a suite with this protocol resolves it, as arguments for `Maker`."""
    suite = Suite.model_validate({**protocol.identity(), "name": "tiny", "methods": [name]})
    method = resolve_method(suite, MethodEntry(name=name, **entry))
    return {"method": method.name, **method.model_dump(exclude={"name"})}


def published(protocol: dict) -> Published:
    """Return what a hostile source reports of PGD-AT, in the L2 ball of this protocol."""
    return Published(
        dataset=protocol["dataset"]["name"], architecture=protocol["model"], threat="l2-127.5", method="pgd_at",
        best={"pgd": 0.61}, last={"clean": 0.85, "pgd": 0.04}, pgd_steps=20, selection="test", seeds=3,
        status="paper", source=HOSTILE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """Return a store, its leaderboards and the report on them: a bit of everything, in two protocols."""
    results = tmp_path_factory.mktemp("report")
    make = Maker(results)
    done = {"classes": 10}
    with Store.of(results) as store:

        def take(*args, **kwargs):
            store.ingest(make(*args, **{"done": done, "environment": ENVIRONMENT, **kwargs}))

        first, second = protocol_of(threat={"norm": "l2", "eps": 0.5}, training={"epochs": 1}), protocol_of()
        for protocol in (first, second):
            for seed in range(3):
                right = {"best": (150 + seed, 100, 50 + seed), "last": (160, 9, 40 - seed)}
                take(right, protocol=protocol, seed=seed, **resolved(protocol, "pgd_at"))
            take({"best": (110, 80, 30), "last": (120, 70, 9)}, protocol=protocol, **resolved(protocol, "fomo"))
        other = resolved(first, "fomo", params={"fraction": 0.05}, label="FOMO, s=5%")
        take({"best": (90, 70, 49), "last": (90, 70, 31)}, seed=7, **other)
        take({"best": (90, 70, 3), "last": (90, 70, 2)}, seed=8, **other)
        take({"best": (99, 70, 28), "last": (99, 70, 28)}, **resolved(first, "early_stopping"))
        take({"best": (80, 70, 26), "last": (80, 60, 25)}, **HOSTILE_METHOD)
        take({"best": (70, 60, 24), "last": (60, 60, 23)}, method="pgd_at", label=ARABIC, version=99)
        take({}, status="diverged", done={"epoch": 3}, **resolved(first, "mart"))
        take({}, status=None, seed=1, **resolved(first, "mart"))
        found = compare_with_published(leaderboards(store), [], [published(first.identity())])
        yield store, sorted(found, key=lambda board: -len(board.rows)), render_html(store, found)


@pytest.fixture(scope="module")
def text(boards) -> str:
    return boards[2]


class Tree(HTMLParser):
    """All start tags with their attributes, the text of each element by its id, and whether tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag: str) -> list[str]:
        return [data for name, data in self.texts if name == tag]


@pytest.fixture(scope="module")
def tree(text) -> Tree:
    return Tree(text)
