"""Losses of public code that earlier readings got wrong or said too little about, as formulas.

Each has what was derived by hand: the expected fields of a diagnosis, and words that its text must hold.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F


class Found(NamedTuple):
    """A loss, its sizes, and what a diagnosis must say of it."""

    loss_fn: Callable[..., Any]
    data_dim: int
    latent_dim: int
    fields: dict[str, Any]
    words: tuple[str, ...] = ()


FOUND: dict[str, Found] = {}
STANDARD = {"kl_fault": None, "posterior": "logvar"}


def found(name: str, data_dim: int, latent_dim: int, fields: dict[str, Any], *words: str):
    """Enter a loss into the table."""

    def enter(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
        FOUND[name] = Found(loss_fn, data_dim, latent_dim, STANDARD | fields, words)
        return loss_fn

    return enter


def kl_terms(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of each latent: (batch, latents)."""
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar)


def kl_of(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of each example: (batch,)."""
    return kl_terms(mu, logvar).sum(1)


def sse(r: Tensor, x: Tensor) -> Tensor:
    """Squared error of each example: (batch,)."""
    return (r - x).square().sum(1)


# ---- the fourth argument is a variance, a scale, its logarithm, or fixed ----


def gaussian(scale: float, posterior: str) -> dict[str, Any]:
    """Fields of a Gaussian negative ELBO."""
    return {
        "family": "gaussian",
        "posterior": posterior,
        "scale": scale,
        "beta": scale**2,
        "is_elbo": True,
        "parameterization": "loc",
    }


@found("variance-by-distributions", 2000, 10, gaussian(0.005, "variance"), "fourth argument is the variance")
def _(px, x, qz_m, qz_v):
    kl = kl_divergence(Normal(qz_m, qz_v.sqrt()), Normal(0.0, 1.0)).sum(1)
    return (0.5 * sse(px, x) + 0.5 * (kl * 5e-5)).mean()


@found("log-scale-summed", 12288, 32, gaussian(math.sqrt(0.5), "log_scale") | {"batch_reduction": "sum"})
def _(recon_x, x, mu, logsigma):
    bce = F.mse_loss(recon_x, x, reduction="sum")  # so it is called
    return bce - 0.5 * torch.sum(1 + 2 * logsigma - mu.pow(2) - (2 * logsigma).exp())


LAPLACE_SCALE = {
    "family": "laplace",
    "posterior": "scale",
    "scale": 0.004096,
    "beta": 0.004096,
    "is_elbo": True,
}


@found("scale-with-l1", 4096, 2048, LAPLACE_SCALE, "fourth argument is σ: read so", "(0.5 * logvar).exp())")
def _(recon, x, z_mu, z_sigma):
    kl = 0.5 * torch.sum(z_mu.pow(2) + z_sigma.pow(2) - torch.log(z_sigma.pow(2)) - 1, dim=1)
    return F.l1_loss(recon, x) + 1e-6 * torch.sum(kl) / kl.shape[0]


@found("scale-with-a-constant-in-the-logarithm", 32768, 256, gaussian(8.0, "scale"))
def _(x_vae, net_input, z_mean, z_sigma):
    kl = 0.5 * torch.mean(z_mean**2 + z_sigma**2 - torch.log(1e-8 + z_sigma**2) - 1)
    return kl + F.mse_loss(net_input, x_vae)


@found("fixed-variance", 32768, 256, gaussian(math.sqrt(128), "fixed"), "ignores its fourth argument")
def _(x_vae, net_input, z_mean, unused):
    return torch.mean(z_mean**2) + F.mse_loss(net_input, x_vae)


MIXED = {"family": "mixed", "posterior": "fixed", "is_elbo": False, "beta": None, "kl_weight": 1 / (32 * 200)}


@found(
    "three-blocks",
    112,
    32,
    MIXED,
    "104 of a Gaussian likelihood",
    "multiply the multinomial part by 0.000495105",
)
def _(out, inp, mu, unused, alpha=0.25, beta=200.0):
    n, rest = 8, 103
    ce = -((out[:, :n].clamp(min=0) + 1e-9).log() * inp[:, :n]).sum(1)
    middle, last = sse(out[:, n:-1], inp[:, n:-1]), (out[:, -1] - inp[:, -1]).pow(2)
    weight = (1 - alpha) * (n - 1) / (n * math.log(n))
    kl = 0.5 * mu.pow(2).sum(1) / (mu.shape[1] * beta)
    return (ce * weight + last * (1 - alpha) / n + middle * alpha / rest + kl).mean()


SUM_BESIDE_MEAN = {
    "family": "bernoulli",
    "posterior": "log_scale",
    "beta": 1 / 8,
    "is_elbo": False,
    "batch_reduction": "sum of the reconstruction term, mean of the KL term",
}


@found("log-scale-and-sum-beside-mean", 2200, 200, SUM_BESIDE_MEAN, "same way: .sum(1).mean() for each")
def _(recon_x, x, mu, logvar):
    bce = F.binary_cross_entropy_with_logits(recon_x, x, reduction="sum")
    return bce - 0.5 * torch.mean(torch.sum(1 + 2 * logvar - mu.pow(2) - logvar.exp().pow(2), 1))


BERNOULLI = {"family": "bernoulli", "beta": 1.0, "is_elbo": True, "scale": None}


@found("scale-named-variance", 784, 10, BERNOULLI | {"posterior": "scale", "parameterization": "logits"})
def _(logits, x, z_mean, z_var):
    rec = nn.BCEWithLogitsLoss(reduction="none")(logits, x).sum(-1).mean()
    return rec + kl_divergence(Normal(z_mean, z_var), Normal(0.0, 1.0)).sum(-1).mean()


@found("scale-with-both-means", 784, 8, gaussian(7.0, "scale"), "a mean over its 8 latents")
def _(dec, inputs, z_mean, z_stddev):
    s2 = z_stddev * z_stddev
    return nn.MSELoss()(dec, inputs) + 0.5 * torch.mean(z_mean * z_mean + s2 - torch.log(s2) - 1)


# ---- other likelihoods ----


CATEGORICAL = {
    "family": "categorical",
    "parameterization": "logits",
    "posterior": "negative_abs_logvar",
    "beta": 0.005,
    "is_elbo": False,
}


@found("tokens", 120, 28, CATEGORICAL, "10 categories in each of 12 groups", "multiply the KL term by 200")
def _(logits, x, z_mean, raw):
    target = x.view(-1, 12, 10).argmax(-1).flatten()
    word = F.cross_entropy(logits.reshape(-1, 10), target, reduction="sum") / len(x)
    return word + 0.005 * kl_terms(z_mean, -torch.abs(raw)).sum() / len(x)


FLOORED = {"family": "discretized_logistic", "is_elbo": False, "kl_weight": 1 / 192}


@found("discretised-logistic-with-a-floor", 192, 16, FLOORED, "fixed scale 0.02489", "bins of width 0.003922")
def _(means, x01, mu, logvar):
    x, m, inverse = 2 * x01 - 1, 2 * means - 1, math.exp(3.0)
    plus, minus = inverse * (x - m + 1 / 255), inverse * (x - m - 1 / 255)
    delta = (torch.sigmoid(plus) - torch.sigmoid(minus)).clamp(min=1e-12).log()
    log_p = torch.where(x > 0.999, -F.softplus(minus), delta)
    log_p = torch.where(x < -0.999, plus - F.softplus(plus), log_p)
    return (kl_of(mu, logvar) - log_p.sum(1)).mean() / x.shape[1]


MULTINOMIAL = {"family": "multinomial", "parameterization": "logits", "beta": 0.2, "is_elbo": False}


@found("counts", 100, 20, MULTINOMIAL, "a softmax over all 100 numbers")
def _(recon_x, x, mu, logvar, anneal=0.2):
    return -torch.mean(torch.sum(F.log_softmax(recon_x, 1) * x, -1)) + anneal * kl_of(mu, logvar).mean()


CORRELATED = {"family": "gaussian_correlated", "is_elbo": True, "batch_reduction": "sum"}


@found("error-of-the-means-too", 144, 8, CORRELATED, "noise correlated between the numbers")
def _(x_recons, x, z_mean, z_log_var):
    x, r = x.view(-1, 24, 6), x_recons.view(-1, 24, 6)
    rec = (x - r).pow(2).sum() + (x.mean(2) - r.mean(2)).pow(2).sum()
    return 3.0 * rec + kl_terms(z_mean, z_log_var).sum()


SECANT = {"family": "hyperbolic_secant", "beta": 10 * 12288 * 100.0, "is_elbo": False}


@found("log-cosh", 12288, 128, SECANT, "log cosh(100 t)", "is not finite")
def _(recons, x, mu, log_var, alpha=100.0, beta=10.0):
    t = recons - x
    rec = alpha * t + torch.log(1.0 + torch.exp(-2 * alpha * t)) - math.log(2.0)
    return rec.mean() / alpha + beta * kl_of(mu, log_var).mean()


@found(
    "mixture", 192, 16, {"family": "unknown", "is_elbo": False, "kl_weight": 0.5}, "no likelihood that I know"
)
def _(x_tilde, x, z_mu, z_logvar, beta=0.5):
    b1, b2 = (x - x_tilde).pow(2) / (-2 * 0.09**2), (x - 0.5).pow(2) / (-2 * 0.11**2)
    rec = -torch.logsumexp(torch.stack([b1, b2]) + math.log(0.5), 0).sum() / len(x)
    return rec + beta * kl_terms(z_mu, z_logvar).sum() / len(x)


PREDICTED = {
    "family": "gaussian_predicted_scale",
    "parameterization": "loc_and_scale",
    "beta": 1.0,
    "is_elbo": True,
}


@found("predicted-scale", 60, 5, PREDICTED, "the second the scale before a softplus")
def _(recon, x, mu, logvar):
    m, s = recon[:, :30], F.softplus(recon[:, 30:])
    return kl_terms(mu, logvar).mean(0).sum() - Normal(m, s).log_prob(x[:, :30]).mean(0).sum()


COMPOSITE = {"family": "unknown", "posterior": "softplus_scale", "kl_weight": 0.2, "is_elbo": False}


@found("spectral", 128, 16, COMPOSITE, "a raw output whose softplus is σ", "no likelihood that I know")
def _(y, x, mean, scale):
    std = F.softplus(scale) + 1e-4
    kl = (mean * mean + std * std - torch.log(std * std) - 1).sum(1).mean()  # without its 1/2
    a, b = torch.fft.rfft(y).abs(), torch.fft.rfft(x).abs()
    return ((a - b) ** 2).mean() + torch.log((a + 1e-7) / (b + 1e-7)).abs().mean() + 0.1 * kl


# ---- weights and masks ----


SHIFTED = {"family": "unknown", "posterior": "log_scale", "is_elbo": False}


@found("shifted-logit", 40, 16, SHIFTED, "sigmoid(1 - recon_x) where 1 - sigmoid(recon_x)", "weigh 10 times")
def _(preds, labels, mu, logvar, norm=0.6, pos_weight=10.0):
    ones = labels * torch.sigmoid(preds).log() * pos_weight
    zeros = (1 - labels) * torch.sigmoid(1 - preds).log()
    kl = -0.5 / len(preds) * torch.mean(torch.sum(1 + 2 * logvar - mu.pow(2) - logvar.exp().pow(2), 1))
    return -norm * (ones + zeros).mean() + kl


WEIGHTED = {"family": "weighted_bernoulli", "parameterization": "logits", "is_elbo": False, "beta": None}


@found("pos-weight", 100, 10, WEIGHTED, "ones weigh 5 times as much as zeros", "w x / (1 - x + w x)")
def _(a, x, mu, logvar):
    weight = torch.tensor(5.0)
    rec = F.binary_cross_entropy_with_logits(a, x, reduction="none", pos_weight=weight).sum(1)
    return (rec + kl_of(mu, logvar)).mean()


BALANCED = {"family": "weighted_bernoulli", "posterior": "log_scale", "is_elbo": False}


@found("balanced-edges", 60, 16, BALANCED, "averages ones and zeros", "reduction with the factor 0.25")
def _(p, adj, mu, logstd, eps=1e-15):
    edges = adj > 0.5
    rec = -torch.log(p[edges] + eps).mean() - torch.log(1 - p[~edges] + eps).mean()
    kl = -0.5 * torch.mean(torch.sum(1 + 2 * logstd - mu**2 - logstd.exp() ** 2, dim=1))
    return rec + kl / len(mu)


yy, xx = torch.meshgrid(torch.arange(17) - 8, torch.arange(17) - 8, indexing="ij")
DISC = ((yy**2 + xx**2) <= 64).flatten()
MASK = {
    "family": "gaussian_per_element",
    "scale": math.sqrt(0.5),
    "beta": 0.5,
    "is_elbo": True,
    "recon_weight": 1 / 197,
    "kl_weight": 1 / 197,
}


@found("circular-mask", 289, 8, MASK, "197 of the 289 numbers", "as if they were not observed")
def _(y_recon, y, z_mu, z_logvar, beta=1.0):
    rec = F.mse_loss(y_recon[:, DISC], y[:, DISC])
    return rec + beta * kl_of(z_mu, z_logvar).mean() / DISC.sum().float()


@found(
    "mask-by-the-data", 100, 8, {"family": "unknown", "is_elbo": False}, "0 where x = 0, 1 where 0 < x < 1"
)
def _(reconstructed_x, x, mean, log_var, beta=1.0):
    reconstructed_x[x == 0] = 0
    return F.mse_loss(reconstructed_x, x, reduction="sum") + beta * kl_terms(mean, log_var).sum()


# ---- the KL term ----


CAPACITY = {
    "family": "gaussian",
    "posterior": "logvar",
    "scale": None,
    "is_elbo": False,
    "recon_weight": 255.0,
}
CAPACITY |= {"kl_fault": "malformed: wrong dependence on mu and logvar (a capacity)"}


@found("large-capacity", 64, 2, CAPACITY, "a capacity of 25 nats", "leave out the capacity")
def _(recon, data, mean, logvar, gamma=1000.0, capacity=25.0):
    rec = F.mse_loss(recon * 255, data * 255, reduction="sum") / 255 / len(data)
    return rec + gamma * (kl_terms(mean, logvar).mean(0).sum() - capacity).abs()


TWO_SIGNS = {"family": "gaussian", "kl_fault": "malformed: wrong dependence on logvar", "is_elbo": False}


@found(
    "two-signs-wrong",
    784,
    20,
    TWO_SIGNS,
    "the variance grow without bound",
    "the factor 1, the variance -1",
)
def _(r, x, mu, logvar):
    kl = 0.5 * torch.sum(mu * mu - logvar.exp() - logvar - 1, dim=1).sum()
    return nn.MSELoss(reduction="sum")(r, x) + kl


log_scale = nn.Parameter(torch.tensor([0.0]))


@found("one-draw-and-a-learned-scale", 3072, 256, gaussian(1.0, "logvar"), "one draw of z", "(log_scale)")
def _(x_hat, x, mu, log_var):
    std = torch.exp(log_var / 2)
    z = Normal(mu, std).rsample()
    rec = Normal(x_hat, log_scale.exp()).log_prob(x).sum(1)
    kl = (Normal(mu, std).log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(-1)
    return (kl - rec).mean()


class LearnedScale(nn.Module):
    """Absolute error with a learned logarithm of its scale, and a small KL weight."""

    def __init__(self) -> None:
        super().__init__()
        self.logvar = nn.Parameter(torch.zeros(()))

    def forward(self, inputs, recon, mean, logvar):
        nll = torch.abs(inputs - recon) / torch.exp(self.logvar) + self.logvar
        kl = kl_of(mean, torch.clamp(logvar, -30.0, 20.0))
        return nll.sum() / len(nll) + 1e-6 * kl.sum() / len(kl)


learned = LearnedScale()
TRAP = {"family": "laplace", "is_elbo": False, "recon_weight": 1.0, "kl_weight": 1e-6}
found("learned-scale-beside-a-weight", 12288, 256, TRAP, "beta = 1e-06", "(logvar)")(learned)
found("the-same-in-a-lambda", 12288, 256, TRAP, "scale is trained")(lambda r, x, m, v: learned(x, r, m, v))


# ---- the call ----


@found("range-from-minus-one", 784, 20, BERNOULLI | {"parameterization": "probabilities"}, "data in [-1, 1]")
def _(r, x, mu, logvar):
    return F.binary_cross_entropy((r + 1) / 2, (x + 1) / 2, reduction="sum") + kl_terms(mu, logvar).sum()


def with_numpy(logits, labels, mu, logvar):
    """Compute with NumPy, which is refused."""
    rec = np.sum(np.logaddexp(0, logits) - labels * logits)
    return rec - 0.5 * np.sum(1 + logvar - np.square(mu) - np.exp(logvar))


def calculate_loss(x, reconstructed_x, mean, log_var):
    """Take x first, and return the sum of the terms and the terms."""
    rec = F.binary_cross_entropy(reconstructed_x, x, reduction="sum")
    kl = kl_terms(mean, log_var).sum()
    return rec + kl, rec, kl


found("x-first", 784, 20, BERNOULLI, "x as the data, reconstructed_x as the prediction", "item 0")(
    calculate_loss
)
found("x-first-unnamed", 784, 20, BERNOULLI, "only order that fits")(lambda *t: calculate_loss(*t)[0])
