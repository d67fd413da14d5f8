"""The KL term: what the fourth argument must mean for it to be one, and what it is otherwise."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from vaecourse.diagnosis.probing import Experiment, Probe, probe_positive
from vaecourse.diagnosis.reading.allowances import read_allowance
from vaecourse.diagnosis.reading.fits import TOLERANCE, fit, fits, solve
from vaecourse.diagnosis.reading.posteriors import (
    EXACT,
    POSITIVE,
    SIGNED,
    Divergence,
    Slopes,
    scales_of,
    slopes_of,
)


def read_divergence(experiment: Experiment, stated: str | None) -> Divergence:
    """Read the KL term; where the caller states what the fourth argument is, another meaning is a fault."""
    ignored = [
        name
        for name in ("mu", "logvar")
        if not any(getattr(p, f"by_{name}").any() for p in experiment.probes)
    ]
    if len(ignored) == 2:
        return Divergence(fault="missing", kind="missing")
    if "mu" in ignored:
        return Divergence(fault="malformed: it ignores mu", kind="ignored", values={"ignored": "mu"})
    found = _read_fixed(experiment) if "logvar" in ignored else _read(experiment)
    if found.posterior is None or stated in (None, found.posterior):
        return found
    if found.posterior == "fixed":
        return Divergence(
            fault="malformed: it ignores logvar", kind="ignored", values={"ignored": "the fourth argument"}
        )
    fault = f"takes {stated} for the {found.posterior.replace('_', '-').replace('logvar', 'log-variance')}"
    return dataclasses.replace(found, factor=None, fault=fault, kind="taken", values={"stated": stated})


def _read_fixed(experiment: Experiment) -> Divergence:
    """Read the KL of a posterior whose variance the encoder does not predict: half the square of its mean."""
    first = experiment.probes[0]
    other = experiment.prober.try_evaluate({**first.point, "logvar": first.logvar.flip(0) + 0.5})
    if other is None or abs(other.value - first.value) > 1e-9 * abs(first.value):
        return Divergence(fault="malformed: it ignores logvar", kind="detached")
    (factor, constant), misfit = solve(*_mean_equation(Slopes.of(experiment.probes)))
    if not fits(misfit) or abs(constant) > 10 * TOLERANCE * abs(factor):
        return Divergence(
            fault="malformed: it ignores logvar, and has the wrong dependence on mu",
            kind="ignored",
            values={"ignored": "the fourth argument"},
        )
    return _judge(experiment, "fixed", factor, None)


def _mean_equation(slopes: Slopes) -> tuple[Tensor, list[Tensor]]:
    return slopes.by_mu, [slopes.mu, torch.ones_like(slopes.mu)]


def _read(experiment: Experiment) -> Divergence:
    views, tables = [], []
    for view, scales in _views(experiment):
        views.append(view)
        tables.append(scales)
        for posterior, scale in scales.items():
            if (factor := _factor(view, scale, view.regions)) is not None:
                found = _judge(view, posterior, factor, scale)
                return found if found.kind != "far" else _describe_fault(views)
    for view, scales in zip(views, tables, strict=True):
        for posterior, scale in _inexact(scales):
            if (factor := _factor(view, scale, ("narrow", "close"))) is None:
                continue
            wide, misfit = Slopes.of(view.regions["wide"]).fit_mean()
            if fits(misfit) and math.isclose(wide, factor, rel_tol=10 * TOLERANCE):
                found = _judge(view, posterior, factor, scale)
                return found if found.kind != "far" else _describe_fault(views)
    return _describe_fault(views)


def _factor(view: Experiment, scale: Callable[[Tensor], Tensor], regions: Iterable[str]) -> float | None:
    """Factor of the KL divergence, if it is one with the same factor in each region."""
    each = [Slopes.of(view.regions[region]).fit(scale) for region in regions]
    factor = each[0][0]
    is_one = all(math.isclose(other, factor, rel_tol=10 * TOLERANCE) for other, _ in each)
    return factor if is_one and all(fits(misfit) for _, misfit in each) else None


def _inexact(
    scales: dict[str, Callable[[Tensor], Tensor]],
) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Meanings of raw outputs, and those to which code adds a small constant."""
    for constant in (0.0, 1e-3, 1e-2):
        for posterior, scale in scales.items():
            if constant or posterior not in EXACT:
                yield posterior, _shifted(scale, constant)


def _shifted(scale: Callable[[Tensor], Tensor], constant: float) -> Callable[[Tensor], Tensor]:
    return lambda v: scale(v) + constant


