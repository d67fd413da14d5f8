"""Which likelihood, scale and beta a loss assumes, found by probing it: its source is never read."""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaecourse._probing import FORM, LossError, LossFn, Probe, Prober

Reading = Callable[[Tensor, Tensor], Tensor]

_TOLERANCE = 1e-4  # largest relative misfit of a gradient; constants such as log(p + 1e-8) stay below it
_PLACES = {"loc": "location", "probabilities": "probabilities", "logits": "logits"}

# Gradient with respect to recon_x (r) that each reading of the reconstruction term has, up to a factor.
_RECONSTRUCTIONS: dict[tuple[str, str], Reading] = {
    ("gaussian", "loc"): lambda r, x: r - x,
    ("laplace", "loc"): lambda r, x: (r - x).sign(),
    ("bernoulli", "probabilities"): lambda r, x: (r - x) / (r * (1 - r)),
    ("bernoulli", "logits"): lambda r, x: r.sigmoid() - x,
    ("gaussian", "logits"): lambda r, x: (r.sigmoid() - x) * r.sigmoid() * (1 - r.sigmoid()),
    ("laplace", "logits"): lambda r, x: (r.sigmoid() - x).sign() * r.sigmoid() * (1 - r.sigmoid()),
}
# The same for readings that are mistakes, with their names.
_MISTAKES: dict[str, Reading] = {
    "cross-entropy with prediction and target exchanged": lambda r, x: (
        (1 - x).log().clamp(min=-100) - x.log().clamp(min=-100)
    ),
}
# Gradient with respect to logvar (v) for each meaning that code may give it; that of mu is mu itself.
_KL_READINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "log-variance": lambda v: 0.5 * v.expm1(),
    "log-scale": lambda v: (2 * v).expm1(),
    "variance": lambda v: 0.5 * (1 - 1 / v),
    "scale": lambda v: v - 1 / v,
}


@dataclass(frozen=True)
class LossDiagnosis:
    """What a loss turned out to assume.

    Attributes
    ----------
    family : str
        Likelihood whose negative logarithm the reconstruction term is: "gaussian",
        "bernoulli", "laplace", or "unknown" where it is none of them.
    scale : float or None
        Standard deviation (gaussian) or scale b (laplace) that makes the loss the
        negative ELBO with beta = 1; None for other families and without a valid KL term.
    beta : float or None
        Weight of the KL term relative to the negative log-likelihood: of the Bernoulli,
        of a Gaussian with standard deviation 1, or of a Laplace with scale 1.
    parameterization : str or None
        What `recon_x` is: "loc", "probabilities" or "logits".
    batch_reduction : str
        "mean" or "sum" over the examples; if the terms differ or follow another rule, which.
    is_elbo : bool
        Whether the loss is the negative ELBO up to an additive constant and a positive
        factor, at the implied scale; for a Bernoulli that needs beta = 1.
    kl_fault : str or None
        What is wrong with the KL term; None if it is one.
    recon_weight, kl_weight : float or None
        Factors of the squared error (absolute error, cross-entropy) summed over an
        example, and of the KL divergence summed over the latents, per example.
    num_active : int or None
        Latents that a linear VAE with this objective uses on the given data or spectrum.
    evidence : tuple of str
        What was observed, in sentences.
    """

    family: str
    scale: float | None
    beta: float | None
    parameterization: str | None
    batch_reduction: str
    is_elbo: bool
    kl_fault: str | None
    recon_weight: float | None
    kl_weight: float | None
    num_active: int | None
    evidence: tuple[str, ...]

    def explain(self) -> str:
        """Say in a few sentences what the loss assumes.

        Returns
        -------
        str
            One finding a line.
        """
        return "\n".join([self._verdict(), *self.evidence])

    def _verdict(self) -> str:
        if self.family == "unknown":
            return "This is not a negative ELBO with a Gaussian, Laplace or Bernoulli likelihood."
        name = self.family.capitalize()
        if self.kl_fault is not None:
            return f"{name} reconstruction term, but no valid KL term: {self.kl_fault}."
        if self.family == "bernoulli":
            meaning = "the negative ELBO" if self.is_elbo else f"a beta-VAE objective, beta = {self.beta:.6g}"
            return f"With a Bernoulli likelihood this is {meaning}, up to a factor and a constant."
        symbol = "standard deviation" if self.family == "gaussian" else "scale b"
        return (
            f"This is the negative ELBO of a {name} likelihood with {symbol} {self.scale:.6g}, up to a "
            f"factor and a constant; seen from {symbol} 1, its beta is {self.beta:.6g}."
        )

    def _repr_html_(self) -> str:
        rows = {
            "likelihood": self.family,
            "recon_x is": self.parameterization or "unknown",
            "implied scale": "none" if self.scale is None else f"{self.scale:.6g}",
            "beta": "none" if self.beta is None else f"{self.beta:.6g}",
            "KL term": self.kl_fault or "valid",
            "over the batch": self.batch_reduction,
            "negative ELBO": "yes" if self.is_elbo else "no",
        }
        body = "".join(
            f"<tr><th scope='row'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in rows.items()
        )
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self.explain().split("\n"))
        return f"<table>{body}</table>{lines}"


