"""State dicts in safetensors or plain torch files, checked before use.

Nothing in such a file is executed: torch files are read with `weights_only=True`.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.errors import BenchError
from bench.models.architecture import Network

State: TypeAlias = Mapping[str, Tensor]

DEPTH = 8
"""Containers inside each other in which networks are looked for."""

SHOWN = 3
"""The number of names that a message lists before it counts the rest."""

_UNUSED = re.compile(r"(?:.*\.)?(?:n_averaged|num_batches_tracked)")
"""Names of counters, which no logit depends on."""

_NORMALISER = re.compile(r"(?:.*\.)?(?:new_)?(?:(mean|mu)|(std|sigma))")
"""Names of the mean and of the standard deviation in modules that normalise images."""

_OTHER_FILES = {
    b"version https://git-lfs": "it is a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    b"<": "it is a web page; download the file itself",
    b"\x1f\x8b": "it is compressed; unpack it first",
}
"""By their first bytes, files that are often found in place of weights."""


def read_plain(path: Path) -> object:
    """Return the content of a safetensors file, or of a torch file of plain tensors and containers, whatever its name.

    Raises:
        BenchError: no such file, the file is damaged, or it contains code.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        with path.open("rb") as file:
            start = file.read(64)
        for beginning, explanation in _OTHER_FILES.items():
            if start.lstrip().startswith(beginning):
                raise ValueError(explanation)
        # A safetensors file begins with the length of its header (8 bytes), which is JSON.
        if start[8:9] == b"{":
            return load_file(path)
        _refuse_growth(path)
        with warnings.catch_warnings(), path.open("rb") as file:  # given a path, torch would go by its suffix
            warnings.simplefilter("ignore", UserWarning)  # about files that are refused right after
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BenchError(f"weights {path}: no such file") from None
    except Exception as error:  # torch raises nearly anything for a damaged file
        raise BenchError(f"weights {path}: not a file of plain tensors: {_reason(error)}") from error


def _refuse_growth(path: Path) -> None:
    """Raise ValueError for a zip archive whose members are larger than the file: torch does not compress."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content = sum(member.file_size for member in archive.infolist())
        if content > path.stat().st_size:
            raise ValueError(f"it would unpack to {content} bytes, more than its size; torch does not compress")


def _reason(error: Exception) -> str:
    """Return the cause in a few words, without torch's advice to execute the file."""
    if match := re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error)):
        return f"it would run {match[1][:80]}, which is not allowed; save the state dict alone"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0][:200]


