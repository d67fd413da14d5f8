"""The command line, ``vaecourse`` or ``python -m vaecourse``: options, what they start, and exit statuses.

Modules that need torch are imported by the command that uses them, so that
help and mistakes are answered at once.
"""

import argparse
import importlib.util
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from vaecourse.coursework import commands as coursework

if TYPE_CHECKING:
    from torch import Tensor

    from vaecourse._probing import LossFn

EXIT_STATUSES = """\
exit status: 0 done; 1 a notebook failed, or a task is not right yet; 2 the input cannot be used;
3 a file could not be read or written, or no sandbox can be had; 4 training diverged; 130 stopped
by Ctrl-C; 143 stopped by SIGTERM"""


class Help(NamedTuple):
    """What the command line says about one of its commands."""

    summary: str
    usage: str
    text: str
    example: str


HELP = {
    "train": Help(
        "train a variational autoencoder in a folder, or go on with it",
        "RUN_FOLDER",
        """\
Train a variational autoencoder on images and leave everything about it in RUN_FOLDER: config.json (what
was asked for), checkpoints/, history.json (loss and speed of each epoch, ELBO of the test images) and
loss.png.  Losses are in nats per image.

The same command again goes on where the run was stopped, or says that it is finished.  More --epochs
prolong a run with a constant schedule; any other change needs another folder.""",
        """\
vaecourse train runs/digits --data digits --likelihood gaussian --scale learned --epochs 50
         torchrun --nproc-per-node=2 -m vaecourse train runs/mnist     (the same as --processes 2)""",
    ),
    "evaluate": Help(
        "judge the model in such a folder on test images",
        "RUN_FOLDER",
        """\
Judge the newest checkpoint of a run on test images: the ELBO and its two terms, the importance-weighted
estimate of the negative log-likelihood with its standard error (both in nats per image), and how many
latents are in use.  The numbers are printed and written to RUN_FOLDER/evaluation.json.""",
        "vaecourse evaluate runs/digits --num-samples 1000",
    ),
    "run": Help(
        "execute notebooks, with other parameters if wanted",
        "NOTEBOOK ... --output-dir FOLDER",
        """\
Execute notebooks, if wanted with other parameters, and keep the executed copies in FOLDER; the notebooks
themselves stay as they are.  Each runs in its own folder.  A cell that fails ends its own notebook only.""",
        "vaecourse run book/0*.ipynb -p seed 1 --output-dir executed --jobs 2",
    ),
    "diagnose": Help(
        "say which likelihood, scale and beta a loss assumes",
        "FILE.py:FUNCTION --data-dim N --latent-dim N",
        "Say which likelihood, scale and beta a loss assumes.  This EXECUTES the file given.",
        "vaecourse diagnose train.py:loss_fn --data-dim 784 --latent-dim 20",
    ),
    "release": Help(
        "make student notebooks of problem sets",
        "",
        """\
Make the students' version of every problem set: solutions, model answers and outputs are gone, locked cells
carry nbgrader's checksums.  The same source gives the same bytes.""",
        "vaecourse release --output-dir handed_out",
    ),
    "check": Help(
        "try a solved problem set before handing it in",
        "psN.ipynb",
        """\
Try your solution of a problem set before you hand it in: your functions are called with inputs like those
of the grader, and you hear what is wrong.  This EXECUTES your notebook's cells, on your machine, without a
sandbox.""",
        "vaecourse check ps1.ipynb",
    ),
    "grade": Help(
        "grade a folder of submissions, each in a sandbox",
        "SUBMITTED --out FOLDER",
        """\
Grade every SUBMITTED/<student>/<psN>/<psN>.ipynb.  Student code runs in a sandbox (bubblewrap): no network,
no files, limits on time, memory, processes and output; it only answers calls, with inputs drawn anew for
each submission, and is judged outside.  FOLDER gets grades.csv, feedback/<student>/<psN>.html and a
gradebook of nbgrader, in which written answers are marked.

The same command again goes on where it was stopped.  Where there is no sandbox it refuses with status 3;
--trust-submissions runs the code without one, which is for code that you know.""",
        "vaecourse grade submitted --out graded",
    ),
    "grade-one": Help(
        "grade one submission and print the result as JSON",
        "NOTEBOOK",
        """\
Grade one submission, named <student>/<psN>/<psN>.ipynb, as `vaecourse grade` does, and print the result as
JSON: the piece that a cluster runs many times.""",
        "vaecourse grade-one submitted/ada/ps1/ps1.ipynb",
    ),
}

