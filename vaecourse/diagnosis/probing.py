"""Value and gradients of a loss at random points, and what its arguments must be for it to have them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LossFn = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

FORM = (
    "loss_fn(recon_x, x, mu, logvar) -> scalar tensor, with recon_x and x of shape (batch, data_dim) "
    "and mu and logvar of shape (batch, latent_dim); wrap anything else in a lambda"
)


@dataclass(frozen=True)
class Probe:
    """A point, and value and gradients of the loss there, in float64."""

    value: Tensor
    recon_x: Tensor
    x: Tensor
    mu: Tensor
    logvar: Tensor
    by_recon: Tensor
    by_mu: Tensor
    by_logvar: Tensor

    @property
    def is_finite(self) -> bool:
        """Whether the value and every gradient are."""
        return all(bool(g.isfinite().all()) for g in (self.value, self.by_recon, self.by_mu, self.by_logvar))


class LossError(ValueError):
    """The loss raised an exception of its own."""


@dataclass(frozen=True)
class _Domain:
    """What the arguments of a loss must be for it to be a finite number."""

    dtype: torch.dtype = torch.float64
    is_logvar_positive: bool = False
    share_of_extremes: float = 0.3  # of x that are 0 or 1: backgrounds and full ink are often treated apart


_DOMAINS = [
    _Domain(dtype, **restriction)
    for dtype in (torch.float64, torch.float32)
    for restriction in (
        {},
        {"is_logvar_positive": True},
        {"share_of_extremes": 1.0},
        {"share_of_extremes": 0.0},
    )
]


class Prober:
    """Calls the loss at random points, in float64, or in float32 if it accepts nothing else.

    Regions: "narrow" has errors and codes of ordinary size, "close" has small errors and a
    posterior near the prior, and "wide" has posteriors far from it, so that a factor that depends on
    the error, a free allowance of KL, or a clamp on logvar within -6 to 4, shows between them.
    """

    def __init__(self, loss_fn: LossFn, data_dim: int, latent_dim: int, batch_size: int, seed: int) -> None:
        self.loss_fn, self.batch_size = loss_fn, batch_size
        self.data_dim, self.latent_dim = data_dim, latent_dim
        self.generator = torch.Generator().manual_seed(seed)
        self.regions = self._find_domain()
        self.probes = [probe for probes in self.regions.values() for probe in probes]
        self.larger = self._probe_larger_batch()
        self._check_x_matters()
        self._check_repeatable()

    def probe(self, region: str, batch_size: int | None = None) -> Probe:
        """Gradients at a random point of a region; NaN or infinite ones are left for the caller to judge."""
        return self._evaluate(self._point(region, batch_size or self.batch_size))

    def _evaluate(self, point: list[Tensor]) -> Probe:
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [t.clone().requires_grad_(i != 1) for i, t in enumerate(point)]
            wanted = [leaves[0], leaves[2], leaves[3]]
            try:
                loss = self.loss_fn(*(t.clone() for t in leaves))  # it may change its arguments in place
            except Exception as error:
                raise self._failure(error) from error
            self._check_result(loss)
            try:
                gradients = torch.autograd.grad(loss.reshape(()), wanted, allow_unused=True)
            except RuntimeError as error:
                raise self._failure(error) from error
        found = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, gradients, strict=True)]
        return Probe(*(t.detach().double() for t in [loss.reshape(()), *leaves, *found]))

    def _failure(self, error: Exception) -> LossError:
        return LossError(
            f"loss_fn raised {type(error).__name__}: {error}; it was called with data_dim={self.data_dim}, "
            f"latent_dim={self.latent_dim}; expected {FORM}"
        )

    @staticmethod
    def _check_result(loss: object) -> None:
        if not isinstance(loss, Tensor) or loss.layout != torch.strided or not loss.is_floating_point():
            kind = f"{loss.dtype} tensor" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss_fn returned a {kind}, not a floating point tensor; expected {FORM}")
        if loss.numel() != 1 or loss.device.type == "meta":
            raise ValueError(
                f"loss_fn returned shape {tuple(loss.shape)} on {loss.device}, not a scalar; expected {FORM}"
            )
        if not loss.requires_grad:
            raise ValueError(
                "the loss is not differentiable in any of its arguments (is something detached?); "
                f"expected {FORM}"
            )

    def _point(self, region: str, batch_size: int) -> list[Tensor]:
        """Draw recon_x, x, mu and logvar."""
        pixels, codes = (batch_size, self.data_dim), (batch_size, self.latent_dim)
        x = self._uniform(0.05, 0.95, pixels)
        kind = self._uniform(0, 1, pixels)
        extremes = self.domain.share_of_extremes
        x = torch.where(kind < extremes / 2, 0.0, torch.where(kind < extremes, 1.0, x))
        if region == "close":
            recon_x = 0.9 * x + self._uniform(0.02, 0.08, pixels)
        elif region == "logits":
            recon_x = self._uniform(-4, 4, pixels)
        elif region == "loc":
            recon_x = self._uniform(-10, 10, pixels)
            recon_x[:, 0] = recon_x[:, 0].sign() * 10  # so that every seed sees the same range
        else:
            recon_x = self._uniform(0.05, 0.95, pixels)
        size = {"close": 0.05, "wide": 3.0}.get(region, 1.0)
        mu, logvar = size * self._normal(codes), size * self._normal(codes)
        if region == "wide":
            logvar = self._uniform(-6, 4, codes)
            logvar[0, 0], logvar[-1, -1] = 4.0, -6.0
        if self.domain.is_logvar_positive:
            logvar = self._uniform(0.3, 2.0, codes) if region != "close" else 1 + logvar.clamp(-0.5, 0.5)
        return [t.to(self.domain.dtype) for t in (recon_x, x, mu, logvar)]

    def _uniform(self, low: float, high: float, shape: tuple[int, int]) -> Tensor:
        draws = torch.rand(shape, generator=self.generator, dtype=torch.float64, device="cpu")
        return low + (high - low) * draws

    def _normal(self, shape: tuple[int, int]) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu")

    def _find_domain(self) -> dict[str, list[Probe]]:
        """Set the first domain in which the loss is finite wherever it is probed, and return the probes."""
        # a handful of numbers would fit by chance
        repeats = math.ceil(32 / (self.batch_size * min(self.data_dim, self.latent_dim)))
        failure: LossError | None = None
        is_number = False
        for self.domain in _DOMAINS:
            try:
                regions = {
                    region: [self.probe(region) for _ in range(repeats)]
                    for region in ("narrow", "close", "wide")
                }
            except LossError as error:
                failure = error  # the last one: where float64 is refused, float32 tells the true reason
                continue
            is_number = True
            if all(probe.is_finite for probes in regions.values() for probe in probes):
                return regions
        if failure is not None and not is_number:
            raise failure
        raise ValueError(f"loss_fn or its gradient is NaN or infinite for pixels in (0, 1); expected {FORM}")

    def _probe_larger_batch(self) -> Probe | None:
        try:
            return self.probe("narrow", 2 * self.batch_size)
        except LossError:
            return None

    def _check_x_matters(self) -> None:
        probe = self.probes[0]
        if not any(p.by_recon.any() for p in self.probes):
            raise ValueError(f"loss_fn ignores recon_x (its gradient is zero); expected {FORM}")
        point = [probe.recon_x, 1 - probe.x, probe.mu, probe.logvar]
        other = self._evaluate([t.to(self.domain.dtype) for t in point])
        if torch.equal(other.by_recon, probe.by_recon) and torch.equal(other.value, probe.value):
            raise ValueError(f"loss_fn ignores x (another x gives the same value); expected {FORM}")

    def _check_repeatable(self) -> None:
        first = self.probes[0]
        point = [t.to(self.domain.dtype) for t in (first.recon_x, first.x, first.mu, first.logvar)]
        second = self._evaluate(point)
        for name in ("value", "by_recon", "by_mu", "by_logvar"):
            before, after = getattr(first, name), getattr(second, name)
            if not (before - after).norm() <= 1e-6 * before.norm():
                raise ValueError(
                    "loss_fn is random or keeps a state between calls (annealing, a moving average): the "
                    f"same arguments gave {first.value.item()} and then {second.value.item()}; expected a "
                    "function of its arguments alone"
                )
