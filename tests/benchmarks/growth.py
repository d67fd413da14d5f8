"""How time grows with images, batch, latents and samples, and memory with the samples."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from tests.benchmarks.measuring import Settings, alternate, growth_exponent, timed
from tests.benchmarks.report import Goal, Outcome, Row
from tests.benchmarks.task import BATCH_SIZE, DATA_DIM, LATENT_DIM, new_vae, train, unit_images
from tests.benchmarks.worker import call
from vaecourse.evaluation import nll_estimate

PROPORTIONAL = Goal("≤", 1.1)
MEMORY_GOALS = {"in chunks": Goal("≤", 20), "all at once": None}


def growth(settings: Settings) -> Outcome:
    """Measure each series of sizes in alternation, and the slope of its logarithms."""
    images = settings.choose([7500, 15_000, 30_000, 60_000], [256, 512])
    batches = settings.choose([32, 128, 512, 2048], [32, 128])
    latents = settings.choose([2, 8, 32, 128], [2, 8])
    samples = settings.choose([100, 200, 400, 800], [100, 200])
    some = images[1]
    series: list[tuple[str, Sequence[int], Callable[[int], float], Goal | None]] = [
        ("an epoch, with the number of images", images, epoch_seconds, PROPORTIONAL),
        ("an epoch, with the batch size", batches, partial(epoch_seconds, some), None),
        ("an epoch, with the latents", latents, partial(epoch_seconds, some, BATCH_SIZE), None),
        ("nll_estimate, with the samples", samples, partial(nll_seconds, settings), PROPORTIONAL),
    ]
    rows: list[Row] = []
    measurements: dict[str, Sequence[object]] = {}
    for name, sizes, measure, goal in series:
        seconds = alternate({str(size): partial(measure, size) for size in sizes}, settings.rounds)
        rows.append(Row(f"exponent of the time of {name}", "", goal, exponents(seconds)))
        measurements |= {f"time of {name}, {size}: seconds": values for size, values in seconds.items()}
    memory = memory_growth(settings)
    return Outcome([*rows, *memory.rows], measurements | dict(memory.measurements))


def exponents(seconds: Mapping[str, Sequence[float]]) -> list[float]:
    """Growth exponent of every round."""
    sizes = [float(size) for size in seconds]
    return [growth_exponent(sizes, costs) for costs in zip(*seconds.values(), strict=True)]


def epoch_seconds(num_images: int, batch_size: int = BATCH_SIZE, latent_dim: int = LATENT_DIM) -> float:
    """Seconds of the second of two epochs of `fit`."""
    return train(new_vae(latent_dim), unit_images(num_images), 2, batch_size).seconds[1]


def nll_seconds(settings: Settings, num_samples: int) -> float:
    """Seconds of an estimate of the likelihood of some images."""
    x, vae = torch.zeros(settings.choose(400, 20), DATA_DIM), new_vae().eval()
    return timed(partial(nll_estimate, vae, x, num_samples=num_samples))[0]


def memory_growth(settings: Settings) -> Outcome:
    """Memory that more samples take: in chunks, and, to show that it would be seen, all at once."""
    few, many = settings.choose((100, 1600), (100, 200))
    memory = partial(call, "memory", images=100, threads=settings.threads)
    contenders = {
        (name, samples): partial(memory, samples=samples, is_chunked=name == "in chunks")
        for name in MEMORY_GOALS
        for samples in (few, many)
    }
    peaks = alternate(contenders, settings.choose(3, 1))
    rows = []
    for name, goal in MEMORY_GOALS.items():
        extra = [b - a for a, b in zip(peaks[name, few], peaks[name, many], strict=True)]
        rows.append(Row(f"memory that {many} samples take beyond {few}, {name}", "MB", goal, extra))
    return Outcome(rows, {f"peak memory, {name}, {n} samples: MB": peaks[name, n] for name, n in peaks})
