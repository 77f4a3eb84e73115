"""Checkpoints: safetensors files, and one index whose rename commits an epoch.

An epoch ends by writing new files beside the old ones, then replacing `index.json`, which names the file, the SHA-256
and the epoch of each checkpoint, then deleting what the new index no longer names. Whenever the process dies, the index
and the files it names belong together.
"""

from __future__ import annotations

import hashlib
import json
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
from bench.records import read_record, write_atomically, write_record


@dataclass(frozen=True)
class Entry:
    """One checkpoint: its file, relative to the folder, the digest of the file, the epoch (from 0) it ends."""

    file: str
    sha256: str
    epoch: int


class Checkpoints:
    """The checkpoints of one run. `finished_epochs` and `finished` say how far training got."""

    def __init__(self, folder: Path) -> None:
        """Read the index of `folder`, if there is one. Raises DamagedFile if it is not what was written."""
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self.finished_epochs = 0
        self.finished = False
        if (folder / "index.json").exists():
            index = read_record(folder / "index.json")
            self.entries = {name: Entry(**entry) for name, entry in index["checkpoints"].items()}
            self.finished_epochs, self.finished = index["finished_epochs"], index["finished"]

    def write(self, stem: str, epoch: int, tree: Mapping[str, Any]) -> Entry:
        """Write a file that no index names yet, and return the entry to commit."""
        data = _pack(tree)
        entry = Entry(f"{stem}-{epoch:04d}.safetensors", hashlib.sha256(data).hexdigest(), epoch)
        self.folder.mkdir(exist_ok=True)
        write_atomically(self.folder / entry.file, data)
        return entry

    def commit(self, entries: Mapping[str, Entry], finished_epochs: int, *, finished: bool = False) -> None:
        """Make `entries` the checkpoints of their names, keep the others, and delete files that none needs."""
        self.entries = {**self.entries, **entries}
        if finished:
            self.entries.pop("resume", None)
        self.finished_epochs, self.finished = finished_epochs, finished
        index = {
            "checkpoints": {name: asdict(entry) for name, entry in self.entries.items()},
            "finished_epochs": finished_epochs,
            "finished": finished,
        }
        write_record(self.folder / "index.json", index)
        named = {entry.file for entry in self.entries.values()}
        for file in self.folder.glob("*.safetensors"):
            if file.name not in named:
                file.unlink()
        for left in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink()

    def copy(self, other: Checkpoints) -> None:
        """Take over the checkpoints of a finished training, each verified. Raises DamagedFile as `load` does."""
        self.folder.mkdir(exist_ok=True)
        for entry in other.entries.values():
            write_atomically(self.folder / entry.file, other._read(entry))
        self.commit(other.entries, other.finished_epochs, finished=True)

    def load(self, name: str) -> dict[str, Any]:
        """Return what was written as `name`, on the CPU.

        Raises:
            DamagedFile: the file is missing, or its bytes do not have the digest that the index states.
        """
        return _unpack(self._read(self.entries[name]))

    def _read(self, entry: Entry) -> bytes:
        path = self.folder / entry.file
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise DamagedFile(f"{path} is missing, though the index names it") from None
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise DamagedFile(f"{path} is damaged: its bytes do not match its SHA-256")
        return data


def _pack(tree: Mapping[str, Any]) -> bytes:
    """Serialise nested dicts and lists of tensors and JSON scalars.

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
    """Undo `_pack`."""
    try:
        tensors = load_safetensors(data)
        header_size = int.from_bytes(data[:8], "little")
        structure = json.loads(data[8 : 8 + header_size]).get("__metadata__", {}).get("structure")
    except (SafetensorError, ValueError) as error:
        raise DamagedFile(f"not a checkpoint of ours: {error}") from error

    def restore(node: dict[str, Any]) -> Any:
        if "tensor" in node:
            return tensors[node["tensor"]]
        if "items" in node:
            return {key: restore(item) for key, item in node["items"]}
        if "list" in node:
            return [restore(item) for item in node["list"]]
        return node["value"]

    if structure is None:
        return dict(tensors)
    tree: dict[str, Any] = restore(json.loads(structure))
    return tree
