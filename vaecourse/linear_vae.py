"""The linear VAE, whose every integral is known: probabilistic PCA as a variational autoencoder."""

import math

import torch
from torch import Tensor, distributions, nn

from vaecourse._checks import check_finite, positive
from vaecourse.divergences import kl_standard_normal
from vaecourse.likelihoods import GaussianLikelihood
from vaecourse.models import VAE
from vaecourse.objectives import ElboTerms

__all__ = ["LinearEncoder", "LinearVAE"]


class LinearEncoder(nn.Module):
    """Linear map for q(z|x), with one scale per latent that does not depend on x.

    Implements: ``q(z|x) = N(V x + c, diag(exp(log_scale))**2)``.

    Parameters
    ----------
    data_dim, latent_dim : int
        Dimensions D of the data and K of the latents.

    Examples
    --------
    >>> loc, log_scale = LinearEncoder(3, 2)(torch.zeros(5, 3))
    >>> loc.shape == log_scale.shape == (5, 2)
    True
    """

    def __init__(self, data_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(data_dim, latent_dim)  # weight V: (K, D), bias c: (K,)
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log standard deviation of q(z|x), each (batch, latent_dim)."""
        loc = self.linear(x)
        return loc, self.log_scale.expand_as(loc)


class LinearVAE(VAE):
    """VAE with linear maps and one scale: probabilistic PCA, where the truth is known in closed form.

    Implements: ``p(x|z) = N(W z + mu, scale**2 I)``, with a `LinearEncoder` for q(z|x).

    Parameters
    ----------
    data_dim, latent_dim : int
        Dimensions D of the data and K of the latents.
    scale : float or "learned"
        Standard deviation of the decoder.

    Raises
    ------
    ValueError
        If `scale` is neither a positive number nor "learned".

    References
    ----------
    Tipping and Bishop, Probabilistic Principal Component Analysis (1999).
    Lucas, Tucker, Grosse and Norouzi, Don't Blame the ELBO! (2019).

    Examples
    --------
    >>> LinearVAE(data_dim=3, latent_dim=2).log_likelihood(torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    encoder: LinearEncoder
    decoder: nn.Linear
    likelihood: GaussianLikelihood

    def __init__(self, data_dim: int, latent_dim: int, *, scale: float | str = 1.0) -> None:
        if scale in ("optimal", "per_pixel"):
            raise ValueError(f"a linear VAE has one fixed or 'learned' scale, got {scale!r}")
        decoder = nn.Linear(latent_dim, data_dim)  # weight W: (D, K), bias mu: (D,)
        likelihood = GaussianLikelihood(scale)
        encoder = LinearEncoder(data_dim, latent_dim)
        super().__init__(encoder, decoder, likelihood, latent_dim=latent_dim)

    @property
    def weight(self) -> Tensor:
        """The decoder's matrix W.

        Returns
        -------
        Tensor, shape (data_dim, latent_dim)
            One column a latent.
        """
        return self.decoder.weight

    def marginal(self) -> distributions.LowRankMultivariateNormal:
        """The exact distribution of the data under the model, p(x) = N(mu, W W' + scale**2 I).

        Returns
        -------
        torch.distributions.LowRankMultivariateNormal
            Event shape (data_dim,).
        """
        variance = self._variance()
        return distributions.LowRankMultivariateNormal(
            self.decoder.bias, cov_factor=self.weight, cov_diag=variance.expand(self.weight.shape[0])
        )

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Exact log p(x), the number that every bound is a bound on, in nats per example.

        Parameters
        ----------
        x : Tensor, shape (batch, data_dim)
            Data.

        Returns
        -------
        Tensor, shape (batch,)
            Nats.
        """
        log_prob: Tensor = self.marginal().log_prob(x)
        return log_prob

    def exact_posterior(self, x: Tensor) -> distributions.MultivariateNormal:
        """The exact posterior p(z|x), whose covariance is the same for every x.

        Implements: ``covariance = inverse(I + W' W / scale**2)``,
        ``mean = covariance W' (x - mu) / scale**2``.

        Parameters
        ----------
        x : Tensor, shape (batch, data_dim)
            Data.

        Returns
        -------
        torch.distributions.MultivariateNormal
            Batch shape (batch,), event shape (latent_dim,).
        """
        variance = self._variance()
        precision = torch.eye(self.weight.shape[1]).to(self.weight) + self.weight.T @ self.weight / variance
        scaled = (x - self.decoder.bias) @ self.weight / variance  # (batch, D) @ (D, K) -> (batch, K)
        loc = torch.linalg.solve(precision, scaled.T).T
        return distributions.MultivariateNormal(loc, precision_matrix=precision)

    def exact_elbo_terms(self, x: Tensor) -> ElboTerms:
        """Both terms of the ELBO, with the expectation over q(z|x) taken in closed form.

        Implements: ``nll = gaussian_nll(x, W m + mu, scale) + d @ (W**2).sum(0) / (2 * scale**2)``
        with the mean m and the variances d of q(z|x).

        Parameters
        ----------
        x : Tensor, shape (batch, data_dim)
            Data.

        Returns
        -------
        ElboTerms
            Both terms per example, in nats; gradients reach encoder and decoder.

        Raises
        ------
        ValueError
            If `x` is not a matrix with data_dim columns.

        References
        ----------
        Lucas, Tucker, Grosse and Norouzi, Don't Blame the ELBO! (2019).

        Examples
        --------
        >>> LinearVAE(data_dim=3, latent_dim=2).exact_elbo_terms(torch.zeros(5, 3)).elbo().shape
        torch.Size([5])
        """
        data_dim = self.weight.shape[0]
        if x.ndim != 2 or x.shape[1] != data_dim:
            raise ValueError(f"x must have shape (batch, {data_dim}), got {tuple(x.shape)}")
        loc, log_scale = self.encode(x)
        spread = (2 * log_scale).exp() @ self.weight.square().sum(0)  # (batch, K) @ (K,) -> (batch,)
        nll = self.likelihood.nll(x, self.decode(loc)) + spread / (2 * self._variance())
        return ElboTerms(nll=nll, kl=kl_standard_normal(loc, log_scale))

    @classmethod
    @torch.no_grad()
    def from_ppca(
        cls, x: Tensor, latent_dim: int, *, scale: float | None = None, beta: float = 1.0
    ) -> "LinearVAE":
        """The linear VAE at the optimum of its (beta-weighted) objective, computed by eigendecomposition.

        Implements: ``W = U sqrt(max(eigenvalues - beta * scale**2, 0))`` with the leading eigenvectors U of
        the covariance, and the exact diagonal posterior; a latent is active where its
        eigenvalue exceeds ``beta * scale**2``.

        Parameters
        ----------
        x : Tensor, floating point, shape (N, data_dim)
            Data; computed in float64.
        latent_dim : int
            Number of latents, below data_dim.
        scale : float, optional
            Standard deviation of the decoder; its maximum-likelihood value, the root of
            the mean discarded eigenvalue, if left out.
        beta : float
            Weight of the KL term; other than 1 needs a given `scale`.

        Returns
        -------
        LinearVAE
            In float64 and in evaluation mode.

        Raises
        ------
        ValueError
            If `x` is not a finite matrix with at least two rows, or another argument is out of range.

        References
        ----------
        Tipping and Bishop, Probabilistic Principal Component Analysis (1999), Eq. 7 and 8.

        Examples
        --------
        >>> x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # variances 4.5 and 0.5
        >>> LinearVAE.from_ppca(x, 1, scale=1.0).weight.detach().abs()  # sqrt(4.5 - 1)
        tensor([[1.8708],
                [0.0000]], dtype=torch.float64)
        """
        eigenvalues, eigenvectors, center = _principal_components(x, latent_dim)
        if scale is None:
            if beta != 1:
                raise ValueError(f"beta={beta} needs a given scale: training does not identify both")
            scale = math.sqrt(max(eigenvalues[latent_dim:].mean().item(), 0.0))  # 0 is refused below
        beta = positive("beta", beta)
        model = cls(x.shape[1], latent_dim, scale=scale).double().eval()
        leading, floor = eigenvalues[:latent_dim], beta * scale**2
        active = leading > floor
        gain = torch.where(active, leading - floor, 0.0).sqrt()
        variance = torch.where(active, floor / leading, 1.0)
        model.decoder.weight.copy_(eigenvectors[:, :latent_dim] * gain)
        model.decoder.bias.copy_(center)
        model.encoder.linear.weight.copy_((eigenvectors[:, :latent_dim] * (gain / leading)).T)
        model.encoder.linear.bias.copy_(-model.encoder.linear.weight @ center)
        model.encoder.log_scale.copy_(0.5 * variance.log())
        return model

    def _variance(self) -> Tensor:
        """Variance of the decoder in the precision of the weights (a float must not pass through float32)."""
        return torch.as_tensor(self.likelihood.scale, dtype=self.weight.dtype, device=self.weight.device) ** 2


def _principal_components(x: Tensor, latent_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues (D,), descending, and eigenvectors (D, D) of the biased covariance, and the mean (D,)."""
    if x.ndim != 2 or len(x) < 2 or not x.is_floating_point():
        raise ValueError(f"x must be a floating point matrix (N, D), N >= 2, got {x.dtype} {tuple(x.shape)}")
    if not 1 <= latent_dim < x.shape[1]:
        raise ValueError(f"latent_dim must lie in 1 ... {x.shape[1] - 1}, got {latent_dim}")
    check_finite(x=x)
    x = x.double()
    eigenvalues, eigenvectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    return eigenvalues.flip(0), eigenvectors.flip(1), x.mean(0)
