"""Planted: 2 % of the training images have their labels shuffled among each other."""

from dataclasses import replace

import torch

import bench.training.method
from bench.training.trainer import Trainer

_init = Trainer.__init__


def _shuffled(self, cell, dataset, splits, *rest):
    draws = torch.Generator().manual_seed(1)
    labels = splits.train.labels.clone()
    chosen = torch.randperm(len(labels), generator=draws)[: round(0.02 * len(labels))]
    labels[chosen] = labels[chosen[torch.randperm(len(chosen), generator=draws)]]
    _init(self, cell, dataset, replace(splits, train=replace(splits.train, labels=labels)), *rest)


Trainer.__init__ = _shuffled
METHODS = {"planted": bench.training.method.Method}  # a plug-in must list something
