import gzip
import pickle
import re
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bench.data.datasets.digits import digits
from bench.errors import BenchError
from bench.models import wide_resnet
from bench.models.architecture import Network, build_network
from bench.models.small_cnn import SmallCNN, small_cnn
from bench.models.state_dict import load_weights, read_state_dicts


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
    "best accuracy": lambda path: torch.save({"state_dict": STATE, "best": {"acc": 0.5}}, path),
    "parameters of the training": lambda path: torch.save({"model_state_dict": STATE, "params": {"lr": 0.1}}, path),
    "name of the model": lambda path: torch.save({"model": {"name": "small"}, "state_dict": STATE}, path),
    "optimiser": lambda path: torch.save(
        {"generator": STATE, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(16, 1, 3, 3)}}}}, path
    ),
    "list": lambda path: torch.save({"nets": [{"weights": STATE}]}, path),
    "average of SWA": lambda path: torch.save(
        {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in STATE.items()}}, path
    ),
    "twice": lambda path: torch.save({"model": STATE, "ema": {k: v.clone() for k, v in STATE.items()}}, path),
    "twice, by prefix": lambda path: torch.save(
        {f"module.{place}{k}": v for place in ("model.", "attacker.model.") for k, v in STATE.items()}, path
    ),
}


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth.tar", "weights.pt.best", "weights.safetensors", "weights"])
@pytest.mark.parametrize("writer", WRITERS)
def test_the_usual_files_are_read_whatever_their_names(tmp_path, writer, name):
    path = tmp_path / name
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


OTHER = {name: value + 1 for name, value in STATE.items()}
BODY = {name.removeprefix("body."): value for name, value in OTHER.items() if name.startswith("body.")}


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