def diagnose_loss(
    loss_fn: LossFn,
    *,
    data_dim: int,
    latent_dim: int,
    batch_size: int = 8,
    data: Tensor | None = None,
    eigenvalues: Tensor | None = None,
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
    eigenvalues : Tensor, shape (data_dim,), optional
        Eigenvalues of their covariance instead.
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
    spectrum = _spectrum(data, eigenvalues, data_dim)
    prober = Prober(loss_fn, data_dim, latent_dim, batch_size, seed)
    evidence: list[str] = []
    family, parameterization, recon_factor = _read_reconstruction(prober, evidence)
    kl_fault, kl_factor = _read_kl(prober, evidence)
    rules = _read_batch(prober, family, parameterization, kl_fault, evidence)
    recon_weight = _weight_per_example(recon_factor, rules.get("reconstruction"), batch_size)
    if family == "gaussian" and recon_weight is not None:
        recon_weight /= 2  # the derivative of a square has a factor 2
    kl_weight = _weight_per_example(kl_factor, rules.get("KL"), batch_size)
    scale = beta = None
    if recon_factor is not None and kl_factor is not None:
        beta = kl_factor / recon_factor  # for a Gaussian of scale 1, whose squared error has the weight 1/2
        scale = {"gaussian": math.sqrt(beta), "laplace": beta}.get(family)
    is_elbo = beta is not None
    if family == "bernoulli":  # no scale to absorb another ratio of the weights, at any batch size
        is_elbo = beta is not None and abs(beta - 1) < 10 * _TOLERANCE and len(set(rules.values())) < 2
    _explain_weights(evidence, family, recon_weight, kl_weight, data_dim, latent_dim)
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
        batch_reduction=_name_rules(rules),
        is_elbo=is_elbo,
        kl_fault=kl_fault,
        recon_weight=recon_weight,
        kl_weight=kl_weight,
        num_active=num_active,
        evidence=tuple(evidence),
    )


# --- reading the gradients -------------------------------------------------------------------------------


def _fit(gradient: Tensor, target: Tensor) -> tuple[float, float]:
    """Best factor of `target`, and the relative misfit that remains."""
    factor = (gradient * target).sum() / target.square().sum()
    misfit = (gradient - factor * target).norm() / gradient.norm()
    return float(factor), float(misfit)


def _fits(misfit: float) -> bool:
    return misfit <= _TOLERANCE  # False for NaN


def _recon_fit(probes: list[Probe], reading: Reading) -> tuple[float, float]:
    gradient = torch.cat([p.by_recon.flatten() for p in probes])
    return _fit(gradient, torch.cat([reading(p.recon_x, p.x).flatten() for p in probes]))


def _read_reconstruction(prober: Prober, evidence: list[str]) -> tuple[str, str | None, float | None]:
    """Family, meaning of recon_x, and factor of the reconstruction term's gradient."""
    for (family, parameterization), reading in _RECONSTRUCTIONS.items():
        factor, misfit = _recon_fit(prober.probes, reading)
        if not _fits(misfit):
            continue
        name, place = family.capitalize(), _PLACES[parameterization]
        if factor < 0:
            evidence.append(
                f"The reconstruction term is a {name} log-likelihood, not its negative: minimising it drives "
                "recon_x away from x. If the loss is meant to be maximised, diagnose its negative."
            )
            return "unknown", None, None
        if prober.larger is not None and not _fits(_recon_fit([prober.larger], reading)[1]):
            evidence.append("The reconstruction term mixes the examples of a batch.")
            return "unknown", None, None
        if parameterization != "probabilities" and not _holds_beyond(
            prober, reading, parameterization, factor
        ):
            evidence.append(
                f"For recon_x between 0 and 1 the reconstruction term is {name}, recon_x being its {place}, "
                "but not beyond: it changes its form for large errors (Huber-like) or clips recon_x."
            )
            return "unknown", None, None
        evidence.append(
            f"The gradient with respect to recon_x is that of a {name} likelihood, recon_x being its {place} "
            f"(relative misfit {misfit:.0e})."
        )
        return family, parameterization, factor
    evidence.append(_describe_misfit(prober.probes))
    return "unknown", None, None


