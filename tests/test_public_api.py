"""What `bench` exports: the lazy table, the names for type checkers and the modules agree."""

import ast
import subprocess
import sys
from importlib import import_module
from inspect import isfunction
from pathlib import Path

import bench

ROOT = Path(__file__).parents[1]


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(bench.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    assert imported == bench._PUBLIC


def test_every_name_is_there_and_documented():
    for name, module in bench._PUBLIC.items():
        assert getattr(bench, name) is getattr(import_module(module), name)
    undocumented = [
        name for name in bench.__all__ if callable(getattr(bench, name)) and not getattr(bench, name).__doc__
    ]
    assert not undocumented


def test_every_method_of_an_exported_class_is_documented():
    """By itself, or where a class of this package declares it."""
    classes = [value for name in bench.__all__ if isinstance(value := getattr(bench, name), type)]
    methods = [(cls, name) for cls in classes for name in vars(cls) if name[0] != "_" and isfunction(vars(cls)[name])]
    assert len(methods) > 40
    for cls, name in methods:
        ours = [vars(base)[name] for base in cls.__mro__ if name in vars(base) and base.__module__.startswith("bench.")]
        assert any(method.__doc__ for method in ours), f"{cls.__name__}.{name}"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, bench; sys.exit(bool({'torch', 'pandas', 'sqlalchemy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_methods_and_examples_import_from_bench_alone():
    files = [*ROOT.glob("methods/*.py"), *ROOT.glob("examples/**/*.py")]
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("bench."), f"{path}:{node.lineno}"
