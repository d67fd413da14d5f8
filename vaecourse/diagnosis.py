"""Which likelihood, scale and beta a loss assumes, found by probing it: its source is never read."""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaecourse._checks import check_finite

LossFn = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Reading = Callable[[Tensor, Tensor], Tensor]

FORM = (
    "loss_fn(recon_x, x, mu, logvar) -> scalar tensor, with recon_x and x of shape (batch, data_dim) "
    "and mu and logvar of shape (batch, latent_dim); wrap anything else in a lambda"
)
_TOLERANCE = 1e-4  # largest relative misfit of a gradient; constants such as log(p + 1e-8) stay below it

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
    "cross-entropy with prediction and target exchanged": lambda r, x: ((1 - x) / x).log(),
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
        If a size is not positive, both `data` and `eigenvalues` are given, or the loss fails, is
        random, returns no finite differentiable scalar, or ignores `recon_x` or `x`.

    References
    ----------
    The equivalence of weights and variance: chapter 3 of the course; active latents: chapter 2.

    Examples
    --------
    >>> def loss_fn(recon_x, x, mu, logvar):
    ...     kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)
    ...     return (recon_x - x).square().mean() + kl.mean()
    >>> diagnosis = diagnose_loss(loss_fn, data_dim=784, latent_dim=20)
    >>> diagnosis.family, round(diagnosis.scale**2, 6)  # mean over pixels: half of 784
    ('gaussian', 392.0)
    """
    if min(data_dim, latent_dim, batch_size) < 1:
        raise ValueError(f"sizes must be positive, got {data_dim=}, {latent_dim=}, {batch_size=}")
    spectrum = _spectrum(data, eigenvalues, data_dim)
    prober = _Prober(loss_fn, data_dim, latent_dim, batch_size, seed)
    evidence: list[str] = []
    family, parameterization, recon_factor = _read_reconstruction(prober, evidence)
    kl_fault, kl_factor = _read_kl(prober, evidence)
    reduction, per_example = _read_batch(prober, family, parameterization, kl_fault, evidence)
    half = 0.5 if family == "gaussian" else 1.0  # the derivative of a square has a factor 2
    recon_weight = None if recon_factor is None else half * recon_factor * per_example[0]
    kl_weight = None if kl_factor is None else kl_factor * per_example[1]
    scale = beta = None
    if recon_factor is not None and kl_factor is not None and kl_fault is None:
        beta = kl_factor / recon_factor  # for a Gaussian of scale 1, whose squared error has the weight 1/2
        scale = {"gaussian": math.sqrt(beta), "laplace": beta}.get(family)
    is_elbo = beta is not None and (family != "bernoulli" or abs(beta - 1) < _TOLERANCE)
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
        batch_reduction=reduction,
        is_elbo=is_elbo,
        kl_fault=kl_fault,
        recon_weight=recon_weight,
        kl_weight=kl_weight,
        num_active=num_active,
        evidence=tuple(evidence),
    )


# --- probing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Probe:
    """A random point, and value and gradients of the loss there."""

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
        return all(bool(g.isfinite().all()) for g in (self.value, self.by_recon, self.by_mu, self.by_logvar))


class _LossError(ValueError):
    """The loss raised an exception of its own."""


class _Prober:
    """Calls the loss at random points, in float64, or in float32 if it accepts nothing else."""

    def __init__(self, loss_fn: LossFn, data_dim: int, latent_dim: int, batch_size: int, seed: int) -> None:
        self.loss_fn, self.batch_size = loss_fn, batch_size
        self.data_dim, self.latent_dim = data_dim, latent_dim
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.is_logvar_positive = self._find_domain()
        self._check_repeatable()
        # errors of ordinary size, and small ones: a factor that depends on the error shows between them
        repeats = math.ceil(32 / (batch_size * min(data_dim, latent_dim)))  # tiny sizes fit by chance
        self.narrow = [
            self.probe(batch_size, region) for region in ("narrow", "close") for _ in range(repeats)
        ]
        self.larger = self.probe(2 * batch_size, "narrow")
        self._check_arguments_matter()

    def probe(self, batch_size: int, region: str) -> _Probe:
        """Gradients at a random point of a region; NaN or infinite ones are left for the caller to judge."""
        inputs = self._point(batch_size, region)
        wanted = [inputs[0], inputs[2], inputs[3]]
        for tensor in wanted:
            tensor.requires_grad_()
        with torch.enable_grad():
            loss = self._call(inputs)
        if not loss.requires_grad:
            raise ValueError(
                "the loss is not differentiable in any of its arguments (is something detached?); "
                f"expected {FORM}"
            )
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        found = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, gradients, strict=True)]
        return _Probe(*(t.detach().double() for t in [loss, *inputs, *found]))

    def _call(self, inputs: list[Tensor]) -> Tensor:
        """Value of the loss, of shape ()."""
        try:
            loss = self.loss_fn(*inputs)
        except Exception as error:
            raise _LossError(
                f"loss_fn raised {type(error).__name__}: {error}; it was called with batches of "
                f"{len(inputs[0])}, data_dim={self.data_dim}, latent_dim={self.latent_dim}; expected {FORM}"
            ) from error
        if not isinstance(loss, Tensor):
            raise ValueError(f"loss_fn returned a {type(loss).__name__}, not a tensor; expected {FORM}")
        if loss.numel() != 1:
            raise ValueError(f"loss_fn returned shape {tuple(loss.shape)}, not a scalar; expected {FORM}")
        return loss.reshape(())

    def _point(self, batch_size: int, region: str) -> list[Tensor]:
        """Draw recon_x, x, mu and logvar."""

        def uniform(low: float, high: float, dim: int) -> Tensor:
            return low + (high - low) * torch.rand(
                batch_size, dim, generator=self.generator, dtype=torch.float64
            )

        def normal(scale: float, dim: int) -> Tensor:
            return scale * torch.randn(batch_size, dim, generator=self.generator, dtype=torch.float64)

        x = uniform(0.05, 0.95, self.data_dim)
        if region == "narrow":
            recon_x = uniform(0.05, 0.95, self.data_dim)
        elif region == "close":
            recon_x = 0.9 * x + uniform(0.02, 0.08, self.data_dim)
        else:
            recon_x = normal(5.0, self.data_dim)
        logvar = (
            uniform(0.3, 2.0, self.latent_dim) if self.is_logvar_positive else normal(1.0, self.latent_dim)
        )
        return [t.to(self.dtype) for t in (recon_x, x, normal(1.0, self.latent_dim), logvar)]

    def _find_domain(self) -> tuple[torch.dtype, bool]:
        """Dtype, and whether logvar must be positive, with which the loss is a finite number."""
        failure: _LossError | None = None
        for dtype in (torch.float64, torch.float32):
            for is_logvar_positive in (False, True):
                self.dtype, self.is_logvar_positive = dtype, is_logvar_positive
                try:
                    if self.probe(self.batch_size, "narrow").is_finite:
                        return dtype, is_logvar_positive
                except _LossError as error:
                    failure = failure or error
        raise failure or ValueError(
            f"loss_fn or its gradient is NaN or infinite for pixels in (0, 1); expected {FORM}"
        )

    def _check_repeatable(self) -> None:
        point = self._point(self.batch_size, "narrow")
        first, second = (self._call(point).item() for _ in range(2))
        if not math.isclose(first, second, rel_tol=1e-6):
            raise ValueError(f"loss_fn is random: {first} and {second} for the same arguments; fix its noise")

    def _check_arguments_matter(self) -> None:
        if not self.narrow[0].by_recon.any():
            raise ValueError(f"loss_fn ignores recon_x (its gradient is zero); expected {FORM}")
        recon_x, x, mu, logvar = self._point(self.batch_size, "narrow")
        if self._call([recon_x, x, mu, logvar]).item() == self._call([recon_x, 1 - x, mu, logvar]).item():
            raise ValueError(f"loss_fn ignores x (another x gives the same value); expected {FORM}")


def _fit(gradient: Tensor, target: Tensor) -> tuple[float, float]:
    """Best factor of `target`, and the relative misfit that remains."""
    factor = (gradient * target).sum() / target.square().sum()
    misfit = (gradient - factor * target).norm() / gradient.norm()
    return float(factor), float(misfit)


# --- reading the gradients -------------------------------------------------------------------------------


def _recon_fit(probes: list[_Probe], reading: Reading) -> tuple[float, float]:
    gradient = torch.cat([p.by_recon.flatten() for p in probes])
    return _fit(gradient, torch.cat([reading(p.recon_x, p.x).flatten() for p in probes]))


def _read_reconstruction(prober: _Prober, evidence: list[str]) -> tuple[str, str | None, float | None]:
    """Family, meaning of recon_x, and factor of the reconstruction term's gradient."""
    for (family, parameterization), reading in _RECONSTRUCTIONS.items():
        factor, misfit = _recon_fit(prober.narrow, reading)
        if misfit > _TOLERANCE:
            continue
        if factor < 0:
            evidence.append(
                f"The reconstruction term is a {family} log-likelihood, not its negative: minimising it "
                "drives recon_x away from x. If the loss is meant to be maximised, diagnose its negative."
            )
            return "unknown", None, None
        if parameterization != "probabilities" and not _holds_on_the_real_line(prober, reading, factor):
            evidence.append(
                f"For recon_x between 0 and 1 the reconstruction term is {family} on {parameterization}, "
                "but not beyond: it changes its form for large errors (Huber-like) or clips recon_x."
            )
            return "unknown", None, None
        evidence.append(
            f"The gradient with respect to recon_x is that of a {family} likelihood, recon_x being its "
            f"{parameterization} (relative misfit {misfit:.0e})."
        )
        return family, parameterization, factor
    evidence.append(_describe_misfit(prober))
    return "unknown", None, None


