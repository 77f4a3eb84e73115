"""Planted: training attacks stay inside half the radius that the protocol says."""

import bench.training.method

_pgd = bench.training.method.pgd


def _half(*args, threat, **kwargs):
    return _pgd(*args, threat=threat.model_copy(update={"eps": threat.eps / 2}), **kwargs)


bench.training.method.pgd = _half
METHODS = {"planted": bench.training.method.Method}  # a plug-in must list something
