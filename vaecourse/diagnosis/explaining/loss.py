"""Sentences on the loss as a whole: the verdict, the call, weights, parameters, and which line to change."""

import math
from collections.abc import Iterator

from vaecourse.diagnosis.explaining.names import POSTERIOR_NAMES, name_family
from vaecourse.diagnosis.probing import ROLES, Experiment
from vaecourse.diagnosis.reading import TOLERANCE, Divergence, Judgement, Parameters, Reconstruction

_LAMBDAS = {
    "log_scale": "0.5 * logvar",
    "scale": "(0.5 * logvar).exp()",
    "variance": "logvar.exp()",
}


_MOVES = {
    "scale": (
        "One of them scales the error, but the loss does not add the logarithm of that scale, so the "
        "normaliser of the density is missing."
    ),
    "shape": (
        "The reconstruction term depends on them; whether its normaliser changes with them was not checked."
    ),
    "weight": "The weight of the KL term is trained: minimising the loss drives it to its smallest value.",
    "prior": "They belong to the prior, which moves during training.",
    "divergence": "The KL term moves with them.",
    "nothing": "No gradient changes with them.",
}


# ---- the verdict ----


def say_verdict(recon: Reconstruction, kl: Divergence, found: Judgement) -> str:
    """Say what the loss is, after what its fourth argument must be for that."""
    if found.ceases is not None:
        statement = _say_training(name_family(recon.family), found)
    else:
        statement = _say_what_it_is(recon, kl, found)
    if kl.fault is not None or kl.posterior in (None, "logvar"):
        return statement
    reading = f"Your fourth argument is {POSTERIOR_NAMES.get(kl.posterior or '')}: read so, "
    if kl.posterior == "fixed":
        reading = "Your loss ignores its fourth argument: with a posterior of fixed variance, "
    return reading + statement[0].lower() + statement[1:]


def _say_training(name: str, found: Judgement) -> str:
    if found.ceases == "weight":
        return f"This is not a negative ELBO of {name} while it is trained: the weight of the KL term moves."
    if found.trained_beta is None:
        return f"This may cease to be a negative ELBO: training moves the parameters of {name}."
    if math.isinf(found.trained_beta):
        return f"This is not a negative ELBO: {name} has a trained scale without its logarithm."
    return (
        f"With {name} whose scale is trained, this is a beta-VAE objective, beta = {found.trained_beta:.6g}; "
        "it is not a negative ELBO."
    )


def _say_what_it_is(recon: Reconstruction, kl: Divergence, found: Judgement) -> str:
    scale, beta, is_elbo = found.scale, found.beta, found.is_elbo
    name = name_family(recon.family)
    if not recon.is_known:
        return "This is not a negative ELBO of any likelihood that I know."
    if kl.fault is not None:
        verb = {"wrong": "has the ", "takes": ""}.get(kl.fault.partition(" ")[0], "is ")
        return f"The reconstruction term is that of {name}; the KL term {verb}{kl.fault}."
    if is_elbo and scale is not None:
        symbols = {"laplace": "scale b", "student": "scale"}
        symbol = symbols.get(recon.family.partition("_")[0], "standard deviation")
        seen = "" if beta is None else f"; at {symbol} 1 its beta is {beta:.6g}"
        return (
            f"This is the negative ELBO of {name} with {symbol} {scale:.6g}, up to a "
            f"factor and a constant{seen}."
        )
    if is_elbo:
        return f"This is the negative ELBO of {name}, up to a factor and a constant."
    if scale is None and beta is not None and not math.isclose(beta, 1, rel_tol=10 * TOLERANCE):
        return (
            f"With {name} this is a beta-VAE objective, beta = {beta:.6g}, up to a factor and a "
            "constant; it is not a negative ELBO."
        )
    if recon.family == "multinomial":
        return (
            f"With {name} this is a negative ELBO only if recon_x adds up to 1, which nothing here ensures."
        )
    if recon.kind == "floored":
        return f"This is not a negative ELBO, since its reconstruction term is {name} for small errors only."
    if recon.family == "student_t":
        return (
            f"This is not a negative ELBO: {name} needs positive degrees of freedom, which this KL weight "
            "rules out."
        )
    if recon.kind == "mixed":
        return (
            "This is not a negative ELBO: the weights of the parts of its likelihood do not match that of "
            "the KL term."
        )
    return f"This is not a negative ELBO, since its reconstruction term is {name}."


# ---- the call ----


