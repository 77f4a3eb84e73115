"""Imports point downwards, there are no cycles, and files stay small: read from the source, nothing is imported."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    # A room imports only from itself and from rooms before it in this list.
    "errors",
    "outside",
    "registry",
    "utils",
    "config",
    "data",
    "models",
    "attacks",
    "storage",
    "training",
    "execution",
    "reporting",
    "export",
    "trackers",
    "regression",
    "testing",
    "speed",
    "__init__",  # the public names
    "cli",
    "__main__",
)
HEIGHT = {name: height for height, name in enumerate(LAYERS)}


def height(module: str) -> int:
    return HEIGHT.get(module.partition(".")[0], len(LAYERS))


def module_of(path: Path) -> str:
    """Return `data.digits` for bench/data/datasets/digits.py, and `data` for bench/data/__init__.py."""
    parts = path.relative_to(ROOT / "bench").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_of(path): path for path in sorted((ROOT / "bench").rglob("*.py")) if "versions" not in path.parts}


def imported(path: Path) -> set[str]:
    """Return what the file imports, anywhere in it: `from bench.a import b` gives bench.a and bench.a.b."""
    package = ["bench", *path.relative_to(ROOT / "bench").parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            found |= {origin} - {"bench"} | {f"{origin}.{alias.name}" for alias in node.names}
    return found


def of_bench(path: Path) -> set[str]:
    """Return the modules of bench that the file imports; a package only where nothing deeper in it is meant."""
    found = {name.removeprefix("bench.") for name in imported(path) if name.startswith("bench.")}
    names = found & set(MODULES)
    if "bench" in imported(path) or any("." not in name and name not in MODULES for name in found):
        names.add("__init__")
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)}


IMPORTS = {module: of_bench(path) for module, path in MODULES.items()}


def test_the_reader_of_imports_sees_them():
    assert {"bench.registry", "bench.errors", "bench.config.protocol.Seed"} <= imported(MODULES["config.suite"])
    assert "registry" in IMPORTS["config.suite"]
    assert "data.dataset" in IMPORTS["data.datasets.digits"]
    assert len(MODULES) > 30


def test_every_module_is_in_a_room():
    outside = sorted(module for module in MODULES if module.partition(".")[0] not in HEIGHT)
    assert not outside, f"add to LAYERS, after all that they import: {outside}"


def test_nothing_imports_from_a_later_room():
    upward = [f"{module}: {name}" for module in MODULES for name in IMPORTS[module] if height(name) > height(module)]
    assert not upward, "\n".join(sorted(upward))


def test_no_cycle():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_bench_never_imports_methods():
    imports = [f"{module}: {name}" for module, path in MODULES.items() for name in imported(path)]
    assert not [line for line in imports if line.split(": ")[1].partition(".")[0] == "methods"]


def test_files_stay_small():
    lengths = {
        path.relative_to(ROOT): (len(path.read_text(encoding="utf-8").splitlines()), limit)
        for folder, limit in {"bench": 400, "methods": 150}.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert len(lengths) > 30
    assert not [f"{path}: {length} lines" for path, (length, limit) in lengths.items() if length > limit]
