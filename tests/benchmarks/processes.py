"""Training in two processes of one thread each (torchrun, gloo), against one process."""

from collections.abc import Sequence
from functools import partial

from tests.benchmarks.measuring import Settings, alternate, ratios, steady_rate
from tests.benchmarks.report import Outcome, Row
from tests.benchmarks.task import BATCH_SIZE
from tests.benchmarks.worker import call

ONE, THREADS, PROCESSES = (
    "one process, one thread",
    "one process, two threads",
    "two processes, one thread each",
)
LAYOUTS = {ONE: (1, 1), THREADS: (2, 1), PROCESSES: (1, 2)}  # threads of each process, processes


def processes(settings: Settings) -> Outcome:
    """Train in every layout, with the usual batch and with a large one."""
    num_images = settings.choose(20_480, 2048)
    rows: list[Row] = []
    measurements: dict[str, Sequence[object]] = {}
    for batch_size in (BATCH_SIZE, settings.choose(2048, 512)):
        sizes = {"images": num_images, "batch-size": batch_size, "epochs": settings.choose(3, 2)}
        arguments = ["train", *(f"--{name}={size}" for name, size in sizes.items())]
        seconds = alternate(
            {
                name: partial(call, arguments, threads=threads, processes=count)
                for name, (threads, count) in LAYOUTS.items()
            },
            settings.rounds,
        )
        rates = {name: [steady_rate(num_images, run) for run in runs] for name, runs in seconds.items()}
        rows += [
            Row(f"batch {batch_size}, {ONE}", "images/s", values=rates[ONE]),
            *(
                Row(f"batch {batch_size}, {name} / {ONE}", "×", values=ratios(rates[name], rates[ONE]))
                for name in (THREADS, PROCESSES)
            ),
        ]
        measurements |= {
            f"batch {batch_size}, {name}: seconds of each epoch": runs for name, runs in seconds.items()
        }
    return Outcome(rows, measurements)
