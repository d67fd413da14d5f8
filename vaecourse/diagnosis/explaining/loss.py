"""Sentences on the loss as a whole: the verdict, the call, weights, parameters, and which line to change."""

import math
from collections.abc import Iterator

from vaecourse.diagnosis.explaining.names import POSTERIOR_NAMES, name_family
from vaecourse.diagnosis.probing import ROLES, Experiment
from vaecourse.diagnosis.reading import TOLERANCE, Divergence, Parameters, Reconstruction

_LAMBDAS = {
    "log_scale": "0.5 * logvar",
    "scale": "(0.5 * logvar).exp()",
    "variance": "logvar.exp()",
}


_MOVES = {
    "scale": (
        "One of them scales the error, but what the loss adds for it is not the logarithm of that scale: "
        "it is not the normaliser of a density."
    ),
    "shape": (
        "The reconstruction term moves with them; whether its constants follow, as those of a density "
        "must, was not checked."
    ),
    "weight": "The weight of the KL term is trained: minimising the loss drives it to its smallest value.",
    "prior": "They belong to the prior, which moves during training.",
    "divergence": "The KL term moves with them.",
    "nothing": "No gradient changes with them.",
}


# ---- the verdict ----


def say_verdict(
    recon: Reconstruction,
    kl: Divergence,
    scale: float | None,
    beta: float | None,
    trained_beta: float | None,
    is_elbo: bool,
) -> str:
    """Say what the loss is, after what its fourth argument must be for that."""
    if trained_beta is not None and not is_elbo:
        statement = _say_training(name_family(recon.family), trained_beta)
    else:
        statement = _say_what_it_is(recon, kl, scale, beta, is_elbo)
    if kl.fault is not None or kl.posterior in (None, "logvar"):
        return statement
    reading = f"Your fourth argument is {POSTERIOR_NAMES.get(kl.posterior or '')}: read so, "
    if kl.posterior == "fixed":
        reading = "Your loss ignores its fourth argument: with a posterior of fixed variance, "
    return reading + statement[0].lower() + statement[1:]


def _say_training(name: str, trained_beta: float) -> str:
    if not math.isfinite(trained_beta):
        return f"This is not a negative ELBO: it has {name} whose trained scale is not paid for."
    return (
        f"With {name} whose scale is trained, this is a beta-VAE objective, beta = {trained_beta:.6g}; "
        "it is not a negative ELBO."
    )


def _say_what_it_is(
    recon: Reconstruction, kl: Divergence, scale: float | None, beta: float | None, is_elbo: bool
) -> str:
    name = name_family(recon.family)
    if not recon.is_known:
        return "This is not a negative ELBO of any likelihood that I know."
    if kl.fault is not None:
        return f"The reconstruction term is that of {name}, but there is no valid KL term: {kl.fault}."
    if is_elbo and scale is not None:
        symbols = {"laplace": "scale b", "student": "scale"}
        symbol = symbols.get(recon.family.partition("_")[0], "standard deviation")
        seen = "" if beta is None else f"; seen from {symbol} 1, its beta is {beta:.6g}"
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
            f"This is not a negative ELBO: {name} would need a positive number of degrees of freedom, and "
            "the weight of the KL term leaves none."
        )
    if recon.kind == "mixed":
        return (
            "This is not a negative ELBO, since the parts of its likelihood have weights that do not match "
            "that of the KL term."
        )
    if beta is not None:
        return f"This may not be a negative ELBO while it is trained: it has {name} whose parameters move."
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


def say_batch(rules: dict[str, str], batch_size: int, is_seen: bool) -> Iterator[str]:
    """Say how the batch is reduced, where the terms differ or nothing was seen."""
    if not is_seen:
        yield f"The loss accepts batches of {batch_size} only; how it reduces them is not seen."
    elif len(set(rules.values())) == 2:
        both = ", ".join(f"{rule} of the {term} term" for term, rule in rules.items())
        yield (
            f"Over the batch the loss takes the {both}, so that beta changes with the batch "
            f"size; the values are for {batch_size} examples."
        )


def say_weights(
    family: str, recon_weight: float | None, kl_weight: float | None, data_dim: int, latent_dim: int
) -> Iterator[str]:
    """Say what the weights are, and which habit of writing code gives such weights."""
    error = {"gaussian": "squared error", "laplace": "absolute error", "bernoulli": "cross-entropy"}.get(
        family
    )
    if error is not None and recon_weight is not None:
        habits = [(1.0, "a sum over the example"), (1 / data_dim, f"a mean over its {data_dim} numbers")]
        yield _weight_sentence(f"summed {error}", recon_weight, habits)
    if kl_weight is not None and kl_weight > 0:
        habits = [
            (1.0, "the closed form as it is"),
            (2.0, "perhaps a missing 1/2"),
            (1 / latent_dim, f"a mean over its {latent_dim} latents"),
            (1 / data_dim, "a division by the numbers of an example"),
        ]
        yield _weight_sentence("KL divergence, summed over the latents,", kl_weight, habits)


