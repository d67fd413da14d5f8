"""Negative log-likelihoods in nats, with every constant, as plain functions.

Every function here sums over the event dimensions of ``x`` (all but the
first) and returns one number per example; nothing is averaged.  Leading
sample dimensions of the parameters are kept: ``x`` of shape (batch, D) with
``loc`` of shape (samples, batch, D) gives (samples, batch).  Half-precision
inputs are computed in float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vaecourse._checks import as_float, check_finite, check_scale, check_shapes, check_unit_interval

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_LOG_2 = math.log(2)


def gaussian_nll(x: Tensor, loc: Tensor, scale: float | Tensor) -> Tensor:
    """Negative log-density of independent Gaussians, in nats per example.

    Implements Eq. (eq-gaussian-nll):
    ``nll = sum(0.5 * ((x - loc) / scale)**2 + log(scale) + 0.5 * log(2 * pi))``.

    Parameters
    ----------
    x : Tensor, shape (batch, *event)
        Data, finite.
    loc : Tensor, shape (..., batch, *event)
        Means.
    scale : float or Tensor
        Standard deviation (not the variance), positive, broadcastable to `loc`.

    Returns
    -------
    Tensor, shape (..., batch)
        Nats, summed over the event dimensions.

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit, `scale` is not positive, or a value is not finite.

    References
    ----------
    Kingma and Welling, Auto-Encoding Variational Bayes (2014), appendix C.2.

    Examples
    --------
    >>> gaussian_nll(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), 1.0)  # 25/2 + log(2 pi)
    tensor([14.3379])
    """
    x, loc, scale, log_scale = _location_scale(x, loc, scale)
    elementwise = 0.5 * ((x - loc) / scale).square() + (log_scale + _HALF_LOG_2PI)
    return _sum_event(elementwise, x)


def laplace_nll(x: Tensor, loc: Tensor, scale: float | Tensor) -> Tensor:
    """Negative log-density of independent Laplace variables, in nats per example.

    Implements: ``nll = sum(abs(x - loc) / scale + log(2 * scale))``.

    Parameters
    ----------
    x : Tensor, shape (batch, *event)
        Data, finite.
    loc : Tensor, shape (..., batch, *event)
        Medians.
    scale : float or Tensor
        The scale b (the standard deviation is ``sqrt(2) * b``), positive, broadcastable to `loc`.

    Returns
    -------
    Tensor, shape (..., batch)
        Nats, summed over the event dimensions.

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit, `scale` is not positive, or a value is not finite.

    Examples
    --------
    >>> laplace_nll(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), 1.0)  # 7 + 2 log 2
    tensor([8.3863])
    """
    x, loc, scale, log_scale = _location_scale(x, loc, scale)
    return _sum_event((x - loc).abs() / scale + (log_scale + _LOG_2), x)


def bernoulli_nll(x: Tensor, logits: Tensor) -> Tensor:
    """Binary cross-entropy: negative log-probability of independent bits, in nats per example.

    Implements: ``nll = sum(x * softplus(-logits) + (1 - x) * softplus(logits))``.

    Both terms are nonnegative, so nothing cancels however large the logits
    are.  Fractional `x` is accepted: the value is then a cross-entropy, whose
    smallest value is the entropy of `x` and not 0, and not the negative
    logarithm of a density on [0, 1].

    Parameters
    ----------
    x : Tensor, shape (batch, *event)
        Bits, or probabilities of bits, in [0, 1].
    logits : Tensor, shape (..., batch, *event)
        Log-odds of a one, ``log(p / (1 - p))``; not probabilities.

    Returns
    -------
    Tensor, shape (..., batch)
        Nats, summed over the event dimensions.

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit, `x` leaves [0, 1], or a logit is not finite.

    References
    ----------
    Kingma and Welling, Auto-Encoding Variational Bayes (2014), appendix C.1.

    Examples
    --------
    >>> bernoulli_nll(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2))  # 2 log 2
    tensor([1.3863])
    """
    x, logits = as_float("x", x), as_float("logits", logits)
    check_shapes(x, "logits", logits)
    check_unit_interval(x)
    check_finite(logits=logits)
    # -logsigmoid(a) is softplus(-a); F.softplus itself switches to a straight line at 20
    return _sum_event(-x * F.logsigmoid(logits) - (1 - x) * F.logsigmoid(-logits), x)


def continuous_bernoulli_nll(x: Tensor, logits: Tensor) -> Tensor:
    """Negative log-density of independent continuous Bernoulli variables on [0, 1], in nats per example.

    Implements: ``nll = bernoulli_nll(x, logits) - sum(log C)`` with
    ``log C = log(logits / tanh(logits / 2))`` and ``log C = log(2)`` at 0.

    Parameters
    ----------
    x : Tensor, shape (batch, *event)
        Intensities in [0, 1].
    logits : Tensor, shape (..., batch, *event)
        Natural parameters: positive ones put more density near 1.

    Returns
    -------
    Tensor, shape (..., batch)
        Nats, summed over the event dimensions; often negative, as densities exceed 1.

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit, `x` leaves [0, 1], or a logit is not finite.

    References
    ----------
    Loaiza-Ganem and Cunningham, The continuous Bernoulli (2019).

    Examples
    --------
    >>> continuous_bernoulli_nll(torch.tensor([[0.3]]), torch.zeros(1, 1)).abs() < 1e-6  # uniform on [0, 1]
    tensor([True])
    """
    bernoulli = bernoulli_nll(x, logits)
    return bernoulli - _sum_event(continuous_bernoulli_log_normalizer(logits), x)


def continuous_bernoulli_log_normalizer(logits: Tensor) -> Tensor:
    """Elementwise log C, by which the continuous Bernoulli density exceeds the Bernoulli formula.

    Implements: ``log C = log(logits / tanh(logits / 2))``, at least log 2.

    Parameters
    ----------
    logits : Tensor, any shape
        Natural parameters.

    Returns
    -------
    Tensor, shape of `logits`
        Nats; nothing is summed.

    Raises
    ------
    ValueError
        If `logits` are not floating point.

    References
    ----------
    Loaiza-Ganem and Cunningham, The continuous Bernoulli (2019).

    Examples
    --------
    >>> continuous_bernoulli_log_normalizer(torch.tensor([0.0, 2.0]))  # log 2, log(2 / tanh(1))
    tensor([0.6931, 0.9655])
    """
    logits = as_float("logits", logits)
    near_zero, safe = _split_near_zero(logits)
    y2 = (0.5 * torch.where(near_zero, logits, 0.0)).square()
    # log(y / tanh(y)) = log cosh y - log(sinh(y) / y), term by term
    series = y2 * (1 / 3 + y2 * (-7 / 90 + y2 * (62 / 2835 + y2 * (-127 / 18900 + y2 * (146 / 66825)))))
    return torch.where(near_zero, _LOG_2 + series, torch.log(safe / torch.tanh(0.5 * safe)))


def continuous_bernoulli_mean(logits: Tensor) -> Tensor:
    """Elementwise mean of the continuous Bernoulli, which is not ``sigmoid(logits)``.

    Implements: ``mean = 0.5 + 0.5 / tanh(logits / 2) - 1 / logits``, and 0.5 at 0.

    Parameters
    ----------
    logits : Tensor, any shape
        Natural parameters.

    Returns
    -------
    Tensor, shape of `logits`
        Means in (0, 1); nothing is summed.

    Raises
    ------
    ValueError
        If `logits` are not floating point.

    References
    ----------
    Loaiza-Ganem and Cunningham, The continuous Bernoulli (2019).

    Examples
    --------
    >>> continuous_bernoulli_mean(torch.tensor([0.0, 2.0]))  # sigmoid(2) would be 0.8808
    tensor([0.5000, 0.6565])
    """
    logits = as_float("logits", logits)
    near_zero, safe = _split_near_zero(logits)
    a = torch.where(near_zero, logits, 0.0)
    a2 = a.square()
    series = a * (1 / 12 + a2 * (-1 / 720 + a2 * (1 / 30240 + a2 * (-1 / 1209600 + a2 / 47900160))))
    return 0.5 + torch.where(near_zero, series, 0.5 / torch.tanh(0.5 * safe) - 1 / safe)


def _location_scale(
    x: Tensor, loc: Tensor, scale: float | Tensor
) -> tuple[Tensor, Tensor, float | Tensor, float | Tensor]:
    """Return the checked arguments of a location-scale density, and the logarithm of the scale."""
    x, loc = as_float("x", x), as_float("loc", loc)
    check_shapes(x, "loc", loc)
    check_finite(x=x, loc=loc)
    scale = check_scale(scale, loc)
    return x, loc, scale, scale.log() if isinstance(scale, Tensor) else math.log(scale)


def _split_near_zero(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Where a series must replace a form that is 0/0 at 0, and logits that are safe for that form."""
    near_zero = logits.abs() < (0.1 if logits.dtype == torch.float64 else 0.5)
    return near_zero, torch.where(near_zero, 1.0, logits)


def _sum_event(elementwise: Tensor, x: Tensor) -> Tensor:
    """Sum over all dimensions but the batch: (..., batch, *event) -> (..., batch)."""
    return elementwise.flatten(-(x.ndim - 1)).sum(-1) if x.ndim > 1 else elementwise
