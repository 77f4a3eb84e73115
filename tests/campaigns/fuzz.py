"""Do mutated suite files and weights files end in anything but one clean sentence?

`tox -e faults` runs this beside `faults.py`. Each mutant lies on disk while it is read, so that one that crashed the
interpreter would be found there.
"""

import io
import pickle
import resource
import signal
import struct
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from bench.config.suite import load_suite, shipped_suites
from bench.data.datasets.digits import digits
from bench.errors import BenchError
from bench.execution.plan import plan
from bench.models.architecture import build_network
from bench.models.small_cnn import small_cnn
from bench.models.state_dict import load_weights

SUITES, WEIGHTS = 20_000, 2_000
"""Different mutants, at least; more are drawn, as some come twice."""

CHANCE = st.randoms(use_true_random=True)
"""Of one mutant. What Hypothesis would draw piece by piece comes twice more often than not."""

MEMORY = 512 * 2**20
"""Bytes that one file may add to the process."""

SECONDS = 20
"""Of computing that one file may take. One that waits for something for ever would make the campaign hang."""

SCALARS = (
    *("0", "-1", "1e999", "-0.0", ".nan", ".inf", "8/0", "8/255", "5e-4", "9" * 20, "1_000", "0x10", "0o7", "12:30:45"),
    *("null", "~", "yes", "''", "'\\n'", '"\\u0000"', "a: b", "[", "]", "{}", "[]", "[[]]", "- x", "*x", "&x x", "<<"),
    *(
        "|",
        ">",
        "2024-13-45",
        "!!python/name:os.system x",
        "!!binary x",
        "../../etc/passwd",
        "/dev/zero",
        "/etc/passwd",
    ),
    *("%00", "\u202e", "x" * 5000, "ﬁ", "💥", "wide_resnet/9999999-9999999", "wide_resnet/28-400", "timm/../../x"),
    *("timm/vit_giant_patch14_224", "preact_resnet18", "cifar10", "npz", "digits", "fomo", "aft"),
)
KEYS = (
    *(
        "plugins",
        "methods",
        "seeds",
        "dataset",
        "training",
        "evaluation",
        "execution",
        "model",
        "threat",
        "name",
        "files",
    ),
    *("params", "label", "attack", "steps", "eps", "subset", "validation", "resize", "augmentation", "final", "track"),
)
RIGHT = [path.read_text(encoding="utf-8") for path in shipped_suites().values()]


def bounded(work: Callable[[], None]) -> str:
    """Return what `work` says of a file, "" if nothing; it must not raise anything else, and not take long or much."""

    def late(_signal: int, _frame: object) -> None:
        raise TimeoutError("it takes too long")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    sentence = ""
    try:
        work()
    except BenchError as error:
        sentence = str(error)
        assert sentence.isprintable(), "more than one line"
        assert 10 < len(sentence) < 2000
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    return sentence


def fuzz(examples: int) -> settings:
    checks = list(HealthCheck)
    return settings(max_examples=examples, database=None, derandomize=True, deadline=None, suppress_health_check=checks)


# --- suites ----------------------------------------------------------------------------------------------------------


def mutated_suite(chance: Random) -> bytes:
    """Return a shipped suite with some lines, words, characters or bytes changed."""
    lines = chance.choice(RIGHT).splitlines()
    for _ in range(chance.randint(2, 7)):
        at = chance.randrange(max(1, len(lines)))
        line = lines[at] if lines else ""
        scalar = chance.choice(SCALARS)
        key, _, _ = line.partition(":")
        words = line.split(" ")
        words[chance.randrange(len(words))] = scalar
        place = chance.randint(0, len(line))
        text = "".join(
            chr(chance.randrange(chance.choice([128, 0x3000, 0x110000]))) for _ in range(chance.randint(0, 8))
        )
        changed = [
            [],
            [line, chance.choice(lines or [""])],
            ["  " * chance.randint(0, 40) + line.lstrip()],
            [f"{key}: {scalar}"],
            [line, f"{chance.choice(KEYS)}: {scalar}"],
            [" ".join(words)],
            [line + chance.choice("[{(\"'&*!|>%@`,:#") * chance.choice([1, 2, 500])],
            [line[:place] + text + line[place:]],
            [line.replace(chance.choice("0123456789"), chance.choice(["9" * 30, "-", "0", ""]))],
        ]
        lines[at : at + 1] = chance.choice(changed)
    return bitten(chance, "\n".join(lines).encode(errors="surrogatepass"), [0, 0, 0, 1, 4])


