"""Sentences on the KL term."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vaecourse.diagnosis.explaining.names import POSTERIOR_NAMES
from vaecourse.diagnosis.reading import TOLERANCE, Divergence

# By kind.  {meaning}: what the fourth argument is.
_DIVERGENCE = {
    "read": "The KL term is that of a normal posterior from N(0, I), with the fourth argument as {meaning}.",
    "fixed": (
        "The KL term is half the squared posterior mean: the KL divergence, up to a constant, of a posterior "
        "whose variance is fixed."
    ),
    "missing": "The loss does not depend on mu and logvar: nothing keeps the posterior near the prior.",
    "ignored": "The loss does not depend on {ignored}.",
    "sign": "The KL term has the wrong sign: minimising the loss drives the posterior away from the prior.",
    "mixes": "The KL term mixes the examples of a batch.",
    "taken": "You state {stated}, but the term is a KL divergence only if the fourth argument is {meaning}.",
    "single_draw": (
        "The KL term is estimated from one draw of z, as log q(z) - log p(z), with the fourth argument as "
        "{meaning}. On average this is the KL divergence, but its gradient is noisier than that of the "
        "closed form."
    ),
    "frozen_draw": (
        "The KL term is log q(z) - log p(z) at a z whose noise is the same in every call. That is no "
        "estimate: during training the posterior can adapt to this one draw."
    ),
    "noise": (
        "The KL term is log q(z) - log p(z) at one draw z = mu + σ * noise, but the noise has mean "
        "{mean:.2g} and root mean square {spread:.2g}, not 0 and 1 as q assumes."
    ),
    "detached": "The fourth argument is detached: the loss depends on it, but has no gradient there.",
    "weights": (
        "Each latent has its KL divergence, but the latents have different weights, from {share:.4g} to 1 "
        "times the largest: a beta for each latent, which is no ELBO."
    ),
    "exchanged": (
        "The third argument enters as a log-variance and the fourth as a mean: mu and logvar are exchanged."
    ),
    "prior": (
        "It is the KL divergence from a normal prior with mean {loc} and standard deviation "
        "{scale}, with the fourth argument as {meaning}. With that prior it is valid; then draw z "
        "from it too when you generate."
    ),
    "free bits": (
        "The first {nats:.4g} nats of the KL divergence {of_what} are free: below them the term has no "
        "gradient (free bits)."
    ),
    "a ceiling": "Above {nats:.4g} nats of the KL divergence {of_what} the term has no gradient: a ceiling.",
    "a capacity": (
        "The term draws the KL divergence {of_what} towards a capacity of {nats:.4g} nats: below it the "
        "KL is pushed up, not down."
    ),
    "a change of weight": (
        "At {nats:.4g} nats of the KL divergence {of_what} its weight changes from {below:.4g} to "
        "{above:.4g} (in the gradient of one example)."
    ),
    "function": (
        "The weight of the KL divergence changes with its size: the term is a root, a square, a logarithm "
        "or a switch."
    ),
    "coefficients": (
        "A KL divergence is 0.5 * (mu**2 + variance - log(variance) - 1). Relative to the largest, its parts "
        "have here the factors {first:.3g} for mu**2, {second:.3g} for the variance and {third:.3g} for "
        "-log(variance), which should all be 1. {effect}"
    ),
    "clamped": "The gradient with respect to the fourth argument vanishes {bounds}: it is clamped there.",
    "malformed": (
        "The gradient with respect to {wrong} is not that of the KL divergence of a normal posterior from "
        "N(0, I)."
    ),
}


def say_divergence(found: Divergence) -> Iterator[str]:
    """Say what the KL term is, and what its fault does."""
    values: dict[str, Any] = {"meaning": POSTERIOR_NAMES.get(found.posterior or "", ""), **found.values}
    kind = found.kind
    if kind == "read" and found.posterior == "fixed":
        kind = "fixed"
    elif kind == "allowance":
        kind = values["name"]
        values["of_what"] = (
            "of an example, summed over the latents" if values["is_total"] else "of each latent"
        )
        values["of_what"] += " and averaged over the batch" if values["is_batch"] else ""
        values["of_what"] += "," if values["is_total"] else ""
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
    return "A factor 1/2 before some of the parts only would do that." if min(variance, log) > 0 else ""