def _holds_beyond(prober: Prober, reading: Reading, parameterization: str, factor: float) -> bool:
    """Whether a reading also holds for recon_x far from (0, 1)."""
    try:
        probe = prober.probe(parameterization)
    except LossError:
        return True  # it refuses such recon_x, so there is nothing more to read
    found, misfit = _recon_fit([probe], reading)
    return _fits(misfit) and math.isclose(found, factor, rel_tol=10 * _TOLERANCE)


def _describe_misfit(probes: list[Probe]) -> str:
    for name, reading in _MISTAKES.items():
        if _fits(_recon_fit(probes, reading)[1]):
            return f"The reconstruction term is {name}."
    gradient = torch.cat([p.by_recon for p in probes])
    misfits = {}
    for (family, parameterization), reading in _RECONSTRUCTIONS.items():
        name = f"{family.capitalize()} likelihood with recon_x as its {_PLACES[parameterization]}"
        if all(_fits(_recon_fit([p], reading)[1]) for p in probes):
            return (
                f"The gradient with respect to recon_x is that of a {name}, times a factor that changes with "
                "the size of the error: a function of it, such as its logarithm (profile likelihood) or root."
            )
        target = torch.cat([reading(p.recon_x, p.x) for p in probes])
        weights = (gradient * target).sum(0) / target.square().sum(0)  # one for each number of an example
        if _fits(float((gradient - weights * target).norm() / gradient.norm())):
            return (
                f"Each number of recon_x has the gradient of a {name}, but with weights that differ between "
                "the numbers of an example."
            )
        misfits[name] = _recon_fit(probes, reading)[1]
    nearest = min(misfits, key=lambda name: misfits[name])
    return (
        f"The gradient with respect to recon_x fits no likelihood; the nearest, a {nearest}, misses it by "
        f"{misfits[nearest]:.2g} of its size."
    )


