"""What `test_parallel.py` compares, computed by each of two processes: alone, and with the other.

    python two_processes.py FOLDER 0 PART... & python two_processes.py FOLDER 1 PART...

Each writes the results of the parts into FOLDER, as <rank>.json.
"""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from bench import registry
from bench.attacks.evaluate import correct_under
from bench.config.attacks import PGD, Threat
from bench.data.batches import Batch, TrainingBatches
from bench.data.dataset import Splits, dataset_of
from bench.models.sync_batchnorm import shared_statistics
from bench.storage.run_folder import RunFolder
from bench.testing.conformance import curve, small_cell
from bench.training.build import build_method
from bench.training.step import EpochMetrics, train_step
from bench.training.trainer import Trainer
from bench.utils.distributed import SINGLE_PROCESS, ProcessGroup
from bench.utils.rng import RngStreams, generator

CPU = torch.device("cpu")
METHODS = [name for name in registry.METHODS.names() if vars(registry.METHODS.get(name)).get("data_parallel")]


class InDefaultPrecision(TrainingBatches):
    def __iter__(self):
        for batch in super().__iter__():
            yield Batch(batch.images.to(torch.get_default_dtype()), batch.labels, batch.index)


@contextmanager
def default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def apart(ours, theirs):
    """Return the largest relative difference between two state dicts, over their tensors, in the 2-norm."""
    pairs = [(ours[name].double(), theirs[name].double()) for name in theirs]
    return max(float((a - b).norm() / b.norm().clamp(min=1e-300)) for a, b in pairs)


def trained(name, group, norm):
    """Return what a method has learned in six epochs of a step, which meet all its phases, and the metrics of each."""
    cell = small_cell(name, norm)
    dataset, training = dataset_of(cell.protocol.dataset), cell.protocol.training
    images = dataset.splits(None).train.take(torch.arange(32))
    random = RngStreams(0)
    batches = InDefaultPrecision(images, 32, training.augmentation, random, group)
    method = build_method(cell, dataset, batches, random, CPU)
    totals_of_epochs = []
    for epoch in range(method.lr_schedule.epochs):
        random.start_epoch(epoch)
        method.begin_epoch(epoch)
        method.model.train()
        for parameters in method.optimizer.param_groups:
            parameters["lr"] = 0.05
        metrics = EpochMetrics(CPU, group)
        with shared_statistics(group):
            for batch in batches:
                train_step(method, batch, method.optimizer, metrics)
            method.end_epoch(epoch)
        totals_of_epochs.append(metrics.read())
    state = {
        **method.model.state_dict(),
        **{f"evaluated.{k}": v for k, v in method.evaluated_model().state_dict().items()},
    }
    state |= {key: value for key, value in method.state_dict().items() if isinstance(value, torch.Tensor)}
    return {name: value.clone() for name, value in state.items()}, torch.tensor(totals_of_epochs)


def methods(group):
    """Return for each method how far training in two parts is from training whole, and whether both parts agree.

    Whole trainings take this process half of the methods.
    """
    found = {}
    with default(torch.float64):
        norms = {name: "l2" if name == "pgd_at" else "linf" for name in METHODS}
        together = {name: trained(name, group, norm) for name, norm in norms.items()}
        for name, (state, _) in together.items():
            first, second = group.all_gather(torch.cat([value.double().flatten() for value in state.values()])[None])
            assert torch.equal(first, second), name
        for name in METHODS[group.rank :: group.size]:
            (ours, our_totals), (theirs, their_totals) = together[name], trained(name, SINGLE_PROCESS, norms[name])
            found[name] = apart(ours, theirs), float((our_totals - their_totals).abs().max())
    return found


