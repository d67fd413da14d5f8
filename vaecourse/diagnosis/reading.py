"""Reads terms, weights and reductions off the gradients of a loss, and what each argument must mean."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vaecourse.diagnosis.probing import LossError, Probe, Prober

Reading = Callable[[Tensor, Tensor], Tensor]

TOLERANCE = 1e-4  # largest relative misfit of a gradient; constants such as log(p + 1e-8) stay below it
_PLACES = {"loc": "location", "probabilities": "probabilities", "logits": "logits"}

# Gradient with respect to recon_x (r) that each reading of the reconstruction term has, up to a factor.
_RECONSTRUCTIONS: dict[tuple[str, str], Reading] = {
    ("gaussian", "loc"): lambda r, x: r - x,
    ("laplace", "loc"): lambda r, x: (r - x).sign(),
    ("bernoulli", "probabilities"): lambda r, x: (r - x) / (r * (1 - r)),
    ("bernoulli", "logits"): lambda r, x: r.sigmoid() - x,
    ("gaussian", "logits"): lambda r, x: (r.sigmoid() - x) * r.sigmoid() * (1 - r.sigmoid()),
    ("laplace", "logits"): lambda r, x: (r.sigmoid() - x).sign() * r.sigmoid() * (1 - r.sigmoid()),
}
# The same for readings that are mistakes, with their names.
_MISTAKES: dict[str, Reading] = {
    "cross-entropy with prediction and target exchanged": lambda r, x: (
        (1 - x).log().clamp(min=-100) - x.log().clamp(min=-100)
    ),
}
# Gradient with respect to logvar (v) for each meaning that code may give it; that of mu is mu itself.
_KL_READINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "log-variance": lambda v: 0.5 * v.expm1(),
    "log-scale": lambda v: (2 * v).expm1(),
    "variance": lambda v: 0.5 * (1 - 1 / v),
    "scale": lambda v: v - 1 / v,
}


def _fit(gradient: Tensor, target: Tensor) -> tuple[float, float]:
    """Best factor of `target`, and the relative misfit that remains."""
    factor = (gradient * target).sum() / target.square().sum()
    misfit = (gradient - factor * target).norm() / gradient.norm()
    return float(factor), float(misfit)


def _fits(misfit: float) -> bool:
    return misfit <= TOLERANCE  # False for NaN


def _recon_fit(probes: list[Probe], reading: Reading) -> tuple[float, float]:
    gradient = torch.cat([p.by_recon.flatten() for p in probes])
    return _fit(gradient, torch.cat([reading(p.recon_x, p.x).flatten() for p in probes]))


def read_reconstruction(prober: Prober, evidence: list[str]) -> tuple[str, str | None, float | None]:
    """Family, meaning of recon_x, and factor of the reconstruction term's gradient."""
    for (family, parameterization), reading in _RECONSTRUCTIONS.items():
        factor, misfit = _recon_fit(prober.probes, reading)
        if not _fits(misfit):
            continue
        name, place = family.capitalize(), _PLACES[parameterization]
        if factor < 0:
            evidence.append(
                f"The reconstruction term is a {name} log-likelihood, not its negative: minimising it drives "
                "recon_x away from x. If the loss is meant to be maximised, diagnose its negative."
            )
            return "unknown", None, None
        if prober.larger is not None and not _fits(_recon_fit([prober.larger], reading)[1]):
            evidence.append("The reconstruction term mixes the examples of a batch.")
            return "unknown", None, None
        if parameterization != "probabilities" and not _holds_beyond(
            prober, reading, parameterization, factor
        ):
            evidence.append(
                f"For recon_x between 0 and 1 the reconstruction term is {name}, recon_x being its {place}, "
                "but not beyond: it changes its form for large errors (Huber-like) or clips recon_x."
            )
            return "unknown", None, None
        evidence.append(
            f"The gradient with respect to recon_x is that of a {name} likelihood, recon_x being its {place} "
            f"(relative misfit {misfit:.0e})."
        )
        return family, parameterization, factor
    evidence.append(_describe_misfit(prober.probes))
    return "unknown", None, None


def _holds_beyond(prober: Prober, reading: Reading, parameterization: str, factor: float) -> bool:
    """Whether a reading also holds for recon_x far from (0, 1)."""
    try:
        probe = prober.probe(parameterization)
    except LossError:
        return True  # it refuses such recon_x, so there is nothing more to read
    found, misfit = _recon_fit([probe], reading)
    return _fits(misfit) and math.isclose(found, factor, rel_tol=10 * TOLERANCE)


def _describe_misfit(probes: list[Probe]) -> str:
    for name, reading in _MISTAKES.items():
        if _fits(_recon_fit(probes, reading)[1]):
            return f"The reconstruction term is {name}."
    gradient = torch.cat([p.by_recon for p in probes])
    misfits = {}
    for (family, parameterization), reading in _RECONSTRUCTIONS.items():
        name = f"{family.capitalize()} likelihood with recon_x as its {_PLACES[parameterization]}"
        if all(_fits(_recon_fit([p], reading)[1]) for p in probes):
            return (
                f"The gradient with respect to recon_x is that of a {name}, times a factor that changes with "
                "the size of the error: a function of it, such as its logarithm (profile likelihood) or root."
            )
        target = torch.cat([reading(p.recon_x, p.x) for p in probes])
        weights = (gradient * target).sum(0) / target.square().sum(0)  # one for each number of an example
        if _fits(float((gradient - weights * target).norm() / gradient.norm())):
            return (
                f"Each number of recon_x has the gradient of a {name}, but with weights that differ between "
                "the numbers of an example."
            )
        misfits[name] = _recon_fit(probes, reading)[1]
    nearest = min(misfits, key=lambda name: misfits[name])
    return (
        f"The gradient with respect to recon_x fits no likelihood; the nearest, a {nearest}, misses it by "
        f"{misfits[nearest]:.2g} of its size."
    )


