"""Every page of the documentation: links, anchors, command lines, names and the width of lines."""

import ast
import re
import shlex
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

import bench
from bench.cli.app import app
from bench.config.suite import shipped_suites
from bench.registry import DATASETS, METHODS, MODELS

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [
        *ROOT.glob("[A-Z]*.md"),
        *(page for folder in ("docs", "examples", "results") for page in (ROOT / folder).rglob("*.md")),
    ]
}
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
PROGRAM = typer.main.get_command(app)
COMMON = {"--help", "--install-completion", "--show-completion"}
every_page = pytest.mark.parametrize("page", PAGES)


@cache
def text(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


@cache
def prose(page: str) -> str:
    """Return a page with its fenced blocks blanked; lines keep their numbers."""
    return FENCE.sub(lambda block: "\n" * block[0].count("\n"), text(page))


@cache
def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        base = anchor = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        number = 0
        while anchor in found:
            anchor = f"{base}-{(number := number + 1)}"
        found.add(anchor)
    return found


def links(page: str) -> list[str]:
    shown = re.sub(r"(`+).*?\1", "", re.sub(r"\[`[^`]*`\]", "[x]", prose(page)))
    return re.findall(r"\[[^]]*\]\(([^)\s]+)\)", shown)


@every_page
def test_links_lead_somewhere(page):
    for link in links(page):
        target, _, anchor = link.partition("#")
        if ":" in target:
            continue
        path = (PAGES[page].parent / target).resolve() if target else PAGES[page]
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(str(path.relative_to(ROOT))), link


def test_every_page_of_docs_is_in_its_contents():
    linked = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in links("docs/README.md")}
    linked |= {(ROOT / "docs/methods" / link.partition("#")[0]).resolve() for link in links("docs/methods/README.md")}
    assert {path for page, path in PAGES.items() if page.startswith("docs/")} - linked == {ROOT / "docs/README.md"}


def test_contributing_names_every_package_and_environment():
    page = text("CONTRIBUTING.md")
    assert {path.parent.name for path in (ROOT / "bench").glob("*/__init__.py")} == set(
        re.findall(r"`bench/(\w+)/`", page)
    )
    environments = re.findall(r"^\[testenv:(\w+)\]", (ROOT / "tox.ini").read_text(encoding="utf-8"), re.MULTILINE)
    table = page.partition("| `tox -e` |")[2].partition("\n\n")[0]
    assert set(environments) == set(
        re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in table.splitlines()[2:]))
    )


@every_page
def test_lines_have_at_most_100_characters(page):
    """Except tables, code, the targets of links, and the notes that `bench report` writes below its tables."""
    for number, line in enumerate(prose(page).splitlines(), 1):
        written = page == "CHANGELOG.md" or (page.startswith("results/") and line.startswith("- "))
        if not (written or line.startswith(("|", "#", "<"))):
            assert len(re.sub(r"\]\([^)]*\)", "]", line)) <= 100, f"{page}:{number}"


