"""What can be said of a reconstruction term that is no likelihood that is known."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from vaecourse.diagnosis.probing import REGIONS, Experiment, Probe
from vaecourse.diagnosis.reading.fits import (
    TOLERANCE,
    Numbers,
    Reconstruction,
    fit_nll,
    fits,
    gradient_of,
    search,
    solve,
)
from vaecourse.diagnosis.reading.likelihoods import (
    PLAIN,
    discretized_logistics,
    log_cosh,
)
from vaecourse.diagnosis.reading.structure import coupled

NEAR = 0.3  # misfit above which a nearest likelihood says nothing


def describe_misfit(
    experiment: Experiment, screen: Numbers, partial: Reconstruction | None
) -> Reconstruction:
    """Say what can be said of a term that is no likelihood that is known."""
    if experiment.prober.recon_dim > experiment.prober.data_dim:
        return Reconstruction(kind="none")
    found = (
        _find_mistake(experiment, screen) or _find_factor(experiment, screen) or _find_data_weights(screen)
    )
    found = found or _find_floor(screen, experiment.prober.batch_size) or partial
    if found is not None:
        return found
    misfits = {form: screen.fit(nll)[1] for form, nll in PLAIN.items()}
    nearest = min(misfits, key=lambda form: misfits[form])
    is_near = misfits[nearest] < NEAR
    values = (
        {"family": nearest[0], "parameterization": nearest[1], "misfit": misfits[nearest]} if is_near else {}
    )
    return Reconstruction(kind="location" if _is_of_the_error(experiment) else "none", values=values)


def _find_mistake(experiment: Experiment, screen: Numbers) -> Reconstruction | None:
    r, x, g = screen.r, screen.x, screen.g
    exchanged = (1 - x).log().clamp(min=-100) - x.log().clamp(min=-100)
    if fits(solve(g, [exchanged])[1]):
        return Reconstruction(kind="exchanged")
    if fits(solve(g, [x])[1]):
        return Reconstruction(kind="linear")
    (ones, zeros), misfit = solve(g, [x * (r.sigmoid() - 1), (1 - x) * (r - 1).sigmoid()])
    if fits(misfit):
        return Reconstruction(kind="shifted_logit", values={"pos_weight": ones / zeros})
    for form in ("probabilities", "logits"):
        p = r if form == "probabilities" else r.sigmoid()
        slope = torch.ones_like(r) if form == "probabilities" else p * (1 - p)
        halves = (x > 0.5).to(r), (x <= 0.5).to(r)
        columns = [-slope / p * halves[0], slope / (1 - p) * halves[1]]
        rows = experiment.prober.batch_size
        fits_each = [
            solve(g[i : i + rows], [c[i : i + rows] for c in columns]) for i in range(0, len(g), rows)
        ]
        if all(fits(misfit) and min(weights) > 0 for weights, misfit in fits_each):
            ratios = [weights[0] / weights[1] for weights, _ in fits_each]
            if all(math.isclose(ratio, 1, rel_tol=10 * TOLERANCE) for ratio in ratios):
                return Reconstruction(kind="rounded")
            return Reconstruction(
                "weighted_bernoulli", form, kind="balanced", values={"ratios": (min(ratios), max(ratios))}
            )
    return None


def _find_factor(experiment: Experiment, screen: Numbers) -> Reconstruction | None:
    """Find a plain likelihood times a factor that differs between the probes."""
    for (family, parameterization), nll in PLAIN.items():
        if not fits(screen.rows(0, experiment.prober.batch_size).fit(nll)[1]):
            continue
        each = [fit_nll([p], nll) for p in experiment.probes]
        if not all(fits(misfit) for _, misfit in each):
            continue
        values = {"family": family, "parameterization": parameterization, "function": None}
        totals = [float(nll(p.recon_x, p.x).sum()) for p in experiment.probes]
        if _is_constant_product(each, totals, 0.5):
            values["function"] = "root"
        elif _is_constant_product(each, totals, 1) and (family, parameterization) == ("gaussian", "loc"):
            return _optimal_scale(experiment, each[0][0] * totals[0])
        return Reconstruction(kind="by_size", values=values)
    return None


def _is_constant_product(each: list[tuple[float, float]], totals: list[float], power: float) -> bool:
    products = [factor * total**power for (factor, _), total in zip(each, totals, strict=True)]
    return all(math.isclose(product, products[0], rel_tol=10 * TOLERANCE) for product in products)


def _optimal_scale(experiment: Experiment, weight: float) -> Reconstruction:
    """Read the logarithm of the squared error of the batch, the Gaussian likelihood at its best scale."""

    def nll(r: Tensor, x: Tensor) -> Tensor:
        return 0.5 * r.numel() * (r - x).square().sum().log()

    factor = 2 * weight / experiment.probes[0].x.numel()
    return Reconstruction("gaussian_optimal_scale", "loc", nll, factor, "optimal_scale")


def _find_data_weights(screen: Numbers) -> Reconstruction | None:
    """Find a plain likelihood whose numbers count by what x is there: 0, 1 or between."""
    places = {"x = 0": screen.x == 0, "0 < x < 1": (screen.x > 0) & (screen.x < 1), "x = 1": screen.x == 1}
    for (family, parameterization), nll in PLAIN.items():
        target = gradient_of(nll, screen.r, screen.x)
        weights, rest = {}, screen.g.clone()
        for name, where in places.items():
            if where.any():
                weights[name] = float((screen.g * target)[where].sum() / target[where].square().sum())
                rest[where] -= weights[name] * target[where]
        size = max(map(abs, weights.values()))
        differ = size > 0 and max(weights.values()) - min(weights.values()) > 10 * TOLERANCE * size
        if differ and fits(float(rest.norm() / screen.g.norm())):
            relative = {name: weight / size for name, weight in weights.items()}
            values = {"family": family, "parameterization": parameterization, "weights": relative}
            return Reconstruction(kind="by_data", values=values)
    return None


def _find_floor(screen: Numbers, rows: int) -> Reconstruction | None:
    """Find a discretised logistic density with a floor under its probabilities: it holds for small errors."""
    count = len(screen.r) // len(REGIONS) // rows  # probes of a region
    small = screen.rows(count * rows, count * rows)  # those of the second, "close"
    if fits(search(small, log_cosh)[1]) or fits(small.fit(PLAIN["gaussian", "loc"])[1]):
        return None  # without bins: small errors of anything smooth look like that
    for candidate in discretized_logistics(small):
        if candidate.nll is None or not fits(small.fit(candidate.nll)[1]):
            continue
        factor = small.fit(candidate.nll)[0]
        rest = (screen.g - factor * gradient_of(candidate.nll, screen.r, screen.x)).abs()
        wrong = rest > 1e-3 * screen.g.abs().max()
        least = float((screen.r - screen.x)[wrong].abs().amin()) if wrong.any() else 1.0
        if least < 0.25:
            continue
        return replace(candidate, factor=factor, kind="floored", values={**candidate.values, "error": least})
    return None


def _is_of_the_error(experiment: Experiment) -> bool:
    """Whether the term is a sum over the numbers of a function of recon_x - x alone."""
    first: Probe = experiment.probes[0]
    moved = {**first.point, "recon_x": first.recon_x + 0.25, "x": first.x + 0.25}
    probe = experiment.prober.try_evaluate(moved)
    if probe is None:
        return False
    change = probe.by_recon - first.by_recon
    if change.norm() > 1e-6 * first.by_recon.norm() or len(coupled(experiment, 0)) > 1:
        return False
    gradient = first.by_recon.flatten()[(first.recon_x - first.x).flatten().argsort()]
    return bool(gradient.diff().abs().sum() < 4 * (gradient.max() - gradient.min()))  # a curve, not a cloud