def say_call(experiment: Experiment) -> Iterator[str]:
    """Say how the loss was called, where that was not the usual way."""
    prober = experiment.prober
    roles, names = prober.binding.roles, prober.binding.names
    if not names and roles != ROLES:
        yield f"I took your arguments as ({', '.join(roles)}), the only order that fits."
    elif names and roles != ROLES:
        named = dict(zip(roles, names, strict=True))
        how = "the only choice that fits" if prober.binding.is_tried else "by their names"
        yield (
            f"I took {named['x']} as the data, {named['recon_x']} as the prediction, {named['mu']} as the "
            f"posterior mean and {named['logvar']} as the fourth argument, {how}."
        )
    if (place := prober.notes.get("output")) == "sum":
        yield (
            "The function returns its two terms, and I took their sum. If your training weighs them, "
            "diagnose the weighted sum."
        )
    elif place is not None:
        yield f"The function returns several values; I took item {place} (output= chooses another)."
    if prober.recon_dim > prober.data_dim:
        yield f"recon_x has {prober.recon_dim} numbers for each example, twice as many as x."


# ---- the batch, the weights, the parameters ----


def say_batch(found: Judgement, batch_size: int, is_seen: bool) -> Iterator[str]:
    """Say how the batch is reduced, where the terms differ or nothing was seen."""
    rules = found.rules
    if not is_seen:
        yield f"The loss accepts batches of {batch_size} only; how it reduces them is unknown."
    elif not found.has_one_rule:
        both = " and ".join(f"the {rule} of the {term} term" for term, rule in rules.items())
        yield (
            f"Over the batch the loss takes {both}. So beta changes with the batch size; the values here are "
            f"for {batch_size} examples."
        )
    for term, rule in rules.items():
        if rule not in ("mean", "sum"):
            yield f"Over the batch the {term} term is neither averaged nor summed ({rule})."


def say_weights(family: str, found: Judgement, data_dim: int, latent_dim: int) -> Iterator[str]:
    """Say what the weights are, and which habit of writing code gives such weights."""
    recon_weight, kl_weight = found.recon_weight, found.kl_weight
    error = {"gaussian": "squared error", "laplace": "absolute error", "bernoulli": "cross-entropy"}.get(
        family
    )
    if error is not None and recon_weight is not None:
        habits = [(1.0, "a sum over the example"), (1 / data_dim, f"a mean over its {data_dim} numbers")]
        yield _weight_sentence(f"summed {error}", recon_weight, habits)
    if kl_weight is not None and kl_weight > 0:
        habits = [
            (1.0, "the plain closed form"),
            (2.0, "perhaps a missing 1/2"),
            (1 / latent_dim, f"a mean over its {latent_dim} latents"),
            (1 / data_dim, f"divided by the {data_dim} numbers of an example"),
        ]
        yield _weight_sentence("KL divergence, summed over the latents,", kl_weight, habits)


def _weight_sentence(name: str, weight: float, habits: list[tuple[float, str]]) -> str:
    causes = [cause for value, cause in habits if math.isclose(weight, value, rel_tol=TOLERANCE)]
    return f"The {name} has the weight {weight:.6g}" + (f" ({causes[0]})." if causes else ".")


def say_parameters(parameters: Parameters | None, trained_beta: float | None) -> Iterator[str]:
    """Say which trainable parameters the loss holds, and what moves with them."""
    if parameters is None:
        return
    yield f"The loss holds trainable parameters ({', '.join(parameters.names)}), which were held fixed here."
    if parameters.moves == "scale" and trained_beta is not None:
        yield "One of them is the scale of the likelihood, which moves during training."
        if math.isinf(trained_beta):
            yield "The logarithm of that scale is missing: training makes the scale grow without bound."
        elif math.isclose(trained_beta, 1, rel_tol=1e-3):
            yield "The KL weight is that of an ELBO."
        else:
            yield "The learned scale cannot absorb the KL weight, so that weight is a beta."
    else:
        yield _MOVES[parameters.moves]


def say_active(num_active: int | None, latent_dim: int, variance: float | None) -> Iterator[str]:
    """Say how many latents a linear VAE would use, where that was counted."""
    if num_active is not None:
        yield (
            f"A linear VAE would use {num_active} of its {latent_dim} latents: those whose eigenvalue of the "
            f"data's covariance exceeds the variance {variance:.6g}."
        )


# ---- what to change ----

_CLOSED_FORM = "kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)"
_UNITS = {
    "gaussian": ("σ", "((recon_x - x)**2).sum(1).mean() / (2 * sigma**2) + kl.mean()"),
    "laplace": ("b", "(recon_x - x).abs().sum(1).mean() / b + kl.mean()"),
    "gaussian_per_element": ("σ", "(mask * (recon_x - x)**2).sum(1).mean() / (2 * sigma**2) + kl.mean()"),
    "laplace_per_element": ("b", "(mask * (recon_x - x).abs()).sum(1).mean() / b + kl.mean()"),
}


