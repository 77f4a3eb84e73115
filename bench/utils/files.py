"""Files: canonical JSON, digests, and atomic writes."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from bench.errors import DamagedFile


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, no NaN. Equal values give equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Return the SHA-256 (hex, 64 characters) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(*paths: Path) -> str:
    """Return the SHA-256 (64 hex digits) of the bytes of a file, or of several files, concatenated.

    Raises OSError if a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `data` to `path` atomically: a reader sees the old content or the new.

    With `durable`, the bytes and the rename are flushed to disk before this returns; not needed for files that may be
    lost if the machine fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def record_bytes(content: dict[str, Any]) -> bytes:
    """Return `content` as readable JSON next to the SHA-256 of its canonical form."""
    record = {"sha256": fingerprint(content), "content": content}
    return (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write `record_bytes` of `content` atomically."""
    write_atomically(path, record_bytes(content))


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write_record` wrote.

    Raises:
        FileNotFoundError: there is no such record.
        DamagedFile: the file is not such a record, or its digest does not match.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise DamagedFile(f"{path} is damaged: it is no file")
    data = path.read_bytes()
    try:
        record = json.loads(data)
        content = record["content"]
        intact = record["sha256"] == fingerprint(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged: it is not a record with its SHA-256") from error
    if not intact or not isinstance(content, dict):
        raise DamagedFile(f"{path} is damaged: its content does not match its SHA-256")
    return content
