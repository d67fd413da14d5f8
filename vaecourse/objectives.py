"""The evidence lower bound in its two terms, the loss made of them, and the bound from many samples."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vaecourse._checks import as_float, check_count, check_weight, positive
from vaecourse.divergences import kl_standard_normal
from vaecourse.likelihoods import Likelihood


class LatentVariableModel(Protocol):
    """What an objective needs of a model."""

    likelihood: Likelihood

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log standard deviation of q(z|x)."""

    def decode(self, z: Tensor) -> Tensor:
        """Parameters of p(x|z)."""


class ElboTerms(NamedTuple):
    """The two terms of the evidence lower bound, per example, in nats.

    Attributes
    ----------
    nll : Tensor, shape (batch,)
        Estimate of the expected negative log-likelihood, summed over pixels.
    kl : Tensor, shape (batch,)
        Divergence of q(z|x) from the prior, summed over latents.
    """

    nll: Tensor
    kl: Tensor

    def elbo(self, beta: float = 1.0) -> Tensor:
        """Evidence lower bound ``-nll - beta * kl``, in nats per example.

        Parameters
        ----------
        beta : float
            Weight of the KL term; only at 1 is the value a bound on log p(x).

        Returns
        -------
        Tensor, shape (batch,)
            Nats; to be maximised.

        Raises
        ------
        ValueError
            If `beta` is negative or not finite.

        Examples
        --------
        >>> ElboTerms(nll=torch.tensor([3.0]), kl=torch.tensor([0.5])).elbo()
        tensor([-3.5000])
        """
        check_weight("beta", beta)
        return -self.nll - beta * self.kl


def elbo_terms(
    model: LatentVariableModel, x: Tensor, *, num_samples: int = 1, generator: torch.Generator | None = None
) -> ElboTerms:
    """Expected negative log-likelihood, estimated by sampling z, and the KL term, in closed form.

    Implements: ``nll = mean over l of -log p(x | z_l)``, ``z_l = loc + scale * eps_l``,
    ``kl = KL(N(loc, scale**2) || N(0, 1))``.

    Parameters
    ----------
    model : LatentVariableModel
        A `models.VAE`, or anything like it.
    x : Tensor, shape (batch, *event)
        Data.
    num_samples : int
        Draws of z per example, at least 1.
    generator : torch.Generator, optional
        Source of ``eps``, on the device of `x`; the global one if left out.

    Returns
    -------
    ElboTerms
        Both terms per example, in nats; gradients reach encoder and decoder.

    Raises
    ------
    ValueError
        If `num_samples` is below 1.

    References
    ----------
    Kingma and Welling, Auto-Encoding Variational Bayes (2014), Eq. 10.

    Examples
    --------
    >>> from vaecourse.linear_vae import LinearVAE
    >>> elbo_terms(LinearVAE(data_dim=3, latent_dim=2), torch.zeros(5, 3)).nll.shape
    torch.Size([5])
    """
    check_count("num_samples", num_samples)
    loc, log_scale = _posterior(model, x)
    z, _ = _draw_latents(loc, log_scale, num_samples, generator)  # (samples, batch, latent_dim)
    nll = model.likelihood.nll(x, model.decode(z.squeeze(0) if num_samples == 1 else z))
    nll = nll.reshape(num_samples, len(x)).mean(0)  # (samples, batch) -> (batch,)
    return ElboTerms(nll=nll, kl=kl_standard_normal(loc, log_scale))


