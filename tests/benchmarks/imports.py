"""What importing costs, in fresh processes."""

import subprocess
import sys
from functools import partial

from tests.benchmarks.measuring import Settings, alternate
from tests.benchmarks.report import Goal, Outcome, Rounds

TORCH, PACKAGE = "import torch", "import vaecourse"
SCRIPT = "from vaecourse import datasets, models, objectives, training, evaluation"
NAMES = {PACKAGE: PACKAGE, SCRIPT: "import of all that a training script needs"}
GOAL = Goal("≤", 1.15)


def imports(settings: Settings) -> Outcome:
    """Time the statements, each in a new interpreter whose start does not count."""
    contenders = {statement: partial(import_seconds, statement) for statement in [TORCH, *NAMES]}
    alternate(contenders, 1)  # brings the files into memory
    seconds = Rounds(alternate(contenders, settings.rounds))
    ratios = [seconds.ratio(one, TORCH, what=f"{NAMES[one]} / {TORCH}", goal=GOAL) for one in NAMES]
    measurements = {f"{statement}: seconds": values for statement, values in seconds.values.items()}
    return Outcome([seconds.row(TORCH, "s"), *ratios], measurements)


def import_seconds(statement: str) -> float:
    """Seconds that an import statement takes in a process of its own."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(subprocess.check_output([sys.executable, "-c", code], text=True))
