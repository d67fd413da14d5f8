"""What the weights of both terms make of a loss: a scale, a beta, a negative ELBO or none."""

import math
from dataclasses import dataclass

from torch import Tensor

from vaecourse.diagnosis.reading.fits import TOLERANCE, Reconstruction
from vaecourse.diagnosis.reading.parameters import Parameters
from vaecourse.diagnosis.reading.posteriors import Divergence

_NO_LIKELIHOODS = ("unknown", "huber", "weighted_bernoulli", "smoothed_bernoulli")
_FREE_SCALES = ("gaussian", "laplace")  # families whose scale absorbs the ratio of the weights


@dataclass(frozen=True)
class Judgement:
    """What follows from two terms and their weights.

    `ceases` says what moves during training in a loss that is a negative ELBO while it does not.
    `trained_beta` is infinite where the logarithm of a trained scale is missing.
    """

    rules: dict[str, str]  # over the batch, of the terms that were read
    recon_weight: float | None
    kl_weight: float | None
    scale: float | None
    beta: float | None
    trained_beta: float | None
    is_elbo: bool
    ceases: str | None = None

    @property
    def has_one_rule(self) -> bool:
        """Whether the terms that were read are reduced over the batch in the same way."""
        return len(set(self.rules.values())) < 2

    @property
    def batch_reduction(self) -> str:
        """One name for the reductions of the terms, or each with its term where they differ."""
        if self.has_one_rule:
            return next(iter(self.rules.values()), "unknown")
        return ", ".join(f"{rule} of the {term} term" for term, rule in self.rules.items())


def judge(recon: Reconstruction, kl: Divergence, parameters: Parameters | None, batch_size: int) -> Judgement:
    """Draw the conclusions from both terms and the parameters that are trained."""
    rules = {"reconstruction": _name_rule(recon.ratio), "KL": _name_rule(kl.ratio)}
    scale, beta = _scale_and_beta(recon, kl)
    trained_beta = _trained_beta(recon, kl, parameters)
    is_elbo = _is_elbo(recon, kl, scale, beta, is_one_rule=len(set(rules.values())) == 1)
    moves = None if parameters is None or parameters.moves in ("nothing", "prior") else parameters.moves
    is_kept = moves is None or (trained_beta is not None and math.isclose(trained_beta, 1, rel_tol=1e-3))
    return Judgement(
        {term: rule for term, rule in rules.items() if rule is not None},
        _recon_weight(recon, rules["reconstruction"], batch_size),
        _weight_per_example(kl.factor, rules["KL"], batch_size),
        scale,
        beta,
        trained_beta,
        is_elbo and is_kept,
        moves if is_elbo and not is_kept else None,
    )


def is_mask(weights: Tensor) -> bool:
    """Whether relative weights are all 0 or 1."""
    return bool(((weights == 0) | (weights > 1 - 10 * TOLERANCE)).all())


def _name_rule(ratio: float | None) -> str | None:
    """Reduction that changes a factor by this ratio when the batch is doubled."""
    if ratio is None:
        return None
    for name, expected in (("sum", 1.0), ("mean", 0.5)):
        if math.isclose(ratio, expected, rel_tol=10 * TOLERANCE):
            return name
    return f"reduction with the factor {ratio:.3g} for a batch of twice the size"


def _weight_per_example(factor: float | None, rule: str | None, batch_size: int) -> float | None:
    """Weight in the loss of one example, where the reduction over the batch is known."""
    if factor is None or rule not in ("mean", "sum"):
        return None
    return factor * batch_size if rule == "mean" else factor


def _recon_weight(recon: Reconstruction, rule: str | None, batch_size: int) -> float | None:
    if recon.kind == "mixed":  # whose numbers have weights of their own
        return None
    weight = _weight_per_example(recon.factor, rule, batch_size)
    if weight is not None and recon.family.startswith("gaussian"):
        return weight / 2  # the derivative of a square has a factor 2
    return weight


def _scale_and_beta(recon: Reconstruction, kl: Divergence) -> tuple[float | None, float | None]:
    if recon.factor is None or kl.factor is None or recon.family in _NO_LIKELIHOODS:
        return None, None
    ratio = kl.factor / recon.factor
    weights = recon.values.get("weights")
    if recon.family == "student_t":
        freedom = 1 / ratio - 1
        return (math.sqrt(recon.values["spread"] / freedom) if freedom > TOLERANCE else None), None
    if recon.kind in ("mixed", "correlated") or (weights is not None and not is_mask(weights)):
        return None, None
    base = recon.values.get("family", recon.family)
    return {"gaussian": math.sqrt(ratio), "laplace": ratio}.get(base), ratio


def _trained_beta(recon: Reconstruction, kl: Divergence, parameters: Parameters | None) -> float | None:
    """Beta of an objective whose scale is trained: its KL weight over that of the logarithm of the scale."""
    if parameters is None or parameters.normalizer is None or kl.factor is None:
        return None
    is_there = abs(parameters.normalizer) > 1e-6 * abs(recon.factor or 1)
    return kl.factor / parameters.normalizer if is_there else math.inf


def _is_elbo(
    recon: Reconstruction, kl: Divergence, scale: float | None, beta: float | None, *, is_one_rule: bool
) -> bool:
    """Whether the weights of both terms are those of a negative ELBO, at any size of the batch."""
    if kl.factor is None or recon.factor is None or recon.family in _NO_LIKELIHOODS:
        return False
    base = recon.values.get("family", recon.family)
    if recon.kind == "floored" or (base == "multinomial" and recon.parameterization == "probabilities"):
        return False  # nothing makes recon_x add up to 1
    if recon.kind == "mixed":
        fixed = [part for part in recon.values["parts"] if part.family not in _FREE_SCALES]
        ratios = [part.weights * recon.factor / kl.factor for part in fixed]
        is_normal = ("multinomial", "probabilities") not in [(p.family, p.parameterization) for p in fixed]
        is_matched = all(bool(((ratio - 1).abs() < 10 * TOLERANCE).all()) for ratio in ratios)
        return is_normal and is_matched and (is_one_rule or not fixed)
    if recon.family == "student_t":
        return scale is not None and is_one_rule
    if recon.kind == "correlated" or base in _FREE_SCALES:
        return True
    return beta is not None and abs(beta - 1) < 10 * TOLERANCE and is_one_rule
