"""The command line, ``vaecourse`` or ``python -m vaecourse``."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vaecourse._probing import LossFn
from vaecourse.datasets import digits, mnist, to_unit_interval
from vaecourse.diagnosis import diagnose_loss


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the program's name; taken from the command line if left out.

    Returns
    -------
    int
        0, or 2 if the arguments, the file or the loss cannot be used; the reason is then
        printed to standard error.

    Examples
    --------
    >>> main(["diagnose", "no_such_file.py:loss", "--data-dim", "784", "--latent-dim", "20"])
    2
    """
    options = _parser().parse_args(arguments)
    try:
        print(_diagnose(options))
    except (OSError, ValueError) as error:
        print(f"vaecourse: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vaecourse", description="Tools of the course.")
    commands = parser.add_subparsers(dest="command", required=True)
    diagnose = commands.add_parser(
        "diagnose",
        help="say which likelihood, scale and beta a loss assumes",
        description="Say which likelihood, scale and beta a loss assumes. This EXECUTES the file given.",
    )
    diagnose.add_argument("loss", metavar="FILE.py:FUNCTION", help="loss_fn(recon_x, x, mu, logvar)")
    diagnose.add_argument("--data-dim", type=int, required=True, help="numbers per example, 784 for MNIST")
    diagnose.add_argument("--latent-dim", type=int, required=True, help="number of latents")
    diagnose.add_argument("--batch-size", type=int, default=8, help="examples in a probe (default: 8)")
    diagnose.add_argument(
        "--data", choices=["digits", "mnist"], help="predict how many latents a linear VAE uses on these data"
    )
    return parser


def _diagnose(options: argparse.Namespace) -> str:
    diagnosis = diagnose_loss(
        _load(options.loss),
        data_dim=options.data_dim,
        latent_dim=options.latent_dim,
        batch_size=options.batch_size,
        data=_data(options.data),
    )
    return diagnosis.explain()


def _load(place: str) -> LossFn:
    """Import a file by its path and return one of its functions."""
    path, _, name = place.rpartition(":")
    if not path or not name.isidentifier():
        raise ValueError(f"expected FILE.py:FUNCTION, got {place!r}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
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


def _data(name: str | None) -> Tensor | None:
    if name is None:
        return None
    if name == "mnist":
        return to_unit_interval(mnist("train")[0])
    return to_unit_interval(digits()[0], max_level=16)


if __name__ == "__main__":
    sys.exit(main())
