"""The smallest model of the IWAE paper, trained to its published likelihood: how many CPU minutes?

Burda, Grosse and Salakhutdinov (2016), table 1, one stochastic layer, 50 latents, after 3,280 epochs.
"""

import time
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from tests.benchmarks.ceilings import bf16_problem
from tests.benchmarks.measuring import QualitySettings, Settings
from tests.benchmarks.report import Goal, Outcome, Row
from tests.benchmarks.task import BATCH_SIZE, DATA_DIM, binary_images, grey_images
from vaecourse.datasets import to_unit_interval
from vaecourse.evaluation import NllEstimate, nll_estimate
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import importance_weighted_bound, negative_elbo
from vaecourse.training import compiler_problem, fit

PUBLISHED = {1: 86.76, 50: 84.78}  # nats, by importance samples of the training loss
PEAK_RATE = 2e-3


def quality(settings: Settings) -> Outcome:
    """Train once, as long as asked for, and estimate the likelihood of binary test images."""
    asked = settings.quality
    pixels = to_unit_interval(grey_images(settings))
    vae = paper_vae(pixels)
    precision = asked.precision or ("float32" if bf16_problem(settings.threads) else "bf16")
    start = time.perf_counter()
    losses = train(vae, pixels, asked, precision)
    minutes = (time.perf_counter() - start) / 60
    start = time.perf_counter()
    estimate = test_nll(vae, asked.nll_images, asked.nll_samples)
    estimate_minutes = (time.perf_counter() - start) / 60
    k, published = asked.importance_samples, PUBLISHED.get(asked.importance_samples)
    goal = None if published is None else Goal("≤", published)
    what = f"{asked.num_epochs} epochs, k = {k}, {precision}"
    images = f"{asked.nll_samples} samples, {asked.nll_images} test images"
    rows = [
        Row(f"{what}: -log p(x), {images}", "nats", goal, [estimate.nats]),
        Row(f"{what}: training", "minutes", None, [minutes]),
        Row(f"{what}: the estimate", "minutes", None, [estimate_minutes]),
    ]
    errors = {"standard error": [estimate.standard_error], "sampling error": [estimate.sampling_error]}
    return Outcome(rows, {"loss of each epoch": losses, "nats": [estimate.nats], **errors})


def paper_vae(pixels: Tensor) -> VAE:
    """784-200-200-50 with tanh; the output starts at the log-odds of each pixel."""
    torch.manual_seed(0)
    vae = mlp_vae(DATA_DIM, 50, hidden_dims=(200, 200), activation=nn.Tanh)
    mean = (pixels.sum(0) + 1) / (len(pixels) + 2)  # Laplace's rule: no pixel is certain
    with torch.no_grad():
        vae.decoder.network[-1].bias.copy_(torch.logit(mean))
    return vae


def train(
    vae: VAE, pixels: Tensor, asked: QualitySettings, precision: Literal["float32", "bf16"]
) -> list[float]:
    """Mean loss of each epoch; every batch is a fresh binary draw of its grey images."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, fused=True)
    num_steps = asked.num_epochs * -(-len(pixels) // BATCH_SIZE)
    return fit(
        vae,
        partial(binary_loss, num_samples=asked.importance_samples),
        pixels,
        num_epochs=asked.num_epochs,
        batch_size=BATCH_SIZE,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=num_steps),
        precision=precision,
        compile=compiler_problem() is None,
    ).loss


def binary_loss(model: VAE, pixels: Tensor, *, num_samples: int) -> Tensor:
    """Negative bound on the log-likelihood of a binary draw, from one or several samples of z."""
    x = torch.bernoulli(pixels)
    if num_samples == 1:
        return negative_elbo(model, x)
    return -importance_weighted_bound(model, x, num_samples=num_samples).mean()


def test_nll(vae: VAE, num_images: int, num_samples: int) -> NllEstimate:
    """The estimate on one binary draw of test images."""
    return nll_estimate(vae, binary_images("test", num_images, seed=1), num_samples=num_samples)