def _holds_on_the_real_line(prober: _Prober, reading: Reading, factor: float) -> bool:
    try:
        probe = prober.probe(prober.batch_size, "real")
    except _LossError:
        return True  # it refuses recon_x beyond (0, 1), so there is nothing more to read
    found, misfit = _recon_fit([probe], reading)
    return misfit < _TOLERANCE and math.isclose(found, factor, rel_tol=_TOLERANCE)


def _describe_misfit(prober: _Prober) -> str:
    for name, reading in _MISTAKES.items():
        if _recon_fit(prober.narrow, reading)[1] < _TOLERANCE:
            return f"The reconstruction term is {name}."
    for (family, parameterization), reading in _RECONSTRUCTIONS.items():
        if all(_recon_fit([p], reading)[1] < _TOLERANCE for p in prober.narrow):
            return (
                f"The gradient with respect to recon_x is that of a {family} likelihood on "
                f"{parameterization} times a factor that changes with the size of the error: a function of "
                "that error, such as its logarithm (a profile likelihood) or its root."
            )
        gradient = torch.cat([p.by_recon for p in prober.narrow])
        target = torch.cat([reading(p.recon_x, p.x) for p in prober.narrow])
        columns = [_fit(gradient[:, j], target[:, j]) for j in range(gradient.shape[1])]
        if all(misfit < _TOLERANCE for _, misfit in columns):
            return (
                f"Each number of recon_x has the gradient of a {family} likelihood on "
                f"{parameterization}, but with weights that differ between the numbers of an example."
            )
    best = min(_RECONSTRUCTIONS, key=lambda key: _recon_fit(prober.narrow, _RECONSTRUCTIONS[key])[1])
    misfit = _recon_fit(prober.narrow, _RECONSTRUCTIONS[best])[1]
    return (
        f"The gradient with respect to recon_x fits no likelihood; the nearest, {best[0]} on {best[1]}, "
        f"misses it by {misfit:.2g} of its size."
    )