def bitten(chance: Random, data: bytes, times: list[int]) -> bytes:
    """Return `data` with some bytes replaced."""
    bytes_ = bytearray(data)
    for _ in range(chance.choice(times) if data else 0):
        bytes_[chance.randrange(len(bytes_))] = chance.randrange(256)
    return bytes(bytes_)


def test_mutated_suites_end_in_one_sentence(tmp_path: Path) -> None:
    path, counts, different = tmp_path / "suite.yaml", Counter[str](), set()

    @fuzz(SUITES * 6 // 5)
    @given(CHANCE)
    def check(chance: Random) -> None:
        data = mutated_suite(chance)
        path.write_bytes(data)

        def read() -> None:
            cells = load_suite(str(path)).cells
            if chance.randrange(20) == 0:  # it builds the network, which takes a while
                plan(cells[:1], tmp_path / "results")

        counts["refused" if bounded(read) else "taken"] += 1
        different.add(hash(data))

    began = time.monotonic()
    check()
    print(f"\nmutated suites: {dict(counts)}, {len(different)} different, {time.monotonic() - began:.0f} s")
    assert len(different) >= SUITES
    assert not (tmp_path / "results").exists()


# --- weights ---------------------------------------------------------------------------------------------------------


def network() -> torch.nn.Module:
    return build_network(small_cnn, digits, seed=0)


def torch_file(*, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(network().state_dict(), buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


FORMATS = {"safetensors": save(network().state_dict()), "zip": torch_file(zipped=True), "pt": torch_file(zipped=False)}


class Executed:
    """Would leave a mark if a pickle were executed."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def mutated_weights(chance: Random) -> tuple[str, bytes]:
    """Return the format and the content of a file of weights: bytes, length, header or the pickle inside changed."""
    kind = chance.choice([*FORMATS])
    data = FORMATS[kind]
    change = chance.randrange(6)
    if change == 0:
        data = data[: chance.randint(0, len(data))]
    elif change == 1:  # where the structure is
        edge = chance.choice([data[:600], data[-600:]])
        data = data.replace(edge, bitten(chance, edge, [1, 2, 8]), 1)
    elif change == 2 and kind == "safetensors":
        size = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + size]
        old = chance.choice([b"F32", b"[", b"0,", b"]", b'"shape"', b"64", b"{", b'"data_offsets"', b":"])
        new = chance.choice([b"F64", b"I64", b"[[", b"-1,", b"99999999999,", b"", b"null", b"18446744073709551615"])
        header = header.replace(old, new, chance.choice([1, -1]))
        stated = chance.choice([len(header), size, 2**63, 2**32, 0, 7])
        data = struct.pack("<Q", stated) + header + data[8 + size :]
    elif change == 3 and kind == "zip":
        data = rewritten(chance, data)
    else:
        data = bitten(chance, data, [1, 4, 64])
    return kind, data


def rewritten(chance: Random, data: bytes) -> bytes:
    """Return a torch file with the pickle inside changed, or its members packed so that they would grow."""
    out = io.BytesIO()
    method = chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = bitten(chance, content, [0, 1, 3])
                content = content.replace(b"FloatStorage", chance.choice([b"FloatStorage", b"LongStorage", b"X"]))
            elif chance.randrange(10) == 0:
                content = chance.choice([b"", content * 2, bytes(2**20)])
            new.writestr(chance.choice([name] * 9 + [f"/{name}", f"../{name}", "x"]), content)
    return out.getvalue()


def test_mutated_weights_end_in_one_sentence(tmp_path: Path) -> None:
    counts, different, target = Counter[str](), set(), network()

    @fuzz(WEIGHTS * 3 // 2)
    @given(CHANCE)
    def check(chance: Random) -> None:
        kind, data = mutated_weights(chance)
        path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
        path.write_bytes(data)
        counts[f"{kind} {'refused' if bounded(lambda: void(load_weights(target, path))) else 'taken'}"] += 1
        different.add(hash(data))

    began = time.monotonic()
    check()
    print(f"\nmutated weights: {dict(counts)}, {len(different)} different, {time.monotonic() - began:.0f} s")
    assert len(different) >= WEIGHTS


def void(_value: object) -> None:
    """Take a value, and return none."""


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_not_executed(tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "weights.pt", tmp_path / "executed"
    torch.save({"a": Executed(mark)}, path, _use_new_zipfile_serialization=zipped)
    assert "not a file of plain tensors" in bounded(lambda: void(load_weights(network(), path)))
    path.write_bytes(pickle.dumps(Executed(mark)))
    assert bounded(lambda: void(load_weights(network(), path)))
    assert not mark.exists()
