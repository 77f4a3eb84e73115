"""Source of this package as the text of one module that does not import it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from symtable import SymbolTable, symtable

from bench.errors import BenchError
from bench.outside import OURS

_REPLACED = {("bench.errors", "BenchError"): "BenchError = ValueError"}


def self_contained(roots: Iterable[tuple[str, str]]) -> str:
    """Return the definitions `roots`, (module, name), after all that they use of our packages and all other imports.

    Raises:
        BenchError: a definition is not at the top of its module, or two of them have one name.
    """
    definitions: dict[tuple[str, str], str] = {}
    imports: dict[str, set[str]] = {}  # of modules: the names; of whole modules: none
    visited: set[tuple[str, str]] = set()

    def visit(module: str, name: str) -> None:
        if (module, name) in visited:
            return
        visited.add((module, name))
        if (module, name) in _REPLACED:
            definitions[module, name] = _REPLACED[module, name]
            return
        statement = _bindings(module).get(name)
        match statement:
            case None:
                raise BenchError(f"{name} is not defined at the top of {module}")
            case ast.ImportFrom(module=str(origin), level=0) if origin.partition(".")[0] in OURS:
                visit(origin, name)
            case ast.ImportFrom(module=origin):
                imports.setdefault(f"from {'.' * statement.level}{origin or ''} import ", set()).add(
                    _written(statement, name)
                )
            case ast.Import():
                imports.setdefault(f"import {_written(statement, name)}", set())
            case _:
                text = _text(module, statement)
                used = set(_global_names(symtable(text, module, "exec")))
                for other in sorted(used & _bindings(module).keys() - {name}):
                    visit(module, other)
                definitions[module, name] = text

    for module, name in roots:
        visit(module, name)
    names = [name for _, name in definitions]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BenchError(f"two modules define {', '.join(sorted(twice))}")
    lines = [start + ", ".join(sorted(held)) for start, held in sorted(imports.items())]
    return "\n".join(lines) + "\n\n\n" + "\n\n\n".join(definitions.values()) + "\n"


def _global_names(table: SymbolTable) -> Iterator[str]:
    """Yield the names that a statement and all functions and classes in it look up in their module."""
    outermost = table.get_type() == "module"
    yield from (
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (outermost or symbol.is_global())
    )
    for inner in table.get_children():
        yield from _global_names(inner)


@cache
def _bindings(module: str) -> dict[str, ast.stmt]:
    """Return what binds each name at the top of a module."""
    return {name: node for node in ast.parse(_source(module)).body for name in _bound(node)}


def _bound(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ClassDef | ast.FunctionDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _written(statement: ast.Import | ast.ImportFrom, name: str) -> str:
    (alias,) = (one for one in statement.names if (one.asname or one.name.partition(".")[0]) == name)
    return ast.unparse(alias)


@cache
def _source(module: str) -> str:
    return inspect.getsource(import_module(module))


def _text(module: str, statement: ast.stmt) -> str:
    """Return the lines of a statement, with its decorators."""
    start = min([statement.lineno, *(one.lineno for one in getattr(statement, "decorator_list", ()))])
    return "\n".join(_source(module).splitlines()[start - 1 : statement.end_lineno])