def _weight_sentence(name: str, weight: float, habits: list[tuple[float, str]]) -> str:
    causes = [cause for value, cause in habits if math.isclose(weight, value, rel_tol=TOLERANCE)]
    return f"The {name} has the weight {weight:.6g}" + (f" ({causes[0]})." if causes else ".")


def say_parameters(parameters: Parameters, trained_beta: float | None) -> Iterator[str]:
    """Say which trainable parameters the loss holds, and what moves with them."""
    yield f"The loss holds trainable parameters ({', '.join(parameters.names)}), which were held fixed here."
    if parameters.moves == "scale" and trained_beta is not None:
        yield "One of them is the scale of the likelihood, which moves during training."
        if math.isinf(trained_beta):
            yield "The logarithm of that scale is missing: training makes the scale grow without bound."
        elif math.isclose(trained_beta, 1, rel_tol=1e-3):
            yield "The weight of the KL term fits it."
        else:
            yield "A KL weight beside a learned scale does not change the scale: it is a beta."
    else:
        yield _MOVES[parameters.moves]


# ---- what to change ----

_CLOSED_FORM = "kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)"
_UNITS = {
    "gaussian": (
        "σ",
        "((recon_x - x)**2).sum(1).mean() / (2 * sigma**2) + kl.mean()",
    ),
    "laplace": ("b", "(recon_x - x).abs().sum(1).mean() / b + kl.mean()"),
}


def advise(
    recon: Reconstruction,
    kl: Divergence,
    scale: float | None,
    beta: float | None,
    trained_beta: float | None,
    is_mixed: bool,
) -> Iterator[str]:
    """Say which line of code to change, and to what."""
    if kl.fault is None and (form := _LAMBDAS.get(kl.posterior or "")) is not None:
        yield (
            "In the usual form, with a log-variance: lambda recon_x, x, mu, logvar: "
            f"loss_fn(recon_x, x, mu, {form})"
        )
    yield from _advise_on_divergence(kl)
    if is_mixed:
        yield "Reduce both terms over the batch in the same way: .sum(1).mean() for each."
    elif scale is not None and recon.family in _UNITS:
        symbol, formula = _UNITS[recon.family]
        yield (
            f"This {symbol} is in the unit of x: if your x lies in [-1, 1], the same data in [0, 1] have "
            f"{symbol} = {scale / 2:.6g}."
        )
        yield f"To choose {symbol}: loss = {formula}, with {_CLOSED_FORM}"
    elif scale is None and beta is not None and not math.isclose(beta, 1, rel_tol=10 * TOLERANCE):
        yield f"For beta = 1, multiply the KL term by {1 / beta:.6g}."
    if trained_beta is not None and not math.isclose(trained_beta, 1, rel_tol=1e-3):
        yield (
            "For an ELBO with a learned scale, add the logarithm of the scale for each number of x, or "
            "fix the scale."
            if math.isinf(trained_beta)
            else f"For an ELBO with a learned scale, multiply the KL term by {1 / trained_beta:.6g}."
        )
    yield from _advise_on_reconstruction(recon)


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
        yield "For an ELBO, leave the allowance out; report the ELBO without it in any case."
    elif kl.kind == "weights":
        yield f"For an ELBO, give all latents one weight: {_CLOSED_FORM}"
    elif kl.kind == "single_draw":
        yield f"Write the closed form instead: {_CLOSED_FORM}"
    elif kl.fault is not None and kl.kind not in ("prior", "taken"):
        yield f"Write the KL term as {_CLOSED_FORM}, with the log-variance, and average it over the batch."


def _advise_on_reconstruction(recon: Reconstruction) -> Iterator[str]:
    if recon.kind in ("weighted_bernoulli", "balanced", "shifted_logit", "smoothed_bernoulli"):
        yield (
            "For a likelihood: F.binary_cross_entropy_with_logits(logits, x, "
            "reduction='none').sum(1).mean(), without weights."
        )
    elif recon.kind == "by_data":
        yield "If numbers are missing, mark them in a mask, so that x does not decide what counts."
    elif recon.kind in ("none", "clips"):
        yield (
            "x and recon_x were drawn from [0, 1]. If this is a cross-entropy for data in [-1, 1], "
            "rescale in a lambda: lambda recon_x, x, mu, logvar: loss_fn(2 * recon_x - 1, 2 * x - 1, mu, "
            "logvar)"
        )
