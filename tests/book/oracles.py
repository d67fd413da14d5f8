"""What the tests of several chapters compute with: seeds, gradients, expectations, and a search."""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def column(*values: float) -> Tensor:
    """Examples of one number each, float64 (N, 1)."""
    return torch.tensor(values, dtype=F64)[:, None]


def gradient(value: Tensor, module: nn.Module) -> Tensor:
    """The gradients of all parameters in one vector, zeros where the value does not depend on them."""
    found = torch.autograd.grad(value, list(module.parameters()), retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def flat(module: nn.Module) -> Tensor:
    """A copy of all parameters in one vector."""
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def hermite(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights: `weights @ f(nodes)` is E f under N(0, 1), exactly for degrees below 2 * count."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes, weights / weights.sum()


def smallest(function: Callable[[float], float], low: float, high: float) -> optimize.OptimizeResult:
    """Where a function of one number is smallest (`x`) and how small it is (`fun`), by a search."""
    return optimize.minimize_scalar(function, bounds=(low, high), method="bounded", options={"xatol": 1e-9})


def assert_mean(draws: Tensor, expected: float, num_errors: float = 4.5) -> None:
    """Fail where the mean is further from what is expected than so many of its standard errors."""
    error = draws.std().item() / math.sqrt(len(draws))
    assert abs(draws.mean().item() - expected) < num_errors * error, (draws.mean(), expected, error)


def descend(optimizer: torch.optim.Optimizer, loss_at: Callable[[int], Tensor], num_steps: int) -> None:
    """Take steps on the losses of their numbers."""
    for step in range(num_steps):
        optimizer.zero_grad()
        loss_at(step).backward()
        optimizer.step()