def advise(recon: Reconstruction, kl: Divergence, found: Judgement) -> Iterator[str]:
    """Say which line of code to change, and to what."""
    scale, beta, trained_beta = found.scale, found.beta, found.trained_beta
    if kl.fault is None and (form := _LAMBDAS.get(kl.posterior or "")) is not None:
        yield (
            f"To call it with a log-variance: lambda recon_x, x, mu, logvar: loss_fn(recon_x, x, mu, {form})"
        )
    yield from _advise_on_divergence(kl)
    if not found.has_one_rule:
        yield "Reduce both terms over the batch in the same way: .sum(1).mean() for each."
    elif scale is not None and recon.family in _UNITS and trained_beta is None and recon.kind != "rescaled":
        symbol, formula = _UNITS[recon.family]
        yield (
            f"{symbol} is in the unit of x. If your x lies in [-1, 1], rescaling it to [0, 1] gives "
            f"{symbol} = {scale / 2:.6g}."
        )
        yield f"To choose {symbol}: loss = {formula}, with {_CLOSED_FORM}"
    elif recon.kind == "mixed" and kl.factor is not None:
        yield from _advise_on_parts(recon, kl.factor)
    elif scale is None and beta is not None and not math.isclose(beta, 1, rel_tol=10 * TOLERANCE):
        yield f"For beta = 1, multiply the KL term by {1 / beta:.6g}."
    if trained_beta is not None and not math.isclose(trained_beta, 1, rel_tol=1e-3):
        yield (
            "For an ELBO, add the logarithm of the scale for each number of x, or fix the scale."
            if math.isinf(trained_beta)
            else f"For an ELBO, multiply the KL term by {1 / trained_beta:.6g}."
        )
    yield from _advise_on_reconstruction(recon)


def _advise_on_parts(recon: Reconstruction, kl_factor: float) -> Iterator[str]:
    """Say by how much to multiply the parts whose likelihood has no free scale."""
    factors: dict[str, None] = {}  # each once, in their order
    for part in recon.values["parts"]:
        ratio = kl_factor / (float(part.weights[0]) * (recon.factor or math.nan))
        is_one = bool((part.weights - part.weights[0]).abs().max() <= 10 * TOLERANCE * part.weights[0])
        if part.family not in ("gaussian", "laplace") and is_one and not math.isclose(ratio, 1, rel_tol=1e-3):
            factors[f"For beta = 1, multiply the {part.family} part by {ratio:.6g}."] = None
    yield from factors


def _advise_on_divergence(kl: Divergence) -> Iterator[str]:
    if kl.kind == "exchanged":
        yield "Exchange mu and logvar where the loss is called, or in its definition."
    elif kl.kind == "frozen_draw":
        yield (
            "If you fixed the seed for this diagnosis, take that out: a fresh draw is recognised. Better, "
            f"write the closed form: {_CLOSED_FORM}"
        )
    elif kl.kind == "noise":
        yield "Draw z as mu + std * torch.randn_like(std)."
    elif kl.kind == "detached":
        yield "Take out the .detach() or .item() through which the fourth argument enters."
    elif kl.kind == "malformed" and kl.values.get("parts") == ["logvar"]:
        yield (
            "If the loss turns its fourth argument into σ by a function of its own, diagnose it with σ "
            f"instead; otherwise write {_CLOSED_FORM}"
        )
    elif kl.kind == "allowance":
        yield (
            f"For an ELBO, leave out the {kl.values['name'].removeprefix('a ')} and give the KL divergence "
            "the weight 1."
        )
    elif kl.kind == "weights":
        yield f"For an ELBO, give all latents one weight: {_CLOSED_FORM}"
    elif kl.kind == "single_draw":
        yield f"Write the closed form instead: {_CLOSED_FORM}"
    elif kl.fault is not None and kl.kind not in ("prior", "taken"):
        yield f"Write {_CLOSED_FORM}, reduced over the batch like the reconstruction term."


def _advise_on_reconstruction(recon: Reconstruction) -> Iterator[str]:
    if recon.kind in ("weighted_bernoulli", "balanced", "shifted_logit", "smoothed_bernoulli"):
        function = {"probabilities": "", "logits": "_with_logits"}.get(recon.parameterization or "logits", "")
        yield (
            f"For a likelihood: F.binary_cross_entropy{function}(recon_x, x, "
            "reduction='none').sum(1).mean(), without weights."
        )
    elif recon.kind == "floored":
        yield (
            "With the two bin edges a > b: log_p = F.logsigmoid(a) + F.logsigmoid(-b) + "
            "torch.log1p(-(b - a).exp()) needs no clamp."
        )
    elif recon.kind == "by_data":
        yield "If numbers are missing, pass a mask that records which, not one made from x."
    elif recon.kind in ("none", "clips"):
        yield (
            "x and recon_x were drawn from [0, 1]. If this is a cross-entropy for data in [-1, 1], "
            "rescale in a lambda: lambda recon_x, x, mu, logvar: loss_fn(2 * recon_x - 1, 2 * x - 1, mu, "
            "logvar)"
        )