def _views(experiment: Experiment) -> Iterator[tuple[Experiment, dict[str, Callable[[Tensor], Tensor]]]]:
    """The experiment with a signed fourth argument, and with a positive one."""
    if not experiment.prober.domain.is_positive:
        yield experiment, SIGNED
        positive = probe_positive(experiment)
        if positive is not None:
            yield positive, POSITIVE
    else:
        yield experiment, POSITIVE


def _judge(
    view: Experiment, posterior: str, factor: float, scale: Callable[[Tensor], Tensor] | None
) -> Divergence:
    """Refuse a KL that mixes examples, has the wrong sign, or is none far from the prior (kind "far")."""

    def fit_probe(probe: Probe) -> tuple[float, float]:
        slopes = Slopes.of([probe])
        return slopes.fit_mean() if scale is None else slopes.fit(scale)

    ratio = None
    if view.larger is not None:
        doubled, misfit = fit_probe(view.larger)
        if not fits(misfit):
            return Divergence(posterior, fault="malformed: it mixes examples", kind="mixes")
        ratio = doubled / fit_probe(view.probes[0])[0]
    if factor < 0:
        capacity = read_allowance(view)
        return capacity or Divergence(posterior, fault="wrong sign", kind="sign")
    far = view.prober.try_evaluate(view.prober.draw("far", view.prober.batch_size))
    if far is not None:
        beyond, misfit = fit_probe(far)
        if not (fits(misfit) and math.isclose(beyond, factor, rel_tol=10 * TOLERANCE)):
            return Divergence(posterior, fault="malformed: wrong dependence on mu", kind="far")
    return Divergence(posterior, factor, ratio=ratio)


# ---- what a term is that is no KL divergence from N(0, I) ----


def _describe_fault(views: list[Experiment]) -> Divergence:
    describers = (
        _read_single_draw,
        _read_weights,
        _read_exchanged,
        read_allowance,
        _read_prior,
        _read_coefficients,
    )
    for describe in describers:
        for view in views:
            if (found := describe(view)) is not None:
                return found
    slopes = Slopes.of(views[0].probes)
    mu_misfit = slopes.fit_mean()[1]
    targets = [0.5 * (a - b) for a, b in (slopes_of(scale, slopes.v) for scale in SIGNED.values())]
    v_misfit = min(fit([(slopes.by_v, target)])[1] for target in targets)
    parts = [name for name, misfit in (("mu", mu_misfit), ("logvar", v_misfit)) if not fits(misfit)]
    dead = slopes.v[(slopes.by_v == 0) & (slopes.by_mu != 0) & (slopes.v.abs() > 0.5)]
    values = {"parts": parts, "low": dead[dead < 0].max().item() if (dead < 0).any() else None}
    values["high"] = dead[dead > 0].min().item() if (dead > 0).any() else None
    kind = "clamped" if len(dead) else "malformed"
    return Divergence(
        fault=f"malformed: wrong dependence on {' and '.join(parts) or 'mu'}", kind=kind, values=values
    )


def _read_single_draw(view: Experiment) -> Divergence | None:
    """Read log q(z) - log p(z) at one draw z = mu + scale * noise, whose gradients show the noise."""
    slopes = Slopes.of(view.probes)
    for posterior, scale in scales_of(view).items():
        factor = _factor_of_draw(slopes, scale)
        if factor is None:
            continue
        if not view.is_random:
            return Divergence(
                posterior, fault="estimated from a draw that is always the same", kind="frozen_draw"
            )
        prober, first = view.prober, view.probes[0]
        count = min(32, math.ceil(2000 / first.mu.numel()))
        draws = Slopes.of(prober.evaluate(first.point, noise) for noise in range(1, count + 1))
        noise = (draws.by_mu / factor - draws.mu) / scale(draws.v)
        spread = float(noise.square().mean().sqrt())
        limit = 5 / math.sqrt(noise.numel())
        if abs(float(noise.mean())) > limit or abs(spread - 1) > limit:
            values = {"mean": float(noise.mean()), "spread": spread}
            return Divergence(
                posterior, fault="estimated from draws of the wrong noise", kind="noise", values=values
            )
        larger = None if view.larger is None else _factor_of_draw(Slopes.of([view.larger]), scale)
        alone = _factor_of_draw(Slopes.of(view.probes[:1]), scale)
        ratio = larger / alone if larger and alone else None
        return Divergence(posterior, factor, kind="single_draw", ratio=ratio)
    return None


