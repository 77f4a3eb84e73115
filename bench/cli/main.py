"""The program `bench`: from the process's streams and variables to an exit code.

Importing this module imports nothing but the standard library, so that even a broken installation ends in one sentence.
"""

from __future__ import annotations

import atexit
import io
import os
import re
import select
import sys
import tempfile
import traceback
from contextlib import suppress
from typing import Any

from bench.errors import BenchError, ExitCode, printable


def main() -> None:
    """Run the command line, and exit with its code; see `ExitCode`."""
    _prepare()
    stdout = os.dup(1)
    try:
        from bench.cli.app import app

        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except BaseException as error:
        code = _report(error, stdout)
    os.close(stdout)
    try:
        sys.stdout.flush()
    except OSError:  # reported above; Python's own flush at exit must not change the code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    atexit.register(_end_stdout)  # the last that is registered runs first
    sys.exit(code)


def _end_stdout() -> None:
    """Send to stderr what plug-ins and factories print when the interpreter ends: it is not data."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        os.dup2(2, 1)


def _prepare() -> None:
    """Make the standard streams usable whatever they are, and remove variables of other programs that would fail."""
    os.environ.pop("MPLBACKEND", None)  # a notebook's, whose package may be missing here; figures are files
    for name in ("COLUMNS", "LINES"):
        if not re.fullmatch("0*[1-9][0-9]{0,3}", os.environ.get(name, "1")):
            del os.environ[name]
    for descriptor in range(3):  # a file that is opened later must not become stdout
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr in {sys.__stderr__, None}:
        encoding = getattr(sys.stderr, "encoding", "utf-8")
        messages = io.BufferedWriter(_Messages(2, "wb", closefd=False))
        sys.stderr = io.TextIOWrapper(messages, encoding, "backslashreplace", line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


class _Messages(io.FileIO):
    """The file of stderr; messages that it does not take are lost, and the command goes on."""

    def write(self, data: Any, /) -> int:
        written = None
        with suppress(OSError):
            written = super().write(data)  # None if it would have to wait
        return len(data) if written is None else written


def _report(error: BaseException, stdout: int) -> int:
    """Print what ended the command as one sentence on stderr, and return the exit code.

    `stdout`: a copy of its descriptor, since rich turns the original one away from a pipe that nobody reads.
    """
    completion = "_BENCH_COMPLETE" in os.environ or {"--install-completion", "--show-completion"} & set(sys.argv[1:2])
    if isinstance(error, SystemExit) and completion:
        return ExitCode.INVALID if error.code else ExitCode.SUCCESS
    # Typer and rich turn EPIPE into an exit with 1; Typer turns EOFError into an Abort, a RuntimeError without a text.
    while error.__context__ and (isinstance(error, SystemExit) or (isinstance(error, RuntimeError) and not error.args)):
        error = error.__context__
    if isinstance(error, BrokenPipeError) and _reader_ended(stdout):
        return ExitCode.READER_ENDED
    if isinstance(error, KeyboardInterrupt):
        return _say("interrupted", ExitCode.INTERRUPTED)
    if isinstance(error, BenchError):
        return _say(str(error), error.exit_code)
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of Typer, whose parser has several homes
        error.show()
        return int(error.exit_code)
    if isinstance(error, OSError):
        sentence = f"{error.filename or 'input or output failed'}: {error.strerror or error}"
        return _say(f"{sentence}; {_log(error)}", ExitCode.INVALID)
    described = "".join(traceback.format_exception_only(error)).strip()
    return _say(f"internal error ({_log(error)}): {described:.300}", ExitCode.INTERNAL)


def _say(sentence: str, code: int) -> int:
    print(f"bench: {printable(sentence)}", file=sys.stderr)
    return code


def _reader_ended(stdout: int) -> bool:
    """Return whether nobody reads stdout any more; EPIPE may come from another pipe, such as a database's."""
    poll = select.poll()
    poll.register(stdout, 0)
    return bool(poll.poll(0))


def _log(error: BaseException) -> str:
    """Write the traceback into a new file, and return where it is."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="bench-", suffix=".log")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:  # noqa: PTH123
            traceback.print_exception(error, file=file)
    except (OSError, MemoryError):
        return f"no file for the traceback could be written to {tempfile.tempdir or 'a temporary folder'}"
    return f"the traceback is in {path}"
