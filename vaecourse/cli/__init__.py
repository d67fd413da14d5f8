"""The command line, ``vaecourse`` or ``python -m vaecourse``: the commands, and their exit statuses.

Modules that need torch are imported by the command that uses them, so that help and mistakes are
answered at once.
"""

import contextlib
import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter

from vaecourse import __version__
from vaecourse.cli import teaching
from vaecourse.cli.configuration import WHOLE, Data, Natural, RunConfig, Whole

if TYPE_CHECKING:
    from torch import Tensor


__all__ = ["main"]

EXIT_STATUSES = (
    "Exit status: 0 done; 1 a task is not right yet; 2 the input cannot be used; 3 a file could not be read "
    "or written, or there is no sandbox; 4 training diverged; 130 stopped by Ctrl-C; 141 nobody reads "
    "the output; 143 stopped by SIGTERM."
)

app = App(
    name="vaecourse",
    version=__version__,
    help="Tools of the course on the losses of variational autoencoders.",
    help_epilogue=f"vaecourse COMMAND --help says more about each.\n\n{EXIT_STATUSES}",
    help_format="plaintext",
    default_parameter=Parameter(negative=()),
)

MACHINE = Parameter(group=Group("The machine: may change when a run goes on", sort_key=3))


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
        0 when all is done, 1 if a task is not right yet, 2 if the input cannot be used, 3 if a file
        cannot be read or written or there is no sandbox, 4 if training diverged, 130 after Ctrl-C,
        141 if nobody reads the output any more, and 143 after SIGTERM.  For all but 0 and 141 the
        reason is printed to standard error.

    Examples
    --------
    >>> main(["diagnose", "no_such_file.py:loss", "--data-dim", "784", "--latent-dim", "20"])
    2
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    handler = signal.signal(signal.SIGTERM, _terminate)
    going_on = "; the same command goes on where it was" if words[:1] == ["train"] else ""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            done = _run(words)
            sys.stdout.flush()
            return done
    except BrokenPipeError:  # what read the output, head for instance, has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + getattr(signal, "SIGPIPE", 13)
    except KeyboardInterrupt as stop:
        if _is_first():
            print(f"vaecourse: stopped{going_on}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except Exception as error:
        if (status := _status_of(error)) is None:
            raise
        texts = [str(error), *getattr(error, "__notes__", [])]
        print("vaecourse:", " ".join("; ".join(texts).split()), file=sys.stderr)
        return status
    finally:
        signal.signal(signal.SIGTERM, handler)


def _run(words: list[str]) -> int:
    if not words:
        raise ValueError("a command is missing; vaecourse --help lists them")
    command, given, unparsed = app.parse_args(words, exit_on_error=False, print_error=False)
    status: int | None = command(*given.args, **given.kwargs, **dict.fromkeys(unparsed, words))
    return status or 0


def _is_first() -> bool:
    """Whether this process speaks for all that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def _status_of(error: Exception) -> int | None:
    """Exit status for an expected error; None for one that deserves a traceback."""
    if isinstance(error, ValueError | ModuleNotFoundError | CycloptsError):
        return 2
    from vaecourse.coursework.box.sandbox import SandboxError
    from vaecourse.training import CheckpointError

    if isinstance(error, CheckpointError | SandboxError | OSError):
        return 3
    return 4 if isinstance(error, FloatingPointError) else None


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def _print_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    print(f"vaecourse: warning: {message}", file=sys.stderr)


# ---- models ----


def train(
    folder: Path,
    /,
    *,
    config: Annotated[RunConfig, Parameter(name="*")] = RunConfig(),  # noqa: B008  (it is frozen)
    device: Annotated[str, MACHINE] = "auto",
    compile: Annotated[bool, MACHINE] = False,
    checkpoint_every: Annotated[int | None, WHOLE, MACHINE] = None,
    keep: Annotated[int, WHOLE, MACHINE] = 3,
    max_restarts: Annotated[int, WHOLE, MACHINE] = 0,
    words: Annotated[Sequence[str], Parameter(parse=False)],
) -> int:
    """Train a variational autoencoder in a folder, or go on with it.

    Everything about the run is left in FOLDER: config.json (what was asked for), checkpoints/,
    history.json (loss and speed of each epoch; in the end ELBO of the test images) and loss.png.
    Losses are in nats per image. A line an epoch is printed where the output is no terminal.

    The same command again goes on where the run was stopped, or says that it is finished. More
    --epochs prolong a run with a constant schedule; any other change needs another folder.

    --processes 2 does the same as torchrun --nproc-per-node=2 -m vaecourse train.

    Parameters
    ----------
    folder
        Folder of the run, made if missing.
    device
        cpu, cuda, cuda:1, mps, or auto for the best there is.
    compile
        Compile the loss; needs a C++ compiler on the CPU.
    checkpoint_every
        Steps between checkpoints; one at the end of each epoch if left out.
    keep
        Checkpoints kept.
    max_restarts
        Times that all processes start again after one has failed.
    """
    from vaecourse.cli import runs
    from vaecourse.training.processes import launch, launched_processes

    launched = launched_processes()
    if launched is not None and config.num_processes == 1:
        config = RunConfig(**{**vars(config), "num_processes": launched})
    if runs.is_finished(config, folder):
        if _is_first():
            print(f"{folder} is finished: more --epochs prolong it, vaecourse evaluate judges it")
        return 0
    if launched is None and (config.num_processes > 1 or max_restarts):
        return launch(config.num_processes, max_restarts, words)
    if _is_first() and config.caveat is not None:
        print(f"note: {config.caveat}", flush=True)
    is_watched = sys.stdout.isatty() and sys.stderr.isatty()  # the bar is enough
    history = runs.train(
        config,
        folder,
        device=device,
        compile=compile,
        checkpoint_every=checkpoint_every,
        keep=keep,
        say=None if is_watched else functools.partial(print, flush=True),
    )
    if _is_first():
        loss, test = history["loss"], history["test"]
        print(
            f"{folder}: {len(loss)} epochs, training loss {loss[-1]:.2f} {history['unit']}; "
            f"test ELBO {test['elbo']:.2f} = -(nll {test['nll']:.2f} + kl {test['kl']:.2f}); see loss.png"
        )
        if history.get("scale") is not None:
            print(_about_sigma(config.scale, **history["scale"]))
    return 0


def _about_sigma(scale: float | str, sigma: float, best_sigma: float) -> str:
    """Whether the standard deviation of the decoder is where its errors would have it."""
    best = "the best value for this decoder's errors on the training images"
    if abs(sigma / best_sigma - 1) < 0.02:
        return f"sigma {sigma:.4g}, {best}"
    state = {"learned": "still moving", "optimal": "averaged over the last batches"}.get(str(scale), "fixed")
    return f"sigma {sigma:.4g}, {state}: {best} is {best_sigma:.4g}"


def evaluate(
    folder: Path,
    /,
    *,
    num_samples: Whole = 500,
    num_images: Whole = 1000,
    device: str = "auto",
    seed: Natural = 0,
) -> None:
    """Judge the newest checkpoint of a run on test images.

    The ELBO and its two terms, the importance-weighted estimate of the negative log-likelihood with
    its standard error (both in nats per image), and how many latents are in use. The numbers are
    printed and written to FOLDER/evaluation.json.

    Parameters
    ----------
    folder
        What vaecourse train has filled.
    num_samples
        Importance samples per image.
    num_images
        How many of the first test images; all of them if there are fewer.
    device
        cpu, cuda, cuda:1, mps, or auto for the best there is.
    seed
        Seed of the draws of z.
    """
    from vaecourse.cli import runs

    result = runs.evaluate(folder, num_samples=num_samples, num_images=num_images, device=device, seed=seed)
    nll, error = result["importance_weighted_nll"], result["standard_error"]
    state = "finished" if result["is_finished"] else "not finished; the same train command resumes it"
    print(
        f"{result['checkpoint']}: {result['epochs']} epochs completed; the run is {state}\n"
        f"{result['num_images']} test images, {result['num_samples']} importance samples, {result['unit']}\n"
        f"ELBO                     {result['elbo']:9.2f}   (nll {result['nll']:.2f}, kl {result['kl']:.2f})\n"
        f"importance-weighted NLL  {nll:9.2f}   +- {error:.3f} by the draws of z, "
        f"+- {result['sampling_error']:.2f} by the choice of images\n"
        f"active latents           {result['active_units']:6d} of {result['latent_dim']}"
    )
    if result["caveat"] is not None:
        print(f"note: {result['caveat']}")


# ---- losses ----


def diagnose(
    loss: Annotated[str, Parameter(metavar="FILE.py:FUNCTION")],
    /,
    *,
    data_dim: Whole,
    latent_dim: Whole,
    batch_size: Whole = 8,
    data: Data | None = None,
    posterior: str | None = None,
    output: str | None = None,
) -> None:
    """Say which likelihood, scale and beta a loss assumes. This EXECUTES what it needs of the file.

    Parameters
    ----------
    loss
        A function loss_fn(recon_x, x, mu, logvar); FILE.py:Class.method and NOTEBOOK.ipynb:FUNCTION work too.
    data_dim
        Numbers per example, 784 for MNIST.
    latent_dim
        Number of latents.
    batch_size
        Examples in a probe.
    data
        Also predict how many latents a linear VAE uses on these data.
    posterior
        What the fourth argument is: logvar, log_scale, scale, variance or fixed; found out otherwise.
    output
        Key or attribute of the loss in what the function returns.
    """
    from vaecourse.cli.loading import load_function
    from vaecourse.diagnosis import diagnose_loss

    loss_fn, sizes = load_function(loss), {"data_dim": data_dim, "latent_dim": latent_dim}
    sizes["batch_size"] = batch_size
    print(diagnose_loss(loss_fn, **sizes, data=_data(data), posterior=posterior, output=output).explain())


def _data(name: str | None) -> "Tensor | None":
    if name is None:
        return None
    from vaecourse.cli.building import load_images

    return load_images(name)


EXAMPLES: tuple[tuple[Callable[..., object], str], ...] = (
    (train, "train runs/digits --data digits --likelihood gaussian --scale learned --epochs 50"),
    (evaluate, "evaluate runs/digits --num-samples 1000"),
    (diagnose, "diagnose train.py:loss_fn --data-dim 784 --latent-dim 20"),
    (teaching.release, "release --out handed_out"),
    (teaching.check, "check ps1.ipynb"),
    (teaching.grade, "grade submitted --out graded"),
    (teaching.grade_one, "grade-one submitted/ada/ps1/ps1.ipynb"),
)
for number, (function, example) in enumerate(EXAMPLES):
    app.command(function, sort_key=number, help_epilogue=f"Example: vaecourse {example}\n\n{EXIT_STATUSES}")
