"""What a checkpoint costs, in training steps."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.benchmarks.measuring import Settings, alternate, seconds_per_call
from tests.benchmarks.report import Outcome, Rounds, Row
from tests.benchmarks.task import BATCH_SIZE, new_vae, train, unit_images
from vaecourse.training import Checkpoints, load_checkpoint, save_checkpoint

SAVE, STEP = "save_checkpoint", "a step of fit, eager, float32"
STEPS_OF_AN_EPOCH = 469  # 60,000 images in batches of 128


def checkpoint(settings: Settings) -> Outcome:
    """Time a step, and the saving of just what `fit` saves."""
    num_steps = settings.choose(100, 3)
    x = unit_images(num_steps * BATCH_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        train(new_vae(), x, 2, checkpoints=Checkpoints(folder, identity="benchmark"))
        (*_, path) = sorted(Path(folder).glob("*.ckpt"))
        save = partial(save_checkpoint, path, load_checkpoint(path))
        contenders: dict[str, Callable[[], float]] = {
            SAVE: partial(seconds_per_call, save, settings.threads),
            STEP: lambda: train(new_vae(), x, 2).seconds[1] / num_steps,  # the first epoch does not count
        }
        seconds = Rounds(alternate(contenders, settings.rounds))
        megabytes = path.stat().st_size / 1e6
    rows = [
        Row("size of the file", "MB", values=[megabytes]),
        seconds.row(SAVE, "ms", scale=1000),
        seconds.row(STEP, "ms", scale=1000),
        seconds.ratio(SAVE, STEP),
        seconds.ratio(SAVE, STEP, "%", scale=100 / STEPS_OF_AN_EPOCH, what="one checkpoint an epoch adds"),
    ]
    return Outcome(rows, {f"{name}: seconds": values for name, values in seconds.values.items()})