def read_state_dicts(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the named tensors of a file by container: {"": ...} or {"ema.model.": ...}, the keys that lead to it.

    Raises:
        BenchError: no such file, or it holds no named tensors.
    """
    found: dict[str, dict[str, Tensor]] = {}
    seen: set[int] = set()  # a file may contain itself

    def collect(content: object, place: str, depth: int) -> None:
        if not isinstance(content, Mapping) or depth == 0 or id(content) in seen:
            return
        seen.add(id(content))
        if tensors := {str(key): item for key, item in content.items() if isinstance(item, Tensor)}:
            found[place] = tensors
        for name, tensor in tensors.items():
            if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
                raise BenchError(
                    f"weights {path}: '{place}{name}' is sparse, quantised or has no values; save it dense"
                )
        for key, item in content.items():
            for index, part in enumerate(item) if isinstance(item, list | tuple) else [(None, item)]:
                collect(part, f"{place}{key}." if index is None else f"{place}{key}.{index}.", depth - 1)

    collect(read_plain(path), "", DEPTH)
    if not found:
        raise BenchError(f"weights {path}: not a state dict; it must map names to tensors")
    return found


def load_weights(network: nn.Module, path: Path, prefix: str | None = None) -> bool:
    """Load a state dict into `network`, or into its body if the file has no normalisation.

    The file may hold it in containers and under a prefix of its names, such as `module.`, and may hold other things as
    well. A network is what has at least half of the tensors, by name and shape.

    Args:
        network: all its tensors must be in the file, which must have no others of it.
        path: the file.
        prefix: the containers and the beginning of the names of the network to load, if the file holds several.

    Returns:
        Whether the file had the normalisation, which is then the network's.

    Raises:
        BenchError: the file is no state dict, it holds several networks that differ, its normalisation is not the
            network's, or names are missing, unexpected, or of another shape. Nothing is loaded.
    """
    target = network.body if isinstance(network, Network) else network
    expected = target.state_dict()
    dicts = read_state_dicts(path)
    found = _candidates(dicts, expected)
    if not any(_is_whole(candidate, expected) for candidate in found):  # partly parallel: `module.` in some names
        merged = {
            place: {name.removeprefix("module."): state[name] for name in state} for place, state in dicts.items()
        }
        merged = {place: state for place, state in merged.items() if len(state) == len(dicts[place])}
        found = [candidate for candidate in _candidates(merged, expected) if _is_whole(candidate, expected)] or found
    found = found or [_Candidate(*max(dicts.items(), key=lambda item: len(item[1])), "")]
    chosen = _choose(found, expected, prefix, path)
    beside = [one for one in found if one.place == chosen.place]
    missing, misshaped = _misfits(chosen, expected)
    unexpected = [name for name in _unexpected(beside, expected) if prefix is None or name.startswith(chosen.prefix)]
    if isinstance(network, Network):
        unexpected = [name for name in unexpected if not _is_normalisation(name, chosen.names[name], network, path)]
    if missing or unexpected or misshaped:
        raise BenchError(f"weights {path}: {_complaint(missing, unexpected, misshaped, chosen, expected)}")
    target.load_state_dict({**expected, **{name: chosen.names[full] for name, full in chosen.present(expected)}})
    if not isinstance(network, Network) or not chosen.normalisation:
        return False
    for name, values in chosen.normalisation.items():
        network.get_buffer(name).copy_(values)
    return True


@dataclass(frozen=True)
class _Candidate:
    """What may be a network: the tensors under `prefix` in the container `place`, which holds `names`."""

    place: str
    names: State
    prefix: str

    @property
    def normalisation(self) -> State:
        """The mean and the standard deviation of a `Network`, whose body this is; else empty."""
        outer = self.prefix.removesuffix("body.")
        buffers = {name: self.names[outer + name] for name in ("mean", "std") if outer + name in self.names}
        return buffers if outer != self.prefix and len(buffers) == 2 else {}

    @property
    def title(self) -> str:
        """All that leads to the network, as `--prefix` names it."""
        return self.place + (self.prefix.removesuffix("body.") if self.normalisation else self.prefix)

    def present(self, expected: State) -> list[tuple[str, str]]:
        """Return the network's names for its tensors, and the file's."""
        return [(name, self.prefix + name) for name in expected if self.prefix + name in self.names]

    def equals(self, other: _Candidate, expected: State) -> bool:
        """Return whether two candidates are the same network."""
        mine, others = (
            {name: one.names[full] for name, full in one.present(expected) if not _UNUSED.fullmatch(name)}
            | {f"normalisation.{name}": values for name, values in one.normalisation.items()}
            for one in (self, other)
        )
        return mine.keys() == others.keys() and all(
            tensor.dtype == others[name].dtype and torch.equal(tensor, others[name]) for name, tensor in mine.items()
        )


def _candidates(dicts: Mapping[str, State], expected: State) -> list[_Candidate]:
    """Return what has at least half of the expected tensors, by name and shape."""
    wanted = {name for name in expected if not _UNUSED.fullmatch(name)}
    found = []
    for place, names in dicts.items():
        prefixes = Counter(
            name[:start]
            for name, tensor in names.items()
            for start in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
            if name[start:] in wanted and tensor.shape == expected[name[start:]].shape
        )
        found += [_Candidate(place, names, prefix) for prefix, count in prefixes.items() if 2 * count >= len(wanted)]
    return found


def _choose(found: Sequence[_Candidate], expected: State, prefix: str | None, path: Path) -> _Candidate:
    """Return the candidate that `prefix` names, or the only one, of which there may be equal copies."""
    titles = sorted(candidate.title for candidate in found)
    if prefix is not None:
        prefix = f"{prefix.removesuffix('.')}." if prefix else ""
        exact = [candidate for candidate in found if candidate.title == prefix]
        found = exact or [candidate for candidate in found if prefix and candidate.title.startswith(prefix)]
        if not found:
            raise BenchError(
                f"weights {path}: no network of this architecture has the prefix '{prefix}'; prefixes of "
                f"those it holds: {listed(titles)}"
            )
    if not all(candidate.equals(found[0], expected) for candidate in found[1:]):
        raise BenchError(
            f"weights {path}: it holds several networks, with the prefixes {listed(titles)}; name one with --prefix, "
            "or save only the one to load"
        )
    return found[0]


def _unexpected(networks: Sequence[_Candidate], expected: State) -> list[str]:
    """Return the names in the container of networks that are not theirs, and that are not known to be unused."""
    explained = {candidate.prefix + name for candidate in networks for name in expected}
    for candidate in networks:
        outer = candidate.prefix.removesuffix("body.")
        explained |= {outer + name for name in candidate.normalisation}
        # The code of TRADES builds a part of its WideResNet a second time, and does not use it.
        twins = {f"sub_{name}": tensor for name, tensor in expected.items() if name.startswith("block1.")}
        explained |= {candidate.prefix + name for name in twins if "block1.layer.0.conv1.weight" in expected}
    return [name for name in networks[0].names if name not in explained and not _UNUSED.fullmatch(name)]


def _is_normalisation(name: str, values: Tensor, network: Network, path: Path) -> bool:
    """Return whether a tensor is the mean or the standard deviation of a module that normalises images.

    Raises:
        BenchError: it is, but of another normalisation than the network's.
    """
    match = _NORMALISER.fullmatch(name)
    if not match or values.numel() != network.mean.numel():
        return False
    ours = (network.mean if match[1] else network.std).flatten().cpu().double()
    if not torch.allclose(values.flatten().double(), ours, atol=1e-4):
        stated, held = (",".join(f"{value:.4f}" for value in tensor.flatten().tolist()) for tensor in (ours, values))
        raise BenchError(
            f"weights {path}: its '{name:.80}' is {held}, but the normalisation to use has {stated}; state that of "
            "training (--normalisation)"
        )
    return True


def _is_whole(candidate: _Candidate, expected: State) -> bool:
    return not any(_misfits(candidate, expected))


def _misfits(candidate: _Candidate, expected: State) -> tuple[list[str], list[str]]:
    """Return the network's names of tensors that are missing, and of those of another shape or kind of number."""
    present = dict(candidate.present(expected))
    return (
        [name for name in expected if name not in present and not name.endswith("num_batches_tracked")],
        [name for name, full in present.items() if _kind(candidate.names[full]) != _kind(expected[name])],
    )


def _kind(tensor: Tensor) -> tuple[torch.Size, bool]:
    return tensor.shape, tensor.is_floating_point()


def _complaint(
    missing: Sequence[str], unexpected: Sequence[str], misshaped: Sequence[str], chosen: _Candidate, expected: State
) -> str:
    """Return the misfits as text: a few names of each kind, as the file writes them, and their number."""
    parts = []
    if missing:
        parts.append(f"{_counted(missing)} of the network missing: {listed(chosen.prefix + name for name in missing)}")
    if unexpected:
        parts.append(f"{_counted(unexpected)} that the network does not have: {listed(unexpected)}")
    if misshaped:
        name, (given, needed) = (
            chosen.prefix + misshaped[0],
            (chosen.names[chosen.prefix + misshaped[0]], expected[misshaped[0]]),
        )
        what, values = (
            ("type", (given.dtype, needed.dtype))
            if given.shape == needed.shape
            else ("shape", (list(given.shape), list(needed.shape)))
        )
        parts.append(
            f"{_counted(misshaped)} of another {what}, such as '{name:.80}': {values[0]}, the network needs {values[1]}"
        )
    return f"they do not fit the network: {'; '.join(parts)}"


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'}"


def listed(names: Iterable[str]) -> str:
    """Return the first few of `names` in quotes, and the number of the others."""
    names = list(names)
    shown = ", ".join(f"'{name:.80}'" for name in names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