def statistics(group):
    """Return for kinds of batch normalisation how far the parts are from the whole: output, gradients, statistics."""
    kinds = {
        "2d": (lambda: nn.BatchNorm2d(5), (8, 5, 4, 3)),
        "1d": (lambda: nn.BatchNorm1d(5), (8, 5)),
        "cumulative": (lambda: nn.BatchNorm2d(5, momentum=None), (8, 5, 4, 3)),
        "without weights": (lambda: nn.BatchNorm2d(5, affine=False), (8, 5, 4, 3)),
        "without running statistics": (lambda: nn.BatchNorm2d(5, track_running_stats=False), (8, 5, 4, 3)),
    }
    found = {}
    with default(torch.float64):
        for kind, (make, shape) in kinds.items():
            random = torch.Generator().manual_seed(0)
            images, weights = (torch.randn(shape, generator=random) * 3 + 10 for _ in range(2))
            results = []
            for one in (SINGLE_PROCESS, group):
                layer = make()
                with torch.no_grad():
                    for value in layer.parameters():
                        value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
                found_here = []
                with shared_statistics(one):
                    for _ in range(2):
                        x = one.shard(images).clone().requires_grad_()
                        y = layer(x)
                        (torch.sin(y) * one.shard(weights)).sum().backward()
                        found_here += [one.all_gather(y.detach()), one.all_gather(x.grad)]
                gradients = torch.cat([value.grad for value in layer.parameters()] or [torch.zeros(1)])
                one.all_reduce(gradients)
                results.append([*found_here, gradients, *(value.double() for value in layer.buffers())])
            found[kind] = max(
                float((a - b).norm() / b.norm().clamp(min=1)) for a, b in zip(*reversed(results), strict=True)
            )
    return found


def tracking(group):
    """Return whether verdicts are the same where batches are shared out, of how many images, and how many stand."""
    cell = small_cell("pgd_at")
    images = dataset_of(cell.protocol.dataset).splits(None)
    network = build_method(
        cell, dataset_of(cell.protocol.dataset), TrainingBatches(images.train, 1, (), RngStreams(0)), RngStreams(0), CPU
    ).model
    found = []
    for norm, eps in (("linf", 0.05), ("l2", 0.3)):
        threat, attack = Threat(norm=norm, eps=eps), PGD(steps=1, step_size=eps / 2, restarts=2)
        ours, theirs = (
            correct_under(network, images.train, attack, threat, generator(0, "t"), group=one)
            for one in (group, SINGLE_PROCESS)
        )
        found.append((torch.equal(ours, theirs), len(ours), int(theirs.sum())))
    return found


def cell_of(model):
    return small_cell("pgd_at").model_copy(
        update={"protocol": small_cell("pgd_at").protocol.model_copy(update={"model": model})}
    )


def trainer(cell, folder, group):
    run = RunFolder.of(cell, folder)
    if group.is_main:
        run.begin(cell, {})
    group.all_gather(torch.zeros(1))  # wait for that
    dataset = dataset_of(cell.protocol.dataset)
    splits = dataset.splits(None)
    few = torch.arange(50)
    some = Splits(splits.train.take(torch.arange(160)), splits.validation.take(few), splits.test.take(few))
    return Trainer(cell, dataset, some, run, CPU, group)


def resuming(group, folder, model, changes):
    """Return how far from training undisturbed, by one process, ends what two began and one went on with, and so on.

    Largest relative difference of a tensor, largest difference of a number of the curve, and whether the work is equal.
    """
    cell, found = cell_of(model), {}
    undisturbed = trainer(cell, folder / f"undisturbed-{group.rank}", SINGLE_PROCESS)
    undisturbed.run()
    for begin, go_on in changes:
        place = folder / f"{begin}-{go_on}"
        for size, epochs in ((begin, 3), (go_on, None)):
            if size == 2:
                trainer(cell, place, group).run(epochs)
            elif group.is_main:
                trainer(cell, place, SINGLE_PROCESS).run(epochs)
            group.all_gather(torch.zeros(1))
        if group.is_main:
            ended = trainer(cell, place, SINGLE_PROCESS)
            assert ended.checkpoints.finished
            weights = apart(ended.checkpoints.load("last"), undisturbed.checkpoints.load("last"))
            ours, theirs = (curve(one.folder.epochs()) for one in (ended, undisturbed))
            numbers = [
                abs(a[part][key] - b[part][key])
                for a, b in zip(ours, theirs, strict=True)
                for part in ("train", "validation", "test")
                for key in a[part]
            ]
            found[f"{begin}-{go_on}"] = (
                weights,
                max(numbers),
                [a["train_pflop"] for a in ours] == [b["train_pflop"] for b in theirs],
            )
    return found


def main():
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    registry.load_plugin(Path(__file__).with_name("parts.py"))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    group = ProcessGroup(rank, 2, dist.all_reduce)
    parts = {
        "statistics": lambda: statistics(group),
        "methods": lambda: methods(group),
        "tracking": lambda: tracking(group),
        "plain": lambda: resuming(group, folder / "plain", "plain", [(1, 2), (2, 1)]),
        "small_cnn": lambda: resuming(group, folder / "small_cnn", "small_cnn", [(2, 1)]),
    }
    (folder / f"{rank}.json").write_text(json.dumps({name: parts[name]() for name in sys.argv[3:]}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
