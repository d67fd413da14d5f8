"""Trainable parameters that a loss holds, and what moves with them during training."""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaecourse.diagnosis.probing import (
    Experiment,
    LossFn,
    Probe,
    closure_of,
    find_parameters,
    is_same,
    run_experiment,
)
from vaecourse.diagnosis.reading.divergence import read_divergence
from vaecourse.diagnosis.reading.fits import Reconstruction, gradient_of
from vaecourse.diagnosis.reading.likelihoods import PLAIN
from vaecourse.diagnosis.reading.posteriors import Divergence

_POWERS = {"gaussian": 0.5, "laplace": 1.0}  # log of the scale, in logarithms of the inverse weight


@dataclass(frozen=True)
class Parameters:
    """Trainable parameters of a loss: what moves with them, and how its scale is paid for.

    `moves` is "scale", "shape" (of the reconstruction term, in another way), "weight" (of the KL term),
    "prior", "divergence" (in another way) or "nothing".  `normalizer` is the factor of the logarithm of
    the scale, 0 where it is missing, None where the loss does not follow one.
    """

    names: tuple[str, ...]
    moves: str
    normalizer: float | None = None


def read_parameters(
    experiment: Experiment, loss_fn: LossFn, recon: Reconstruction, kl: Divergence
) -> Parameters | None:
    """Find the trainable parameters in the graph of a loss, and what changes when they are moved."""
    prober, first = experiment.prober, experiment.probes[0]
    leaves = prober.leaves(first.point)
    arguments = [leaves[role] for role in ("recon_x", "mu", "logvar")]
    held = [p for p in find_parameters(prober.loss_at(leaves)) if not any(p is leaf for leaf in arguments)]
    if not held:
        return None
    names = _names(loss_fn, held)
    moved, divergence = [], None
    for seed in range(2):
        with _moved(held, seed):
            probe = prober.try_evaluate(first.point)
            if probe is None:  # they cannot be moved so, as a triangular matrix cannot
                return Parameters(names, "shape")
            moved.append(probe)
            is_kl = not (
                is_same(moved[-1].by_mu, first.by_mu) and is_same(moved[-1].by_logvar, first.by_logvar)
            )
            if is_kl and divergence is None:
                divergence = read_divergence(run_experiment(prober), None)
    is_recon = not all(is_same(probe.by_recon, first.by_recon) for probe in moved)
    if divergence is None:
        if not is_recon:
            return Parameters(names, "nothing")
        scales = [_normalizer(first, probe, recon) for probe in moved]
        if None in scales:
            return Parameters(names, "shape")
        one, other = (float(scale or 0) for scale in scales)
        is_one = math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-6 * abs(recon.factor or 1))
        return Parameters(names, "scale", one if is_one else None)
    if is_recon:
        return Parameters(names, "shape")
    if "prior" in (kl.kind, divergence.kind):
        return Parameters(names, "prior")
    return Parameters(names, "weight" if kl.fault is None and divergence.fault is None else "divergence")


@contextmanager
def _moved(parameters: list[Tensor], seed: int) -> Iterator[None]:
    """Move parameters a little, each number by a different amount, and put them back exactly."""
    generator = torch.Generator().manual_seed(seed)
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                draws = torch.rand(parameter.shape, generator=generator).to(parameter)
                parameter.add_(0.1 * (1 + parameter.abs()) * (0.5 + draws))
        yield
    finally:
        with torch.no_grad():
            for parameter, saved in zip(parameters, before, strict=True):
                parameter.copy_(saved)


def _normalizer(first: Probe, moved: Probe, found: Reconstruction) -> float | None:
    """Factor with which the logarithm of the scale stands in the loss; None where no scale has moved.

    Of ``a * error + c * log(scale)`` the weights a are the gradient over that of the error, with and
    without the move; what the first part leaves of the change of the loss is the second.
    """
    family = found.values.get("family", found.family)
    error = PLAIN.get((family, found.parameterization or ""))
    if family not in _POWERS or error is None:
        return None
    target = gradient_of(error, first.recon_x, first.x)
    before, after = (probe.by_recon / target for probe in (first, moved))
    counted = before.abs().amax(0) > 0
    before, after = before[:, counted], after[:, counted]
    change = after / before
    if not bool((change.max(0).values - change.min(0).values < 1e-3 * change.mean(0).abs()).all()):
        return None
    if bool((change <= 0).any()):
        return None
    errors = error(first.recon_x, first.x)[:, counted]
    rest = moved.value - first.value - ((after - before) * errors).sum()
    return float(rest / (-_POWERS[family] * change.log()).sum())


def _names(loss_fn: LossFn, held: list[Tensor]) -> tuple[str, ...]:
    """Names of parameters: in the module, or as the function knows them."""
    owner = getattr(loss_fn, "__self__", loss_fn)
    known: dict[str, object] = dict(owner.named_parameters()) if isinstance(owner, nn.Module) else {}
    if inspect.isfunction(loss_fn):
        for name, value in closure_of(loss_fn).items():
            known |= dict(value.named_parameters(name)) if isinstance(value, nn.Module) else {name: value}
    names = {id(parameter): name for name, parameter in known.items()}
    return tuple(names.get(id(p), f"of shape {tuple(p.shape)}") for p in held)
