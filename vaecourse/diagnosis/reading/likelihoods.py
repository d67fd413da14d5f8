"""Likelihoods that hold for each number of recon_x alone, and what numbers of their own they have."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from vaecourse.densities import continuous_bernoulli_log_normalizer
from vaecourse.diagnosis.probing import Experiment, Probe
from vaecourse.diagnosis.reading.fits import (
    TOLERANCE,
    Nll,
    Numbers,
    Reconstruction,
    fit,
    fit_nll,
    fits,
    gradient_of,
    minimize,
    search,
    solve,
)

SCREEN = 512  # columns that are looked at first


def _bernoulli(r: Tensor, x: Tensor) -> Tensor:
    return -torch.xlogy(x, r) - torch.xlogy(1 - x, 1 - r)


def _continuous_bernoulli(r: Tensor, x: Tensor) -> Tensor:
    return F.softplus(r) - x * r - continuous_bernoulli_log_normalizer(r)


# The readings with nothing to find but a factor.  "symmetric": probabilities, scaled to [-1, 1] as x is.
PLAIN: dict[tuple[str, str], Nll] = {
    ("gaussian", "loc"): lambda r, x: 0.5 * (r - x).square(),
    ("laplace", "loc"): lambda r, x: (r - x).abs(),
    ("bernoulli", "probabilities"): _bernoulli,
    ("bernoulli", "logits"): lambda r, x: F.softplus(r) - x * r,
    ("gaussian", "logits"): lambda r, x: 0.5 * (r.sigmoid() - x).square(),
    ("laplace", "logits"): lambda r, x: (r.sigmoid() - x).abs(),
    ("gaussian", "tanh"): lambda r, x: 0.5 * (r.tanh() - x).square(),
    ("bernoulli", "symmetric"): lambda r, x: _bernoulli((r + 1) / 2, (x + 1) / 2),
    ("poisson", "log_rate"): lambda r, x: r.exp() - x * r,
    ("poisson", "rate"): lambda r, x: r - torch.xlogy(x, r),
    ("multinomial", "probabilities"): lambda r, x: -torch.xlogy(x, r),
    ("continuous_bernoulli", "logits"): _continuous_bernoulli,
    ("continuous_bernoulli", "probabilities"): lambda r, x: _continuous_bernoulli(r.logit(), x),
}
_LINKS: dict[str, Callable[[Tensor], Tensor]] = {  # scale, from what a decoder emits beside the mean
    "log-scale": torch.exp,
    "log-variance": lambda s: (0.5 * s).exp(),
    "scale": lambda s: s,
    "variance": torch.sqrt,
    "scale before a softplus": F.softplus,
    "variance before a softplus": lambda s: F.softplus(s).sqrt(),
}


def linear_candidates(screen: Numbers) -> Iterator[Reconstruction]:
    """Those whose numbers are the solution of a linear equation."""
    r, x, g = screen.r, screen.x, screen.g
    forms = {
        "logits": (r.sigmoid(), r.sigmoid() - r.sigmoid().square()),
        "probabilities": (r, torch.ones_like(r)),
    }
    for name, (p, slope) in forms.items():
        by_one, by_zero = -slope / p, slope / (1 - p)  # of -log p and -log(1 - p)
        (ones, zeros), misfit = solve(g, [x * by_one, (1 - x) * by_zero])
        if fits(misfit) and ones > 0 and zeros > 0:
            yield Reconstruction(
                "weighted_bernoulli",
                name,
                _weighted_bernoulli(name, ones / zeros),
                kind="weighted_bernoulli",
                values={"pos_weight": ones / zeros},
            )
        (all_, slope_x, constant), misfit = solve(g, [by_zero, x * (by_one - by_zero), by_one - by_zero])
        if fits(misfit) and all_ > TOLERANCE * abs(slope_x) and slope_x > 0:
            share, offset = slope_x / all_, constant / all_ if abs(constant) > TOLERANCE * all_ else 0.0
            yield Reconstruction(
                "smoothed_bernoulli",
                name,
                _smoothed_bernoulli(name, share, offset),
                kind="smoothed_bernoulli",
                values={"share": share, "offset": offset},
            )
    (theta, counts), misfit = solve(g, [r.sigmoid(), -x * (1 - r.sigmoid())])
    if fits(misfit) and min(theta, counts) > 0:
        yield _negative_binomial("logits", theta / counts)
    for name, mean, by_mean in (("mean", r, g), ("log_mean", r.exp(), g / r.exp())):
        (square, linear), misfit = solve(mean - x, [by_mean * mean.square(), by_mean * mean])
        if fits(misfit) and min(square, linear) > 0:
            yield _negative_binomial(name, linear / square)
    for name, mean, by_mean in (("mean", r, g), ("log_mean", r.exp(), g / r.exp())):
        each = _dispersion_by_column(mean - x, by_mean * mean.square(), by_mean * mean)
        if each is not None:
            yield _negative_binomial(name, each)
    (unit, slope_x, constant), misfit = solve(g, [r, -x, -torch.ones_like(x)])
    if fits(misfit) and unit > TOLERANCE * slope_x > TOLERANCE**2 * unit:
        share, offset = slope_x / unit, constant / unit
        yield Reconstruction(
            "gaussian",
            "loc",
            lambda r, x: 0.5 * (r - share * x - offset).square(),
            kind="rescaled",
            values={"share": share, "offset": offset if abs(offset) > TOLERANCE else 0.0},
        )
    t = r - x
    (constant, square), misfit = solve(t, [g, g * t.square()])
    if fits(misfit) and min(constant, square) > 0:
        spread = constant / square  # nu * scale**2
        yield Reconstruction(
            "student_t",
            "loc",
            lambda r, x: 0.5 * ((r - x).square() / spread).log1p(),
            kind="student_t",
            values={"spread": spread},
        )


def _weighted_bernoulli(form: str, pos_weight: float) -> Nll:
    base = PLAIN["bernoulli", form]
    return lambda r, x: base(r, torch.zeros_like(x)) * (1 - x) + pos_weight * x * base(r, torch.ones_like(x))


def _smoothed_bernoulli(form: str, share: float, offset: float) -> Nll:
    base = PLAIN["bernoulli", form]
    return lambda r, x: base(r, share * x + offset)


def _dispersion_by_column(target: Tensor, square: Tensor, linear: Tensor) -> Tensor | None:
    """Solve target = a * square + b * linear for each column; b / a where that fits with one b."""
    basis = torch.stack([square, linear], -1).transpose(0, 1)  # (columns, numbers, 2)
    if basis.isnan().any() or basis.shape[0] == 1 or basis.shape[1] < 8:
        return None
    solution = torch.linalg.lstsq(basis, target.T[..., None]).solution
    misfit = (basis @ solution - target.T[..., None]).norm() / target.norm()
    a, b = solution[:, 0, 0], solution[:, 1, 0]
    is_one = bool((a > 0).all()) and bool(((b - b.mean()).abs() < 10 * TOLERANCE * b.mean()).all())
    return b / a if is_one and fits(float(misfit)) else None


def _negative_binomial(parameterization: str, theta: float | Tensor) -> Reconstruction:
    """Read a negative binomial of this dispersion, one for all numbers or one for each."""
    each = torch.as_tensor(theta, dtype=torch.float64)

    def nll(r: Tensor, x: Tensor) -> Tensor:
        log_odds = r  # of the mean to the dispersion
        if parameterization != "logits":
            log_odds = (r if parameterization == "log_mean" else r.log()) - each.log()
        return each * F.softplus(log_odds) + x * F.softplus(-log_odds)

    return Reconstruction(
        "negative_binomial", parameterization, nll, kind="negative_binomial", values={"dispersion": each}
    )


def predicted_scales(probe: Probe) -> Iterator[Reconstruction]:
    """Gaussian and Laplace likelihoods whose mean and spread are the halves of recon_x."""
    if probe.recon_x.shape[1] % 2:
        return
    for constant in (0.0, 1e-4, 1e-3, 1e-2):
        for link, scale in _LINKS.items():
            for family in ("gaussian", "laplace"):
                nll = _predicted_scale(family, scale, constant)
                row = [(probe.by_recon[:1], gradient_of(nll, probe.recon_x[:1], probe.x[:1]))]
                if fits(fit(row)[1]):
                    name, form = f"{family}_predicted_scale", "loc_and_scale"
                    yield Reconstruction(name, form, nll, kind="predicted_scale", values={"link": link})


def _predicted_scale(family: str, link: Callable[[Tensor], Tensor], constant: float) -> Nll:
    def nll(r: Tensor, x: Tensor) -> Tensor:
        mean, raw = r.chunk(2, 1)
        scale = link(raw) + constant
        error = (mean - x[:, : mean.shape[1]]) / scale
        return (0.5 * error.square() if family == "gaussian" else error.abs()) + scale.log()

    return nll


def log_cosh(rate: float) -> Nll:
    """Return log cosh of the error times a rate, up to a constant."""
    return lambda r, x: F.softplus(2 * rate * (r - x)) - rate * (r - x)


def _huber_nll(delta: float) -> Nll:
    return lambda r, x: F.huber_loss(r, x, reduction="none", delta=delta) / delta


def _discretized_logistic(half: float, rate: float, has_ends: bool) -> Nll:
    def nll(r: Tensor, x: Tensor) -> Tensor:
        upper, lower = F.logsigmoid(rate * (x - r + half)), F.logsigmoid(rate * (r - x + half))
        inside = upper + lower  # log(sigmoid(a) - sigmoid(b)), up to what does not depend on r
        if not has_ends:
            return -inside
        return -torch.where(x <= 0, upper, torch.where(x >= 1, lower, inside))

    return nll


def shapes_of_the_error(experiment: Experiment, screen: Numbers) -> Iterator[Reconstruction]:
    """Likelihoods that rise with the error, with a rate or a width to find."""
    inside = (screen.x > 0) & (screen.x < 1)
    inside = inside if inside.any() else torch.ones_like(inside)
    order = (screen.r - screen.x)[inside].argsort()
    gradient = screen.g[inside][order]
    if (gradient.diff() < -1e-6 * gradient.abs().max()).any():
        return
    beyond = experiment.prober.try_evaluate(experiment.prober.draw("loc", experiment.prober.batch_size))
    if beyond is not None:
        yield from huber_candidates(experiment, beyond)
    few = screen.some(2000)
    rate, misfit = search(few, log_cosh)
    if fits(misfit):
        values = {"rate": rate}
        yield Reconstruction("hyperbolic_secant", "loc", log_cosh(rate), kind="log_cosh", values=values)
    yield from discretized_logistics(few)


def discretized_logistics(numbers: Numbers) -> Iterator[Reconstruction]:
    """Logistic densities over bins, whose gradient is ``sinh(s t) / (cosh(s t) + cosh(s h))`` inside.

    For each rate s the bins, of width 2 h, follow from a linear equation.
    """
    inside = ((numbers.x > 0) & (numbers.x < 1)).flatten()
    t, g = (numbers.r - numbers.x).flatten()[inside], numbers.g.flatten()[inside]
    every = max(1, len(t) // 400)
    t, g = t[::every], g[::every]
    if len(t) < 8:
        return

    def equation(rate: float) -> tuple[float, float]:
        """Return cosh(s h) and the misfit; without bins, at half the rate, the first would be below 1."""
        (one, other), misfit = solve((rate * t).tanh(), [g, g / (rate * t).clamp(-300, 300).cosh()])
        return (other / one, misfit) if one > 0 and other >= one else (1.0, 2.0)

    rate = minimize(lambda rate: equation(rate)[1], 0.1)
    half = math.acosh(equation(rate)[0]) / rate
    if not 0 < half <= 0.25:  # bins at least as fine as those of two bits
        return
    for has_ends in (True, False):
        nll = _discretized_logistic(half, rate, has_ends)
        if fits(numbers.fit(nll)[1]):
            values = {"scale": 1 / rate, "bin": 2 * half}
            yield Reconstruction(
                "discretized_logistic", "loc", nll, kind="discretized_logistic", values=values
            )


def huber_candidates(experiment: Experiment, beyond: Probe) -> Iterator[Reconstruction]:
    """Huber's loss, of a width that is found from errors up to 10."""
    columns = torch.arange(beyond.x.shape[1])[:SCREEN]
    few = Numbers.of([*experiment.probes, beyond], columns).some(4000)
    delta, misfit = search(few, _huber_nll)
    if fits(misfit):
        factor, misfit = fit_nll([*experiment.probes, beyond], _huber_nll(delta))
        if fits(misfit) and factor > 0:
            yield Reconstruction("huber", "loc", _huber_nll(delta), factor, "huber", {"delta": delta})
