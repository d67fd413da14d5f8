"""What a trained model is worth: its bound, its likelihood, and how many of its latents it uses."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vaecourse._checks import as_tensor, check_count, check_finite
from vaecourse.objectives import ElboTerms, LatentVariableModel, elbo_terms, log_importance_weights


@dataclass(frozen=True)
class NllEstimate:
    """Importance-weighted estimate of the mean negative log-likelihood.

    Attributes
    ----------
    nats : float
        Mean over the images of ``-importance_weighted_bound``: its expectation is never too low.
    standard_error : float
        Monte Carlo standard error of `nats` for these images (delta method): what another
        seed would change.
    num_samples : int
        Importance samples per image.
    num_images : int
        Images averaged over.
    per_image : Tensor, shape (num_images,)
        The estimate for each image, in nats.
    """

    nats: float
    standard_error: float
    num_samples: int
    num_images: int
    per_image: Tensor

    @property
    def sampling_error(self) -> float | None:
        """Standard error of `nats` as an estimate for the population that the images come from.

        Returns
        -------
        float or None
            Nats; usually far above `standard_error`.  None for a single image, which says nothing
            about how images differ.
        """
        if self.num_images < 2:
            return None
        return float(self.per_image.std()) / math.sqrt(self.num_images)


@dataclass(frozen=True)
class ActiveUnits:
    """How much each latent's posterior mean varies over the data.

    Attributes
    ----------
    variances : Tensor, shape (latent_dim,)
        Variance over x of the mean of q(z|x): 0 for a latent that ignores the data.
    threshold : float
        Variance above which a latent counts as active.
    """

    variances: Tensor
    threshold: float

    @property
    def count(self) -> int:
        """Number of active latents.

        Returns
        -------
        int
            At most latent_dim.
        """
        return int((self.variances > self.threshold).sum())


@torch.no_grad()
def evaluate_elbo(
    model: LatentVariableModel,
    x: Tensor,
    *,
    num_samples: int = 1,
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
) -> ElboTerms:
    """Both terms of the ELBO for every example, computed in batches without gradients.

    Parameters
    ----------
    model : LatentVariableModel
        In evaluation mode.
    x : Tensor or array, shape (N, *event)
        Data, at least one example.
    num_samples, batch_size : int
        Draws of z per example; examples at a time.
    generator : torch.Generator, optional
        Source of the noise, on the device of `x`; the global one if left out.

    Returns
    -------
    ElboTerms
        Shape (N,) each, in nats.

    Raises
    ------
    ValueError
        If `x` is empty, a size is below 1, or the model is in training mode.

    Examples
    --------
    >>> from vaecourse.linear_vae import LinearVAE
    >>> evaluate_elbo(LinearVAE(data_dim=3, latent_dim=2).eval(), torch.zeros(5, 3)).kl.shape
    torch.Size([5])
    """
    x = _checked(model, x, batch_size)
    terms = [
        elbo_terms(model, batch, num_samples=num_samples, generator=generator)
        for batch in torch.split(x, batch_size)
    ]
    return ElboTerms(nll=torch.cat([t.nll for t in terms]), kl=torch.cat([t.kl for t in terms]))


@torch.no_grad()
def nll_estimate(
    model: LatentVariableModel,
    x: Tensor,
    *,
    num_samples: int = 1000,
    batch_size: int = 20,
    chunk_size: int = 100,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> NllEstimate:
    """Mean negative log-likelihood per example by importance sampling, with its Monte Carlo error.

    Implements: ``nats = -mean over x of (logsumexp(log w) - log(num_samples))``.

    Memory is bounded by `batch_size` times `chunk_size`, whatever `num_samples`.

    Parameters
    ----------
    model : LatentVariableModel
        In evaluation mode.
    x : Tensor or array, shape (N, *event)
        Data, at least one example.
    num_samples : int
        Importance samples per example, at least 2 (one gives no standard error).
    batch_size, chunk_size : int
        Examples, and samples per example, at a time; 2,000 decoded images of 784 numbers fit into
        a processor's cache; five times as many took up to twice as long.
    generator : torch.Generator, optional
        Source of the noise, on the device of `x`; the global one if left out.
    progress : bool
        Whether to show a progress bar, if the output is a terminal.

    Returns
    -------
    NllEstimate
        Nats per example, with errors.

    Raises
    ------
    ValueError
        If `x` is empty, a size is out of range, or the model is in training mode.

    References
    ----------
    Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders (2016), section 5.

    Examples
    --------
    >>> from vaecourse.linear_vae import LinearVAE
    >>> estimate = nll_estimate(LinearVAE(data_dim=3, latent_dim=2).eval(), torch.zeros(5, 3), num_samples=8)
    >>> estimate.num_images, estimate.num_samples
    (5, 8)
    """
    check_count("num_samples", num_samples, least=2)
    check_count("chunk_size", chunk_size)
    x = _checked(model, x, batch_size)
    per_image, variances = [], []
    with tqdm(total=len(x), unit=" images", disable=None if progress else True) as bar:
        for batch in torch.split(x, batch_size):
            log_sum, log_sum_squares = _log_sums(model, batch, num_samples, chunk_size, generator)
            per_image.append(math.log(num_samples) - log_sum)
            # relative variance of a mean of k weights: sum(w**2) / sum(w)**2 - 1 / k
            log_ratio = log_sum_squares - 2 * log_sum + math.log(num_samples)
            variances.append(torch.expm1(log_ratio) / num_samples)
            bar.update(len(batch))
    nll, num_images = torch.cat(per_image), len(x)
    standard_error = math.sqrt(max(float(torch.cat(variances).sum()), 0.0)) / num_images
    return NllEstimate(float(nll.mean()), standard_error, num_samples, num_images, nll.cpu())


@torch.no_grad()
def active_units(
    model: LatentVariableModel, x: Tensor, *, threshold: float = 1e-2, batch_size: int = 1000
) -> ActiveUnits:
    """How many latents respond to the data, by the variance of their posterior means.

    Implements: ``A_j = Var over x of E_q(z|x)[z_j]``, active where ``A_j > threshold``.

    Parameters
    ----------
    model : LatentVariableModel
        In evaluation mode.
    x : Tensor or array, shape (N, *event)
        Data, at least two examples.
    threshold : float
        Variance above which a latent counts as active.
    batch_size : int
        Examples at a time.

    Returns
    -------
    ActiveUnits
        The variances and their count above the threshold.

    Raises
    ------
    ValueError
        If `x` holds fewer than two examples, a posterior mean is not finite, or the model is in
        training mode.

    References
    ----------
    Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders (2016), section 5.2.

    Examples
    --------
    >>> from vaecourse.linear_vae import LinearVAE
    >>> active_units(LinearVAE(data_dim=3, latent_dim=2).eval(), torch.zeros(5, 3)).count
    0
    """
    x = _checked(model, x, batch_size, least=0)
    if len(x) < 2:
        raise ValueError(f"a variance needs at least two examples, got {len(x)}")
    means = torch.cat([model.encode(batch)[0] for batch in torch.split(x, batch_size)]).cpu()
    check_finite(**{"the posterior mean": means})
    return ActiveUnits(means.double().var(dim=0, correction=0), threshold)


def nats_to_bits_per_dim(nats: float, data_dim: int, *, num_levels: float = 256) -> float:
    """Bits per dimension of integer data, from the nats of a density over the scaled data.

    Implements: ``bits = nats / (data_dim * log(2)) + log2(num_levels)``.

    Parameters
    ----------
    nats : float
        Negative log-density per example of data scaled as ``(k + u) / num_levels``.
    data_dim : int
        Dimension D of the data.
    num_levels : float
        The factor by which integers were divided: 256 after `datasets.dequantize`, 255 for
        data scaled by 255, 1 where `nats` is already the negative log of a probability.

    Returns
    -------
    float
        Bits per dimension; a bound on those of the integers for dequantised data only.

    Raises
    ------
    ValueError
        If `data_dim` is below 1 or `num_levels` not positive.

    References
    ----------
    Theis, van den Oord and Bethge, A note on the evaluation of generative models (2016), section 3.1.

    Examples
    --------
    >>> nats_to_bits_per_dim(0.0, 784)  # the uniform density on [0, 1]: 8 bits a pixel
    8.0
    """
    if data_dim < 1 or not num_levels > 0:
        raise ValueError(
            f"data_dim must be at least 1 and num_levels positive, got {data_dim} and {num_levels}"
        )
    return nats / (data_dim * math.log(2)) + math.log2(num_levels)


def _checked(model: LatentVariableModel, x: Tensor, batch_size: int, least: int = 1) -> Tensor:
    """Data as a tensor in the model's precision, for a model that is to be judged."""
    x = as_tensor("x", x)
    check_count("batch_size", batch_size)
    if x.ndim == 0 or len(x) < least:
        raise ValueError(f"x must hold at least one example, got shape {tuple(x.shape)}")
    if not isinstance(model, nn.Module):
        return x
    if model.training:
        raise ValueError(
            "the model is in training mode, where dropout and an optimal scale act: call model.eval() first"
        )
    weight = next(model.parameters(), x)
    return x.to(weight.dtype) if x.is_floating_point() and weight.is_floating_point() else x


def _log_sums(
    model: LatentVariableModel,
    x: Tensor,
    num_samples: int,
    chunk_size: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Logarithms of the sum of the weights and of their squares, each (batch,), gathered in chunks."""
    log_sum = torch.full((len(x),), -math.inf, device=x.device)
    log_sum_squares = log_sum.clone()
    for start in range(0, num_samples, chunk_size):
        count = min(chunk_size, num_samples - start)
        log_weights = log_importance_weights(model, x, num_samples=count, generator=generator)
        log_sum = torch.logaddexp(log_sum, log_weights.logsumexp(0))
        log_sum_squares = torch.logaddexp(log_sum_squares, (2 * log_weights).logsumexp(0))
    return log_sum, log_sum_squares
