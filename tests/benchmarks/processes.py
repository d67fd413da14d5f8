"""Training in two processes of one thread each (torchrun, gloo), against one process."""

from collections.abc import Sequence
from functools import partial

from tests.benchmarks.measuring import Settings, alternate, steady_rate
from tests.benchmarks.report import Outcome, Rounds, Row
from tests.benchmarks.task import BATCH_SIZE
from tests.benchmarks.worker import call

ONE = "one process, one thread"
LAYOUTS = {  # threads of each process, processes
    ONE: (1, 1),
    "one process, two threads": (2, 1),
    "two processes, one thread each": (1, 2),
}


def processes(settings: Settings) -> Outcome:
    """Train in every layout, with the usual batch and with a large one."""
    num_images, epochs = settings.choose(20_480, 2048), settings.choose(3, 2)
    rows: list[Row] = []
    measurements: dict[str, Sequence[object]] = {}
    for batch_size in (BATCH_SIZE, settings.choose(2048, 512)):
        train = partial(call, "train", images=num_images, batch_size=batch_size, epochs=epochs)
        contenders = {name: partial(train, threads=t, processes=p) for name, (t, p) in LAYOUTS.items()}
        seconds = alternate(contenders, settings.rounds)
        rates = Rounds({name: [steady_rate(num_images, run) for run in seconds[name]] for name in LAYOUTS})
        batch = f"batch {batch_size}"
        rows.append(rates.row(ONE, "images/s", what=f"{batch}, {ONE}"))
        rows += [rates.ratio(one, ONE, what=f"{batch}, {one} / {ONE}") for one in LAYOUTS if one != ONE]
        measurements |= {f"{batch}, {name}: seconds of each epoch": runs for name, runs in seconds.items()}
    return Outcome(rows, measurements)
