"""What the benchmarks run in processes of their own: `python -m tests.benchmarks.worker TASK ...`.

The answer is one line of JSON on standard output.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.benchmarks.task import DATA_DIM, new_vae
from vaecourse.datasets import mnist, to_unit_interval
from vaecourse.evaluation import nll_estimate
from vaecourse.objectives import importance_weighted_bound, negative_elbo
from vaecourse.training import fit

ROOT = Path(__file__).resolve().parents[2]
MODULE = ["-m", "tests.benchmarks.worker"]
# Linux counts what a process was before it became another program: one that is started from a large process
# seems as large from the beginning.  A small one in between forgets.
RELAY = [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"]


def call(arguments: Sequence[str], *, threads: int, processes: int = 1) -> Any:
    """The answer of a worker that runs in processes of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*RELAY, sys.executable, *(launcher if processes > 1 else []), *MODULE, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def train(options: argparse.Namespace) -> list[float] | None:
    """Seconds of each epoch of `fit`, from the first process only."""
    is_shared = "WORLD_SIZE" in os.environ  # torchrun says so
    if is_shared:
        dist.init_process_group("gloo")
    history = fit(
        new_vae(),
        negative_elbo,
        to_unit_interval(mnist("train")[0][: options.images]),
        num_epochs=options.epochs,
        batch_size=options.batch_size,
        progress=False,
    )
    is_first = not is_shared or dist.get_rank() == 0
    if is_shared:
        dist.destroy_process_group()
    return history.seconds if is_first else None


def memory(options: argparse.Namespace) -> float:
    """Largest memory of the process in MB, after an estimate of the likelihood."""
    import resource  # Windows has none

    x, vae = torch.zeros(options.images, DATA_DIM), new_vae().eval()
    if options.all_at_once:
        with torch.no_grad():
            importance_weighted_bound(vae, x, num_samples=options.samples)
    else:
        nll_estimate(vae, x, num_samples=options.samples)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main() -> None:
    """Do the task and print the answer."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.worker", description=main.__doc__)
    tasks = parser.add_subparsers(required=True)
    trainer = tasks.add_parser("train", help="seconds of each epoch")
    trainer.add_argument("--epochs", type=int, required=True)
    trainer.add_argument("--batch-size", type=int, required=True)
    trainer.set_defaults(run=train)
    estimator = tasks.add_parser("memory", help="largest memory, in MB")
    estimator.add_argument("--samples", type=int, required=True)
    estimator.add_argument("--all-at-once", action="store_true")
    estimator.set_defaults(run=memory)
    for task in (trainer, estimator):
        task.add_argument("--images", type=int, required=True)
    options = parser.parse_args()
    answer = options.run(options)
    if answer is not None:
        print(json.dumps(answer))


if __name__ == "__main__":
    main()
