"""The pages of docs/methods state what the code states."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from bench.config.suite import load_suite
from bench.registry import METHODS
from bench.reporting.method_card import show_method

DOCS = Path(__file__).parents[2] / "docs"
suite = cache(load_suite)
OURS = [name for name in METHODS.names() if METHODS.get(name).__module__.partition(".")[0] == "methods"]


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.mark.parametrize("name", OURS)
def test_a_page_states_the_parameters_of_its_method(name):
    known, page = show_method(name), (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {known['title']} (`{name}`)\n")
    for heading in ("**Paper.** ", "## Uncertainties", "## Parameters", "## Usage"):
        assert heading in page
    assert known["paper"].split(",")[0].split(" et al")[0] in page
    assert str(known["year"]) in page
    stated = [cells(line)[:5] for line in page.splitlines() if line.startswith("| `")]
    expected = []
    for row in known["parameters"]:
        value = row["default"]
        text = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        if isinstance(value, dict):  # as a suite states it
            text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False).strip()
        expected.append([f"`{row['name']}`", text, row["unit"], row["for"], row["source"]])
        assert row["note"] in page
    assert stated == expected


@pytest.mark.parametrize("name", OURS)
def test_a_page_gives_a_command_that_works(name):
    page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    commands = [line.split() for line in page.splitlines() if line.startswith("bench run ")]
    assert commands
    for _, _, name_of_suite, option, method in commands:
        assert (option, method) == ("--methods", name)
        assert name in {row.name for row in suite(name_of_suite).methods}
    assert f"bench show method {name}" in page


def test_the_overview_links_every_page():
    overview = (DOCS / "methods" / "README.md").read_text(encoding="utf-8")
    for name in OURS:
        assert f"[{METHODS.get(name).info.title}]({name}.md)" in overview


def test_the_page_names_the_methods_that_need_one_device():
    page = (DOCS / "data-parallel-training.md").read_text(encoding="utf-8")
    (stated,) = re.findall(r"built-in\s+methods do not: (.*?)\.\s+The", page, re.DOTALL)
    expected = {name for name in OURS if not vars(METHODS.get(name)).get("data_parallel")}
    assert set(re.findall(r"`(\w+)`", stated)) == expected


def test_the_guide_shows_the_example_as_it_is():
    """Every Python and YAML block that names a file of examples/ is part of that file."""
    guide = (DOCS / "add-a-method.md").read_text(encoding="utf-8")
    example = (DOCS.parent / "examples" / "label_smoothing.py").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in guide.split("```python\n# examples/label_smoothing.py\n")[1:]]
    assert len(blocks) >= 3
    for block in blocks:
        assert block.strip() in example
