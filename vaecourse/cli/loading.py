"""A function by its place, as the command line names it: FILE.py:FUNCTION."""

import importlib.util
import sys
from pathlib import Path

from vaecourse.diagnosis.probing import LossFn


def load_function(place: str) -> LossFn:
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
