"""The final evaluation: every checkpoint of a cell under every final attack."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bench.attacks.autoattack import BatchResult, CascadeState
from bench.attacks.combined import evaluate_corruptions, joint_outcome
from bench.attacks.evaluate import ball_of, evaluate, evaluated_images, forward_passes
from bench.attacks.identity import attack_key, joined_attacks, outcome_identity
from bench.attacks.outcome import Outcome
from bench.config.attacks import AutoAttack, FinalAttack, Joint, Preview, Threat
from bench.config.cell import Cell
from bench.config.corruptions import Corruptions
from bench.data.corrupted import versions
from bench.data.dataset import Dataset, Images
from bench.errors import DamagedFile
from bench.models.architecture import Network
from bench.storage.checkpoints import Checkpoints
from bench.storage.previews import preview_path, read_preview
from bench.storage.run_folder import CHECKPOINTS, RunFolder
from bench.training.build import build_evaluated
from bench.training.trainer import LAST_EPOCH
from bench.utils.files import read_record, write_record
from bench.utils.progress import ProgressCallback

log = logging.getLogger(__name__)

LAYOUT = torch.channels_last
"""Of weights in final attacks. Not yet compared with NCHW in exact fp32 on a GPU (`bench speed --what gpu`)."""


AutoAttackElsewhere = Callable[[str, AutoAttack, str, CascadeState], BatchResult]
"""From checkpoint, settings, the attack's name and the state to the result of the next batch."""


def evaluate_checkpoints(
    cell: Cell,
    dataset: Dataset,
    test: Images,
    folder: RunFolder,
    device: torch.device,
    network: nn.Module | None = None,
    elsewhere: AutoAttackElsewhere | None = None,
    data: Path | None = None,
    *,
    preview: bool = False,
) -> None:
    """Evaluate every checkpoint under every final attack, skipping outcomes that exist.

    Checkpoints with equal weights are evaluated once, and share one network. `network`: into which weights are loaded,
    if the cell's method does not build one. `elsewhere`: what runs the batches of AutoAttack, if not this process.
    `data`: the data root, with published corrupted images. `preview`: bound the missing outcomes of AutoAttack first.
    """
    checkpoints, threat = Checkpoints(folder.checkpoints), cell.protocol.threat
    names: dict[str, list[str]] = {}  # of the checkpoints with the same weights, by their SHA-256
    for name in CHECKPOINTS:
        if name in checkpoints.entries:
            names.setdefault(checkpoints.entries[name].sha256, []).append(name)
    finals = sorted(cell.protocol.evaluation.final, key=lambda attack: isinstance(attack, Joint))  # the last
    attacks = {attack_key(attack, cell): attack for attack in finals}
    stored = _valid_outcomes(folder)
    records = {(record["weights_sha256"], key): record for (_, key), record in stored.items()}
    work = {key: evaluated_images(attack, len(test)) * forward_passes(attack) for key, attack in attacks.items()}
    total, done = len(names) * sum(work.values()), 0

    @lru_cache(maxsize=1)
    def load(name: str) -> nn.Module:
        model = load_network(cell, dataset, checkpoints.load(name), device, network)
        model.register_forward_pre_hook(lambda *_: folder.heartbeat())  # a batch of AutoAttack takes long
        return model

    bounds: dict[tuple[str, str], float] = {}  # of robust accuracy, by weights and key of AutoAttack
    for weights, (name, *_) in names.items() if preview else ():
        for key, attack in attacks.items():
            if isinstance(attack, AutoAttack) and (weights, key) not in records:
                path, update = preview_path(folder, weights, key), _Progress(folder).start(name, "Preview", 0, 0)
                bounds[weights, key] = _upper_bound(load, weights, name, test, attack, threat, path, update)
    progress = _Progress(folder)

    def outcome_of(weights: str, name: str, key: str, attack: FinalAttack) -> Outcome:
        if isinstance(attack, Joint):
            outcomes = [Outcome.from_record(records[weights, attack_key(one, cell)]) for one in joined_attacks(cell)]
            return joint_outcome(outcome_identity(attack, cell), outcomes, test.labels)
        model, own = load(name), work[key] / total
        update = progress.start(name, attack.title, done / total, own, bounds.get((weights, key)))
        if isinstance(attack, Corruptions):
            corrupted = versions(attack, dataset, test, data)
            outcome = evaluate_corruptions(model, weights, attack, corrupted, threat, update)
        else:
            path = folder.partial / f"{weights[:16]}.{key}.json"
            outcome = evaluate(
                model, weights, test, attack, threat,
                progress=update, state=_read_state(path), commit=partial(_write_state, path),
                heartbeat=folder.heartbeat,
                elsewhere=elsewhere and partial(elsewhere, name, cast("AutoAttack", attack)),
            )  # fmt: skip
        log.info("%s under %s: %.4f of %d", name, attack.title, outcome.accuracy, len(outcome.correct))
        return outcome

    for weights, equal in names.items():
        for key, attack in attacks.items():
            if (weights, key) not in records:
                records[weights, key] = outcome_of(weights, equal[0], key, attack).to_record()
            done += work[key]
            for name in equal:
                if stored.get((name, key)) != records[weights, key]:
                    write_record(folder.outcome_path(name, key), records[weights, key])
    shutil.rmtree(folder.partial, ignore_errors=True)


