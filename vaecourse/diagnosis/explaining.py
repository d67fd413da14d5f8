"""Says in sentences what was found: as text, and as a table in a notebook."""

import html
import math
from dataclasses import dataclass

from vaecourse.diagnosis.reading import TOLERANCE


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
        Latents that a linear VAE with this objective uses on the given data.
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


def explain_weights(
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
    causes = [cause for value, cause in habits.items() if math.isclose(weight, value, rel_tol=TOLERANCE)]
    return f"The {name} has the weight {weight:.6g}" + (f" ({causes[0]})." if causes else ".")