def _kl_fit(probes: list[Probe], reading: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    gradient = torch.cat([t.flatten() for p in probes for t in (p.by_mu, p.by_logvar)])
    return _fit(gradient, torch.cat([t.flatten() for p in probes for t in (p.mu, reading(p.logvar))]))


def _read_kl(prober: Prober, evidence: list[str]) -> tuple[str | None, float | None]:
    """Fault of the KL term, or else its factor."""
    ignored = [
        name for name in ("mu", "logvar") if not any(getattr(p, f"by_{name}").any() for p in prober.probes)
    ]
    if ignored:
        evidence.append(f"The loss does not depend on {' and '.join(ignored)}.")
        return ("missing" if len(ignored) == 2 else f"malformed: it ignores {ignored[0]}"), None
    for meaning, reading in _KL_READINGS.items():
        fits = [_kl_fit(probes, reading) for probes in prober.regions.values()]
        if not all(_fits(misfit) for _, misfit in fits):
            continue
        factors = [factor for factor, _ in fits]
        if not all(math.isclose(factor, factors[0], rel_tol=10 * _TOLERANCE) for factor in factors):
            evidence.append(
                "The weight of the KL term changes with its size: free bits, a capacity, or a root."
            )
            return "malformed: a function of the KL", None
        if prober.larger is not None and not _fits(_kl_fit([prober.larger], reading)[1]):
            evidence.append("The KL term mixes the examples of a batch.")
            return "malformed: it mixes examples", None
        if factors[0] < 0:
            evidence.append("Minimising the loss drives the posterior away from the prior.")
            return "wrong sign", None
        if meaning != "log-variance":
            evidence.append(
                f"The KL term is right if the last argument is the {meaning}, not the log-variance."
            )
            return f"takes logvar for the {meaning}", None
        return None, factors[0]
    return _describe_kl_misfit(prober.probes, evidence), None


def _describe_kl_misfit(probes: list[Probe], evidence: list[str]) -> str:
    mu, logvar, by_mu, by_logvar = (
        torch.cat([getattr(p, name).flatten() for p in probes])
        for name in ("mu", "logvar", "by_mu", "by_logvar")
    )
    mu_factor, mu_misfit = _fit(by_mu, mu)
    log_factor, log_misfit = _fit(by_logvar, _KL_READINGS["log-variance"](logvar))
    parts = [name for name, misfit in (("mu", mu_misfit), ("logvar", log_misfit)) if not _fits(misfit)]
    if not parts:
        evidence.append(f"mu has the weight {mu_factor:.6g}, logvar {log_factor:.6g}; a KL has one for both.")
        return "malformed: mu and logvar have different weights"
    evidence.append(
        f"The gradient with respect to {' and '.join(parts)} is not everywhere that of the KL divergence of "
        "a diagonal Gaussian from N(0, I); a clamp, free bits or another prior would do that."
    )
    return f"malformed: wrong dependence on {' and '.join(parts)}"


def _read_batch(
    prober: Prober, family: str, parameterization: str | None, kl_fault: str | None, evidence: list[str]
) -> dict[str, str]:
    """How the batch is reduced in each term that is understood."""
    if prober.larger is None:
        evidence.append(
            f"The loss accepts batches of {prober.batch_size} only; how it reduces them is not seen."
        )
        return {}
    pair, rules = (prober.probes[0], prober.larger), {}
    if parameterization is not None:
        reading = _RECONSTRUCTIONS[family, parameterization]
        rules["reconstruction"] = _batch_rule(*(_recon_fit([p], reading)[0] for p in pair))
    if kl_fault is None:
        reading_kl = _KL_READINGS["log-variance"]
        rules["KL"] = _batch_rule(*(_kl_fit([p], reading_kl)[0] for p in pair))
    if len(set(rules.values())) == 2:
        evidence.append(
            f"Over the batch the loss takes the {_name_rules(rules)}, so that beta changes with the batch "
            f"size; the values are for {prober.batch_size} examples."
        )
    return rules


def _name_rules(rules: dict[str, str]) -> str:
    if len(set(rules.values())) == 2:
        return ", ".join(f"{rule} of the {term} term" for term, rule in rules.items())
    return next(iter(rules.values()), "unknown")


def _weight_per_example(factor: float | None, rule: str | None, batch_size: int) -> float | None:
    """Weight in the loss of one example, where the reduction over the batch is known."""
    if factor is None or rule not in ("mean", "sum"):
        return None
    return factor * batch_size if rule == "mean" else factor


def _batch_rule(factor: float, doubled: float) -> str:
    """Reduction that changes a factor like this when the batch is doubled."""
    for name, expected in (("sum", 1.0), ("mean", 0.5)):
        if math.isclose(doubled / factor, expected, rel_tol=10 * _TOLERANCE):
            return name
    return f"reduction with the factor {doubled / factor:.3g} for a batch of twice the size"


def _explain_weights(
    evidence: list[str],
    family: str,
    recon_weight: float | None,
    kl_weight: float | None,
    data_dim: int,
    latent_dim: int,
) -> None:
    """Append what the weights are, and which habit of writing code gives such weights."""
    error = {"gaussian": "squared error", "laplace": "absolute error", "bernoulli": "cross-entropy"}.get(
        family
    )
    if error is not None and recon_weight is not None:
        habits = {1.0: "a sum over the example", 1 / data_dim: f"a mean over its {data_dim} numbers"}
        evidence.append(_weight_sentence(f"summed {error}", recon_weight, habits))
    if kl_weight is not None and kl_weight > 0:
        habits = {
            1.0: "the closed form as it is",
            2.0: "perhaps a missing 1/2",
            1 / latent_dim: f"a mean over its {latent_dim} latents",
            1 / data_dim: "a division by the numbers of an example",
        }
        evidence.append(_weight_sentence("KL divergence, summed over the latents,", kl_weight, habits))


def _weight_sentence(name: str, weight: float, habits: dict[float, str]) -> str:
    causes = [cause for value, cause in habits.items() if math.isclose(weight, value, rel_tol=_TOLERANCE)]
    return f"The {name} has the weight {weight:.6g}" + (f" ({causes[0]})." if causes else ".")


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


def _spectrum(data: Tensor | None, eigenvalues: Tensor | None, data_dim: int) -> Tensor | None:
    if data is not None and eigenvalues is not None:
        raise ValueError("give data or eigenvalues, not both")
    name, given = ("data", data) if eigenvalues is None else ("eigenvalues", eigenvalues)
    if given is None:
        return None
    if not isinstance(given, Tensor) or given.layout != torch.strided or not given.is_floating_point():
        kind = f"{given.dtype} tensor" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"{name} must be a dense floating point tensor, got a {kind}")
    if eigenvalues is not None and eigenvalues.shape != (data_dim,):
        raise ValueError(f"eigenvalues must have shape ({data_dim},), got {tuple(eigenvalues.shape)}")
    if data is not None and (data.ndim != 2 or data.shape[1] != data_dim or len(data) < 2):
        raise ValueError(f"data must have shape (N, {data_dim}), N >= 2, got {tuple(data.shape)}")
    if not given.isfinite().all():
        raise ValueError(f"{name} must be finite: remove NaN and infinite values")
    if eigenvalues is not None:
        return eigenvalues
    spectrum: Tensor = torch.linalg.eigvalsh(torch.cov(given.double().T, correction=0))
    return spectrum
