"""The experiment on a loss: where it is finite, whether it repeats itself, and probes of every region."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaecourse.diagnosis.probing.calling import FORM, LossError
from vaecourse.diagnosis.probing.probes import DOMAINS, REGIONS, Probe, Prober


@dataclass(frozen=True)
class Experiment:
    """Probes of one loss: what the readings are fitted to."""

    prober: Prober
    regions: dict[str, list[Probe]]
    larger: Probe | None  # with a batch of twice the size; None where the loss refuses it
    is_random: bool
    is_recon_random: bool

    @property
    def probes(self) -> list[Probe]:
        """All of them, with the usual size of the batch."""
        return [probe for probes in self.regions.values() for probe in probes]


def run_experiment(prober: Prober) -> Experiment:
    """Probe a loss in the first domain in which it is finite wherever it is probed."""
    regions = _find_domain(prober)
    first = regions["narrow"][0]
    _check_x_matters(prober, regions)
    is_random, is_recon_random = _find_randomness(prober, first)
    try:
        larger = prober.probe("narrow", 2 * prober.batch_size)
    except LossError:
        larger = None
    return Experiment(prober, regions, larger, is_random, is_recon_random)


def probe_regions(prober: Prober) -> dict[str, list[Probe]]:
    """Probe every region in the prober's domain."""
    # a handful of numbers would fit by chance
    repeats = math.ceil(32 / (prober.batch_size * min(prober.data_dim, prober.latent_dim)))
    return {region: [prober.probe(region) for _ in range(repeats)] for region in REGIONS}


def probe_positive(experiment: Experiment) -> Experiment | None:
    """Repeat an experiment with a positive fourth argument; None where the loss is not finite there."""
    domain = dataclasses.replace(experiment.prober.domain, is_positive=True)
    prober = dataclasses.replace(experiment.prober, domain=domain)
    try:
        regions = {
            name: [prober.evaluate(prober.with_posterior(name, probe)) for probe in probes]
            for name, probes in experiment.regions.items()
        }
        larger = experiment.larger and prober.evaluate(prober.with_posterior("narrow", experiment.larger))
    except LossError:
        return None
    return (
        dataclasses.replace(experiment, prober=prober, regions=regions, larger=larger)
        if _are_finite(regions)
        else None
    )


def _are_finite(regions: dict[str, list[Probe]]) -> bool:
    return all(probe.is_finite for probes in regions.values() for probe in probes)


def _find_domain(prober: Prober) -> dict[str, list[Probe]]:
    """Find a domain, and whether recon_x is as wide as x or twice as wide, for which the loss is finite."""
    failure: LossError | None = None
    is_number = False
    usual, *others = DOMAINS
    for width, domains in ((1, [usual]), (2, [usual]), (1, others), (2, others)):
        prober.recon_dim = width * prober.data_dim
        for prober.domain in domains:
            try:
                regions = probe_regions(prober)
            except LossError as error:
                # the last one: where float64 is refused, float32 tells the true reason
                failure = error if width == 1 else failure
                continue
            is_number = True
            if _are_finite(regions):
                return regions
    if failure is not None and not is_number:
        raise failure
    raise ValueError(f"loss_fn or its gradient is NaN or infinite for pixels in (0, 1); expected {FORM}")


def _check_x_matters(prober: Prober, regions: dict[str, list[Probe]]) -> None:
    if not any(probe.by_recon.any() for probes in regions.values() for probe in probes):
        raise ValueError(f"loss_fn ignores recon_x (its gradient is zero); expected {FORM}")
    probe = regions["narrow"][0]
    other = prober.evaluate({**probe.point, "x": 1 - probe.x})
    if torch.equal(other.by_recon, probe.by_recon) and torch.equal(other.value, probe.value):
        raise ValueError(f"loss_fn ignores x (another x gives the same value); expected {FORM}")


def _find_randomness(prober: Prober, first: Probe) -> tuple[bool, bool]:
    """Whether the loss draws random numbers, and whether its reconstruction term does."""
    if _is_repeated(first, prober.evaluate(first.point)):
        other = prober.evaluate(first.point, noise=1)
        return not _is_repeated(first, other), not is_same(first.by_recon, other.by_recon)
    raise random_loss(first, prober.evaluate(first.point))


def random_loss(before: Probe, after: Probe) -> ValueError:
    """Error about a loss that gave two values at one point."""
    return ValueError(
        "loss_fn is random or keeps a state between calls (annealing, a moving average): the same arguments "
        f"gave {before.value.item()} and then {after.value.item()}; expected a function of its arguments "
        "alone. If it estimates the KL term from draws of z, diagnose it with the closed form, "
        "0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1); if it draws noise or counts steps otherwise, pass "
        "these as arguments and bind them in a lambda"
    )


def _is_repeated(first: Probe, second: Probe) -> bool:
    names = ("value", "by_recon", "by_mu", "by_logvar")
    return all(is_same(getattr(first, name), getattr(second, name)) for name in names)


def is_same(before: Tensor, after: Tensor) -> bool:
    """Whether two values or gradients agree, up to the order of sums."""
    return bool((before - after).norm() <= 1e-6 * before.norm())


def find_parameters(loss: Tensor) -> list[Tensor]:
    """Leaves of the graph of a loss: its arguments, and the trainable parameters that it holds."""
    found: dict[int, Tensor] = {}
    seen, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found[id(leaf)] = leaf
        ahead.extend(following for following, _ in node.next_functions)
    return list(found.values())
