"""Which likelihood, scale and beta a loss assumes, found by probing it: its source is never read.

``probing`` takes values and gradients at random points, ``reading`` finds the terms in them, and
``explaining`` says what was found.
"""

import dataclasses
import numbers
from dataclasses import dataclass

import torch
from torch import Tensor

from vaecourse.diagnosis.explaining import (
    LossDiagnosis,
    advise,
    say_active,
    say_batch,
    say_call,
    say_divergence,
    say_parameters,
    say_reconstruction,
    say_verdict,
    say_weights,
)
from vaecourse.diagnosis.probing import (
    FORM,
    Experiment,
    LossFn,
    Prober,
    bind,
    random_loss,
    run_experiment,
    unchanged_buffers,
)
from vaecourse.diagnosis.reading import (
    POSTERIORS,
    Divergence,
    Reconstruction,
    judge,
    read_divergence,
    read_parameters,
    read_reconstruction,
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
    posterior: str | None = None,
    output: str | int | None = None,
) -> LossDiagnosis:
    """Likelihood, scale and beta that a loss assumes, from its derivatives at random points.

    Implements: ``a * SSE + w * KL = w * (SSE / (2 * scale**2) + KL)`` with ``scale**2 = w / (2 * a)``,
    where a and w are fitted to the gradients, and every reading must fit them all.

    Parameters
    ----------
    loss_fn : callable
        ``loss_fn(recon_x, x, mu, logvar)``, a scalar to be minimised; called on random tensors only.
        Other names and orders are recognised by the names of the arguments, or tried; arguments
        with defaults keep them.
    data_dim, latent_dim : int
        Numbers per example D and latents K, as the loss expects them.
    batch_size : int
        Examples in a probe; matters only to losses that reduce their terms differently.
    data : Tensor, floating point, shape (N, data_dim), optional
        Data whose active latents are to be predicted.
    seed : int
        Of the random points.
    posterior : {"logvar", "log_scale", "scale", "variance", "fixed"}, optional
        What the fourth argument is.  It is found out; if it is stated, another finding is a fault.
    output : str or int, optional
        Key, index or attribute of the loss in what `loss_fn` returns, where that is not one tensor;
        "loss" or the first scalar is taken otherwise.

    Returns
    -------
    LossDiagnosis
        Findings and evidence; family "unknown" where the reconstruction term is that of no
        likelihood that is known here.

    Raises
    ------
    ValueError
        If an argument is unusable, or the loss fails, is random, returns no finite
        differentiable scalar, or ignores `recon_x` or `x`.

    Notes
    -----
    x is drawn from [0, 1], and recon_x from there and beyond: up to 10, as logits from -8 to 8, as
    probabilities from 0.02 to 0.98.  A cross-entropy for another range is read when a lambda
    rescales both; a squared or absolute error needs no rescaling, which would only change the unit
    of its scale.  Nothing is seen of thresholds outside these bounds, of clamps on logvar outside
    -6 to 4 (sigma or variance outside 0.05 to 50), or of terms below 1e-3 of the others.  Trainable
    parameters of the loss are moved a little and put back.  Losses in half precision fit nothing:
    diagnose them in float32.

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
    _check_arguments(loss_fn, seed, posterior)
    data_dim, latent_dim = _check_size("data_dim", data_dim), _check_size("latent_dim", latent_dim)
    batch_size = _check_size("batch_size", batch_size)
    spectrum = _spectrum(data, data_dim)
    prober = Prober(loss_fn, bind(loss_fn), data_dim, latent_dim, batch_size, seed, output)
    with torch.inference_mode(False), torch.enable_grad(), unchanged_buffers(loss_fn):
        terms = _read(prober, posterior)
        return _diagnose(loss_fn, terms, spectrum)


@dataclass(frozen=True)
class _Terms:
    """Both terms of a loss, and the experiment that shows them."""

    experiment: Experiment
    reconstruction: Reconstruction
    divergence: Divergence


def _read(prober: Prober, posterior: str | None) -> _Terms:
    """Read both terms; where a term is not read and no name forbids it, with its arguments exchanged."""
    experiment = run_experiment(prober)
    terms = _Terms(experiment, read_reconstruction(experiment), read_divergence(experiment, posterior))
    pairs = []
    if terms.reconstruction.family == "unknown" and not prober.binding.is_recon_settled:
        pairs.append(("recon_x", "x"))
    if terms.divergence.kind == "exchanged" and not prober.binding.is_posterior_settled:
        pairs.append(("mu", "logvar"))
    for chosen in [pairs, *([pair] for pair in pairs if len(pairs) > 1)]:
        if not chosen:
            continue
        try:
            other = _read_once(prober, chosen, posterior)
        except ValueError:  # the usual order is at least possible
            continue
        if all(
            other.reconstruction.is_known if pair[0] == "recon_x" else other.divergence.fault is None
            for pair in chosen
        ):
            terms = other
            break
    experiment = terms.experiment
    if experiment.is_recon_random or (
        experiment.is_random and terms.divergence.kind not in ("single_draw", "noise")
    ):
        again = experiment.prober.evaluate(experiment.probes[0].point, noise=1)
        raise random_loss(experiment.probes[0], again)
    return terms


def _read_once(prober: Prober, pairs: list[tuple[str, str]], posterior: str | None) -> _Terms:
    binding = prober.binding.exchanged(*pairs)
    experiment = run_experiment(dataclasses.replace(prober, binding=binding))
    return _Terms(experiment, read_reconstruction(experiment), read_divergence(experiment, posterior))


def _diagnose(loss_fn: LossFn, terms: _Terms, spectrum: Tensor | None) -> LossDiagnosis:
    experiment, recon, kl = terms.experiment, terms.reconstruction, terms.divergence
    prober = experiment.prober
    parameters = read_parameters(experiment, loss_fn, recon, kl)
    found = judge(recon, kl, parameters, prober.batch_size)
    num_active = None
    form = (recon.family, recon.parameterization, recon.kind)
    if spectrum is not None and form == ("gaussian", "loc", "read") and found.beta:
        num_active = min(int((spectrum > found.beta).sum()), prober.latent_dim)
    evidence = [
        *say_reconstruction(recon, prober.data_dim),
        *say_divergence(kl),
        *say_weights(recon.family, found, prober.data_dim, prober.latent_dim),
        *say_batch(found, prober.batch_size, experiment.larger is not None),
        *say_parameters(parameters, found.trained_beta),
        *say_call(experiment),
        *say_active(num_active, prober.latent_dim, found.beta),
    ]
    is_read = (recon.factor is not None and kl.fault is None) or kl.kind == "missing"
    return LossDiagnosis(
        family=recon.family,
        scale=found.scale,
        beta=found.beta,
        parameterization="probabilities" if recon.parameterization == "symmetric" else recon.parameterization,
        posterior=kl.posterior,
        batch_reduction=found.batch_reduction if is_read else "unknown",
        is_elbo=found.is_elbo,
        kl_fault=kl.fault,
        recon_weight=found.recon_weight,
        kl_weight=found.kl_weight,
        num_active=num_active,
        verdict=say_verdict(recon, kl, found),
        evidence=tuple(evidence),
        advice=tuple(advise(recon, kl, found)),
    )


def _check_size(name: str, size: object) -> int:
    if isinstance(size, bool) or not isinstance(size, numbers.Integral) or int(size) < 1:
        raise ValueError(f"{name} must be a positive integer, got {size!r}")
    return int(size)


def _check_arguments(loss_fn: object, seed: object, posterior: object) -> None:
    if isinstance(loss_fn, type) or not callable(loss_fn):
        raise ValueError(f"loss_fn must be a function or an instance, got {loss_fn!r}; expected {FORM}")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r}")
    if posterior is not None and posterior not in POSTERIORS:
        raise ValueError(f"posterior must be one of {', '.join(POSTERIORS)}, or None, got {posterior!r}")


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
