"""Losses of further public repositories, as formulas; the names are those of the repositories.

Signatures, orders of arguments and kinds of results are those of the sources; numbers were derived by hand.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.diagnosis.found_losses import BERNOULLI, STANDARD, Found, gaussian, kl_of, kl_terms, sse

PUBLIC: dict[str, Found] = {}


def public(name: str, data_dim: int, latent_dim: int, fields: dict[str, Any], *words: str):
    """Enter a loss into the table."""

    def enter(loss_fn):
        PUBLIC[name] = Found(loss_fn, data_dim, latent_dim, STANDARD | fields, words)
        return loss_fn

    return enter


FREE = {
    "family": "gaussian",
    "kl_fault": "malformed: wrong dependence on mu and logvar (free bits)",
    "is_elbo": False,
}


@public("BCQ", 6, 12, gaussian(math.sqrt(1 / 8), "scale"))
def _(recon, action, mean, std):
    kl = -0.5 * (1 + torch.log(std.pow(2)) - mean.pow(2) - std.pow(2)).mean()
    return F.mse_loss(recon, action) + 0.5 * kl


class SigmaVAE(nn.Module):
    """Gaussian with one learned scale, clipped softly from below; the terms are returned as a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def loss_function(self, recon_x, x, mu, logvar):
        log_sigma = -6 + F.softplus(self.log_sigma + 6)
        rec = 0.5 * ((x - recon_x) / log_sigma.exp()) ** 2 + log_sigma
        return rec.sum(), kl_terms(mu, logvar).sum()


sigma = math.exp(math.log1p(math.exp(6)) - 6)
TWO_TERMS = ("returns its two terms, and I took their sum", "(log_sigma)")
public("sigma-vae-pytorch", 2352, 20, gaussian(sigma, "logvar"), *TWO_TERMS)(SigmaVAE().loss_function)

PAD = torch.arange(100)[None] >= 80
MASKED_L1 = {"family": "laplace_per_element", "scale": 14000.0, "beta": 14000.0, "is_elbo": True}


@public("act", 1400, 32, MASKED_L1, "1120 of the 1400 numbers", "item 'loss'", "a_hat as the prediction")
def _(actions, a_hat, mu, logvar, is_pad=PAD, kl_weight=10):
    a_hat, actions = a_hat.reshape(len(a_hat), 100, 14), actions.reshape(len(actions), 100, 14)
    losses = {"l1": ((actions - a_hat).abs() * ~is_pad[..., None]).mean(), "kl": kl_of(mu, logvar).mean()}
    return losses | {"loss": losses["l1"] + losses["kl"] * kl_weight}


HUBER = {"family": "huber", "is_elbo": False, "scale": None}
HUBER |= {"batch_reduction": "sum of the reconstruction term, mean of the KL term"}


@public("timeseries-clustering-vae", 140, 20, HUBER, "squared up to an error of 1")
def _(x_decoded, x, latent_mean, latent_logvar):
    kl, rec = kl_terms(latent_mean, latent_logvar).mean(), nn.SmoothL1Loss(reduction="sum")(x_decoded, x)
    return kl + rec, rec, kl


prior = nn.Parameter(torch.full((10,), 0.9))
TOPICS = {"family": "multinomial", "parameterization": "probabilities", "is_elbo": False}
TOPICS |= {"kl_fault": "malformed: a KL from another prior than N(0, I)"}


@public("PyTorchAVITM", 100, 10, TOPICS, "standard deviation 0.9487", "belong to the prior", "(prior)")
def _(word_dists, inputs, mu, logvar):
    kl = 0.5 * ((logvar.exp() + mu**2) / prior - 1 + prior.log() - logvar).sum(1)
    return (kl - (inputs * torch.log(word_dists + 1e-10)).sum(1)).sum()


COUNTS = {"family": "negative_binomial", "parameterization": "mean", "beta": 1.0, "is_elbo": True}
theta = torch.linspace(0.1, 20, 200)


@public("scarches", 200, 10, COUNTS, "of each number, from 0.1 to 20")
def _(dec_mean, x, z1_mean, z1_log_var):
    log = torch.log(theta + dec_mean + 1e-8)
    log_p = theta * (torch.log(theta + 1e-8) - log) + x * (torch.log(dec_mean + 1e-8) - log)
    variance = z1_log_var.exp() + 1e-4
    kl = 0.5 * (z1_mean**2 + variance - 1 - variance.log()).sum(1)
    return -log_p.sum(-1).mean(), kl.mean(), 0


@dataclasses.dataclass
class LossOutput:
    """What scvi-tools returns."""

    loss: Tensor
    reconstruction_loss: Tensor


