"""What each tracker's own library reads back: the curves of `epochs.jsonl`, each epoch once, also after a resume."""

import json
import struct

import pytest

from bench.storage.run_folder import CellStatus
from bench.trackers.content import final_metrics
from bench.trackers.mirror import Mirror

from .conftest import curve

pytestmark = pytest.mark.slow


@pytest.fixture
def record(folder, tmp_path, monkeypatch):
    """Record a run whose first process is interrupted after an epoch, into the named tracker; return its folder."""
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)

    def record(name):
        epochs, result = folder.epochs(), folder.result()
        folder.reopen()
        folder.replace_epochs([epochs[0] | {"lr": 0.5}])
        first = Mirror(name, tmp_path)
        first.update(folder)
        first.close()
        folder.replace_epochs(epochs[:1])
        second = Mirror(name, tmp_path)
        second.update(folder)
        folder.replace_epochs(epochs)
        folder.finish(CellStatus(result.pop("status")), **result)
        second.update(folder)
        if name == "wandb":  # its service writes the file, to the end when the process ends
            import wandb

            wandb.teardown()
        return tmp_path / name

    return record


def test_tensorboard_reads_the_curves(record, folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    (file,) = record("tensorboard").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent)).Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    final = {name: [(1, value)] for name, value in final_metrics(folder).items()}
    expected = curve(folder) | final
    assert scalars.keys() == expected.keys()
    for name, points in expected.items():
        assert scalars[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in points]  # float32
    (image,) = events.Images("adversarial_examples/best")
    assert (image.width, image.height) == (530, 134)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hyperparameters = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hyperparameters["threat.eps"].number_value == 0.15


def test_mlflow_reads_the_curves(record, folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{record('mlflow') / 'mlflow.db'}")
    (experiment,) = (one for one in client.search_experiments() if one.name.startswith("tiny-"))
    (run,) = client.search_runs([experiment.experiment_id])
    histories = {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    assert histories == curve(folder) | {name: [(1, value)] for name, value in final_metrics(folder).items()}
    assert (run.info.run_name, run.info.status) == ("PGD-AT seed 0", "FINISHED")
    assert run.data.params["threat.eps"] == "0.15"
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id, "adversarial_examples")}
    assert artifacts == {"adversarial_examples/best.png", "adversarial_examples/best.txt"}


def wandb_records(path):
    """Yield the messages of a .wandb file: a LevelDB log of blocks of 32 KiB after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, message = path.read_bytes(), 7, b""
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in {1, 4}:  # whole, or its last part
            yield Record.FromString(message)
            message = b""


def test_wandb_reads_the_curves(record, folder):
    (file,) = record("wandb").rglob("*.wandb")
    history, summary, config, code = {}, {}, {}, None
    for entry in wandb_records(file):
        kind = entry.WhichOneof("record_type")
        if kind == "history":
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in entry.history.item}
            for name, value in values.items():
                history.setdefault(name, []).append((values["_step"], value))
        elif kind == "summary":
            summary |= {item.key: json.loads(item.value_json) for item in entry.summary.update}
        elif kind == "run":
            config |= {item.key: json.loads(item.value_json) for item in entry.run.config.update}
            assert entry.run.display_name == "PGD-AT seed 0"
        elif kind == "exit":
            code = entry.exit.exit_code
    expected = curve(folder)
    assert {name: history[name] for name in expected} == expected
    assert summary.items() >= {"status": "finished", **final_metrics(folder)}.items()
    assert config["threat.eps"] == 0.15
    assert code == 0
    (picture,) = file.parent.rglob("*.png")
    assert picture.parent.name == "adversarial_examples"


def test_mlflow_uses_the_database_that_its_variable_names(record, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    other = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    folder = record("mlflow")
    assert len(MlflowClient(other).search_experiments()) == 2
    assert not (folder / "mlflow.db").exists()
    assert len(list((folder / "artifacts").rglob("best.png"))) == 1
