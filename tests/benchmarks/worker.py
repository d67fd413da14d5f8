"""What the benchmarks run in processes of their own: `python -m tests.benchmarks.worker TASK OPTIONS`.

The options are an object of JSON, and so is the answer, on one line of standard output.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.benchmarks import task
from vaecourse.evaluation import nll_estimate
from vaecourse.objectives import importance_weighted_bound

ROOT = Path(__file__).resolve().parents[2]
MODULE = ["-m", "tests.benchmarks.worker"]
# Linux counts what a process was before it became another program: one that is started from a large process
# seems as large from the beginning.  A small one in between forgets.
RELAY = [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"]


def call(name: str, *, threads: int, processes: int = 1, **options: object) -> Any:
    """The answer of a worker that runs in processes of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*RELAY, sys.executable, *(launcher if processes > 1 else []), *MODULE, name]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    answer = subprocess.check_output([*command, json.dumps(options)], cwd=ROOT, env=environment, text=True)
    return json.loads(answer)


def train(images: int, batch_size: int, epochs: int) -> list[float] | None:
    """Seconds of each epoch of `fit`, from the first process only."""
    is_shared = "WORLD_SIZE" in os.environ  # torchrun says so
    if is_shared:
        dist.init_process_group("gloo")
    history = task.train(task.new_vae(), task.unit_images(images), epochs, batch_size)
    is_first = not is_shared or dist.get_rank() == 0
    if is_shared:
        dist.destroy_process_group()
    return history.seconds if is_first else None


def memory(images: int, samples: int, is_chunked: bool) -> float:
    """Largest memory of the process in MB, after an estimate of the likelihood."""
    import resource  # Windows has none

    x, vae = torch.zeros(images, task.DATA_DIM), task.new_vae().eval()
    if is_chunked:
        nll_estimate(vae, x, num_samples=samples)
    else:
        with torch.no_grad():
            importance_weighted_bound(vae, x, num_samples=samples)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    answer = {"train": train, "memory": memory}[sys.argv[1]](**json.loads(sys.argv[2]))
    if answer is not None:
        print(json.dumps(answer))
