"""Sentences on the reconstruction term."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vaecourse.diagnosis.explaining.names import PLACES, name_family
from vaecourse.diagnosis.reading import Reconstruction, is_mask

# By kind.  {name}: the likelihood with what recon_x is in it.
_RECONSTRUCTION = {
    "read": "The gradient with respect to recon_x is that of {name}.",
    "huber": (
        "It is the Huber loss: squared up to an error of {delta:.4g}, absolute beyond it. Divided by its "
        "integral, exp(-loss) is a density (Gaussian centre, Laplace tails), but the loss leaves out that "
        "integral. It does not depend on recon_x, so the gradients are those of the density; the value of "
        "the loss is no bound on a log-likelihood."
    ),
    "log_cosh": (
        "Each error t enters as log cosh({rate:.4g} t), the negative logarithm of a hyperbolic-secant "
        "density with that fixed rate: squared for small errors, absolute for large ones."
    ),
    "student_t": (
        "Each error t enters as log(1 + t²/{spread:.4g}), which is a Student-t likelihood; its weight "
        "relative to the KL term fixes the degrees of freedom."
    ),
    "discretized_logistic": (
        "The gradient is that of a logistic density with the fixed scale {scale:.4g}, integrated over "
        "bins of width {bin:.4g}: a probability for each grey level."
    ),
    "floored": (
        "For errors up to about {error:.2g} the gradient is that of a logistic density with the fixed "
        "scale {scale:.4g}, integrated over bins of width {bin:.4g}. For larger errors it is zero or "
        "rounding noise, because the probability is clamped from below."
    ),
    "negative_binomial": (
        "The gradient is that of {name}, with the dispersion {theta} (torch's total_count)."
    ),
    "weighted_bernoulli": (
        "It is a cross-entropy in which ones weigh {pos_weight:.4g} times as much as zeros (pos_weight), "
        "with recon_x as {place}. It gives x = 0 and x = 1 probabilities that do not add up to 1, so it "
        "is no likelihood. For mean x the best output is w x / (1 - x + w x), w = {pos_weight:.4g}."
    ),
    "balanced": (
        "It is a cross-entropy that averages ones and zeros (x above 0.5 or not) separately, so the "
        "weight of a one relative to a zero depends on the batch, here {low:.3g} to {high:.3g}. It is no "
        "likelihood of x: its best outputs assume as many ones as zeros."
    ),
    "smoothed_bernoulli": (
        "It is a cross-entropy with smoothed labels: the target, and so the best output, is {target}. It "
        "is the likelihood of that target, not of x."
    ),
    "predicted_scale": (
        "The first half of recon_x is the mean, the second the {link}. Each number has its own scale, so "
        "you choose none."
    ),
    "rescaled": (
        "The loss rescales x to {target}; its gradient is that of a Gaussian "
        "likelihood of that, with recon_x as its location. σ is in that unit."
    ),
    "multinomial": (
        "The gradient is that of a multinomial likelihood with recon_x as its logits: a softmax over all "
        "{categories} numbers, with x as counts."
    ),
    "categorical": (
        "The gradient is that of a categorical likelihood with recon_x as its logits: a softmax over "
        "{categories} categories in each of {groups} groups."
    ),
    "mask": (
        "The gradient is that of {name} for {counted} of the {dim} numbers; the others have the weight 0, "
        "as if they were not observed."
    ),
    "per_element": (
        "Each number has the gradient of {name}, with a weight that differs between the numbers: relative "
        "to the largest, {low:.3g} to 1. {consequence}"
    ),
    "per_example": (
        "Each number has the gradient of {name}, with a weight that depends on its place in the batch: "
        "relative to the largest, {low:.3g} to 1. {consequence}"
    ),
    "mixed": "The numbers of an example have different likelihoods: {parts}.",
    "partly": "In an example: {parts}; the other {left} fit none that I know.",
    "optimal_scale": (
        "The term is the logarithm of the squared error of the batch: a Gaussian likelihood whose "
        "standard deviation is the best one for these errors. For an ELBO its weight is D/2, for D "
        "numbers."
    ),
    "correlated": (
        "The term is half a quadratic form of recon_x - x with a positive definite matrix: a Gaussian "
        "likelihood with noise correlated between the numbers. Its precision is that matrix divided by "
        "the KL weight."
    ),
    "sign": (
        "The reconstruction term is the logarithm of {name}, not its negative: minimising it drives "
        "recon_x away from x. If you maximise the loss, diagnose its negative."
    ),
    "mixes": "The reconstruction term mixes the examples of a batch; within this batch it is that of {name}.",
    "clips": (
        "For recon_x between 0 and 1 the gradient is that of {name}, but not outside: the term changes "
        "its form for large errors, or clips recon_x."
    ),
    "tolerates": (
        "The gradient is that of {name}, except for errors below 0.01, where the term has another form."
    ),
    "detached": (
        "The gradient with respect to recon_x is that of {name}, but the value of the loss does not "
        "follow that gradient: something is detached."
    ),
    "rounded": (
        "It is a cross-entropy with x rounded to 0 or 1 as its target: a Bernoulli likelihood if x is 0 "
        "or 1; for grey levels, the likelihood of the rounded x."
    ),
    "exchanged": (
        "The reconstruction term is cross-entropy with prediction and target exchanged: it takes the "
        "logarithm of x. If your arguments come as (x, recon_x), rename them or reorder them in a lambda."
    ),
    "linear": (
        "The term is a sum of x * recon_x. With recon_x as log-probabilities, as after log_softmax, its "
        "negative is the cross-entropy of categories or counts. With recon_x as logits, it is a "
        "cross-entropy with prediction and target exchanged."
    ),
    "shifted_logit": (
        "It is a cross-entropy with sigmoid(1 - recon_x) where 1 - sigmoid(recon_x) belongs, and with "
        "ones that weigh {pos_weight:.4g} times as much as zeros. For zeros the logit is shifted by 1."
    ),
    "by_data": (
        "Each number has the gradient of {name}, with a weight that depends on x: {weights}. A weight "
        "that depends on x itself makes this no likelihood of x."
    ),
    "by_size": (
        "The gradient with respect to recon_x is that of {name}, times a factor that changes with the "
        "size of the error: {function}."
    ),
    "location": (
        "The term sums one function of recon_x - x over the numbers. That is the negative logarithm of a "
        "density of the error, if it can be normalised, but of none that I know by name.{nearest}"
    ),
    "none": "The gradient with respect to recon_x fits no likelihood that I know.{nearest}",
}


def say_reconstruction(found: Reconstruction, data_dim: int) -> Iterator[str]:
    """Say what the reconstruction term is."""
    values = {"nearest": "", **found.values}
    family = values.get("family", found.family)
    form = values.get("parameterization") or found.parameterization or ""
    place = PLACES.get(form, "")
    name = name_family(family) + (f" with recon_x as {place}" if place else "")
    if form == "symmetric":
        name = "a Bernoulli likelihood for data in [-1, 1], with the probability (recon_x + 1) / 2"
    kind = found.kind
    values |= {"name": name, "place": place}
    if "shares" in values:
        values["parts"] = ", ".join(
            f"{count} of {name_family(family)}"
            + (f" with recon_x as {PLACES[form]}" if form in PLACES else "")
            for family, form, count in values["shares"]
        )
    if "offset" in values:
        sign = "-" if values["offset"] < 0 else "+"
        values["target"] = f"{values['share']:.4g} x {sign} {abs(values['offset']):.4g}"
    if kind in ("per_element", "per_example"):
        weights: Tensor = values["weights"]
        if is_mask(weights) and kind == "per_element":
            kind = "mask"
            values |= {"counted": int((weights != 0).sum()), "dim": data_dim}
        values["low"] = float(weights.min())
        is_free = family in ("gaussian", "laplace")
        values["consequence"] = (
            "Each has its own scale: the smaller its weight, the larger the scale."
            if is_free
            else "No scale can absorb unequal weights, so this is no likelihood."
        )
    if kind == "negative_binomial":
        low, high = (f"{float(value):.4g}" for value in torch.aminmax(values["dispersion"]))
        values["theta"] = low if low == high else f"of each number, from {low} to {high}"
    if kind == "balanced":
        values["low"], values["high"] = values["ratios"]
    if kind == "by_data":
        values["weights"] = ", ".join(
            f"{weight:.3g} where {where}" for where, weight in values["weights"].items()
        )
    if kind == "by_size":
        is_root = values["function"] == "root"
        values["function"] = (
            "the term is the square root of the summed error of the batch"
            if is_root
            else "it depends on the summed error"
        )
    if "misfit" in values:
        values["nearest"] = f" The nearest is {name}, with a relative misfit of {values['misfit']:.2g}."
    yield _RECONSTRUCTION.get(kind, _RECONSTRUCTION["read"]).format(**values)
    if form == "probabilities" and found.family == "multinomial":
        yield (
            "That is a likelihood only if recon_x adds up to 1 within each group, as after a softmax. "
            "After a sigmoid nothing keeps recon_x away from 1, since the part for x = 0 is missing."
        )
    if values.get("overflows"):
        yield "For recon_x far from x the loss or its gradient is not finite: rewrite it before training."
