"""One call of a student's function: the circumstances in which it runs, and what is reported about it."""

import base64
import contextlib
import random
import sys
import types
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

from .values import build, decode, encode, is_tensor, train_steps

if sys.platform != "win32":  # there is no grading there, but students can check their work
    import resource

OURS = str(Path(__file__).parent)
HOST_READS = {"tolist", "item", "numpy", "__int__", "__index__", "__array__"}


def answer(call: dict[str, Any], namespace: dict[str, Any], objects: dict[str, Any]) -> dict[str, Any]:
    """Carry out one call and return a report of it.

    ``function`` is called with ``args`` and ``kwargs``; the rest of a call is optional:

    * ``make``: objects to build first, which arguments (``{"object": NAME}``) and later calls share
    * ``gradients``: positions of arguments; the gradient of the sum of value times ``weights``
    * ``autocast``: a dtype for torch.autocast on the CPU around the call
    * ``global_seed``: for the global generators of torch, numpy and random before it
    * ``count_lines``: also report how many lines of Python ran, and what took numbers out of tensors
    * ``file_size_limit``: bytes that a file may have during the call
    * ``tell``: objects (a model, a generator) whose numbers are reported afterwards
    * ``files``: names of files whose bytes are reported afterwards
    """
    build(call.get("make", {}), objects)
    args = [decode(value, objects) for value in call.get("args", [])]
    kwargs = {name: decode(value, objects) for name, value in call.get("kwargs", {}).items()}
    function: Any = train_steps if call["function"] == "train_steps" else namespace.get(call["function"])
    if not callable(function):
        return {"missing": True}
    wanted = [args[position].requires_grad_() for position in call.get("gradients", [])]
    before = [value.detach().clone() if is_tensor(value) else None for value in args]
    if "global_seed" in call:
        _seed_everything(call["global_seed"])
    told: dict[str, Any] = {}
    with _circumstances(call, told):
        value = function(*args, **kwargs)
    told["value"] = encode(value)
    if wanted:
        told["gradients"] = _gradients(value, wanted, decode(call["weights"], {}))
    pairs = enumerate(zip(before, args, strict=True))
    told["changed"] = [n for n, (old, new) in pairs if old is not None and not old.equal(new.detach())]
    told["tell"] = {name: _numbers(objects[name]) for name in call.get("tell", [])}
    told["files"] = {name: _content(Path.cwd() / name) for name in call.get("files", [])}
    return told


@contextlib.contextmanager
def _circumstances(call: dict[str, Any], told: dict[str, Any]) -> Iterator[None]:
    """Set up what a call asks for while it runs: autocast, a limit, counting."""
    with contextlib.ExitStack() as stack:
        if dtype := call.get("autocast"):
            import torch

            stack.enter_context(torch.autocast("cpu", dtype=getattr(torch, dtype)))
        if limit := call.get("file_size_limit"):
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, before)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        if "count_lines" in call:
            stack.enter_context(_counting(told))
        yield


@contextlib.contextmanager
def _counting(told: dict[str, Any]) -> Iterator[None]:
    """Count the lines of Python that run, except ours, and note what takes numbers out of tensors."""
    import torch

    reads = set[str]()

    def trace(frame: types.FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename.startswith(OURS):
            return None
        told["lines"] += event == "line"
        return trace

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
            reads.add(getattr(function, "__name__", ""))
            return function(*args, **(kwargs or {}))

    told["lines"] = 0
    with Watch():
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(None)
    told["host_reads"] = sorted(reads & HOST_READS)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    for module, function in (("torch", "manual_seed"), ("numpy", "random.seed")):
        if module in sys.modules:
            attrgetter(function)(sys.modules[module])(seed)


def _gradients(value: Any, arguments: list[Any], weights: Any) -> list[Any]:
    import torch

    if not (is_tensor(value) and value.requires_grad):
        return [None] * len(arguments)
    if weights.shape != value.shape:  # the wrong shape is reported with the value
        weights = torch.ones_like(value)
    found = torch.autograd.grad((value * weights).sum(), arguments, allow_unused=True)
    return [None if gradient is None else encode(gradient) for gradient in found]


def _numbers(thing: Any) -> list[dict[str, Any]]:
    """Return the numbers of a model (weights) or of a generator (its next draws)."""
    torch = sys.modules["torch"]
    if isinstance(thing, torch.Generator):
        copy = torch.Generator()
        copy.set_state(thing.get_state())
        return [encode(torch.randn(4, generator=copy, dtype=torch.float64))]
    return [encode(parameter) for parameter in thing.parameters()]


def _content(path: Path) -> str | None:
    return base64.b64encode(path.read_bytes()).decode() if path.is_file() else None