@every_page
def test_tables_end_with_a_blank_line(page):
    """Otherwise the next line becomes a row."""
    assert not re.findall(r"^\|.*\|\n(?=[^|\n])", prose(page), re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """Return the words after `bench` of every command line in a page's fenced blocks."""
    found = []
    for block in FENCE.findall(text(page)):
        for line in block.replace("\\\n", " ").splitlines():
            if not re.search(r"(^|[ /])bench ", line) or re.match(r"\s*(import|from|#|bench +[A-Z])", line):
                continue
            lexer = shlex.shlex(line.replace("$(", "("), posix=True, punctuation_chars=True)
            lexer.commenters, lexer.whitespace_split = "#", True
            part: list[str] = []
            for word in [*lexer, ";"]:
                if not set(word) <= set("();<>|&"):
                    part.append(word)
                    continue
                start = next((at for at, one in enumerate(part) if re.fullmatch(r"(.*/)?bench", one)), None)
                if start is not None:
                    found.append([one for one in part[start + 1 :] if "${" not in one])
                part = ["file"] if set(word) <= set("<>") else []
    return found


def find(words: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    """Return the command that the first words name, and the words after them."""
    command, at = PROGRAM, 0
    while isinstance(command, typer.core.TyperGroup) and at < len(words) and words[at][0].islower():
        assert words[at] in command.commands, f"no command: bench {' '.join(words)}"
        command, at = command.commands[words[at]], at + 1
    return command, words[at:]


def known(parameter: str, values: dict) -> Collection[str]:
    """Return the names that a parameter of a parsed command line accepts, or nothing if it takes any text."""
    kind = getattr(values.get("thing"), "value", None)  # of `bench show`
    if parameter in {"suite", "suites"} or (parameter == "name" and kind == "suite"):
        return shipped_suites()
    if parameter == "methods" or (parameter == "name" and kind == "method"):
        return METHODS.names()
    if parameter in {"a", "b"}:  # of `bench compare` and `bench diff-protocol`
        return [*METHODS.names(), *shipped_suites()]
    if parameter == "name" and kind in {"dataset", "model"}:
        return (DATASETS if kind == "dataset" else MODELS).names()
    if parameter == "name" and values.keys() <= {"name", "data", "decode", "ignore_unread", "json"}:  # `bench data`
        return [*DATASETS.names(), *shipped_suites()]
    return []


@every_page
def test_command_lines_are_valid(page):
    """The program's own parser accepts them. A name in capitals is a placeholder, one with a dot is a file."""
    check(commands(page))


def test_the_comments_of_suites_name_valid_commands():
    options = {name for _, command in leaves(PROGRAM, "bench") for one in command.params for name in one.opts}
    for path in [*(ROOT / "suites").rglob("*.yaml"), ROOT / "examples" / "plugin.yaml"]:
        comment = "\n".join(line[1:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
        lines = [
            line.replace("&&", "").split("bench ")[1:] for line in comment.splitlines() if line.startswith("   bench")
        ]
        check(words.split() for line in lines for words in line)
        check(words.split() for words in re.findall(r"`bench\s([^`]*)`", comment))
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", comment)) <= options, path


def check(found: Iterable[list[str]]) -> None:
    """Parse command lines, the words after `bench`, and look up the names in them."""
    for words in found:
        command, rest = find(words)
        if command is PROGRAM or "[OPTIONS]" in rest:  # `bench --version`, a synopsis
            continue
        try:
            values = command.make_context("bench", rest).params
        except Exception as error:
            error.add_note(f"bench {' '.join(words)}")
            raise
        for parameter, value in values.items():
            if allowed := known(parameter, values):
                given = value.split(",") if isinstance(value, str) else value or ()
                unknown = [name for name in given if name.islower() and "." not in name and name not in allowed]
                assert not unknown, f"bench {' '.join(words)}"


@every_page
def test_python_examples_import_what_the_package_exports(page):
    for block in re.findall(r"^```python\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL):
        if ">>>" not in block:  # tests/reporting/test_frames.py runs sessions
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module == "bench":
                    assert {name.name for name in node.names} <= set(bench.__all__), block


@every_page
def test_named_files_exist(page):
    """A name in capitals is a placeholder; those in results/ are of a run, those of CHANGELOG.md may be of the past."""
    named = re.findall(r"`((?:\.ci|bench|docs|examples|methods|suites|tests)/[\w./-]+)`", prose(page))
    missing = [name for name in named if not (ROOT / name).exists() and not re.search(r"\b[A-Z]{4,}\b|\.\.\.", name)]
    assert page == "CHANGELOG.md" or not missing


@every_page
def test_commands_in_the_text_exist(page):
    for code in re.findall(r"`bench\s([^`|\\]*)", prose(page)):
        command, rest = find(code.split())
        options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        assert {word for word in rest if word.startswith("-")} <= options | COMMON, f"bench {code}"


def stated(section: str) -> dict[str, tuple[str, str]]:
    """Return default and meaning of each argument and option in the tables of a section of docs/cli.md."""
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| (.*) \|$", section.replace("\\|", "/"), re.MULTILINE)
    return {name: (default, meaning) for names, default, meaning in rows for name in re.findall(r"`(.*?)`", names)}


def leaves(command: typer.core.TyperCommand, name: str) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    if isinstance(command, typer.core.TyperGroup):
        for word, sub in command.commands.items():
            yield from leaves(sub, f"{name} {word}")
    else:
        yield name, command


@pytest.mark.parametrize(("name", "command"), [*leaves(PROGRAM, "bench")])
def test_the_page_of_the_command_line_lists_every_option(name, command):
    """With its default and the text of `--help`, to which the page may add."""
    sections = {section.partition("\n")[0]: section for section in text("docs/cli.md").split("\n## ")}
    rows, shared = stated(sections[name]), stated(sections["Common options"])
    listed = re.search(r"\(#common-options\): (.*?)\.\n", sections[name], re.DOTALL)
    rows |= {option: shared[option] for option in re.findall("`(.*?)`", listed[1] if listed else "")}
    for one in command.params:
        option = one.param_type_name == "option"
        if one.name == "help" or getattr(one, "hidden", False):
            continue
        names = [*one.opts, *one.secondary_opts] if option else [one.metavar or one.name.upper()]
        value = getattr(one.default, "value", one.default)
        expected = "required" if one.required else "" if value in {None, False} else f"`{value}`"
        for word in names:
            default, meaning = rows.pop(word)
            assert default == expected, f"{name} {word}"
            plain = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", meaning).replace("`", "").replace("\\", "")
            assert plain.startswith(one.help.replace("`", "").rstrip(".")), f"{name} {word}"
    assert not {word for word in rows if word.startswith("--") or word.isupper()}