def negative_elbo(
    model: LatentVariableModel, x: Tensor, *, beta: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Loss to minimise: the batch mean of -ELBO, in nats per example, from one draw of z.

    Implements: ``loss = mean over the batch of (nll + beta * kl)``.

    Parameters
    ----------
    model : LatentVariableModel
        A `models.VAE`, or anything like it.
    x : Tensor, shape (batch, *event)
        Data.
    beta : float
        Weight of the KL term.
    generator : torch.Generator, optional
        Source of the noise, on the device of `x`; the global one if left out.

    Returns
    -------
    Tensor, shape ()
        Nats per example.

    Raises
    ------
    ValueError
        If `x` holds no example, or `beta` is negative or not finite.

    Examples
    --------
    >>> from vaecourse.linear_vae import LinearVAE
    >>> negative_elbo(LinearVAE(data_dim=3, latent_dim=2), torch.zeros(5, 3)).shape
    torch.Size([])
    """
    if x.shape[0] == 0:
        raise ValueError(f"x must hold at least one example, got shape {tuple(x.shape)}")
    return -elbo_terms(model, x, generator=generator).elbo(beta).mean()


def log_importance_weights(
    model: LatentVariableModel, x: Tensor, *, num_samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Logarithms of p(x, z) / q(z|x) at draws of z from q, in nats.

    Implements: ``log w = log p(x|z) + log p(z) - log q(z|x)``.

    Parameters
    ----------
    model : LatentVariableModel
        A `models.VAE`, or anything like it.
    x : Tensor, shape (batch, *event)
        Data.
    num_samples : int
        Draws of z per example, at least 1.
    generator : torch.Generator, optional
        Source of the noise, on the device of `x`; the global one if left out.

    Returns
    -------
    Tensor, shape (num_samples, batch)
        Nats.  The mean of the weights themselves estimates p(x) without bias.

    Raises
    ------
    ValueError
        If `num_samples` is below 1.

    References
    ----------
    Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders (2016), Eq. 8.

    Examples
    --------
    >>> from vaecourse.linear_vae import LinearVAE
    >>> log_importance_weights(LinearVAE(data_dim=3, latent_dim=2), torch.zeros(5, 3), num_samples=7).shape
    torch.Size([7, 5])
    """
    check_count("num_samples", num_samples)
    loc, log_scale = _posterior(model, x)
    z, eps = _draw_latents(loc, log_scale, num_samples, generator)
    log_prior_minus_log_q = (0.5 * eps.square() - 0.5 * z.square() + log_scale).sum(-1)
    return log_prior_minus_log_q - model.likelihood.nll(x, model.decode(z))


def importance_weighted_bound(
    model: LatentVariableModel, x: Tensor, *, num_samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Lower bound on log p(x) from the average of many importance weights, in nats per example.

    Implements: ``bound = logsumexp(log w over samples) - log(num_samples)``.

    At one sample this is a draw of the ELBO; its expectation rises with the samples, to log p(x).

    Parameters
    ----------
    model : LatentVariableModel
        A `models.VAE`, or anything like it.
    x : Tensor, shape (batch, *event)
        Data.
    num_samples : int
        Draws of z per example, at least 1; memory grows with it.
    generator : torch.Generator, optional
        Source of the noise, on the device of `x`; the global one if left out.

    Returns
    -------
    Tensor, shape (batch,)
        Nats; to be maximised.

    Examples
    --------
    >>> from vaecourse.linear_vae import LinearVAE
    >>> importance_weighted_bound(LinearVAE(data_dim=3, latent_dim=2), torch.zeros(5, 3), num_samples=7).shape
    torch.Size([5])
    """
    log_weights = log_importance_weights(model, x, num_samples=num_samples, generator=generator)
    return torch.logsumexp(log_weights, dim=0) - math.log(num_samples)  # (samples, batch) -> (batch,)


def implied_variance(recon_weight: float, kl_weight: float) -> float:
    """Variance of the Gaussian decoder that a weighted "squared error + KL" loss assumes.

    Implements: ``variance = kl_weight / (2 * recon_weight)``, because
    ``a * SSE + w * KL = w * (SSE / (2 * variance) + KL)``.

    Parameters
    ----------
    recon_weight, kl_weight : float
        Factors a of the squared error *summed* over pixels (1 / data_dim where code takes the mean), and w
        of the KL divergence *summed* over latents.

    Returns
    -------
    float
        The variance (not the standard deviation), in squared data units.

    Raises
    ------
    ValueError
        If a weight is not a positive number.

    Examples
    --------
    >>> implied_variance(0.5, 1.0)  # half the summed squared error + KL: a unit Gaussian
    1.0
    >>> round(implied_variance(1 / 784, 1.0), 9)  # mean over MNIST's pixels + KL
    392.0
    """
    recon_weight, kl_weight = positive("recon_weight", recon_weight), positive("kl_weight", kl_weight)
    return kl_weight / (2 * recon_weight)


def kl_weight_for(
    *,
    data_dim: int,
    latent_dim: int,
    scale: float | None = None,
    beta: float = 1.0,
    recon: str = "mean",
    kl: str = "sum",
) -> float:
    """Weight of the KL term that makes a loss with these reductions the negative ELBO that is wanted.

    Implements: ``beta * (2 * scale**2 or 1) * (1 / data_dim or 1) * (latent_dim or 1)``.

    Parameters
    ----------
    data_dim, latent_dim : int
        Numbers per example D and latents K.
    scale : float, optional
        Standard deviation of the Gaussian decoder, if the reconstruction term is a squared
        error; leave it out if that is a negative log-likelihood, such as a cross-entropy.
    beta : float
        Weight of the KL term in the objective; 1 for the ELBO.
    recon, kl : str
        "mean" or "sum", over the numbers of an example and over the latents; then the batch mean.

    Returns
    -------
    float
        The factor w in ``recon + w * kl``.

    Raises
    ------
    ValueError
        If a number is not positive or a reduction is neither "mean" nor "sum".

    Examples
    --------
    >>> weight = kl_weight_for(data_dim=784, latent_dim=20, scale=0.1)  # square(x - recon).mean() + w * KL
    >>> round(implied_variance(1 / 784, weight), 9)
    0.01
    """
    for name, value in {"data_dim": data_dim, "latent_dim": latent_dim, "scale": scale, "beta": beta}.items():
        if value is not None:
            positive(name, value)
    for name, reduction in (("recon", recon), ("kl", kl)):
        if reduction not in ("mean", "sum"):
            raise ValueError(f"{name} must be 'mean' or 'sum', got {reduction!r}")
    weight = beta if scale is None else beta * 2 * scale**2
    return weight / (data_dim if recon == "mean" else 1) * (latent_dim if kl == "mean" else 1)


def _posterior(model: LatentVariableModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Location and log scale of q(z|x); under autocast a layer puts out 16 bits, too few for what follows."""
    loc, log_scale = model.encode(x)
    return as_float("loc", loc), as_float("log_scale", log_scale)


def _draw_latents(
    loc: Tensor, log_scale: Tensor, num_samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draws z, and the standard normal noise they are made of, each (samples, batch, latent_dim)."""
    eps = torch.randn((num_samples, *loc.shape), generator=generator, dtype=loc.dtype, device=loc.device)
    return loc + log_scale.exp() * eps, eps
