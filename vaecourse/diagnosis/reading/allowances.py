"""KL terms whose weight changes at some size: free bits, capacities, ceilings."""

import math
from dataclasses import dataclass

import torch

from vaecourse.diagnosis.probing import Experiment
from vaecourse.diagnosis.reading.fits import fits
from vaecourse.diagnosis.reading.posteriors import POSITIVE, SIGNED, Divergence, Slopes, scales_of


def read_allowance(view: Experiment) -> Divergence | None:
    """Read a KL whose weight changes at some size of it: free bits, a capacity, a ceiling."""
    far = view.prober.try_evaluate(view.prober.draw("far", view.prober.batch_size))
    probes = [*view.probes, *([far] if far is not None else [])]
    posterior = next(
        (
            name
            for name, scale in scales_of(view).items()
            if any(fits(Slopes.of([probe]).fit(scale)[1]) for probe in probes)
        ),
        None,
    )
    if posterior is None:
        return None
    every = _Path(view, slice(None), slice(None)).find_kink()
    factors = [Slopes.of([p]).fit((SIGNED | POSITIVE)[posterior]) for p in view.probes]
    if every is None:
        found = [factor for factor, misfit in factors if fits(misfit)]
        is_off = all(fits(misfit) or math.isnan(misfit) for _, misfit in factors)  # NaN: no gradient there
        if not (
            found and is_off and (len(found) < len(factors) or max(found) - min(found) > 1e-3 * abs(found[0]))
        ):
            return None
        return Divergence(posterior, fault="malformed: a function of the KL", kind="function")
    kl, below, above = every
    # where one latent alone has twice this KL, only an allowance for each latent is used up
    is_total = _Path(view, slice(None), slice(1)).has_slope(2 * kl, below)
    is_batch = _Path(view, slice(1), slice(None)).has_slope(2 * kl, below)
    latents, rows = view.prober.latent_dim, view.prober.batch_size
    values = {
        "nats": kl * (latents if is_total else 1),
        "is_total": is_total,
        "is_batch": is_batch and rows > 1,
        "above": above,
        "below": below,
        "name": _name_allowance(below, above),
    }
    fault = f"malformed: wrong dependence on mu and logvar ({values['name']})"
    return Divergence(posterior, fault=fault, kind="allowance", values=values)


def _name_allowance(below: float, above: float) -> str:
    if abs(below) < 1e-3 * abs(above):
        return "free bits"
    if abs(above) < 1e-3 * abs(below):
        return "a ceiling"
    return "a capacity" if math.isclose(below, -above, rel_tol=0.01) else "a change of weight"


@dataclass(frozen=True)
class _Path:
    """The loss as the posterior means of some examples and latents leave the prior together."""

    view: Experiment
    rows: slice
    columns: slice

    def at(self, kl: float) -> tuple[float, float]:
        """Value and slope of the loss where each of these latents has this KL, and all others none."""
        first = self.view.probes[0]
        mu = torch.zeros_like(first.mu)
        mu[self.rows, self.columns] = math.sqrt(2 * kl)
        neutral = torch.full_like(first.logvar, float(self.view.prober.domain.is_positive))
        probe = self.view.prober.try_evaluate({**first.point, "mu": mu, "logvar": neutral})
        if probe is None:  # no slope is equal to this
            return math.nan, math.nan
        slope = probe.by_mu[self.rows, self.columns].sum() / math.sqrt(2 * kl)
        return probe.value.item(), slope.item()

    @property
    def count(self) -> int:
        """Latents, of all examples, that move."""
        return self.view.probes[0].mu[self.rows, self.columns].numel()

    def has_slope(self, kl: float, slope: float) -> bool:
        """Whether the weight of a latent is this one at this KL."""
        found = self.at(kl)[1] / self.count
        return math.isclose(found, slope, rel_tol=0.01, abs_tol=1e-9)

    def find_kink(self) -> tuple[float, float, float] | None:
        """KL of a latent at which the slope changes from one constant to another, and the weights there."""
        start = 1e-4
        low_value, low = self.at(start)
        tried = (10.0**power for power in range(-1, 6))
        end = next((kl for kl in tried if abs(self.at(kl)[1] - low) > 0.01 * abs(low) + 1e-9), None)
        if end is None:
            return None
        high_value, high = self.at(10 * end)
        kink = (high_value - low_value + low * start - high * 10 * end) / (low - high)
        if not (math.isfinite(kink) and kink > 0):
            return None
        near = [self.at(kink * share)[1] for share in (0.9, 1.1)]
        scale = max(abs(low), abs(high))
        if abs(near[0] - low) > 1e-3 * scale or abs(near[1] - high) > 1e-3 * scale:
            return None
        return kink, low / self.count, high / self.count