SEVERAL = {
    "bare first": ({**STATE, **under("module.", OTHER)}, "'', 'module.'"),
    "bare last": ({**under("module.", OTHER), **STATE}, "'', 'module.'"),
    "containers": ({"model": STATE, "ema": OTHER}, "'ema.', 'model.'"),
    "nested containers": ({"model": {"net": STATE, "avg": {"net": OTHER}}}, "'model.avg.net.', 'model.net.'"),
    "unknown names": ({"teacher": under("module.", STATE), "student": OTHER}, "'student.', 'teacher.module.'"),
    "container and prefix": (
        {"state_dict": {**under("a.", STATE), **under("b.", OTHER)}},
        "'state_dict.a.', 'state_dict.b.'",
    ),
    "list": ({"nets": [STATE, OTHER]}, "'nets.0.', 'nets.1.'"),
    "one without normalisation": ({"net": STATE, "swa": BODY}, "'net.', 'swa.'"),
    "other normalisations": ({"a": STATE, "b": {**STATE, "mean": STATE["mean"] + 1}}, "'a.', 'b.'"),
    "one in part": ({"net": STATE, "ema": dict([*OTHER.items()][:-3])}, "'ema.', 'net.'"),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_networks_one_must_be_named(tmp_path, kind):
    content, prefixes = SEVERAL[kind]
    torch.save(content, tmp_path / "w.pt")
    loaded = network(2)
    with pytest.raises(BenchError) as error:
        load_weights(loaded, tmp_path / "w.pt")
    assert f"it holds several networks, with the prefixes {prefixes}; name one with --prefix" in str(error.value)
    assert equal(loaded.state_dict(), network(2).state_dict())
    for name in re.findall("'([^']*)'", prefixes):
        for written_as in {name, name.removesuffix(".")}:
            if kind == "one in part" and name == "ema.":
                with pytest.raises(
                    BenchError, match="3 tensors of the network missing|2 tensors of the network missing"
                ):
                    load_weights(loaded, tmp_path / "w.pt", written_as)
                continue
            loaded = network(2)
            load_weights(loaded, tmp_path / "w.pt", written_as)
            expected = STATE if equal(loaded.body.conv1.state_dict(), {"weight": STATE["body.conv1.weight"]}) else OTHER
            assert equal(loaded.body.state_dict(), under("", {k[5:]: v for k, v in expected.items() if "body." in k}))
    with pytest.raises(BenchError, match=r"no network of this architecture has the prefix 'none\.'; prefixes of those"):
        load_weights(loaded, tmp_path / "w.pt", "none")


def test_the_order_of_names_does_not_matter(tmp_path):
    for content in (SEVERAL["bare first"][0], SEVERAL["bare last"][0]):
        torch.save(content, tmp_path / "w.pt")
        for prefix, expected in (("", STATE), ("module", OTHER)):
            loaded = network(2)
            load_weights(loaded, tmp_path / "w.pt", prefix)
            assert equal(loaded.state_dict(), expected)


@pytest.mark.parametrize("names", [("normalizer.new_mean", "normalizer.new_std"), ("mu", "sigma"), ("mean", "std")])
def test_a_normalisation_beside_the_network_must_be_that_in_use(tmp_path, names):
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
    torch.manual_seed(0)
    body = SmallCNN(classes=10, channels=3)
    content = {names[0]: mean.view(3, 1, 1), names[1]: std.view(3, 1, 1), **under("model.", body.state_dict())}
    torch.save({"model": under("module.", content)}, tmp_path / "w.pt")
    loaded = Network(SmallCNN(classes=10, channels=3), mean.tolist(), std.tolist())
    assert not load_weights(loaded, tmp_path / "w.pt")
    assert equal(loaded.body.state_dict(), body.state_dict())
    with pytest.raises(
        BenchError, match=rf"its 'module\.{names[0]}' is 0\.4914,0\.4822,0\.4465, but the normalisation"
    ):
        load_weights(Network(SmallCNN(classes=10, channels=3), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), tmp_path / "w.pt")


def test_a_part_that_the_code_of_trades_does_not_use(tmp_path):
    torch.manual_seed(0)
    body = wide_resnet.member("10-1").build(10, (3, 32, 32))
    state = body.state_dict()
    twins = {f"sub_{name}": value + 1 for name, value in state.items() if name.startswith("block1.")}
    loaded = wide_resnet.member("10-1").build(10, (3, 32, 32))
    load_weights(loaded, written(tmp_path, {**under("module.", state), **under("module.", twins)}))
    assert equal(loaded.state_dict(), state)
    with pytest.raises(BenchError, match=r"1 tensor that the network does not have: 'sub_block2\.weight'"):
        load_weights(loaded, written(tmp_path, {**state, "sub_block2.weight": torch.ones(1)}))


@pytest.mark.parametrize(
    ("weight", "problem"),
    [
        (torch.ones(10, 64).to_sparse(), "'body.linear.weight' is sparse, quantised or has no values"),
        (torch.ones(10, 64, device="meta"), "'body.linear.weight' is sparse, quantised or has no values"),
        (
            torch.ones(10, 64, dtype=torch.int8),
            "1 tensor of another type, such as 'body.linear.weight': torch.int8, the network needs",
        ),
    ],
)
def test_values_that_are_no_plain_numbers(tmp_path, weight, problem):
    torch.save({**STATE, "body.linear.weight": weight}, tmp_path / "w.pt")
    with pytest.raises(BenchError) as error:
        load_weights(network(2), tmp_path / "w.pt")
    assert problem in str(error.value)


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
        read_state_dicts(path)
    assert not trace.exists()
    if protocol != "pickle":
        with pytest.raises(BenchError, match=r"it would run _?io\.open, which is not allowed"):
            read_state_dicts(path)
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
        ("list.pt", save([torch.ones(1)]), "not a state dict; it must map names to tensors"),
        ("nothing.pt", save({}), "not a state dict; it must map names to tensors"),
        ("numbers.pt", save({"weight": 1.0}), "not a state dict; it must map names to tensors"),
        (
            "lfs.pt",
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"),
            "not a file of plain tensors: it is a pointer of Git LFS; fetch",
        ),
        (
            "page.pt",
            lambda path: path.write_text("\n<!DOCTYPE html><html>"),
            "not a file of plain tensors: it is a web page",
        ),
        (
            "two.tar.gz",
            lambda path: path.write_bytes(gzip.compress(b"weights")),
            "not a file of plain tensors: it is compressed",
        ),
    ],
)
def test_what_is_no_state_dict_is_one_sentence(tmp_path, name, write, problem):
    path = tmp_path / name
    write(path)
    with pytest.raises(BenchError) as error:
        read_state_dicts(path)
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
            read_state_dicts(path)
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
    assert set(read_state_dicts(tmp_path / "plain.pt")[""]) == {"a"}
    assert (tmp_path / "bomb.pt").stat().st_size < 10_000
    with pytest.raises(BenchError, match=r"bomb\.pt: not a file of plain tensors: it would unpack to 419\d+ bytes"):
        read_state_dicts(tmp_path / "bomb.pt")


def test_a_file_that_holds_itself_has_an_end(tmp_path):
    state = {"a": torch.zeros(1)}
    state["model"] = state
    torch.save(state, tmp_path / "w.pt")
    assert read_state_dicts(tmp_path / "w.pt") == {"": {"a": torch.zeros(1)}}
