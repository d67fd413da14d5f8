"""Files that hold a training state: written wholly or not at all, verified when read, free of code.

A file is a line of text, ``vaecourse-checkpoint VERSION SHA256``, and then the
bytes of the safetensors format that the digest is of.  Numbers and words
travel as JSON among them, so that nothing is ever unpickled.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from vaecourse._checks import check_count
from vaecourse._files import replace_file

__all__ = ["CheckpointError", "Checkpoints", "load_checkpoint", "save_checkpoint"]

FORMAT = "vaecourse-checkpoint"
VERSION = 1


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is damaged, foreign, or of another run.

    Examples
    --------
    >>> issubclass(CheckpointError, RuntimeError)
    True
    """


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a state to a file that is, at any moment, the old one or the new one.

    The bytes go to a file aside, reach the disk (fsync), and then take the
    name in one step; a process that dies on the way leaves the old file as it was.

    Parameters
    ----------
    path : str or path
        The file; its folder must exist.
    state : dict
        Tensors on any device, numbers, strings, booleans and None, in dictionaries (keys: words
        or integers), lists and tuples of any depth: what ``state_dict()`` of a module, an
        optimiser or a schedule returns.

    Raises
    ------
    ValueError
        If the state holds something else, a function say.
    CheckpointError
        If the file cannot be written; what stood there before is untouched.

    Examples
    --------
    >>> import tempfile, torch
    >>> folder = tempfile.TemporaryDirectory()
    >>> save_checkpoint(Path(folder.name, "a.ckpt"), {"weights": torch.arange(3.0), "step": 7})
    >>> load_checkpoint(Path(folder.name, "a.ckpt"))
    {'weights': tensor([0., 1., 2.]), 'step': 7}
    >>> folder.cleanup()
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_encode(state, "state", tensors))
    body = safetensors.torch.save(tensors, metadata={"tree": tree})
    header = f"{FORMAT} {VERSION} {hashlib.sha256(body).hexdigest()}\n".encode()
    try:
        replace_file(path, header + body)
    except OSError as error:
        raise CheckpointError(
            f"could not write {path} ({len(body) / 1e6:.1f} MB): {error.strerror or error}; "
            "earlier checkpoints are untouched"
        ) from error


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """State from a file, after its digest has been checked.

    Parameters
    ----------
    path : str or path
        A file that `save_checkpoint` wrote.

    Returns
    -------
    dict
        The state as it was saved, with all tensors on the CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If it is not a checkpoint, is of another version, or a single byte differs from what was written.

    Examples
    --------
    What `training.fit` has saved holds the weights under "model"::

        model.load_state_dict(load_checkpoint(Checkpoints("run").latest())["model"])

    >>> load_checkpoint("no/such.ckpt")
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory: 'no/such.ckpt'
    """
    header, _, body = Path(path).read_bytes().partition(b"\n")
    match = re.fullmatch(rb"(\S+) (\d+) ([0-9a-f]{64})", header)
    if match is None or match[1] != FORMAT.encode():
        raise CheckpointError(f"{path} is not a checkpoint of vaecourse, or its beginning is damaged")
    if int(match[2]) != VERSION:
        raise CheckpointError(
            f"{path} has format version {int(match[2])}, this vaecourse reads version {VERSION}"
        )
    if hashlib.sha256(body).hexdigest().encode() != match[3]:
        raise CheckpointError(
            f"{path} is damaged: its content does not have the checksum that was written with it; "
            "delete it, and training goes on from the checkpoint before"
        )
    tensors = safetensors.torch.load(body)
    # safetensors hands out metadata of files only, so its header is read here: 8 bytes of length, then JSON
    size = int.from_bytes(body[:8], "little")
    tree = json.loads(body[8 : 8 + size])["__metadata__"]["tree"]
    state: dict[str, Any] = _decode(json.loads(tree), tensors)
    return state


@dataclass(frozen=True)
class Checkpoints:
    """A folder of checkpoints, of which the last few are kept.

    Attributes
    ----------
    folder : str or path
        Made with its parents at the first save.
    identity : str, optional
        What this run is, in words of yours that `fit` stores and compares: the loss, its weights, and
        whatever else a file could not tell apart.  Reading needs none.
    every : int, optional
        Optimiser steps from one save to the next; only at the end of each epoch if left out.
    keep : int
        Files kept, at least 2: the newest may turn out to be unreadable after a power cut.

    Raises
    ------
    ValueError
        If `identity` is no text, `every` is below 1, or `keep` below 2.

    Examples
    --------
    >>> Checkpoints("run", every=500).latest() is None
    True
    """

    folder: str | os.PathLike[str]
    identity: str | None = field(default=None, kw_only=True)
    every: int | None = field(default=None, kw_only=True)
    keep: int = field(default=3, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.identity is not None and not (isinstance(self.identity, str) and self.identity.strip()):
            raise ValueError(f"identity says in words what the run is, got {self.identity!r}")
        if not isinstance(self.folder, str | os.PathLike):
            raise ValueError(f"folder must be a path, got {self.folder!r}")
        if self.every is not None:
            check_count("every", self.every)
        check_count("keep", self.keep, least=2)

    def paths(self) -> list[Path]:
        """Checkpoints in the folder.

        Returns
        -------
        list of path
            Oldest first.
        """
        return sorted(Path(self.folder).glob("step-" + "[0-9]" * 9 + ".ckpt"))

    def latest(self) -> Path | None:
        """The newest checkpoint.

        Returns
        -------
        path or None
            None if the folder holds none or does not exist.
        """
        return next(reversed(self.paths()), None)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint, then delete the oldest beyond `keep` and what dead processes left.

        Parameters
        ----------
        step : int
            Optimiser steps so far; becomes the file's name.
        state : dict
            As in `save_checkpoint`.

        Returns
        -------
        path
            The new file.

        Raises
        ------
        CheckpointError
            If the folder or file cannot be written.
        """
        path = Path(self.folder, f"step-{step:09}.ckpt")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"could not make the folder {path.parent}: {error.strerror}") from error
        save_checkpoint(path, state)
        leftovers = list(path.parent.glob("step-*.ckpt.*.tmp"))
        for old in [*leftovers, *self.paths()[: -self.keep]]:
            old.unlink(missing_ok=True)
        return path


def _encode(value: object, place: str, tensors: dict[str, Tensor]) -> object:
    """JSON for a state; its tensors are numbered and put into `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()  # tied weights share memory, files do not
        return {"tensor": name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        if wrong := [key for key in value if not isinstance(key, str | int) or isinstance(key, bool)]:
            raise ValueError(f"keys of {place} must be words or integers, got {wrong[0]!r}")
        return {"dict": [[key, _encode(item, f"{place}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{place}[{position}]", tensors) for position, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    raise ValueError(f"a checkpoint cannot hold {place}, which is of type {type(value).__name__}")


def _decode(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    return {key: _decode(item, tensors) for key, item in content}