def _upper_bound(
    load: Callable[[str], nn.Module],
    weights: str,
    name: str,
    test: Images,
    attack: AutoAttack,
    threat: Threat,
    path: Path,
    progress: ProgressCallback,
) -> float:
    """Return an upper bound of the robust accuracy of a checkpoint on the images of `attack`, read from `path` or kept.

    An evaluation that resumes does not compute it again.
    """
    record = read_preview(path)
    if record is None:
        ball = ball_of(attack, threat)
        settings = Preview(images=attack.images, threat=ball, step_size=ball.eps / 4)
        outcome = evaluate(load(name), weights, test, settings, threat, progress=progress)
        log.info("%s: at most %.4f robust, before %s", name, outcome.accuracy, attack.title)
        record = {**outcome.to_record(), "of": attack.title}
        write_record(path, record)
    return float(record["right"] / record["count"])


def load_network(
    cell: Cell, dataset: Dataset, state: dict[str, Any], device: torch.device, network: nn.Module | None = None
) -> nn.Module:
    """Return the network of `cell`, or `network`, in eval mode with frozen parameters and the weights `state`."""
    if network is None:
        network = build_evaluated(cell, dataset, state, device)
    else:
        network.load_state_dict(state)
    # An external network may hold tensors that have no such layout.
    layout = LAYOUT if isinstance(network, Network) else torch.preserve_format
    moved: nn.Module = network.to(device, memory_format=layout)  # type: ignore[call-overload]
    return moved


def _valid_outcomes(folder: RunFolder) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the outcomes on disk; damaged ones are recorded as incidents and deleted."""
    for path, error in folder.damaged_outcomes().items():
        folder.record_incident(f"{error}; it was evaluated again")
        path.unlink()
    return folder.read_outcomes()


class _Progress:
    """Writes how far the evaluation is, and the seconds left, estimated from the share done since its start."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._started = folder, time.monotonic()
        self._first: float | None = None
        self._last = {
            key: value for record in folder.epochs()[-1:] for key, value in record.items() if key in LAST_EPOCH
        }

    def start(
        self, checkpoint: str, attack: str, before: float, own: float, at_most: float | None = None
    ) -> ProgressCallback:
        """Return the callback of an attack; its share of the whole evaluation is `own`, and `before` is done.

        `at_most`: the upper bound of its preview, if it had one.
        """
        where: dict[str, Any] = {"checkpoint": checkpoint, "attack": attack} | (
            {} if at_most is None else {"at_most": at_most}
        )
        self._write(before, force=True, **where)

        def update(done: int, total: int, robust: float | None = None) -> None:
            self._write(before + own * done / total, robust=robust, **where)

        return update

    def _write(self, share: float, *, robust: float | None = None, force: bool = False, **where: Any) -> None:
        if self._first is None:
            self._first = share
        gained, elapsed = share - self._first, time.monotonic() - self._started
        left = (1 - share) * elapsed / gained if gained > 0 else None
        self._folder.progress(
            force=force, phase="evaluation", share=share, robust=robust, left=left, last=self._last, **where
        )


def _write_state(path: Path, state: CascadeState) -> None:
    write_record(path, state.to_record())


def _read_state(path: Path) -> CascadeState | None:
    """Return the state of an interrupted AutoAttack, or None."""
    try:
        return CascadeState.from_record(read_record(path))
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        log.warning("%s; this evaluation starts again", error)
        return None
