"""What a checkpoint costs, in training steps."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from tests.benchmarks.measuring import Settings, alternate, ratios, seconds_per_call
from tests.benchmarks.report import Outcome, Row
from tests.benchmarks.task import BATCH_SIZE, new_vae
from vaecourse.datasets import mnist, to_unit_interval
from vaecourse.objectives import negative_elbo
from vaecourse.training import Checkpoints, History, fit, load_checkpoint, save_checkpoint

SAVE, STEP = "save_checkpoint", "a step of fit, eager, float32"
STEPS_OF_AN_EPOCH = 469  # 60,000 images in batches of 128


def checkpoint(settings: Settings) -> Outcome:
    """Time a step, and the saving of just what `fit` saves."""
    num_steps = settings.choose(100, 3)
    x = to_unit_interval(mnist("train")[0][: num_steps * BATCH_SIZE])
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder)
        train(x, checkpoints)
        (*_, path) = sorted(Path(folder).glob("*.ckpt"))
        save = partial(save_checkpoint, path, load_checkpoint(path))
        contenders: dict[str, Callable[[], float]] = {
            SAVE: partial(seconds_per_call, save, settings.threads),
            STEP: lambda: train(x).seconds[1] / num_steps,
        }
        seconds = alternate(contenders, settings.rounds)
        megabytes = path.stat().st_size / 1e6
    steps = ratios(seconds[SAVE], seconds[STEP])
    rows = [
        Row("size of the file", "MB", values=[megabytes]),
        Row(SAVE, "ms", values=[1000 * s for s in seconds[SAVE]]),
        Row(STEP, "ms", values=[1000 * s for s in seconds[STEP]]),
        Row(f"{SAVE} / {STEP}", "×", values=steps),
        Row("one checkpoint an epoch adds", "%", values=[100 * s / STEPS_OF_AN_EPOCH for s in steps]),
    ]
    return Outcome(rows, {f"{name}: seconds": values for name, values in seconds.items()})


def train(x: Tensor, checkpoints: Checkpoints | None = None) -> History:
    """Two epochs, of which the first does not count."""
    return fit(
        new_vae(),
        negative_elbo,
        x,
        num_epochs=2,
        batch_size=BATCH_SIZE,
        checkpoints=checkpoints,
        progress=False,
    )
