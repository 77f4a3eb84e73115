import pickle
import re
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bench.data.datasets.digits import digits
from bench.errors import BenchError
from bench.models.architecture import build_network
from bench.models.small_cnn import SmallCNN, small_cnn
from bench.models.state_dict import load_weights, read_state_dict


def network(seed):
    return build_network(small_cnn, digits, seed)


STATE = network(1).state_dict()


def equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


WRITERS = {
    "safetensors": lambda path: save_file(STATE, path),
    "torch": lambda path: torch.save(STATE, path),
    "old torch": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    "data parallel": lambda path: torch.save({f"module.{name}": value for name, value in STATE.items()}, path),
    "checkpoint": lambda path: torch.save({"state_dict": STATE, "epoch": 3, "best": 0.5}, path),
    "data parallel in part": lambda path: torch.save(
        {f"module.{name}" if "conv" in name else name: value for name, value in STATE.items()}, path
    ),
    "checkpoint, data parallel": lambda path: torch.save({"net": {f"module.{k}": v for k, v in STATE.items()}}, path),
    "compiled, in a class": lambda path: torch.save({f"model._orig_mod.{k}": v for k, v in STATE.items()}, path),
    "lightning": lambda path: torch.save({"state_dict": {f"net.{k}": v for k, v in STATE.items()}, "loops": {}}, path),
    "wrapped twice": lambda path: torch.save({"model": {"state_dict": STATE}, "args": {"lr": 0.1}}, path),
    "average": lambda path: torch.save({"ema": STATE, "step": 7}, path),
    "model_state_dict": lambda path: torch.save({"model_state_dict": STATE}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_usual_files_are_read(tmp_path, writer):
    path = tmp_path / ("weights.safetensors" if writer == "safetensors" else "weights.pt")
    WRITERS[writer](path)
    loaded = network(2)
    assert load_weights(loaded, path)  # with the normalisation that they state
    assert equal(loaded.state_dict(), STATE)


def written(tmp_path, state):
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_weights_of_the_body_alone_are_loaded_into_it(tmp_path):
    torch.manual_seed(3)
    body = SmallCNN(classes=10, channels=1)
    loaded = network(2)
    assert not load_weights(loaded, written(tmp_path, body.state_dict()))
    assert equal(loaded.body.state_dict(), body.state_dict())
    assert torch.equal(loaded.mean, STATE["mean"])


def test_a_plain_module_is_a_target_too(tmp_path):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    load_weights(target, written(tmp_path, source.state_dict()))
    assert equal(target.state_dict(), source.state_dict())


def test_a_missing_count_of_batches_is_no_matter(tmp_path):
    path = written(tmp_path, {name: value for name, value in STATE.items() if not name.endswith("tracked")})
    loaded = network(2)
    loaded.body.bn1.num_batches_tracked.fill_(5)
    load_weights(loaded, path)
    assert loaded.body.bn1.num_batches_tracked == 5
    assert torch.equal(loaded.body.conv1.weight, STATE["body.conv1.weight"])


def without(name):
    return {key: value for key, value in STATE.items() if key != name}


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (without("body.linear.bias"), "1 tensor of the network missing: 'body.linear.bias'"),
        (
            {**without("body.linear.weight"), "body.liner.weight": STATE["body.linear.weight"]},
            "1 tensor of the network missing: 'body.linear.weight'; 1 tensor that the network does not have: "
            "'body.liner.weight'",
        ),
        (
            {**STATE, **{f"body.extra{number}": torch.ones(1) for number in range(5)}},
            "5 tensors that the network does not have: 'body.extra0', 'body.extra1', 'body.extra2' and 2 more",
        ),
        (
            {**STATE, "body.linear.weight": torch.ones(7, 64)},
            "1 tensor of another shape, such as 'body.linear.weight': [7, 64], the network needs [10, 64]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_sentence_and_change_nothing(tmp_path, state, problem):
    path, loaded = written(tmp_path, state), network(2)
    with pytest.raises(BenchError) as error:
        load_weights(loaded, path)
    assert str(error.value) == f"weights {path}: they do not fit the network: {problem}"
    assert equal(loaded.state_dict(), network(2).state_dict())


class Dangerous:
    """What runs code when it is unpickled by someone careless."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", ["pickle", "torch", "old torch"])
def test_code_in_a_file_is_not_executed(tmp_path, protocol):
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    content = {"state_dict": {"weight": torch.ones(1)}, "payload": Dangerous(trace)}
    if protocol == "pickle":
        path.write_bytes(pickle.dumps(Dangerous(trace)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=protocol == "torch")
    with pytest.raises(BenchError, match=rf"^weights {re.escape(str(path))}: not a file of plain tensors: "):
        read_state_dict(path)
    assert not trace.exists()
    if protocol != "pickle":
        with pytest.raises(BenchError, match=r"it would run _?io\.open, which is not allowed"):
            read_state_dict(path)
    pickle.loads(pickle.dumps(Dangerous(trace))).close()
    assert trace.exists()  # it would have worked


def save(content):
    return lambda path: torch.save(content, path)


@pytest.mark.parametrize(
    ("name", "write", "problem"),
    [
        ("none.pt", lambda _path: None, "no such file"),
        ("folder.pt", lambda path: path.mkdir(), "no such file"),
        ("empty.pt", lambda path: path.write_bytes(b""), "not a file of plain tensors"),
        ("text.pt", lambda path: path.write_text("hello"), "not a file of plain tensors"),
        ("zip.pt", lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)), "not a file of plain tensors"),
        ("text.safetensors", lambda path: path.write_text("hello"), "not a file of plain tensors"),
        ("torch.safetensors", save(STATE), "not a file of plain tensors"),
        ("list.pt", save([torch.ones(1)]), "not a state dict; it must map names to tensors"),
        ("nothing.pt", save({}), "not a state dict; it must map names to tensors"),
        ("numbers.pt", save({"weight": 1.0}), "not a state dict; it must map names to tensors"),
        ("two.pt", save({"model": STATE, "ema": STATE}), "it holds several networks, 'model', 'ema'; save"),
    ],
)
def test_what_is_no_state_dict_is_one_sentence(tmp_path, name, write, problem):
    path = tmp_path / name
    write(path)
    with pytest.raises(BenchError) as error:
        read_state_dict(path)
    assert str(error.value).startswith(f"weights {path}: {problem}")
    assert len(str(error.value)) < len(str(path)) + 300


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_file_is_one_sentence(tmp_path):
    path, refused = tmp_path / "weights.pt", 0
    torch.save({"weight": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            read_state_dict(path)
        except BenchError:
            refused += 1
    assert refused > 20


def test_a_file_that_would_grow_is_refused(tmp_path):
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as old,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert set(read_state_dict(tmp_path / "plain.pt")) == {"a"}
    assert (tmp_path / "bomb.pt").stat().st_size < 10_000
    with pytest.raises(BenchError, match=r"bomb\.pt: not a file of plain tensors: it would unpack to 419\d+ bytes"):
        read_state_dict(tmp_path / "bomb.pt")


def test_a_file_that_holds_itself_has_an_end(tmp_path):
    state = {"a": torch.zeros(1)}
    state["model"] = state
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(BenchError, match="not a state dict"):
        read_state_dict(tmp_path / "w.pt")
