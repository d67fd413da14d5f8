"""Likelihood objects that models carry, and the densities behind them.

A likelihood turns a network's output into a probability statement about data.
A model that holds one can exchange it for another without any other change.
"""

import abc
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn

from vaecourse._checks import as_float, check_finite, check_shapes
from vaecourse.densities import (
    bernoulli_nll,
    continuous_bernoulli_mean,
    continuous_bernoulli_nll,
    gaussian_nll,
    laplace_nll,
)

__all__ = [
    "BernoulliLikelihood",
    "ContinuousBernoulliLikelihood",
    "GaussianLikelihood",
    "LaplaceLikelihood",
    "Likelihood",
]


class Likelihood(nn.Module, abc.ABC):
    """What a model says about data given the numbers that its network puts out: p(x | params).

    Subclasses define `nll`, `distribution` and `sample`, so that a model can exchange one
    likelihood for another without any other change.

    Attributes
    ----------
    num_params : int
        Numbers that the network must emit per data dimension.
    """

    num_params: int = 1

    @abc.abstractmethod
    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        """Negative log-likelihood of `x`, nats per example.

        Parameters
        ----------
        x : Tensor, shape (batch, *event)
            Data.
        params : Tensor, shape (..., batch, *event)
            Network output; its last dimension is `num_params` times that of `x`.

        Returns
        -------
        Tensor, shape (..., batch)
            Nats, summed over the event dimensions.
        """

    @abc.abstractmethod
    def distribution(self, params: Tensor) -> distributions.Distribution:
        """The elementwise distribution as a torch object, for inspection and as a second opinion.

        Parameters
        ----------
        params : Tensor, shape (..., batch, *event)
            Network output.

        Returns
        -------
        torch.distributions.Distribution
            Not summed over event dimensions: wrap it in ``Independent`` for that.
        """

    def mean(self, params: Tensor) -> Tensor:
        """Mean of the distribution, which is what papers usually show as "the reconstruction".

        Parameters
        ----------
        params : Tensor, shape (..., batch, *event)
            Network output.

        Returns
        -------
        Tensor, shape (..., batch, *event)
            The mean, in the unit of the data.
        """
        return self.distribution(params).mean

    @abc.abstractmethod
    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One draw from the distribution, without gradient.

        Parameters
        ----------
        params : Tensor, shape (..., batch, *event)
            Network output.
        generator : torch.Generator, optional
            Source of randomness, on the device of `params`; the global one if left out.

        Returns
        -------
        Tensor, shape (..., batch, *event)
            The draw, in the unit of the data.
        """


class GaussianLikelihood(Likelihood):
    """Independent Gaussians around the network's output, with one of four ways to set their scale.

    Parameters
    ----------
    scale : float or {"learned", "optimal", "per_pixel"}
        A number fixes the standard deviation.  "learned" makes one shared
        ``log_scale`` a trained parameter.  "optimal" sets the shared scale to
        the root mean squared error of each training batch, the analytic
        maximiser, and keeps a running average for evaluation.  "per_pixel"
        lets the network emit a ``log_scale`` beside each ``loc``.
    min_log_scale : float
        Soft floor of "per_pixel" (ignored otherwise): without one the
        likelihood of a constant pixel is unbounded.

    Raises
    ------
    ValueError
        If `scale` is neither a positive number nor one of the three words.

    References
    ----------
    Rybkin, Daniilidis and Levine, Simple and Effective VAE Training with Calibrated Decoders (2021).

    Examples
    --------
    >>> likelihood = GaussianLikelihood(2.0)
    >>> likelihood.nll(torch.zeros(1, 2), torch.tensor([[2.0, 4.0]]))  # 1/2 + 4/2 + 2 log 2 + log(2 pi)
    tensor([5.7242])
    """

    def __init__(
        self,
        scale: float | Literal["learned", "optimal", "per_pixel"] = 1.0,
        *,
        min_log_scale: float = -6.0,
    ) -> None:
        super().__init__()
        self.mode = scale if isinstance(scale, str) else "fixed"
        self.min_log_scale = min_log_scale
        if isinstance(scale, str):
            if scale not in ("learned", "optimal", "per_pixel"):
                raise ValueError(
                    f"scale must be a positive number, 'learned', 'optimal' or 'per_pixel', got {scale!r}"
                )
        else:
            self.fixed_scale = float(scale)
            if not (math.isfinite(self.fixed_scale) and self.fixed_scale > 0):
                raise ValueError(f"scale is a standard deviation and must be positive, got {scale}")
        if self.mode == "learned":
            self.log_scale = nn.Parameter(torch.zeros(()))
        if self.mode == "optimal":
            self.register_buffer("mean_squared_error", torch.tensor(math.nan))
            self.register_buffer("num_updates", torch.tensor(0))
        self.num_params = 2 if self.mode == "per_pixel" else 1

    mean_squared_error: Tensor
    num_updates: Tensor

    @property
    def scale(self) -> float | Tensor:
        """Shared standard deviation: the number given, the learned one, or the running optimum.

        Returns
        -------
        float or Tensor, shape ()
            In the unit of the data.

        Raises
        ------
        RuntimeError
            If the scale is per pixel, hence a function of the network's output, or if it is "optimal"
            and no training batch has been seen yet.
        """
        if self.mode == "per_pixel":
            raise RuntimeError("a per-pixel scale depends on the input: use distribution(params).stddev")
        if self.mode == "learned":
            return self.log_scale.exp()
        if self.mode == "optimal":
            if not torch.compiler.is_compiling() and self.num_updates == 0:
                raise RuntimeError(
                    "the optimal scale is estimated from training batches and none has been seen: "
                    "call nll in training mode first"
                )
            return self.mean_squared_error.sqrt()
        return self.fixed_scale

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        if self.mode == "optimal" and self.training:
            return gaussian_nll(x, params, self._update_scale(x, params))
        loc, scale = self._loc_and_scale(params)
        return gaussian_nll(x, loc, scale)

    def distribution(self, params: Tensor) -> distributions.Normal:
        return distributions.Normal(*self._loc_and_scale(params))

    @torch.no_grad()
    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        loc, scale = self._loc_and_scale(params)
        return loc + scale * torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)

    def _loc_and_scale(self, params: Tensor) -> tuple[Tensor, float | Tensor]:
        if self.mode != "per_pixel":
            return params, self.scale
        if params.shape[-1] % 2:
            raise ValueError(
                "with a per-pixel scale the network must emit loc and log_scale, twice the data's last "
                f"dimension, got an odd size: {tuple(params.shape)}"
            )
        loc, log_scale = as_float("params", params).chunk(2, dim=-1)  # (..., 2 D) -> (..., D), (..., D)
        return loc, torch.exp(self.min_log_scale + F.softplus(log_scale - self.min_log_scale))

    @torch.no_grad()
    def _update_scale(self, x: Tensor, params: Tensor) -> Tensor:
        """Root mean squared error of the batch; by the envelope theorem it needs no gradient."""
        x, params = as_float("x", x), as_float("params", params)
        check_shapes(x, "params", params)
        check_finite(x=x, params=params)  # a bad batch must not spoil the running average
        batch_mse = (x - params).square().mean()
        self.num_updates += 1
        weight = torch.clamp(1 / self.num_updates, min=0.01)  # plain average at first, then exponential
        running = torch.where(self.num_updates == 1, batch_mse, self.mean_squared_error)
        self.mean_squared_error.copy_(torch.lerp(running.float(), batch_mse.float(), weight))
        return batch_mse.sqrt()


class LaplaceLikelihood(Likelihood):
    """Independent Laplace variables around the network's output: the likelihood behind the L1 loss.

    Parameters
    ----------
    scale : float
        The scale b, positive; the standard deviation is ``sqrt(2) * b``.

    Raises
    ------
    ValueError
        If `scale` is not a positive number.

    Examples
    --------
    >>> LaplaceLikelihood(1.0).nll(torch.tensor([[3.0]]), torch.zeros(1, 1))  # 3 + log 2
    tensor([3.6931])
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be a positive number, got {scale}")
        self.scale = float(scale)

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        return laplace_nll(x, params, self.scale)

    def distribution(self, params: Tensor) -> distributions.Laplace:
        return distributions.Laplace(params, self.scale)

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        # the difference of two exponentials is Laplace
        first, second = torch.empty_like(params), torch.empty_like(params)
        first.exponential_(generator=generator)
        second.exponential_(generator=generator)
        return params.detach() + self.scale * (first - second)