DEVICE = "cpu, cuda, cuda:1, mps, or auto for the best there is (default: %(default)s)"


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the program's name; taken from the command line if left out.

    Returns
    -------
    int
        0 when all is done, 1 if a notebook failed or a task is not right yet, 2 if the input cannot be
        used, 3 if a file cannot be read or written or there is no sandbox, 4 if training diverged,
        130 after Ctrl-C and 143 after SIGTERM.  For all but 0 the reason is printed to standard error.

    Examples
    --------
    >>> main(["diagnose", "no_such_file.py:loss", "--data-dim", "784", "--latent-dim", "20"])
    2
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    handler = signal.signal(signal.SIGTERM, _terminate)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            status: int = options.action(options, words)
    except KeyboardInterrupt as stop:
        if _is_first():
            print(f"vaecourse: {options.on_stop}", file=sys.stderr)
        status = 143 if isinstance(stop, Terminated) else 130
    except Exception as error:
        if (code := _status_of(error)) is None:
            raise
        texts = [str(error), *getattr(error, "__notes__", [])]
        print("vaecourse:", " ".join("; ".join(texts).split()), file=sys.stderr)
        status = code
    finally:
        signal.signal(signal.SIGTERM, handler)
    return status


def _is_first() -> bool:
    """Whether this process speaks for all that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def _status_of(error: Exception) -> int | None:
    """Exit status for an expected error; None for one that deserves a traceback."""
    if isinstance(error, ValueError | ModuleNotFoundError):
        return 2
    from vaecourse.checkpoints import CheckpointError
    from vaecourse.coursework.sandbox import SandboxError

    if isinstance(error, CheckpointError | SandboxError | OSError):
        return 3
    return 4 if isinstance(error, FloatingPointError) else None


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def _print_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    print(f"vaecourse: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vaecourse",
        description="Tools of the course on the losses of variational autoencoders.",
        epilog=f"vaecourse COMMAND --help says more about each.\n\n{EXIT_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, action, add_options in (
        ("train", _train, _add_train_options),
        ("evaluate", _evaluate, _add_evaluate_options),
        ("run", _run, _add_run_options),
        ("diagnose", _diagnose, _add_diagnose_options),
        ("release", coursework.run_release, coursework.add_release_options),
        ("check", coursework.run_check, coursework.add_check_options),
        ("grade", coursework.run_grade, coursework.add_grade_options),
        ("grade-one", coursework.run_grade_one, coursework.add_grade_one_options),
    ):
        command = commands.add_parser(
            name,
            help=HELP[name].summary,
            usage=f"vaecourse {name} {HELP[name].usage} [option ...]",
            description=HELP[name].text,
            epilog=f"example: {HELP[name].example}\n\n{EXIT_STATUSES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(action=action, on_stop="stopped")
        add_options(command)
    return parser


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(on_stop="stopped; the same command goes on where it was")
    parser.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="made if missing")
    # an option that is not given leaves the choice to RunConfig, whose defaults the texts repeat
    model = parser.add_argument_group("the model", argument_default=argparse.SUPPRESS)
    _choice(model, "--data", ["mnist", "digits"], "images, scaled to [0, 1] (default: mnist)")
    likelihoods = ["bernoulli", "continuous-bernoulli", "gaussian", "laplace"]
    _choice(model, "--likelihood", likelihoods, "of a pixel given z (default: bernoulli)")
    scale = "standard deviation of the Gaussian: a number, learned, optimal or per_pixel; or scale b of the "
    model.add_argument("--scale", type=_number_or_word, help=f"{scale}Laplace: a number (default: 1.0)")
    binarize = "take grey levels for probabilities of black and draw each image anew each time (default: no)"
    model.add_argument("--binarize", action="store_true", help=binarize)
    _count(model, "--latent-dim", "latents (default: 20)")
    widths = "widths of the encoder's hidden layers; the decoder's are the reverse (default: 400)"
    _count(model, "--hidden-dims", widths, nargs="+")
    _choice(model, "--activation", ["relu", "tanh"], "between the layers (default: relu)")
    bias = "start the output at the log-odds of each pixel's mean (default: no)"
    model.add_argument("--pixel-bias", action="store_true", help=bias)
    model.add_argument("--beta", type=float, help="weight of the KL term (default: 1.0)")
    samples = "1 trains with the ELBO, more with the importance-weighted bound of as many (default: 1)"
    _count(model, "--importance-samples", samples)
    work = parser.add_argument_group("the training", argument_default=argparse.SUPPRESS)
    _count(work, "--epochs", "passes over the images (default: 10)", dest="num_epochs")
    _count(work, "--batch-size", "images per step (default: 128)")
    work.add_argument("--learning-rate", type=float, help="of Adam, at its highest (default: 0.001)")
    schedules = ["constant", "cosine", "one-cycle"]
    _choice(work, "--schedule", schedules, "course of the learning rate (default: constant)")
    _count(work, "--seed", "of the weights, the order of the images and the noise (default: 0)")
    _choice(work, "--precision", ["float32", "bf16"], "of matrix products (default: float32)")
    _count(work, "--micro-batch-size", "images in memory at a time (default: the whole batch)")
    shares = "that share each batch, one per GPU where there are GPUs (default: 1)"
    _count(work, "--processes", shares, dest="num_processes")
    machine = parser.add_argument_group("the machine: may change when a run goes on")
    machine.add_argument("--device", default="auto", help=DEVICE)
    machine.add_argument("--compile", action="store_true", help="compile the loss; needs a C++ compiler")
    _count(machine, "--checkpoint-every", "steps between checkpoints (default: one an epoch)")
    _count(machine, "--keep", "checkpoints kept (default: %(default)s)", default=3)
    restarts = "times that all processes start again after one has failed (default: %(default)s)"
    _count(machine, "--max-restarts", restarts, default=0)


def _add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="what vaecourse train filled")
    _count(parser, "--num-samples", "importance samples per image (default: %(default)s)", default=500)
    images = "how many of the first test images, or all if there are fewer (default: %(default)s)"
    _count(parser, "--num-images", images, default=1000)
    parser.add_argument("--device", default="auto", help=DEVICE)
    _count(parser, "--seed", "of the draws of z (default: %(default)s)", default=0)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("notebooks", metavar="NOTEBOOK", nargs="+", type=Path, help="an .ipynb file")
    copies = "for the executed copies; not the folder of a notebook"
    parser.add_argument("--output-dir", required=True, type=Path, metavar="FOLDER", help=copies)
    values = (
        "value to use instead of the one in the cell tagged 'parameters', in every notebook: a number, True, "
        "False, None, a list in quotes, or a word; can be repeated"
    )
    names = ("NAME", "VALUE")
    parser.add_argument(
        "-p", dest="parameters", nargs=2, metavar=names, action="append", default=[], help=values
    )
    jobs = "notebooks at a time; above 1 each computes with one thread (default: %(default)s)"
    _count(parser, "--jobs", jobs, default=1)
    _count(parser, "--timeout", "seconds that a cell may take (default: no limit)")


def _add_diagnose_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("loss", metavar="FILE.py:FUNCTION", help="loss_fn(recon_x, x, mu, logvar)")
    _count(parser, "--data-dim", "numbers per example, 784 for MNIST", required=True)
    _count(parser, "--latent-dim", "latents", required=True)
    _count(parser, "--batch-size", "examples in a probe (default: %(default)s)", default=8)
    _choice(parser, "--data", ["digits", "mnist"], "predict how many latents a linear VAE uses on these data")


def _count(parser: argparse._ActionsContainer, flag: str, text: str, **settings: Any) -> None:
    parser.add_argument(flag, type=int, metavar="N", help=text, **settings)


def _choice(parser: argparse._ActionsContainer, flag: str, choices: list[str], text: str) -> None:
    parser.add_argument(flag, choices=choices, metavar="NAME", help=f"{', '.join(choices)}: {text}")


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _train(options: argparse.Namespace, words: list[str]) -> int:
    from vaecourse._configuration import RunConfig
    from vaecourse._processes import launch, launched_processes
    from vaecourse._runs import is_finished, train

    given = {name: value for name, value in vars(options).items() if name in RunConfig.__dataclass_fields__}
    launched = launched_processes()
    config = RunConfig(**{"num_processes": launched or 1, **given})
    if is_finished(config, options.folder):
        if _is_first():
            print(f"{options.folder} is finished: more --epochs prolong it, vaecourse evaluate judges it")
        return 0
    if launched is None and (config.num_processes > 1 or options.max_restarts):
        return launch(config.num_processes, options.max_restarts, words)
    if _is_first() and config.caveat is not None:
        print(f"note: {config.caveat}", flush=True)
    history = train(
        config,
        options.folder,
        device=options.device,
        compile=options.compile,
        checkpoint_every=options.checkpoint_every,
        keep=options.keep,
    )
    if _is_first():
        loss, test = history["loss"], history["test"]
        print(
            f"{options.folder}: {len(loss)} epochs, training loss {loss[-1]:.2f} {history['unit']}; "
            f"test ELBO {test['elbo']:.2f} = -(nll {test['nll']:.2f} + kl {test['kl']:.2f}); see loss.png"
        )
    return 0


def _evaluate(options: argparse.Namespace, words: list[str]) -> int:
    from vaecourse._runs import evaluate

    result = evaluate(
        options.folder,
        num_samples=options.num_samples,
        num_images=options.num_images,
        device=options.device,
        seed=options.seed,
    )
    nll, error = result["importance_weighted_nll"], result["standard_error"]
    print(
        f"{result['num_images']} test images, {result['num_samples']} importance samples, {result['unit']}\n"
        f"ELBO                     {result['elbo']:9.2f}   (nll {result['nll']:.2f}, kl {result['kl']:.2f})\n"
        f"importance-weighted NLL  {nll:9.2f}   +- {error:.3f} by the draws of z, "
        f"+- {result['sampling_error']:.2f} by the choice of images\n"
        f"active latents           {result['active_units']:6d} of {result['latent_dim']}"
    )
    if result["caveat"] is not None:
        print(f"note: {result['caveat']}")
    return 0


def _run(options: argparse.Namespace, words: list[str]) -> int:
    from vaecourse._notebooks import parse_value, run_notebooks

    names = [name for name, _ in options.parameters]
    if len(set(names)) < len(names):
        raise ValueError(f"-p must not give a parameter twice, got {', '.join(names)}")
    results = run_notebooks(
        options.notebooks,
        options.output_dir,
        parameters={name: parse_value(text) for name, text in options.parameters},
        num_jobs=options.jobs,
        timeout=options.timeout,
        report=lambda result: print(result, flush=True),
    )
    failed = [result for result in results if result.error is not None]
    if failed:
        print(f"vaecourse: {len(failed)} of {len(results)} notebooks failed", file=sys.stderr)
    return int(bool(failed))


def _diagnose(options: argparse.Namespace, words: list[str]) -> int:
    from vaecourse.diagnosis import diagnose_loss

    diagnosis = diagnose_loss(
        _load(options.loss),
        data_dim=options.data_dim,
        latent_dim=options.latent_dim,
        batch_size=options.batch_size,
        data=_data(options.data),
    )
    print(diagnosis.explain())
    return 0


def _load(place: str) -> "LossFn":
    """Import a file by its path and return one of its functions."""
    path, _, name = place.rpartition(":")
    if not path or not name.isidentifier():
        raise ValueError(f"expected FILE.py:FUNCTION, got {place!r}")
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location("diagnosed_file", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    print(f"executing {path}", file=sys.stderr)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(Path(path).resolve().parent))  # as if the file were run, so that its imports work
    sys.argv = [path]
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} does not run: {type(error).__name__}: {error}") from error
    loss_fn: LossFn | None = getattr(module, name, None)
    if not callable(loss_fn):
        functions = sorted(key for key, value in vars(module).items() if callable(value) and key[0] != "_")
        raise ValueError(f"{path} has no function {name}; it has {', '.join(functions) or 'none'}")
    return loss_fn


def _data(name: str | None) -> "Tensor | None":
    if name is None:
        return None
    from vaecourse.datasets import digits, mnist, to_unit_interval

    if name == "mnist":
        return to_unit_interval(mnist("train")[0])
    return to_unit_interval(digits()[0], max_level=16)


if __name__ == "__main__":
    sys.exit(main())
