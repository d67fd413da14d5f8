"""A trained and evaluated run as a record of the book: `python -m tests.benchmarks.record RUN_FOLDER NAME`.

Writes `book/results/NAME.json`; with `--weights` also the model, without the optimiser's state, as a
folder `book/results/NAME` that `vaecourse evaluate` can judge again.
"""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import machine
from vaecourse.cli.building import DATA_DIM, TEST_BITS_SEED
from vaecourse.cli.configuration import RunConfig
from vaecourse.training import Checkpoints, load_checkpoint

RESULTS = Path(__file__).resolve().parents[2] / "book" / "results"
OPTIONS = {"num_epochs": "--epochs", "num_processes": "--processes"}


def command(config: RunConfig, *, is_compiled: bool) -> str:
    """The words that train this configuration."""
    words = ["vaecourse train RUN_FOLDER"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            option = OPTIONS.get(field.name, "--" + field.name.replace("_", "-"))
            values = value if isinstance(value, tuple) else [] if value is True else [value]
            words.append(" ".join([option, *map(str, values)]))
    return " ".join([*words, *(["--compile"] if is_compiled else [])])


def record(folder: Path, *, is_compiled: bool) -> dict[str, Any]:
    """What the book needs to know of a run."""
    config = RunConfig.from_json((folder / "config.json").read_text("utf-8"))
    history, evaluation = (
        json.loads((folder / name).read_text("utf-8")) for name in ("history.json", "evaluation.json")
    )
    dims = [DATA_DIM[config.data], *config.hidden_dims, config.latent_dim]
    per_image = evaluation["per_image"]
    hundreds = [per_image[start : start + 100] for start in range(0, len(per_image), 100)]
    return {
        "model": f"{'-'.join(map(str, dims))}, {config.activation}, {config.likelihood}",
        "k": config.importance_samples,
        "nll": round(evaluation["importance_weighted_nll"], 4),
        "unit": evaluation["unit"],
        "standard_error": round(evaluation["standard_error"], 5),
        "sampling_error": round(evaluation["sampling_error"], 4),
        "num_samples": evaluation["num_samples"],
        "num_images": evaluation["num_images"],
        "elbo": round(evaluation["elbo"], 4),
        "active_units": evaluation["active_units"],
        "seed": config.seed,
        "epochs": config.num_epochs,
        "minutes": round(sum(history["seconds"]) / 60, 1),
        "command": command(config, is_compiled=is_compiled),
        "evaluation": (
            f"vaecourse evaluate RUN_FOLDER --num-samples {evaluation['num_samples']} "
            f"--num-images {evaluation['num_images']}"
        ),
        "test_bits_seed": TEST_BITS_SEED if config.binarize else None,
        "versions": evaluation["versions"],
        "machine": machine(),
        "nll_of_each_hundred": [round(statistics.mean(hundred), 4) for hundred in hundreds],
    }


def write_weights(folder: Path, target: Path) -> None:
    """The model alone, as a run folder that can be evaluated but not trained on."""
    newest = Checkpoints(folder / "checkpoints").latest()
    if newest is None:
        raise ValueError(f"{folder} holds no checkpoint")
    step = int(newest.stem.removeprefix("step-"))
    Checkpoints(target / "checkpoints").save(step, {"model": load_checkpoint(newest)["model"]})
    (target / "config.json").write_text((folder / "config.json").read_text("utf-8"), "utf-8")


def main() -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.record", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("name", metavar="NAME", help="of the record, mnist-k1-seed0 for instance")
    parser.add_argument("--compiled", action="store_true", help="the run was trained with --compile")
    parser.add_argument("--weights", action="store_true", help="keep the weights as well")
    options = parser.parse_args()
    content = record(options.folder, is_compiled=options.compiled)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{options.name}.json").write_text(text, "utf-8")
    if options.weights:
        write_weights(options.folder, RESULTS / options.name)


if __name__ == "__main__":
    main()
