"""Images in their authors' own files: nothing is read, and nothing keeps its name, without the official MD5 sum.

File names, sums and addresses are those that torchvision lists. The authors published MD5 sums, which detect damage and
wrong files but no forgery, so the readers of these files do not trust their content either.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import socket
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.errors import BenchError

SILENCE = 60.0
"""Seconds without a byte after which a server counts as gone."""


def torchvision_datasets(module: str = "torchvision.datasets") -> Any:
    """Return torchvision's module of datasets, or another of its modules.

    Raises:
        BenchError: torchvision cannot be imported, most often because it was built for another torch.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # what a torchvision that does not fit raises depends on where it notices
        raise BenchError(
            f"torchvision does not fit the installed torch ({error}); install both from the same place: "
            "pip install --force-reinstall torch torchvision"
        ) from error


@dataclass(frozen=True)
class OfficialFile:
    """A file of `dataset`, where it lies or will lie, and the MD5 sum its authors or torchvision state."""

    path: Path
    md5: str
    dataset: str

    def damaged(self, why: str = "its MD5 sum is another") -> BenchError:
        """Return the error for a file that is not what it should be."""
        return BenchError(
            f"{self.path} is damaged or not the official file: {why}; delete it and run "
            f"`bench data prepare {self.dataset}`"
        )

    def verify(self) -> None:
        """Raise BenchError unless the file is there and has its MD5 sum."""
        with self._opened() as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        if digest.hexdigest() != self.md5:
            raise self.damaged()

    def read(self) -> bytes:
        """Return the content, read once, so that what was verified is what is used. Raises as `verify` does."""
        with self._opened() as file:
            content = file.read()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != self.md5:
            raise self.damaged()
        return content

    def is_whole(self) -> bool:
        """Return whether the file is there and has its MD5 sum."""
        try:
            self.verify()
        except BenchError:
            return False
        return True

    def fetch(self, url: str) -> None:
        """Download the file from `url`, unless it is there. It gets its name when it is whole and verified.

        Raises:
            BenchError: it did not come, or not as it should be, or cannot be written; the sentence says where to put
                it by hand.
        """
        if self.is_whole():
            return
        utils = torchvision_datasets("torchvision.datasets.utils")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".download-", dir=self.path.parent) as folder, _quiet_and_not_for_ever():
                utils.download_url(url, folder, self.path.name, self.md5)
                (Path(folder) / self.path.name).replace(self.path)
        except (OSError, HTTPException, RuntimeError) as error:
            # torchvision has one RuntimeError, for another MD5 sum: it takes a connection that broke for the end
            came = isinstance(error, RuntimeError)
            why = "what came has not the official MD5 sum: it was cut short or is another file" if came else error
            raise BenchError(
                f"{self.dataset} cannot be downloaded from {url} ({why}); download it by other means, put it at "
                f"{self.path}, and run `bench data prepare {self.dataset}` again"
            ) from error

    @contextmanager
    def _opened(self) -> Iterator[io.BufferedReader]:
        try:
            with self.path.open("rb") as file:
                yield file
        except FileNotFoundError:
            raise BenchError(f"{self.path} is missing; run `bench data prepare {self.dataset}`") from None
        except OSError as error:
            raise BenchError(f"{self.path} cannot be read: {error}") from error


def unpack(archive: OfficialFile, files: Sequence[OfficialFile]) -> None:
    """Extract `files`, which belong in one folder, from the tar archive next to it, after verifying them.

    Raises:
        BenchError: the archive is damaged or holds other files, or there is no room for them.
    """
    archive.verify()
    wanted = {f"{file.path.parent.name}/{file.path.name}": file for file in files}
    try:
        with TemporaryDirectory(prefix=".unpack-", dir=archive.path.parent) as folder:
            inside = {name: replace(file, path=Path(folder) / file.path.name) for name, file in wanted.items()}
            with tarfile.open(archive.path) as tar:
                for member in tar:  # in their order: seeking back decompresses from the start
                    if member.name in wanted and member.isfile() and (content := tar.extractfile(member)):
                        inside[member.name].path.write_bytes(content.read())
            if wrong := [name for name, file in inside.items() if not file.is_whole()]:
                raise archive.damaged(f"{wrong[0]} is missing in it or has another MD5 sum")
            for name, file in wanted.items():
                file.path.parent.mkdir(exist_ok=True)
                inside[name].path.replace(file.path)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise archive.damaged(f"{error}") from error
    except OSError as error:
        raise BenchError(f"{archive.path} cannot be unpacked: {error}") from error


@contextmanager
def _quiet_and_not_for_ever() -> Iterator[None]:
    """Keep torchvision's progress bar for terminals, and give up on a server that says nothing more."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)
