"""Value and gradients of a loss at random points, and what its arguments must be for it to have them."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vaecourse.diagnosis.probing.calling import (
    FORM,
    ROLES,
    Binding,
    LossError,
    LossFn,
    advise,
    check_scalar,
    choose,
    find_device,
)


@dataclass(frozen=True)
class Probe:
    """A point, and value and gradients of the loss there, in float64 on the CPU."""

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

    @property
    def point(self) -> dict[str, Tensor]:
        """Where it was taken."""
        return {role: getattr(self, role) for role in ROLES}


@dataclass(frozen=True)
class Domain:
    """What the arguments of a loss must be for it to be a finite number."""

    dtype: torch.dtype = torch.float64
    is_positive: bool = False  # the fourth argument
    share_of_extremes: float = 0.3  # of x that are 0 or 1: backgrounds and full ink are often treated apart


DOMAINS = [
    Domain(dtype, is_positive, share)
    for dtype in (torch.float64, torch.float32)
    for is_positive in (False, True)
    for share in (0.3, 1.0, 0.0)
]
REGIONS = ("narrow", "close", "wide")
# Bounds of recon_x in the regions that reach beyond data in [0, 1].
_PREDICTIONS = {"logits": (-8, 8), "loc": (-10, 10), "rate": (0.05, 10), "symmetric": (-0.95, 0.95)}


@dataclass
class Prober:
    """Calls a loss at random points.

    Regions: "narrow" has errors and latents of ordinary size, "close" has small errors and a
    posterior near the prior, and "wide" has posteriors far from it, so that a factor that depends on
    the error, a free allowance of KL, or a clamp on logvar within -6 to 4, shows between them.
    """

    loss_fn: LossFn
    binding: Binding
    data_dim: int
    latent_dim: int
    batch_size: int
    seed: int
    output: str | int | None = None
    recon_dim: int = 0  # 0: as wide as x
    domain: Domain = DOMAINS[0]
    notes: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin the random numbers anew."""
        self.generator = torch.Generator().manual_seed(self.seed)
        self.device = find_device(self.loss_fn)

    def probe(self, region: str, batch_size: int | None = None) -> Probe:
        """Gradients at a random point of a region; NaN or infinite ones are left for the caller to judge."""
        return self.evaluate(self.draw(region, batch_size or self.batch_size))

    def evaluate(self, point: Mapping[str, Tensor], noise: int = 0) -> Probe:
        """Gradients at a point, where a loss that draws meets the noise of this number."""
        with torch.inference_mode(False), torch.enable_grad():
            leaves = self.leaves(point)
            loss = self.loss_at(leaves, noise)
            wanted = [leaves[role] for role in ("recon_x", "mu", "logvar")]
            try:
                gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            except RuntimeError as error:
                raise self._failure(error) from error
        found = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, gradients, strict=True)]
        return Probe(*(t.detach().cpu().double() for t in [loss, *leaves.values(), *found]))

    def try_evaluate(self, point: Mapping[str, Tensor]) -> Probe | None:
        """Gradients at a point; None where the loss refuses it or is not finite."""
        try:
            probe = self.evaluate(point)
        except LossError:
            return None
        return probe if probe.is_finite else None

    def leaves(self, point: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the arguments, as the loss takes them, of which all but x are differentiated."""
        return {
            role: point[role].to(self.device, self.domain.dtype, copy=True).requires_grad_(role != "x")
            for role in ROLES
        }

    def loss_at(self, leaves: Mapping[str, Tensor], noise: int = 0) -> Tensor:
        """Return the scalar that the loss returns, still attached to its arguments."""
        cuda = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(self.seed + noise)
            copies = {role: leaf.clone() for role, leaf in leaves.items()}  # it may change them in place
            try:
                returned = self.binding.call(self.loss_fn, copies)
            except Exception as error:
                raise self._failure(error) from error
        return self._scalar(returned, leaves).reshape(())

    def _scalar(self, returned: object, leaves: Mapping[str, Tensor]) -> Tensor:
        if self.output is None and isinstance(returned, tuple | list):
            terms = [item for item in returned if isinstance(item, Tensor) and item.numel() == 1]
            rest = [item for item in returned if isinstance(item, int | float) and item != 0]
            if len(terms) == 2 and not rest and _are_the_terms(terms[0], terms[1], leaves):
                self.notes["output"] = "sum"
                return terms[0].reshape(()) + terms[1].reshape(())
        loss, place = choose(returned, self.output)
        if place is not None:
            self.notes["output"] = place
        check_scalar(loss)
        scalar: Tensor = loss
        return scalar

    def _failure(self, error: Exception) -> LossError:
        raised, advice = f"loss_fn raised {type(error).__name__}: {error}", advise(error)
        if advice.startswith("PyTorch"):
            return LossError(f"{advice} ({raised})")
        return LossError(
            f"{raised}; it was called with data_dim={self.data_dim}, "
            f"latent_dim={self.latent_dim}; {advice and advice + '; '}expected {FORM}"
        )

    # ---- where it is called ----

    def draw(self, region: str, batch_size: int) -> dict[str, Tensor]:
        """Draw recon_x, x, mu and logvar."""
        x = self._data((batch_size, self.data_dim))
        recon_x = self._prediction(region, x)
        if self.recon_dim > self.data_dim:
            recon_x = torch.cat([recon_x, self._uniform(0.05, 0.95, tuple(x.shape))], 1)
        mu, logvar = self._posterior(region, (batch_size, self.latent_dim))
        return dict(zip(ROLES, (recon_x, x, mu, logvar), strict=True))

    def with_posterior(self, region: str, probe: Probe) -> dict[str, Tensor]:
        """Draw mu and logvar anew, beside recon_x and x of a probe."""
        mu, logvar = self._posterior(region, (len(probe.mu), self.latent_dim))
        return {**probe.point, "mu": mu, "logvar": logvar}

    def _data(self, shape: tuple[int, int]) -> Tensor:
        extremes, draws = self.domain.share_of_extremes, self._uniform(0, 1, shape)
        between = 0.05 + 0.9 * (draws - extremes) / (1 - extremes) if extremes < 1 else draws
        return torch.where(draws < extremes / 2, 0.0, torch.where(draws < extremes, 1.0, between))

    def _prediction(self, region: str, x: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1])
        if region == "close":
            return 0.9 * x + self._uniform(0.02, 0.08, shape)
        if region == "near":  # an allowance for errors, of a number or of an example, is used up by none
            return x + self._uniform(0.003, 0.01, shape) * self._uniform(-1, 1, shape).sign()
        low, high = _PREDICTIONS.get(region, (0.05, 0.95))
        recon_x = self._uniform(low, high, shape)
        if region == "loc":
            recon_x[:, 0] = recon_x[:, 0].sign() * 10  # so that every seed sees the same range
        return recon_x

    def _posterior(self, region: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        size = {"close": 1e-3, "wide": 3.0}.get(region, 1.0)
        mu, logvar = size * self._normal(shape), size * self._normal(shape)
        if region == "wide":
            logvar = self._uniform(-6, 4, shape)
            logvar[0, 0], logvar[-1, -1] = 4.0, -6.0
        elif region == "far":  # a KL that exceeds every allowance
            mu = mu.sign() * self._uniform(200, 400, shape)
        if self.domain.is_positive:
            logvar = 1 + logvar.clamp(-0.5, 0.5) if region == "close" else self._uniform(0.3, 2, shape)
            if region == "wide":
                logvar = self._uniform(math.log(0.05), math.log(50), shape).exp()
        return mu, logvar

    def _uniform(self, low: float, high: float, shape: tuple[int, ...]) -> Tensor:
        draws = torch.rand(shape, generator=self.generator, dtype=torch.float64, device="cpu")
        return draws.mul_(high - low).add_(low)

    def _normal(self, shape: tuple[int, int]) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu")


def _are_the_terms(first: Tensor, second: Tensor, leaves: Mapping[str, Tensor]) -> bool:
    """Whether one depends on recon_x alone and the other on mu and logvar alone."""
    wanted = [leaves[role] for role in ("recon_x", "mu", "logvar")]
    if not (first.requires_grad and second.requires_grad):
        return False
    found = [
        [g is not None for g in torch.autograd.grad(term.sum(), wanted, retain_graph=True, allow_unused=True)]
        for term in (first, second)
    ]
    return found == [[True, False, False], [False, True, True]]
