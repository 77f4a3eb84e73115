"""Planted: networks are measured in train mode, with the statistics of the batch."""

import bench.attacks.evaluate
import bench.training.method
from bench.attacks.pgd import mode

bench.attacks.evaluate.mode = lambda model, train: mode(model, train=True)
METHODS = {"planted": bench.training.method.Method}  # a plug-in must list something
