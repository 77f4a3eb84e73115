"""The two ways to choose a coreset: CRAIG and GradMatch.

CRAIG takes batches to which the gradients of all batches are close, each with the number of batches that it stands for.
GradMatch matches the sum of all gradients by a sparse combination (Dolatabadi, Erfani, Leckie, ECCV 2022, after
Mirzasoleiman et al., ICML 2020, and Killamsetty et al., ICML 2021).
"""

import torch
from torch import Tensor

from bench import MethodInfo
from methods.coreset import PAPER, Coreset

RIDGE = 1e-6
"""Relative to the mean square of a gradient: keeps the least squares solvable; declared."""

TOLERANCE = 1e-3
"""Matching ends where the residual falls to this share of the sum's norm; declared."""


class CRAIG(Coreset):
    """Greedy facility location."""

    info = MethodInfo("coreset_craig", "CRAIG", "PGD-AT on a coreset, chosen by facility location", PAPER, 2022)
    features = False

    def choose(self, gradients: Tensor, count: int) -> Tensor:
        distances = torch.cdist(gradients, gradients).square()
        closeness = distances.max() - distances
        best, chosen = torch.zeros(len(gradients), dtype=closeness.dtype), list[int]()
        for _ in range(count):
            gains = (closeness - best[:, None]).clamp(min=0).sum(0)
            gains[chosen] = -1
            chosen.append(int(gains.argmax()))
            best = torch.maximum(best, closeness[:, chosen[-1]])
        clusters = closeness[:, chosen].argmax(1)
        weights = torch.zeros(len(gradients))
        weights[chosen] = torch.bincount(clusters, minlength=len(chosen)).float().clamp(min=1e-6)
        return weights


class GradMatch(Coreset):
    """Orthogonal matching pursuit with coefficients that are not negative, filled up at random."""

    info = MethodInfo("coreset_gradmatch", "GradMatch", "PGD-AT on a coreset, chosen by gradient matching", PAPER, 2022)
    features = True

    def choose(self, gradients: Tensor, count: int) -> Tensor:
        target = gradients.sum(0)
        products, sums, chosen = gradients @ gradients.T, gradients @ target, list[int]()
        ridge = RIDGE * products.diagonal().mean()
        coefficients, residual = torch.zeros(0, dtype=gradients.dtype), target
        while len(chosen) < count and residual.norm() > TOLERANCE * target.norm():
            correlations = gradients @ residual
            correlations[chosen] = -torch.inf
            if correlations.max() <= 0:
                break
            chosen.append(int(correlations.argmax()))
            square = products[chosen][:, chosen] + ridge * torch.eye(len(chosen), dtype=gradients.dtype)
            coefficients = torch.linalg.solve(square, sums[chosen]).clamp(min=0)
            residual = target - coefficients @ gradients[chosen]
        weights = torch.zeros(len(gradients))
        weights[chosen] = coefficients.float().clamp(min=1e-6)
        others = (weights == 0).nonzero()[:, 0]
        order = torch.randperm(len(others), generator=self.context.random.cpu("coreset_gradmatch"))
        weights[others[order[: count - len(chosen)]]] = 1
        return weights