def _kl_fit(probes: list[Probe], reading: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    gradient = torch.cat([t.flatten() for p in probes for t in (p.by_mu, p.by_logvar)])
    return _fit(gradient, torch.cat([t.flatten() for p in probes for t in (p.mu, reading(p.logvar))]))


def read_kl(prober: Prober, evidence: list[str]) -> tuple[str | None, float | None]:
    """Fault of the KL term, or else its factor."""
    ignored = [
        name for name in ("mu", "logvar") if not any(getattr(p, f"by_{name}").any() for p in prober.probes)
    ]
    if ignored:
        evidence.append(f"The loss does not depend on {' and '.join(ignored)}.")
        return ("missing" if len(ignored) == 2 else f"malformed: it ignores {ignored[0]}"), None
    for meaning, reading in _KL_READINGS.items():
        fits = [_kl_fit(probes, reading) for probes in prober.regions.values()]
        if not all(_fits(misfit) for _, misfit in fits):
            continue
        factors = [factor for factor, _ in fits]
        if not all(math.isclose(factor, factors[0], rel_tol=10 * TOLERANCE) for factor in factors):
            evidence.append(
                "The weight of the KL term changes with its size: free bits, a capacity, or a root."
            )
            return "malformed: a function of the KL", None
        if prober.larger is not None and not _fits(_kl_fit([prober.larger], reading)[1]):
            evidence.append("The KL term mixes the examples of a batch.")
            return "malformed: it mixes examples", None
        if factors[0] < 0:
            evidence.append("Minimising the loss drives the posterior away from the prior.")
            return "wrong sign", None
        if meaning != "log-variance":
            evidence.append(
                f"The KL term is right if the last argument is the {meaning}, not the log-variance."
            )
            return f"takes logvar for the {meaning}", None
        return None, factors[0]
    return _describe_kl_misfit(prober.probes, evidence), None


def _describe_kl_misfit(probes: list[Probe], evidence: list[str]) -> str:
    mu, logvar, by_mu, by_logvar = (
        torch.cat([getattr(p, name).flatten() for p in probes])
        for name in ("mu", "logvar", "by_mu", "by_logvar")
    )
    mu_factor, mu_misfit = _fit(by_mu, mu)
    log_factor, log_misfit = _fit(by_logvar, _KL_READINGS["log-variance"](logvar))
    parts = [name for name, misfit in (("mu", mu_misfit), ("logvar", log_misfit)) if not _fits(misfit)]
    if not parts:
        evidence.append(f"mu has the weight {mu_factor:.6g}, logvar {log_factor:.6g}; a KL has one for both.")
        return "malformed: mu and logvar have different weights"
    evidence.append(
        f"The gradient with respect to {' and '.join(parts)} is not everywhere that of the KL divergence of "
        "a diagonal Gaussian from N(0, I); a clamp, free bits or another prior would do that."
    )
    return f"malformed: wrong dependence on {' and '.join(parts)}"


def read_batch(
    prober: Prober, family: str, parameterization: str | None, kl_fault: str | None, evidence: list[str]
) -> dict[str, str]:
    """How the batch is reduced in each term that is understood."""
    if prober.larger is None:
        evidence.append(
            f"The loss accepts batches of {prober.batch_size} only; how it reduces them is not seen."
        )
        return {}
    pair, rules = (prober.probes[0], prober.larger), {}
    if parameterization is not None:
        reading = _RECONSTRUCTIONS[family, parameterization]
        rules["reconstruction"] = _batch_rule(*(_recon_fit([p], reading)[0] for p in pair))
    if kl_fault is None:
        reading_kl = _KL_READINGS["log-variance"]
        rules["KL"] = _batch_rule(*(_kl_fit([p], reading_kl)[0] for p in pair))
    if len(set(rules.values())) == 2:
        evidence.append(
            f"Over the batch the loss takes the {name_rules(rules)}, so that beta changes with the batch "
            f"size; the values are for {prober.batch_size} examples."
        )
    return rules


def name_rules(rules: dict[str, str]) -> str:
    """One name for the reductions of the terms, or each with its term where they differ."""
    if len(set(rules.values())) == 2:
        return ", ".join(f"{rule} of the {term} term" for term, rule in rules.items())
    return next(iter(rules.values()), "unknown")


def weight_per_example(factor: float | None, rule: str | None, batch_size: int) -> float | None:
    """Weight in the loss of one example, where the reduction over the batch is known."""
    if factor is None or rule not in ("mean", "sum"):
        return None
    return factor * batch_size if rule == "mean" else factor


def _batch_rule(factor: float, doubled: float) -> str:
    """Reduction that changes a factor like this when the batch is doubled."""
    for name, expected in (("sum", 1.0), ("mean", 0.5)):
        if math.isclose(doubled / factor, expected, rel_tol=10 * TOLERANCE):
            return name
    return f"reduction with the factor {doubled / factor:.3g} for a batch of twice the size"