def _read_kl(prober: _Prober, evidence: list[str]) -> tuple[str | None, float | None]:
    """Fault of the KL term, if any, and its factor, if it has one."""
    mu, logvar, by_mu, by_logvar = (
        torch.cat([getattr(p, name).flatten() for p in prober.narrow])
        for name in ("mu", "logvar", "by_mu", "by_logvar")
    )
    if not by_mu.any() and not by_logvar.any():
        evidence.append("The loss does not depend on mu and logvar.")
        return "missing", None
    if not by_mu.any() or not by_logvar.any():
        ignored = "mu" if not by_mu.any() else "logvar"
        evidence.append(f"The loss does not depend on {ignored}.")
        return f"malformed: it ignores {ignored}", None
    for meaning, reading in _KL_READINGS.items():
        factor, misfit = _fit(torch.cat([by_mu, by_logvar]), torch.cat([mu, reading(logvar)]))
        if misfit > _TOLERANCE:
            continue
        if factor < 0:
            evidence.append("Minimising the loss drives the posterior away from the prior.")
            return "wrong sign", factor
        if meaning != "log-variance":
            evidence.append(
                f"The KL term is right if the last argument is the {meaning}, not the log-variance."
            )
            return f"takes logvar for the {meaning}", factor
        return None, factor
    mu_factor, mu_misfit = _fit(by_mu, mu)
    log_factor, log_misfit = _fit(by_logvar, _KL_READINGS["log-variance"](logvar))
    if max(mu_misfit, log_misfit) < _TOLERANCE:
        evidence.append(
            f"mu has the weight {mu_factor:.6g}, the variance {log_factor:.6g}; a KL has one for both."
        )
        return "malformed: mu and logvar have different weights", None
    parts = [name for name, misfit in (("mu", mu_misfit), ("logvar", log_misfit)) if misfit > _TOLERANCE]
    evidence.append(f"The gradient with respect to {' and '.join(parts)} is not that of a KL divergence.")
    return f"malformed: wrong dependence on {' and '.join(parts)}", None


