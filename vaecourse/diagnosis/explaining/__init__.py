"""What a loss turned out to assume: the findings, the verdict on them, and how both are shown."""

import html
from dataclasses import dataclass

from vaecourse.diagnosis.explaining.divergence import say_divergence
from vaecourse.diagnosis.explaining.loss import (
    advise,
    say_active,
    say_batch,
    say_call,
    say_parameters,
    say_verdict,
    say_weights,
)
from vaecourse.diagnosis.explaining.names import POSTERIOR_NAMES
from vaecourse.diagnosis.explaining.reconstruction import say_reconstruction

__all__ = [
    "LossDiagnosis",
    "advise",
    "say_active",
    "say_batch",
    "say_call",
    "say_divergence",
    "say_parameters",
    "say_reconstruction",
    "say_verdict",
    "say_weights",
]


@dataclass(frozen=True)
class LossDiagnosis:
    """What a loss turned out to assume.

    Attributes
    ----------
    family : str
        Likelihood whose negative logarithm the reconstruction term is: "gaussian",
        "bernoulli" and "laplace" are the plain densities, with one scale and no weights.
        Every other reading has a string of its own: "poisson", "negative_binomial",
        "categorical", "multinomial", "continuous_bernoulli", "discretized_logistic",
        "hyperbolic_secant", "student_t", "gaussian_predicted_scale", "laplace_predicted_scale",
        "gaussian_optimal_scale", "gaussian_correlated", "gaussian_per_element",
        "gaussian_per_example" (and these two of other families), "mixed"; and "huber",
        "weighted_bernoulli" and "smoothed_bernoulli", which are no likelihoods.  "unknown"
        where it is none of them.
    scale : float or None
        Standard deviation (gaussian), scale b (laplace) or scale of a Student-t that makes
        the loss the negative ELBO with beta = 1; None for other families, where the numbers
        have different scales, and without a valid KL term.
    beta : float or None
        Weight of the KL term relative to the negative log-likelihood: of a family without a
        free scale, of a Gaussian with standard deviation 1, or of a Laplace with scale 1.
    parameterization : str or None
        What `recon_x` is: "loc", "probabilities", "logits", "rate", "log_rate", "mean",
        "log_mean", "tanh" (the location before a tanh) or "loc_and_scale".
    posterior : str or None
        What the fourth argument is: "logvar", "log_scale", "scale", "variance", "fixed" (the
        loss ignores it), "log_precision", or, for a raw output, "softplus_scale",
        "softplus_variance", "sigmoid_scale" or "negative_abs_logvar".  None where the KL term
        was not read.
    batch_reduction : str
        "mean" or "sum" over the examples; if the terms differ or follow another rule, which;
        "unknown" where a term was not read.
    is_elbo : bool
        Whether the loss is the negative ELBO up to an additive constant and a positive
        factor, at the implied scale; a family without a free scale needs beta = 1, and so
        does a scale that is trained.  False for Huber's loss, to which nobody adds the
        logarithm of its normaliser.
    kl_fault : str or None
        What is wrong with the KL term; None if it is one.
    recon_weight, kl_weight : float or None
        Factors of the squared error (absolute error, cross-entropy) summed over an
        example, and of the KL divergence summed over the latents, per example.
    num_active : int or None
        Latents that a linear VAE with this objective uses on the given data.
    verdict : str
        What the loss is, in a sentence or two.
    evidence : tuple of str
        What was observed, in sentences.
    advice : tuple of str
        What to change, with the line of code.
    """

    family: str
    scale: float | None
    beta: float | None
    parameterization: str | None
    posterior: str | None
    batch_reduction: str
    is_elbo: bool
    kl_fault: str | None
    recon_weight: float | None
    kl_weight: float | None
    num_active: int | None
    verdict: str
    evidence: tuple[str, ...]
    advice: tuple[str, ...]

    def explain(self) -> str:
        """Say in a few sentences what the loss assumes.

        Returns
        -------
        str
            The verdict, what was observed, and what to change, one sentence or two a line.
        """
        return "\n".join([self.verdict, *self.evidence, *self.advice])

    def _repr_html_(self) -> str:
        posterior = POSTERIOR_NAMES.get(self.posterior or "", "ignored")
        rows = {
            "likelihood": self.family,
            "recon_x is": self.parameterization or "unknown",
            "implied scale": "none" if self.scale is None else f"{self.scale:.6g}",
            "beta": "none" if self.beta is None else f"{self.beta:.6g}",
            "KL term": self.kl_fault or f"valid; the fourth argument is {posterior}",
            "over the batch": self.batch_reduction,
            "negative ELBO": "yes" if self.is_elbo else "no",
        }
        body = "".join(
            f"<tr><th scope='row'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in rows.items()
        )
        style = "caption-side: top; text-align: left; font-weight: bold; color: inherit"
        caption = f"<caption style='{style}'>{html.escape(self.verdict)}</caption>"
        evidence = "".join(f"<p>{html.escape(line)}</p>" for line in self.evidence)
        advice = "".join(f"<li>{html.escape(line)}</li>" for line in self.advice)
        return f"<table>{caption}{body}</table>{evidence}" + (f"<ul>{advice}</ul>" if advice else "")
