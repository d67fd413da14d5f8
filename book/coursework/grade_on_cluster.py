"""Spread the submissions of a class over a Dask cluster.

The second command puts everything together:

    python book/coursework/grade_on_cluster.py submitted graded --scheduler tcp://HOST:8786
    vaecourse grade submitted --out graded

Without --scheduler the workers are processes on this machine.  Every worker
needs this package, bubblewrap, and the folder of submissions at the same path.
Each submission is one call of `vaecourse grade-one`, in a sandbox on the
worker; what comes back is text.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from distributed import Client, LocalCluster, as_completed

from vaecourse.coursework.intake import submission_folders
from vaecourse.coursework.results import keep


def grade_one(notebook: str) -> dict:
    """Grade one submission on a worker."""
    command = [sys.executable, "-m", "vaecourse", "grade-one", notebook]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{notebook}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def main() -> None:
    """Grade what is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("submitted", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scheduler", help="address of a Dask scheduler")
    parser.add_argument(
        "--workers", type=int, default=2, help="without a scheduler"
    )
    options = parser.parse_args()
    where = options.scheduler or LocalCluster(
        n_workers=options.workers,
        threads_per_worker=1,
        dashboard_address=None,
    )
    folder = options.submitted.resolve()
    notebooks = [
        str(folder / student / assignment / f"{assignment}.ipynb")
        for student, assignment in submission_folders(folder)
    ]
    with Client(where) as client:
        futures = client.map(grade_one, notebooks, pure=False, retries=1)
        for future in as_completed(futures):
            told = future.result()
            keep(options.out, told)
            print(f"{told['student']} {told['assignment']}: {told['score']:g}")


if __name__ == "__main__":
    main()
