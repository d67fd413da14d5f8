"""What importing costs, in fresh processes."""

import subprocess
import sys
from functools import partial

from tests.benchmarks.measuring import Settings, alternate, ratios
from tests.benchmarks.report import Goal, Outcome, Row

TORCH, PACKAGE = "import torch", "import vaecourse"
SCRIPT = "from vaecourse import datasets, models, objectives, training, evaluation"
NAMES = {PACKAGE: PACKAGE, SCRIPT: "import of all that a training script needs"}
GOAL = Goal("≤", 1.15)


def imports(settings: Settings) -> Outcome:
    """Time the statements, each in a new interpreter whose start does not count."""
    statements = [TORCH, *NAMES]
    for statement in statements:
        import_seconds(statement)  # brings the files into memory
    seconds = alternate({s: partial(import_seconds, s) for s in statements}, settings.rounds)
    rows = [Row(TORCH, "s", values=seconds[TORCH])]
    for statement, name in NAMES.items():
        rows.append(Row(f"{name} / {TORCH}", "×", GOAL, ratios(seconds[statement], seconds[TORCH])))
    return Outcome(rows, {f"{statement}: seconds": values for statement, values in seconds.items()})


def import_seconds(statement: str) -> float:
    """Seconds that an import statement takes in a process of its own."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)
