"""Checkpoints: safetensors files, and one index whose rename commits an epoch.

At the end of an epoch, new files are written beside the old ones, the state of training in a thread while accuracies
are measured. Then `index.json` is replaced, which holds the file, the SHA-256 and the epoch of each checkpoint and the
digest of the curve. Then unneeded files are deleted. Whenever the process dies, the index matches its files. While
training is unfinished, `previous.json` keeps the index of the epoch before, with its files: if a file is damaged,
training falls back to that epoch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from bench.errors import DamagedFile
from bench.storage.run_folder import RunFolder
from bench.utils.files import read_record, write_atomically, write_record

log = logging.getLogger(__name__)

INDEX, PREVIOUS = "index.json", "previous.json"

_PLAIN = re.compile(r"[A-Za-z0-9_-]+\.safetensors")


@dataclass(frozen=True)
class Entry:
    """One checkpoint: its file, relative to the folder, the digest of the file, the epoch (from 0) it ends."""

    file: str
    sha256: str
    epoch: int


class Checkpoints:
    """The checkpoints of one run. `finished_epochs` and `finished` say how far training got.

    `curve_sha256` is the digest of the curve up to there, see `RunFolder.curve_sha256`; None where none was stated.
    """

    def __init__(self, folder: Path, index: str = INDEX) -> None:
        """Read the index of `folder`, if there is one. Raises DamagedFile if it is not what was written."""
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self.finished_epochs = 0
        self.finished = False
        self.curve_sha256: str | None = None
        if (folder / index).exists():
            content = read_record(folder / index)
            try:
                self.entries = {name: Entry(**entry) for name, entry in content["checkpoints"].items()}
                self.finished_epochs, self.finished = content["finished_epochs"], content["finished"]
                # The index may come from elsewhere: what it names lies beside it and nowhere else.
                plain = all(_PLAIN.fullmatch(entry.file) for entry in self.entries.values())
            except (KeyError, TypeError, AttributeError) as error:
                raise DamagedFile(f"{folder / index} is not an index of checkpoints: {error!r}") from error
            if not plain:
                raise DamagedFile(f"{folder / index} names files outside its folder")
            self.curve_sha256 = content.get("curve_sha256")  # older versions stated none

    def write(self, stem: str, epoch: int, tree: Mapping[str, Any]) -> Entry:
        """Write a file that no index names yet, and return the entry to commit."""
        return self.write_packed(stem, epoch, pack(tree))

    def write_packed(self, stem: str, epoch: int, data: bytes) -> Entry:
        """Write what `pack` returned, as `write` does; a thread may do so, because no tensor is needed any more."""
        entry = Entry(f"{stem}-{epoch:04d}.safetensors", hashlib.sha256(data).hexdigest(), epoch)
        self.folder.mkdir(exist_ok=True)
        write_atomically(self.folder / entry.file, data)
        return entry

    def commit(
        self,
        entries: Mapping[str, Entry],
        finished_epochs: int,
        *,
        finished: bool = False,
        curve_sha256: str | None = None,
    ) -> None:
        """Replace the checkpoints named in `entries`, keep the others, and delete unneeded files.

        The previous commit is kept, too, until training is `finished`.
        """
        if self.entries and not finished:
            write_record(self.folder / PREVIOUS, self._content())
        self.entries = {**self.entries, **entries}
        if finished:
            self.entries.pop("resume", None)
        self.finished_epochs, self.finished, self.curve_sha256 = finished_epochs, finished, curve_sha256
        self.save()

    def save(self) -> None:
        """Write the index, and delete unneeded files."""
        write_record(self.folder / INDEX, self._content())
        self.sweep()

    def sweep(self) -> None:
        """Delete the files that neither the index nor that of the epoch before names."""
        named = {entry.file for entry in self.entries.values()}
        if self.finished:
            (self.folder / PREVIOUS).unlink(missing_ok=True)
        else:
            try:
                named |= {entry.file for entry in Checkpoints(self.folder, PREVIOUS).entries.values()}
            except DamagedFile as error:  # the next commit replaces it
                log.warning("%s", error)
        for file in self.folder.glob("*.safetensors"):
            if file.name not in named:
                file.unlink()
        for left in self.folder.glob(".*.tmp"):  # of a process that was killed while writing
            left.unlink()

    def copy(self, other: Checkpoints) -> None:
        """Copy the checkpoints of a finished training, each verified. Raises DamagedFile as `load` does."""
        self.folder.mkdir(exist_ok=True)
        for entry in other.entries.values():
            write_atomically(self.folder / entry.file, other._read(entry))
        self.commit(other.entries, other.finished_epochs, finished=True, curve_sha256=other.curve_sha256)

    def load(self, name: str) -> dict[str, Any]:
        """Return what was written as `name`, on the CPU.

        Raises:
            DamagedFile: the file is missing, or its bytes do not have the digest that the index states.
        """
        return _unpack(self._read(self.entries[name]))

    def verify(self, *, missing_ok: bool = False) -> None:
        """Read every file that the index names, with `missing_ok` those that are there; raises as `load`."""
        for entry in {entry.file: entry for entry in self.entries.values()}.values():
            if not missing_ok or (self.folder / entry.file).exists():
                self._read(entry)

    def _content(self) -> dict[str, Any]:
        return {
            "checkpoints": {name: asdict(entry) for name, entry in self.entries.items()},
            "finished_epochs": self.finished_epochs,
            "finished": self.finished,
            "curve_sha256": self.curve_sha256,
        }

    def _read(self, entry: Entry) -> bytes:
        path = self.folder / entry.file
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise DamagedFile(f"{path} is missing, though the index names it") from None
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise DamagedFile(f"{path} is damaged: its bytes do not match its SHA-256")
        return data


def load_latest_valid(folder: RunFolder) -> tuple[Checkpoints, DamagedFile | None]:
    """Return the latest valid checkpoints of a run, every file verified, and the damage of later ones.

    They are those of the last committed epoch or, if one of its files is damaged, of the epoch before.

    Raises:
        DamagedFile: the epoch before is missing or damaged, too.
    """
    try:
        return load_verified(folder), None
    except DamagedFile as error:
        try:
            before = load_verified(folder, PREVIOUS)
        except DamagedFile:
            before = None
        if before is None or not before.entries:
            raise DamagedFile(f"{error}; there is no epoch to fall back to; `--rerun failed` trains it again") from None
        return before, error


def load_verified(folder: RunFolder, index: str = INDEX) -> Checkpoints:
    """Return the checkpoints of an index. Raises DamagedFile if one of their files or the curve is damaged.

    A run that was ingested from a bundle has no weights.
    """
    checkpoints = Checkpoints(folder.checkpoints, index)
    checkpoints.verify(missing_ok=folder.origin() is not None)
    folder.committed_epochs(checkpoints.finished_epochs, checkpoints.curve_sha256)
    return checkpoints


def pack(tree: Mapping[str, Any]) -> bytes:
    """Copy nested dicts and lists of tensors and JSON scalars, and serialise them.

    A flat dict of tensors becomes an ordinary safetensors file that other tools read. Anything else has its structure
    as JSON in the file's metadata, with tensors by name.
    """
    tensors: dict[str, Tensor] = {}

    def strip(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            while path in tensors:  # {"a": {"b": ...}, "a.b": ...}, or the keys 1 and "1"
                path += "'"
            # A copy: safetensors refuses views and shared storage, and strides are the loader's business.
            tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": path}
        if isinstance(value, Mapping):
            return {"items": [[key, strip(item, f"{path}.{key}" if path else str(key))] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [strip(item, f"{path}.{index}") for index, item in enumerate(value)]}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        raise TypeError(f"a checkpoint cannot hold {type(value).__name__} at {path}")

    structure = strip(tree, "")
    flat = all(isinstance(key, str) and isinstance(value, Tensor) for key, value in tree.items())
    return save_safetensors(tensors, None if flat else {"structure": json.dumps(structure)})


def _unpack(data: bytes) -> dict[str, Any]:
    """Undo `pack`."""
    try:
        tensors = load_safetensors(data)
        header_size = int.from_bytes(data[:8], "little")
        structure = json.loads(data[8 : 8 + header_size]).get("__metadata__", {}).get("structure")
        return dict(tensors) if structure is None else dict(_restore(json.loads(structure), tensors))
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"not a checkpoint of bench: {error}") from error


def _restore(node: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Return the tree of a structure that `pack` wrote."""
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "items" in node:
        return {key: _restore(item, tensors) for key, item in node["items"]}
    if "list" in node:
        return [_restore(item, tensors) for item in node["list"]]
    return node["value"]
