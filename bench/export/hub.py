"""Folders for a model hub: weights, the description of the network, and a model card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bench import registry
from bench.attacks.identity import attack_key
from bench.config.hyperparameters import AttackRegime
from bench.errors import printable
from bench.export.trained import TrainedNetwork
from bench.models.description import CONFIG, WEIGHTS, NetworkDescription
from bench.reporting.formats.markdown import escape, escape_line, render_table
from bench.reporting.method_card import ORIGINS, describe_method
from bench.reporting.notes import percent
from bench.reporting.rows import interval_of
from bench.reporting.settings import protocol_settings, setting_text
from bench.reporting.table import Table, text_table
from bench.storage.rows import read_run
from bench.storage.schema import OutcomeRow

LIBRARY = "robust-overfitting-bench"

CARD = "README.md"


def write_hub_folder(trained: TrainedNetwork, folder: Path) -> None:
    """Make `folder` with `model.safetensors`, `config.json` and `README.md`.

    Raises:
        BenchError: no description rebuilds the network.
        OSError: the folder cannot be written.
    """
    described = trained.describe()
    folder.mkdir()
    trained.write_safetensors(folder / WEIGHTS)
    config = {"library_name": LIBRARY, "network": described.model_dump(mode="json"), "run": _provenance(trained)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(trained, described), encoding="utf-8")


def _provenance(trained: TrainedNetwork) -> dict[str, Any]:
    """Return which run made the weights, without paths and names of machines."""
    record, cell = trained.folder.cell(), trained.cell
    return {
        "name": trained.folder.path.name,
        "fingerprint": cell.fingerprint,
        "checkpoint": trained.checkpoint,
        "epoch": trained.entry.epoch,
        "seed": cell.seed,
        "method": cell.method.model_dump(mode="json", include={"name", "version", "label", "params"}),
        "protocol": cell.protocol.identity(),
        "versions": record["environment"].get("versions"),
    }


def model_card(trained: TrainedNetwork, described: NetworkDescription) -> str:
    """Return the model card: Markdown with YAML front matter, as model hubs read it."""
    cell, dataset = trained.cell, trained.dataset
    architecture = registry.MODELS.get(described.architecture).title
    outcomes = _outcomes(trained)
    label = printable(cell.method.label)
    title = f"{label}, {architecture} on {dataset.title}"
    matter = {
        "library_name": LIBRARY,
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "adversarial-training", dataset.name, cell.protocol.threat.norm],
        "model-index": [{"name": title, "results": [_result(trained, outcomes)]}] if outcomes else None,
    }
    front = yaml.safe_dump(
        {key: value for key, value in matter.items() if value is not None}, sort_keys=False, allow_unicode=True
    )
    activation = f" (activation {described.activation})" if described.activation else ""
    sections = [
        f"---\n{front}---",
        f"# {escape(title)}",
        f"{architecture}{activation}, checkpoint `{trained.checkpoint}`{_when(trained)}. The network takes images of "
        f"{'x'.join(map(str, described.shape))} (channels, height, width) with pixels in [0, 1], normalises them "
        f"itself, and returns {described.classes} logits.",
        _use(),
        _section(_accuracies(outcomes)),
        _section(_method(trained)),
        _section(text_table("Protocol", ["Setting", "Value"], protocol_settings(cell.protocol.identity()))),
        "## Data",
        escape_line(f"{dataset.title}. {dataset.citation}".strip()),
        f"Licence of the images: {escape('unknown' if dataset.own_files else dataset.licence)}",
    ]
    return "\n\n".join(sections) + "\n"


def _section(shown: Table) -> str:
    """Return a table as a section of the second level."""
    return render_table(shown).removeprefix("#").rstrip()


def _when(trained: TrainedNetwork) -> str:
    """Return when in its training the checkpoint was taken, and by what it was selected."""
    if trained.cell.network:
        return " of a network that was trained elsewhere"
    selected = {
        "best": ", of the highest robust accuracy on held-out training images",
        "best_on_test": ", of the highest robust accuracy on the test images",
    }
    if trained.cell.protocol.dataset.held_out == 0:
        selected["best"] = selected["best_on_test"]
    epochs = trained.cell.protocol.training.epochs
    which = selected.get(trained.checkpoint, "")
    return f" of seed {trained.cell.seed}, after epoch {trained.entry.epoch + 1} of {epochs}{which}"


def _use() -> str:
    return f"""## Use

With the package `{LIBRARY}` and this folder as FOLDER; nothing in the folder is executed:

```python
import bench

network = bench.load_network("FOLDER")
logits = network(images)
```

```bash
bench evaluate FOLDER --suite SUITE --name NAME
```"""


def _outcomes(trained: TrainedNetwork) -> list[OutcomeRow]:
    """Return the outcomes at the checkpoint, in the order of the protocol's final attacks."""
    order = [attack_key(attack, trained.cell) for attack in trained.cell.protocol.evaluation.final]
    outcomes = read_run(trained.folder).run.checkpoints[trained.checkpoint].outcomes
    return [outcomes[key] for key in order if key in outcomes]


def _accuracies(outcomes: list[OutcomeRow]) -> Table:
    lines = [
        [
            *(outcome.title, f"{outcome.images:,}", percent(outcome.accuracy)),
            " – ".join(map(percent, interval_of(outcome))),
        ]
        for outcome in outcomes
    ]
    note = (
        "Accuracy and its 95 % interval (Wilson) in percent, of these weights. The intervals cover the choice of test "
        "images, not that of the training seed."
    )
    headings = ["Attack", "Test images", "Accuracy", "95 % interval"]
    return text_table("Accuracy", headings, lines, range(1, 4), "No final attack was evaluated.", [note])


def _result(trained: TrainedNetwork, outcomes: list[OutcomeRow]) -> dict[str, Any]:
    """Return the accuracies as an entry of the front matter's `model-index`."""
    return {
        "task": {"type": "image-classification"},
        "dataset": {"type": trained.dataset.name, "name": trained.dataset.title, "split": "test"},
        "metrics": [
            {
                "type": "accuracy",
                "name": f"Accuracy, {outcome.title}, {outcome.images} images",
                "value": round(100 * outcome.right / outcome.count, 2),
            }
            for outcome in outcomes
        ],
    }


def _method(trained: TrainedNetwork) -> Table:
    """Return the method's parameters with their provenance; notes say what the method is."""
    method, protocol = trained.cell.method, trained.cell.protocol
    regime: AttackRegime = protocol.training.attack.regime
    described = describe_method(method.name, method.version, method.params, protocol.dataset.name, regime)
    notes = [described.caveat] if described.caveat else []
    if info := described.info:
        notes.insert(0, f"{info.title}: {info.description.rstrip('.')}. {info.paper}.")
    lines = [
        [
            *(
                parameter.name,
                setting_text(parameter.value, parameter.name),
                "" if parameter.unit in ("1", "-") else parameter.unit,
            ),
            *(ORIGINS.get(parameter.origin or "", "unknown"), parameter.note),
        ]
        for parameter in described.parameters
    ]
    headings = ["Parameter", "Value", "Unit", "Source of the value", "Note"]
    shown = text_table(f"Method: {method.label}", headings, lines)
    return replace(shown, notes=tuple(map(printable, notes)))
