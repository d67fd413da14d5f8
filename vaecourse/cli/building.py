"""From a configuration to what it asks for: images, a model, a loss, a schedule."""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from vaecourse import likelihoods
from vaecourse.cli.configuration import RunConfig
from vaecourse.datasets import binarize, digits, mnist, to_unit_interval
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import importance_weighted_bound, negative_elbo

TEST_BITS_SEED = 20160901  # black-and-white test images are the same for every run and every seed
DATA_DIM = {"mnist": 784, "digits": 64}
NUM_IMAGES = {"mnist": 60_000, "digits": 1500}  # of 1797 digits; the rest, by other writers, is the test set
SCALE_RATE = 20  # times the learning rate of the weights
BYTES_PER_PARAMETER = 16  # itself, its gradient, and Adam's two averages, in float32


def load_images(data: str, split: str = "train") -> Tensor:
    """Images in [0, 1], shape (N, D); the first 1,500 digits are for training, the others for testing."""
    if data == "mnist":
        return to_unit_interval(mnist("train" if split == "train" else "test")[0])
    x = to_unit_interval(digits()[0], max_level=16)
    return x[: NUM_IMAGES["digits"]] if split == "train" else x[NUM_IMAGES["digits"] :]


def load_test_images(config: RunConfig, num_images: int | None = None) -> Tensor:
    """The first test images as the model is judged on: bits, where it learns from bits."""
    x = load_images(config.data, "test")
    if config.binarize:
        x = binarize(x, generator=torch.Generator().manual_seed(TEST_BITS_SEED))
    return x[:num_images]


def num_steps(config: RunConfig) -> int:
    """Optimiser steps of the whole run."""
    return config.num_epochs * math.ceil(NUM_IMAGES[config.data] / config.batch_size)


def build_model(config: RunConfig) -> VAE:
    """The untrained model of a run, on the CPU, whose weights the seed of `config` decides.

    Encoder and decoder are mirror-image perceptrons; torch's global random state stays as it is.
    `ValueError` if the model would not fit into memory.
    """
    with torch.device("meta"):
        needed = BYTES_PER_PARAMETER * sum(p.numel() for p in _model(config).parameters())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else needed
    if needed > there:
        raise ValueError(
            f"training this model needs {needed / 1e9:.3g} GB and this machine has {there / 1e9:.3g}: choose "
            f"a smaller latent_dim ({config.latent_dim}) or hidden_dims {config.hidden_dims}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _model(config)


def _model(config: RunConfig) -> VAE:
    kinds: dict[str, Callable[..., likelihoods.Likelihood]] = {
        "bernoulli": likelihoods.BernoulliLikelihood,
        "continuous-bernoulli": likelihoods.ContinuousBernoulliLikelihood,
        "gaussian": likelihoods.GaussianLikelihood,
        "laplace": likelihoods.LaplaceLikelihood,
    }
    likelihood = kinds[config.likelihood](*([] if "bernoulli" in config.likelihood else [config.scale]))
    return mlp_vae(
        DATA_DIM[config.data],
        config.latent_dim,
        hidden_dims=config.hidden_dims,
        likelihood=likelihood,
        activation={"relu": nn.ReLU, "tanh": nn.Tanh}[config.activation],
    )


@torch.no_grad()
def start_from_data(config: RunConfig, model: VAE, x: Tensor) -> None:
    """Let what the data can say before training be where training starts.

    A learned scale begins at the standard deviation of the pixels around their means: from 1, Adam
    would need thousands of steps to get there.  With `pixel_bias` the decoder begins with each
    pixel's frequency of ink, no pixel certain (Burda et al.).
    """
    if config.scale == "learned":
        model.likelihood.get_parameter("log_scale").copy_((x - x.mean(0)).square().mean().sqrt().log())
    if config.pixel_bias:
        *_, last = (layer for layer in model.decoder.modules() if isinstance(layer, nn.Linear))
        last.bias.copy_(torch.logit(x.mean(0), eps=1e-3))


def loss(config: RunConfig, model: VAE, x: Tensor) -> Tensor:
    """What a run minimises, in nats per image."""
    if config.binarize:
        x = torch.bernoulli(x)
    if config.importance_samples == 1:
        return negative_elbo(model, x, beta=config.beta)
    return -importance_weighted_bound(model, x, num_samples=config.importance_samples).mean()


def make_optimizer(config: RunConfig, model: VAE) -> torch.optim.Optimizer:
    """Adam; a learned scale, whose best value falls as the decoder learns, may move faster than weights."""
    slow = [weight for name, weight in model.named_parameters() if name != "likelihood.log_scale"]
    groups: list[dict[str, Any]] = [{"params": slow}]
    if config.scale == "learned":
        fast = [model.likelihood.get_parameter("log_scale")]
        groups.append({"params": fast, "lr": SCALE_RATE * config.learning_rate})
    return torch.optim.Adam(groups, lr=config.learning_rate, fused=True)


def make_scheduler(config: RunConfig, optimizer: torch.optim.Optimizer) -> LRScheduler | None:
    """The course of the learning rate, from `config.learning_rate` or up to it; None if it stays the same."""
    if config.schedule == "constant":
        return None
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=num_steps(config))
    highest = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=highest, total_steps=num_steps(config))