@public(
    "scvi-tools", 200, 10, {"family": "unknown", "posterior": "variance", "is_elbo": False}, "item 'loss'"
)
def _(px_rate, x, qz_m, qz_v, kl_weight=1.0):
    log, pi = torch.log(1 + px_rate + 1e-8), -1.0  # zero-inflated, with dispersion 1
    at_zero = F.softplus(torch.as_tensor(-pi) - log) - F.softplus(torch.as_tensor(-pi))
    above = -pi - log + x * (torch.log(px_rate + 1e-8) - log) - F.softplus(torch.as_tensor(-pi))
    rec = -torch.where(x < 1e-8, at_zero, above).sum(-1)
    kl = 0.5 * (qz_m**2 + qz_v - 1 - qz_v.log()).sum(1)
    return LossOutput((rec + kl_weight * kl).mean(), rec)


@public("soft-intro-vae", 3072, 128, gaussian(math.sqrt(0.5), "logvar"), "logvar as the fourth argument")
def _(x, recon_x, logvar, mu, beta_rec=1.0, beta_kl=1.0):
    return beta_rec * sse(recon_x, x).mean() + beta_kl * kl_of(mu, logvar).mean()


SHIFTED_PRIOR = {"family": "gaussian", "kl_fault": "malformed: a KL from another prior than N(0, I)"}


@public("svg", 4096, 10, SHIFTED_PRIOR, "mean 0.3 and standard deviation 0.7788", "draw z to generate")
def _(x_pred, x, mu, logvar, mu_p=0.3, logvar_p=-0.5):
    ratio = (logvar.exp() + (mu - mu_p) ** 2) / (2 * math.exp(logvar_p))
    return F.mse_loss(x_pred, x) + 1e-4 * (0.5 * (logvar_p - logvar) + ratio - 0.5).sum() / 100


TWO_MODALITIES = {"family": "mixed", "is_elbo": True, "beta": None, "batch_reduction": "mean"}


@public("multimodal-vae-public", 794, 64, TWO_MODALITIES, "784 of a Bernoulli", "10 of a categorical")
def _(recon, x, mu, logvar, lambda_image=1.0, lambda_text=1.0):
    image, text = recon[:, :784], recon[:, 784:]
    bce = F.binary_cross_entropy_with_logits(image, x[:, :784], reduction="none").sum(1)
    ce = F.cross_entropy(text + 1e-6, x[:, 784:].argmax(1), reduction="none")
    return (lambda_image * bce + lambda_text * ce + kl_of(mu, logvar)).mean()


LOG_VAR_IS_LOG_SCALE = gaussian(math.sqrt(3072 / 620), "log_scale")


@public("normflow", 3072, 128, LOG_VAR_IS_LOG_SCALE, "fourth argument is log σ", "gt_images as the data")
def _(mu, log_var, gt_images, reconstructions, dataset_size=0):
    negative_kl = 0.5 * (1 + 2 * log_var - mu**2 - log_var.exp() ** 2).sum(1).mean()
    return F.mse_loss(reconstructions, gt_images) - negative_kl / 310


MEAN_BESIDE_SUM = {
    **gaussian(math.sqrt(8 / 100), "scale"),
    "batch_reduction": "mean of the reconstruction term, sum of the KL term",
}


@public("latent-constraints", 3072, 100, MEAN_BESIDE_SUM, "beta changes with the batch size")
def _(recon_x, x, mu, sig_var, sigma=0.1):
    kl = -0.5 * torch.sum(1 + sig_var.pow(2).log() - mu.pow(2) - sig_var.pow(2))
    return (x - recon_x).pow(2).sum() / (2 * sigma**2) / len(x) + kl


OBSERVED = torch.arange(57) % 3 > 0
MASKED = {"family": "gaussian_per_element", "scale": 2.0, "beta": 4.0, "is_elbo": True}


@public("VAE_pytorchLightning", 57, 10, MASKED, "38 of the 57 numbers")
def _(x, recon, mu, logvar, mask=OBSERVED):
    rec, kl = ((x - recon) * mask).pow(2).sum(1).mean(), kl_terms(mu, logvar).sum()
    return rec + kl, rec, kl


class WavesLoss(nn.Module):
    """Mean over everything beside a sum over everything, with a log-variance named sigma."""

    def forward(self, x_hat, x, mu, sigma):
        return F.binary_cross_entropy(x_hat, x) + kl_terms(mu, sigma).sum()


COLLAPSES = {"family": "bernoulli", "beta": 8192.0, "is_elbo": False, "kl_weight": 1.0}
public("WavesProject", 1024, 16, COLLAPSES, "same way: .sum(1).mean() for each")(WavesLoss())


def astro(*args, **kwargs):
    """Take arguments without names, and return a negated divergence beside the loss."""
    recons, inputs, mu, log_var = args[:4]
    rec, kl = F.mse_loss(recons, inputs), kl_of(mu, log_var).mean()
    return {"Loss": rec + kwargs.get("kld_weight", 2.5e-4) * kl, "Reconstruction": rec, "KLD": -kl.detach()}