def _read_batch(
    prober: _Prober, family: str, parameterization: str | None, kl_fault: str | None, evidence: list[str]
) -> tuple[str, tuple[float, float]]:
    """How the batch is reduced, and for both terms what turns their factors into factors per example."""
    size = prober.batch_size
    names: list[str] = []
    if family != "unknown" and parameterization is not None:
        reading = _RECONSTRUCTIONS[family, parameterization]
        ratio = _recon_fit([prober.larger], reading)[0] / _recon_fit(prober.narrow[:1], reading)[0]
        names.append(_batch_rule(ratio))
    else:
        names.append("unknown")
    if prober.narrow[0].by_mu.any() and _fit(prober.narrow[0].by_mu, prober.narrow[0].mu)[1] < _TOLERANCE:
        first, second = (_fit(p.by_mu, p.mu)[0] for p in (prober.narrow[0], prober.larger))
        names.append(_batch_rule(second / first))
    per_example = [float(size) if name == "mean" else 1.0 for name in names]
    weights = (per_example[0], per_example[-1])
    known = [name for name in names if name != "unknown"]
    if len(set(known)) < 2:
        return (known[0] if known else "unknown"), weights
    evidence.append(
        f"Over the batch the reconstruction term is a {names[0]} and the KL term a {names[1]}, so that beta "
        f"changes with the batch size; the values are for {size} examples."
    )
    return f"{names[0]} of the reconstruction term, {names[1]} of the KL term", weights


def _batch_rule(ratio: float) -> str:
    """Reduction that multiplies the factor by `ratio` when the batch is doubled."""
    for name, expected in (("sum", 1.0), ("mean", 0.5)):
        if math.isclose(ratio, expected, rel_tol=10 * _TOLERANCE):
            return name
    return f"reduction with the factor {ratio:.3g} for a batch of twice the size"


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


def _spectrum(data: Tensor | None, eigenvalues: Tensor | None, data_dim: int) -> Tensor | None:
    if data is not None and eigenvalues is not None:
        raise ValueError("give data or eigenvalues, not both")
    if eigenvalues is not None:
        if eigenvalues.shape != (data_dim,):
            raise ValueError(f"eigenvalues must have shape ({data_dim},), got {tuple(eigenvalues.shape)}")
        check_finite(eigenvalues=eigenvalues)
        return eigenvalues
    if data is None:
        return None
    if data.ndim != 2 or data.shape[1] != data_dim or len(data) < 2 or not data.is_floating_point():
        raise ValueError(
            f"data must be floating point of shape (N, {data_dim}), N >= 2, "
            f"got {data.dtype} {tuple(data.shape)}"
        )
    check_finite(data=data)
    spectrum: Tensor = torch.linalg.eigvalsh(torch.cov(data.double().T, correction=0))
    return spectrum