class BernoulliLikelihood(Likelihood):
    """Independent bits whose log-odds are the network's output: the likelihood behind BCE.

    Examples
    --------
    >>> BernoulliLikelihood().nll(torch.ones(1, 1), torch.zeros(1, 1))  # log 2
    tensor([0.6931])
    """

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        return bernoulli_nll(x, params)

    def distribution(self, params: Tensor) -> distributions.Bernoulli:
        return distributions.Bernoulli(logits=params)

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(torch.sigmoid(params.detach()), generator=generator)


class ContinuousBernoulliLikelihood(Likelihood):
    """Independent intensities on [0, 1] whose natural parameters are the network's output.

    `distribution` returns torch's object, which is exact for moderate logits
    only (its normaliser is 40 % off at a logit of 100 in float32); `nll`,
    `mean` and `sample` are this package's own and stay accurate.

    Examples
    --------
    >>> ContinuousBernoulliLikelihood().mean(torch.zeros(1, 1))
    tensor([[0.5000]])
    """

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        return continuous_bernoulli_nll(x, params)

    def distribution(self, params: Tensor) -> distributions.ContinuousBernoulli:
        return distributions.ContinuousBernoulli(logits=params)

    def mean(self, params: Tensor) -> Tensor:
        return continuous_bernoulli_mean(params)

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        # invert the cumulative distribution for a negative logit; mirror the draw for a positive one
        params = as_float("params", params.detach())
        u = torch.rand(params.shape, generator=generator, dtype=params.dtype, device=params.device)
        rate = -params.abs()
        flat = rate > -1e-4
        safe = torch.where(flat, -1.0, rate)
        x = torch.where(flat, u + 0.5 * rate * u * (1 - u), torch.log1p(u * torch.expm1(safe)) / safe)
        return torch.where(params > 0, 1 - x, x)