public("AstroVAE", 3072, 128, gaussian(math.sqrt(0.384), "logvar"), "item 'Loss'")(astro)

RATE = {"family": "poisson", "parameterization": "rate", "beta": 1.0, "is_elbo": True}


@public("AMLVAE", 500, 20, RATE, "Poisson likelihood with recon_x as its rate")
def _(x, xhat, mu, logvar, beta=1.0):
    return (xhat - x * torch.log(xhat)).sum(1).mean() + beta * kl_of(mu, logvar).mean()


@public(
    "inventory-embeddings",
    3072,
    256,
    {"family": "unknown", "is_elbo": False},
    "the square root of the summed",
)
def _(x, x_hat, mean, log_var):
    return 0.1 * (x - x_hat).square().sum().sqrt() + kl_of(mean, log_var).mean()


@public(
    "dreamer-pytorch",
    3072,
    30,
    FREE | {"posterior": "scale"},
    "The first 3 nats",
    "summed over the latents, are free",
)
def _(recon, x, mu, sigma):
    kl = 0.5 * (mu**2 + sigma**2 - 1 - 2 * sigma.log()).sum(1)
    return sse(recon, x).mean() + torch.clamp(kl, min=3.0).mean()


@public("MuseMorphose", 64, 16, FREE, "The first 0.25 nats", "of each latent, averaged over the batch,")
def _(recon, x, mu, logvar, beta=1.0, free_bits=0.25):
    kl = kl_terms(mu, logvar).mean(0).clamp(min=free_bits).mean()
    return {"total_loss": F.mse_loss(recon, x) + beta * kl, "kldiv_loss": kl}


@public(
    "a-margin", 784, 20, {"family": "unknown", "is_elbo": False}, "relative misfit of 0.1", "of recon_x - x"
)
def _(recon, x, mu, logvar, margin=4.0):
    error = F.relu((x - recon).abs() - math.sqrt(margin / x.shape[1])).square().sum(1)
    return (error + kl_of(mu, logvar)).mean(), {"margin": margin}


NO_SQUARE = {
    "family": "gaussian",
    "kl_fault": "malformed: wrong dependence on logvar",
    "posterior": "log_scale",
}


@public("a-mean-without-its-square", 784, 16, NO_SQUARE, "Without the square of mu")
def _(recon, x, mu, logvar):
    return F.mse_loss(recon, x) + 0.5 * (logvar.exp() ** 2 + mu - logvar - 1).sum(1).mean()


SWITCH = {"family": "categorical", "kl_fault": "malformed: a function of the KL", "is_elbo": False}


@public("a-switch-at-a-target", 120, 16, SWITCH, "a logarithm or a switch")
def _(logits, x, mu, logvar, target_kl=5.0):
    ce = F.cross_entropy(logits.view(-1, 10), x.view(-1, 10).argmax(-1))
    kl = kl_of(mu, logvar).mean()
    return ce + (kl if kl.item() <= target_kl else torch.zeros(())), ce


@public(
    "ETM",
    100,
    50,
    {"family": "multinomial", "is_elbo": False},
    "only if recon_x adds up to 1",
    "After a sigmoid",
)
def _(bows, res, mu_theta, logsigma_theta):
    rec = -(torch.log(res + 1e-6) * bows).sum(1)
    return rec.mean(), kl_of(mu_theta, logsigma_theta).mean()


SCALES = nn.Parameter(torch.full((16,), 0.1))
TABLE = {"family": "mixed", "is_elbo": False, "posterior": "logvar"}


@public("CTGAN", 16, 128, TABLE, "2 of a Gaussian", "tanh is its location", "14 of a categorical", "(SCALES)")
def _(recon_x, x, mu, logvar, factor=2):
    rec: list[Tensor] = []
    for column in (0, 5):
        error = x[:, column] - torch.tanh(recon_x[:, column])
        rec.append((error**2 / 2 / SCALES[column] ** 2 + SCALES[column].log()).sum())
    for block in (slice(1, 5), slice(6, 9), slice(9, 14), slice(14, 16)):
        rec.append(F.cross_entropy(recon_x[:, block], x[:, block].argmax(-1), reduction="sum"))
    return torch.stack(rec).sum() * factor / len(x), kl_terms(mu, logvar).sum() / len(x)


def bernoulli_pair(x, x_new, z_mu, z_sigma):
    """Return the terms as a pair; the log-variance is named sigma."""
    return F.binary_cross_entropy(x_new, x), kl_terms(z_mu, z_sigma).sum() / x.numel()


public("VAE", 768, 100, BERNOULLI | {"parameterization": "probabilities"}, "took their sum")(bernoulli_pair)