def _factor_of_draw(slopes: Slopes, scale: Callable[[Tensor], Tensor]) -> float | None:
    half_log = 0.5 * slopes_of(scale, slopes.v)[1]  # derivative of the log-scale
    basis = [torch.ones_like(slopes.mu), slopes.by_v / half_log + slopes.by_mu * slopes.mu]
    (square, factor), misfit = solve(slopes.by_mu.square(), basis)
    if not (fits(misfit) and factor > 0 and math.isclose(square, factor**2, rel_tol=10 * TOLERANCE)):
        return None
    noise = (slopes.by_mu / factor - slopes.mu) / scale(slopes.v)
    return factor if bool(noise.abs().amax() > 0.1) else None  # else nothing is drawn


def _read_weights(view: Experiment) -> Divergence | None:
    """Read a KL whose latents have weights of their own."""
    slopes = Slopes.of(view.probes)
    for posterior, scale in scales_of(view).items():
        by_variance, by_log = slopes_of(scale, slopes.v)
        target = torch.cat([slopes.mu, 0.5 * (by_variance - by_log)])
        gradient = torch.cat([slopes.by_mu, slopes.by_v])
        weights = (gradient * target).sum(0) / target.square().sum(0)
        if fits(float((gradient - weights * target).norm() / gradient.norm())):
            values = {"share": float(weights.min() / weights.abs().max())}
            fault = "malformed: its weights differ between the latents"
            return Divergence(posterior, fault=fault, kind="weights", values=values)
    return None


def _read_exchanged(view: Experiment) -> Divergence | None:
    slopes = Slopes.of(view.probes)
    turned = Slopes(slopes.v, slopes.mu, slopes.by_v, slopes.by_mu)
    for posterior in ("logvar", "log_scale"):
        if fits(turned.fit(SIGNED[posterior])[1]):
            return Divergence(fault="malformed: mu and logvar are exchanged", kind="exchanged")
    return None


def _read_prior(view: Experiment) -> Divergence | None:
    """Read the KL from another normal prior, whose mean and scale may differ between the latents."""
    slopes = Slopes.of(view.probes)
    ones = torch.ones_like(slopes.mu)
    (precision, shift), mean_misfit = _solve_columns(slopes.by_mu, [slopes.mu, ones])
    for posterior, scale in scales_of(view).items():
        (spread, log), misfit = _solve_columns(slopes.by_v, list(slopes_of(scale, slopes.v)))
        weight = -2 * log.mean()
        is_prior = (precision > 0).all() and ((-2 * log - weight).abs() <= 10 * TOLERANCE * weight).all()
        is_one = ((2 * spread - precision).abs() <= 10 * TOLERANCE * precision.abs()).all()
        if fits(max(misfit, mean_misfit)) and bool(is_prior) and bool(is_one):
            values = {"loc": -shift / precision, "scale": (weight / precision).sqrt()}
            fault = "malformed: a KL from another prior than N(0, I)"
            return Divergence(posterior, fault=fault, kind="prior", values=values)
    return None


def _solve_columns(target: Tensor, basis: list[Tensor]) -> tuple[tuple[Tensor, ...], float]:
    """Coefficients of each column, and the relative misfit of all."""
    matrix = torch.stack(basis, -1).transpose(0, 1)  # (columns, numbers, terms)
    wanted = target.T[..., None]
    solution = torch.linalg.lstsq(matrix, wanted).solution
    return solution[..., 0].unbind(1), float((matrix @ solution - wanted).norm() / wanted.norm())


def _read_coefficients(view: Experiment) -> Divergence | None:
    """Read signs and factors off the coefficients of the three terms of a KL."""
    slopes = Slopes.of(view.probes)
    (mean, _), mean_misfit = solve(*_mean_equation(slopes))
    found: list[tuple[int, str, list[float]]] = []
    for posterior, scale in scales_of(view).items():
        (spread, log), misfit = solve(slopes.by_v, list(slopes_of(scale, slopes.v)))
        if fits(misfit) and fits(mean_misfit):
            # each is 1 for weight 1: of mu**2 / 2, of half the variance, of minus half its logarithm
            parts = [mean, 2 * spread, -2 * log]
            parts = [part if abs(part) > TOLERANCE * max(map(abs, parts)) else 0.0 for part in parts]
            equal = sum(math.isclose(part, parts[0], rel_tol=10 * TOLERANCE) for part in parts)
            found.append((equal, posterior, parts))
    if not found:
        return None
    _, posterior, parts = max(found, key=lambda row: row[0])
    size = max(map(abs, parts))
    is_even = math.isclose(parts[1], parts[2], rel_tol=10 * TOLERANCE)
    values = {"parts": [part / size for part in parts]}
    what = (
        "mu and logvar have different weights"
        if min(parts[1:]) > 0 and is_even
        else "wrong dependence on logvar"
    )
    return Divergence(posterior, fault=f"malformed: {what}", kind="coefficients", values=values)
