"""Code from outside: factories of networks and plug-ins. How it is imported, run and told from other code."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NoReturn, TextIO

from bench.errors import BenchError

OURS = ("bench", "methods")
"""The packages of this distribution, whose identity is the `code` of a run's environment."""

NEVER_HIDDEN = sys.stdlib_module_names | {"bench", "torch", "torchvision", "numpy"}
"""Modules that a file beside a factory never replaces: most cannot be imported twice."""

_NOT_FORGOTTEN = NEVER_HIDDEN | {"__main__", "__mp_main__"}

_OURS = tuple(f"{Path(__file__).parents[1].resolve() / name}{os.sep}" for name in OURS)

_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/", *_OURS)

_INSTALLED = tuple(f"{sysconfig.get_path(kind)}{os.sep}" for kind in ("stdlib", "platstdlib", "purelib", "platlib"))


@contextmanager
def running(what: str) -> Iterator[None]:
    """Run code from outside: its output goes to stderr, it sees no arguments, and what it raises is one sentence.

    The working directory stays what it was.

    Raises:
        BenchError: `what`, and the error; also if the code would end the process. KeyboardInterrupt passes.
    """
    process, end, arguments, folder = os.getpid(), os._exit, sys.argv, os.open(".", getattr(os, "O_PATH", os.O_RDONLY))

    def refuse(status: int) -> NoReturn:
        if os.getpid() != process:  # a child that the code has forked
            end(status)
        raise SystemExit(status)

    try:
        os._exit, sys.argv = refuse, arguments[:1]
        with _stdout_to_stderr():
            yield
    except BenchError as error:
        raise BenchError(f"{what}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BenchError(f"{what}: {type(error).__name__}: {_text(error)}") from error
    finally:
        os._exit, sys.argv = end, arguments
        os.fchdir(folder)
        os.close(folder)


def _text(error: BaseException) -> str:
    """Return the first line of an error's text."""
    try:
        return f"{(str(error).strip().splitlines() or ['no reason given'])[0]:.300}"
    except Exception:
        return "its text cannot be read"


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what Python, libraries and other processes write to stdout."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
        # The code may close it, or use it later, as handlers of logging do.
        messages: TextIO = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    except OSError:  # one of the two is closed
        kept, messages = None, sys.stderr
    try:
        with redirect_stdout(messages), redirect_stderr(messages):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


# --- imports ---------------------------------------------------------------------------------------------------------


class _FromSource(SourceFileLoader):
    """Compiles a file in every process: its bytecode on disk may be that of an older file of equal size and time."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


class _Neighbours(MetaPathFinder):
    """Finds the modules in `folder` before installed ones, as Python does for a script in it."""

    folder: str | None = None

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if self.folder is None or name.partition(".")[0] in NEVER_HIDDEN:
            return None
        spec = PathFinder.find_spec(name, [self.folder]) if path is None else None
        if spec is None or (spec.loader is None and name != "methods"):  # installed packages precede bare folders
            spec = PathFinder.find_spec(name, path)
        if spec and spec.origin and type(spec.loader) is SourceFileLoader and not _installed(spec.origin):
            spec.loader = _FromSource(name, spec.origin)
        return spec


_neighbours = _Neighbours()


def _installed(file: str) -> bool:
    parts = Path(file).parts
    return file.startswith(_INSTALLED) or "site-packages" in parts or "dist-packages" in parts


@cache  # an import afresh asks for thousands of modules, several times
def _known(file: str) -> bool:
    """Return whether a file is installed or ours, its links followed."""
    file = os.path.realpath(file)
    return _installed(file) or file.startswith(_OURS)


def _from_outside() -> dict[str, str]:
    """Return the loaded modules from outside, and the absolute path of each: neither installed, nor ours, nor main."""
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return {
        name: os.path.realpath(file)
        for name, file in files.items()
        if name.partition(".")[0] not in _NOT_FORGOTTEN and isinstance(file, str) and not _known(file)
    }


def import_file(path: Path, what: str, *, afresh: bool = False) -> ModuleType:
    """Import a trusted Python file; the same file again returns the same module.

    Args:
        path: the file.
        what: its description in errors, such as "plug-in".
        afresh: import it and all that it imports from outside again, its neighbours before installed modules of the
            same names. This holds for later imports, too, until `imports_undone` ends.

    Raises:
        BenchError: the file is missing, or cannot be imported.
    """
    try:
        path = path.resolve()
        exists = path.is_file()
    except (OSError, ValueError):  # not a valid file name
        exists = False
    if not exists:
        raise BenchError(f"{what} {path}: no such file")
    if path.suffix != ".py":
        raise BenchError(f"{what} {path}: not a Python file")
    name = f"bench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if afresh:
        _forget(path.parent)
    elif name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with running(f"{what} {path} does not import"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _forget(folder: Path) -> None:
    """Look for modules in `folder` from now on, and forget those from outside and those that it hides."""
    _neighbours.folder = str(folder)
    if _neighbours not in sys.meta_path:
        sys.meta_path.insert(0, _neighbours)
        sys.addaudithook(_note_opened)
    _opened.clear()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()
    hidden = {path.stem for path in folder.iterdir()} - _NOT_FORGOTTEN
    hidden = {name for name in hidden if (spec := _neighbours.find_spec(name)) and _beside(spec, folder)}
    for name in [*_from_outside(), *(name for name in sys.modules if name.partition(".")[0] in hidden)]:
        sys.modules.pop(name, None)


def _beside(spec: ModuleSpec, folder: Path) -> bool:
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return any(Path(place).is_relative_to(folder) for place in places)


def imported_afresh() -> list[Path]:
    """Return the files, neither installed nor ours, that have been imported since an import afresh."""
    return [Path(file) for file in sorted(set(_from_outside().values()))]


_opened: set[str] = set()
"""Absolute paths of the files opened for reading since the latest import afresh."""


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _neighbours.folder:
        path, _, flags = arguments
        if isinstance(path, str) and isinstance(flags, int) and flags & os.O_ACCMODE == os.O_RDONLY:
            _opened.add(os.path.realpath(path))


def read_digest() -> str | None:
    """Return the SHA-256 (hex) of the contents of data files that were read since an import afresh, None without any.

    Files of the system and hidden ones, such as caches, count below the folder of the file imported only.
    """
    code, digests = {str(path) for path in imported_afresh()}, set()
    for file in sorted(_opened - code):
        place = os.path.relpath(file, _neighbours.folder)
        elsewhere = place.startswith("..") and (file.startswith(_SYSTEM) or "/." in file)
        if not (elsewhere or _installed(file) or file.endswith(".pyc")):
            with suppress(OSError):
                digests.add(hashlib.sha256(Path(file).read_bytes()).hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest() if digests else None


@contextmanager
def imports_undone() -> Iterator[None]:
    """Forget in the end what was imported afresh, and put back what it has hidden."""
    modules, path = dict(sys.modules), list(sys.path)
    try:
        yield
    finally:
        for name in _from_outside():
            del sys.modules[name]
        sys.modules.update(modules)
        sys.path[:], _neighbours.folder = path, None


# --- identity --------------------------------------------------------------------------------------------------------


def sources_digest(paths: Iterable[Path], folder: Path) -> str:
    """Return the SHA-256 (hex) of files: of their paths relative to `folder` and of their contents."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{Path(os.path.relpath(path, folder)).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the digest of a Python file and of all that it imports, anywhere in it, from outside; nothing is run."""
    places = [path.parent, *(Path(place) for place in sys.path if place and not _installed(f"{place}{os.sep}"))]
    found, queue = set(), [(path, "")]
    while queue:
        file, package = queue.pop()
        if file in found:
            continue
        found.add(file)
        for name in _imported_names(file, package):
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                stem, inside = Path(*parts[:end]), ".".join(parts[:end])
                options = ((stem / "__init__.py", inside), (stem.with_suffix(".py"), inside.rpartition(".")[0]))
                files = ((place / option, within) for place in places for option, within in options)
                queue += [next((pair for pair in files if pair[0].is_file()), (path, ""))]
    return sources_digest(found, path.parent)


def _imported_names(file: Path, package: str) -> set[str]:
    """Return the modules that a file of `package` may import from outside: `from a import b` gives a.b."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError):  # not code, or never imported
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            names |= {".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names}
    return {name for name in names if name.partition(".")[0] not in {*_NOT_FORGOTTEN, *OURS, ""}}


def package_digest(module: str) -> str:
    """Return the digest of all Python files of the top-level package or file that an imported module belongs to."""
    parts = module.split(".")
    names = [".".join(parts[: count + 1]) for count in range(len(parts))]
    package = next(found for name in names if (found := sys.modules[name]).__file__)  # bare folders have no file
    file = Path(str(package.__file__))
    if hasattr(package, "__path__"):
        return sources_digest(file.parent.rglob("*.py"), file.parent)
    return sources_digest([file], file.parent) if _installed(str(file)) else file_digest(file)
