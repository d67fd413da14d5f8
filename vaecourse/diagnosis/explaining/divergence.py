"""Sentences on the KL term."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vaecourse.diagnosis.explaining.names import POSTERIOR_NAMES
from vaecourse.diagnosis.reading import TOLERANCE, Divergence

# By kind.  {meaning}: what the fourth argument is.
_DIVERGENCE = {
    "read": "The KL term is KL(N(mu, σ²) || N(0, I)){reading}.",
    "fixed": (
        "The KL term is half the squared posterior mean: up to a constant, the KL divergence of a "
        "posterior with fixed variance."
    ),
    "missing": "The loss does not depend on mu and logvar: nothing keeps the posterior near the prior.",
    "ignored": "The loss does not depend on {ignored}.",
    "sign": "The KL term has the wrong sign: minimising the loss drives the posterior away from the prior.",
    "mixes": "The KL term mixes the examples of a batch.",
    "taken": "You gave {stated}, but the term is a KL divergence only if the fourth argument is {meaning}.",
    "single_draw": (
        "The KL term is estimated from one draw of z, as log q(z) - log p(z), with the fourth argument as "
        "{meaning}. On average this is the KL divergence, but its gradient is noisier than that of the "
        "closed form."
    ),
    "frozen_draw": (
        "The KL term is log q(z) - log p(z) at a z whose noise is the same in every call. This is no "
        "estimate of the KL: the posterior can adapt to this one draw."
    ),
    "noise": (
        "The KL term is log q(z) - log p(z) at one draw z = mu + σ * noise, but the noise has mean "
        "{mean:.2g} and root mean square {spread:.2g}, not 0 and 1 as q assumes."
    ),
    "detached": "The fourth argument is detached: the loss depends on it but gives it no gradient.",
    "weights": (
        "The KL divergences of the latents have different weights: relative to the largest, {share:.4g} "
        "to 1. One beta per latent is no ELBO."
    ),
    "exchanged": (
        "The third argument enters as a log-variance and the fourth as a mean: mu and logvar are exchanged."
    ),
    "prior": (
        "The KL term is that to a normal prior with mean {loc} and standard deviation {scale}; the fourth "
        "argument is {meaning}. It is valid with that prior, from which you must then draw z to generate."
    ),
    "free bits": (
        "The first {nats:.4g} nats of the KL divergence{of_what} are free: below them the term has no "
        "gradient (free bits)."
    ),
    "a ceiling": "Above {nats:.4g} nats of the KL divergence{of_what} the term has no gradient: a ceiling.",
    "a capacity": (
        "The term pulls the KL divergence{of_what} towards a capacity of {nats:.4g} nats; below that, it "
        "pushes the KL up."
    ),
    "a change of weight": (
        "At {nats:.4g} nats of the KL divergence{of_what} its weight changes from {below:.4g} to "
        "{above:.4g} (in the gradient of one example)."
    ),
    "function": (
        "The weight of the KL divergence changes with its value, as with a root, a square, a logarithm or "
        "a switch."
    ),
    "coefficients": (
        "A KL divergence is 0.5 * (mu**2 + variance - log(variance) - 1). Here, relative to the largest, "
        "mu**2 has the factor {first:.3g}, the variance {second:.3g} and -log(variance) {third:.3g}; all "
        "should be 1. {effect}"
    ),
    "clamped": "The gradient with respect to the fourth argument vanishes {bounds}: it is clamped there.",
    "malformed": ("The gradient with respect to {wrong} is not that of KL(N(mu, σ²) || N(0, I))."),
}


_OF_WHAT = {  # is it summed over the latents, and averaged over the batch
    (False, False): " of each latent",
    (False, True): " of each latent, averaged over the batch,",
    (True, False): " of an example, summed over the latents,",
    (True, True): ", summed over the latents and averaged over the batch,",
}


def say_divergence(found: Divergence) -> Iterator[str]:
    """Say what the KL term is, and what its fault does."""
    values: dict[str, Any] = {"meaning": POSTERIOR_NAMES.get(found.posterior or "", ""), **found.values}
    kind = found.kind
    if kind == "read" and found.posterior == "fixed":
        kind = "fixed"
    elif kind == "read":  # another meaning is said by the verdict
        values["reading"] = "; the fourth argument is the log-variance" if found.posterior == "logvar" else ""
    elif kind == "allowance":
        kind = values["name"]
        values["of_what"] = _OF_WHAT[values["is_total"], values["is_batch"]]
    elif kind == "prior":
        values["loc"], values["scale"] = (_range(values[name]) for name in ("loc", "scale"))
    elif kind == "coefficients":
        values["first"], values["second"], values["third"] = values["parts"]
        values["effect"] = _effect(*values["parts"])
    elif kind == "clamped":
        sides = {"low": "below", "high": "above"}
        bounds = [f"{side} about {values[key]:.2g}" for key, side in sides.items() if values[key] is not None]
        values["bounds"] = " and ".join(bounds)
    elif kind == "malformed":
        values["wrong"] = " and ".join(values["parts"] or ["mu"])
    yield _DIVERGENCE[kind].format(**values)


def _range(numbers: Tensor) -> str:
    """One number where they agree, and the bounds where they do not."""
    low, high = (float(bound) if abs(bound) > TOLERANCE else 0.0 for bound in torch.aminmax(numbers))
    return f"{low:.4g}" if high - low <= 10 * TOLERANCE else f"{low:.4g} to {high:.4g}"


def _effect(mean: float, variance: float, log: float) -> str:
    """What minimising the term does, given the factors of its parts."""
    if mean == 0:
        return "Without the square of mu, nothing draws the posterior mean to 0."
    if log < 0 < variance or (log == 0 and variance > 0):
        return "Minimising the term draws the variance to 0."
    if variance <= 0 < log:
        return "Minimising the term makes the variance grow without bound."
    return "A factor 1/2 on only some of the parts does this." if min(variance, log) > 0 else ""
