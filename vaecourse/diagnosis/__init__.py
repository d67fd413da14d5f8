"""Which likelihood, scale and beta a loss assumes, found by probing it: its source is never read.

``probing`` takes values and gradients at random points, ``reading`` finds the terms in them, and
``explaining`` says what was found.
"""

import math

import torch
from torch import Tensor

from vaecourse.diagnosis.explaining import LossDiagnosis, explain_weights
from vaecourse.diagnosis.probing import FORM, LossFn, Prober
from vaecourse.diagnosis.reading import (
    TOLERANCE,
    name_rules,
    read_batch,
    read_kl,
    read_reconstruction,
    weight_per_example,
)

__all__ = ["LossDiagnosis", "diagnose_loss"]


def diagnose_loss(
    loss_fn: LossFn,
    *,
    data_dim: int,
    latent_dim: int,
    batch_size: int = 8,
    data: Tensor | None = None,
    seed: int = 0,
) -> LossDiagnosis:
    """Likelihood, scale and beta that a loss assumes, from its derivatives at random points.

    Implements: ``a * SSE + w * KL = w * (SSE / (2 * scale**2) + KL)`` with ``scale**2 = w / (2 * a)``,
    where a and w are fitted to the gradients, and every reading must fit them all.

    Parameters
    ----------
    loss_fn : callable
        ``loss_fn(recon_x, x, mu, logvar)``, a scalar to be minimised; called on random tensors only.
    data_dim, latent_dim : int
        Numbers per example D and latents K, as the loss expects them.
    batch_size : int
        Examples in a probe; matters only to losses that reduce their terms differently.
    data : Tensor, floating point, shape (N, data_dim), optional
        Data whose active latents are to be predicted.
    seed : int
        Of the random points.

    Returns
    -------
    LossDiagnosis
        Findings and evidence; family "unknown" where the reconstruction term fits no likelihood.

    Raises
    ------
    ValueError
        If an argument is unusable, or the loss fails, is random, returns no finite
        differentiable scalar, or ignores `recon_x` or `x`.

    Notes
    -----
    Data are taken to lie in [0, 1]; wrap a loss for other data in a lambda that rescales.
    Nothing is seen of a threshold on errors above 10, of clamps on logvar outside -6 to 4, or of
    terms below 1e-4 of the others.  Losses in half precision fit nothing: diagnose them in float32.

    References
    ----------
    The equivalence of weights and variance: the page "Losses in the wild"; active latents: chapter 2.

    Examples
    --------
    >>> def loss_fn(recon_x, x, mu, logvar):
    ...     kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)
    ...     return (recon_x - x).square().mean() + kl.mean()
    >>> diagnosis = diagnose_loss(loss_fn, data_dim=784, latent_dim=20)
    >>> diagnosis.family, round(diagnosis.scale**2, 6)  # mean over pixels: half of 784
    ('gaussian', 392.0)
    """
    _check_arguments(loss_fn, data_dim, latent_dim, batch_size, seed)
    spectrum = _spectrum(data, data_dim)
    prober = Prober(loss_fn, data_dim, latent_dim, batch_size, seed)
    evidence: list[str] = []
    family, parameterization, recon_factor = read_reconstruction(prober, evidence)
    kl_fault, kl_factor = read_kl(prober, evidence)
    rules = read_batch(prober, family, parameterization, kl_fault, evidence)
    recon_weight = weight_per_example(recon_factor, rules.get("reconstruction"), batch_size)
    if family == "gaussian" and recon_weight is not None:
        recon_weight /= 2  # the derivative of a square has a factor 2
    kl_weight = weight_per_example(kl_factor, rules.get("KL"), batch_size)
    scale = beta = None
    if recon_factor is not None and kl_factor is not None:
        beta = kl_factor / recon_factor  # for a Gaussian of scale 1, whose squared error has the weight 1/2
        scale = {"gaussian": math.sqrt(beta), "laplace": beta}.get(family)
    is_elbo = beta is not None
    if family == "bernoulli":  # no scale to absorb another ratio of the weights, at any batch size
        is_elbo = beta is not None and abs(beta - 1) < 10 * TOLERANCE and len(set(rules.values())) < 2
    explain_weights(evidence, family, recon_weight, kl_weight, data_dim, latent_dim)
    num_active = None
    if spectrum is not None and family == "gaussian" and parameterization == "loc" and beta is not None:
        num_active = min(int((spectrum > beta).sum()), latent_dim)
        evidence.append(
            f"A linear VAE would use {num_active} of its {latent_dim} latents: those whose eigenvalue of "
            f"the data's covariance exceeds the variance {beta:.6g}."
        )
    return LossDiagnosis(
        family=family,
        scale=scale,
        beta=beta,
        parameterization=parameterization,
        batch_reduction=name_rules(rules),
        is_elbo=is_elbo,
        kl_fault=kl_fault,
        recon_weight=recon_weight,
        kl_weight=kl_weight,
        num_active=num_active,
        evidence=tuple(evidence),
    )


def _check_arguments(
    loss_fn: object, data_dim: object, latent_dim: object, batch_size: object, seed: object
) -> None:
    if isinstance(loss_fn, type) or not callable(loss_fn):
        raise ValueError(f"loss_fn must be a function or an instance, got {loss_fn!r}; expected {FORM}")
    sizes = {"data_dim": data_dim, "latent_dim": latent_dim, "batch_size": batch_size}
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r}")


def _spectrum(data: Tensor | None, data_dim: int) -> Tensor | None:
    """Eigenvalues of the covariance of the data."""
    if data is None:
        return None
    if not isinstance(data, Tensor) or data.layout != torch.strided or not data.is_floating_point():
        kind = f"{data.dtype} tensor" if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"data must be a dense floating point tensor, got a {kind}")
    if data.ndim != 2 or data.shape[1] != data_dim or len(data) < 2:
        raise ValueError(f"data must have shape (N, {data_dim}), N >= 2, got {tuple(data.shape)}")
    if not data.isfinite().all():
        raise ValueError("data must be finite: remove NaN and infinite values")
    spectrum: Tensor = torch.linalg.eigvalsh(torch.cov(data.double().T, correction=0))
    return spectrum
