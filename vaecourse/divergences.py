"""Kullback-Leibler divergences between diagonal Gaussians, in nats per example.

Like the densities, they are summed over the last dimension (the latents) and
never averaged over the batch.
"""

import math

import torch
from torch import Tensor

from vaecourse._checks import as_float, check_finite

# exp(t) - 1 - t = t**2 * (1/2! + t/3! + ...); up to 1/14! this is float64-exact for abs(t) < 0.3
_EXPONENTIAL_TAIL = [1 / math.factorial(n) for n in range(2, 15)]


def kl_standard_normal(loc: Tensor, log_scale: Tensor) -> Tensor:
    """KL divergence of a diagonal Gaussian from the standard normal, in nats per example.

    Implements: ``kl = 0.5 * sum(loc**2 + exp(2 * log_scale) - 1 - 2 * log_scale)``.

    The last three terms are evaluated by their series where they nearly
    cancel, so that a posterior close to the prior keeps all digits.

    Parameters
    ----------
    loc : Tensor, shape (..., latent_dim)
        Means.
    log_scale : Tensor, shape of `loc`
        Logarithm of the standard deviations (not of the variances).

    Returns
    -------
    Tensor, shape (...)
        Nats, at least 0, summed over the latents.

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit or a value is not finite.

    References
    ----------
    Kingma and Welling, Auto-Encoding Variational Bayes (2014), appendix B.

    Examples
    --------
    >>> kl_standard_normal(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))  # 25 / 2
    tensor([12.5000])
    """
    loc, log_scale = _check_gaussian(loc, log_scale)
    log_variance = 2 * log_scale
    check_finite(loc=loc, log_scale=log_variance)
    return 0.5 * (loc.square() + _exp_minus_one_minus(log_variance)).sum(-1)


def kl_monte_carlo(
    loc: Tensor, log_scale: Tensor, *, num_samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draws of log q(z) - log p(z), whose mean estimates the KL divergence from the standard normal.

    Implements: ``log q(z) - log p(z) = sum(0.5 * z**2 - 0.5 * eps**2 - log_scale)``,
    ``z = loc + exp(log_scale) * eps``.

    Single draws may be negative; only their expectation may not.

    Parameters
    ----------
    loc, log_scale : Tensor, shape (..., latent_dim)
        Means and log standard deviations of q.
    num_samples : int
        Number of draws, at least 1.
    generator : torch.Generator, optional
        Source of ``eps``, on the device of `loc`; the global one if left out.

    Returns
    -------
    Tensor, shape (num_samples, ...)
        Nats, summed over the latents; average over the first dimension.

    Raises
    ------
    ValueError
        If `num_samples` is below 1 or shapes or dtypes do not fit.

    Examples
    --------
    >>> kl_monte_carlo(torch.zeros(1, 2), torch.zeros(1, 2), num_samples=3)  # q is p
    tensor([[0.],
            [0.],
            [0.]])
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    loc, log_scale = _check_gaussian(loc, log_scale)
    eps = torch.randn((num_samples, *loc.shape), generator=generator, dtype=loc.dtype, device=loc.device)
    z = loc + log_scale.exp() * eps
    return (0.5 * z.square() - 0.5 * eps.square() - log_scale).sum(-1)


def _check_gaussian(loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    loc, log_scale = as_float("loc", loc), as_float("log_scale", log_scale)
    if loc.shape != log_scale.shape or loc.ndim == 0:
        raise ValueError(
            "loc and log_scale must share one shape (..., latent_dim), got "
            f"{tuple(loc.shape)} and {tuple(log_scale.shape)}"
        )
    return loc, log_scale


def _exp_minus_one_minus(t: Tensor) -> Tensor:
    """Evaluate exp(t) - 1 - t to full relative accuracy."""
    near_zero = t.abs() < 0.3
    small = torch.where(near_zero, t, 0.0)
    series = torch.full_like(t, _EXPONENTIAL_TAIL[-1])
    for coefficient in reversed(_EXPONENTIAL_TAIL[:-1]):
        series = series * small + coefficient
    return torch.where(near_zero, small.square() * series, torch.expm1(t) - t)
