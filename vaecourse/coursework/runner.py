"""What runs beside student code: it executes their cells, then answers calls with plain numbers.

This file is executed alone, by its path, in a sandbox in which the package is masked, so it
imports nothing of it.  It holds no secret and decides no mark: a student who takes it over can
make it say anything, but has to say the right numbers to inputs that were drawn outside.

It reads JSON lines from standard input, the first of which is the job::

    {"cells": [[NAME, SOURCE], ...], "limits": {...}}

and each other one a call (see `answer`).  It writes one JSON line per call to standard output,
which student code finds connected to standard error.
"""

import ast
import base64
import contextlib
import json
import math
import os
import random
import signal
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

if sys.platform != "win32":  # there is no grading there, but students can check their work
    import resource

MAX_NUMBERS = 40_000  # of a tensor that is told
MAX_MESSAGE = 300
CELL = "notebook cell: "
FINISHED = 42


class TimeIsUp(BaseException):
    """A cell took too long; not an Exception, so that `except Exception` does not catch it."""


# ---- values as JSON ----


def encode(value: Any) -> dict[str, Any]:
    """Return a value as JSON data: a number, a tensor, nothing, or the name of another type."""
    torch = sys.modules.get("torch")
    if value is None:
        return {"kind": "none"}
    if isinstance(value, bool | int | float):
        return {"kind": "number", "value": value if isinstance(value, int) else float(value)}
    if type(value).__module__ == "numpy" and torch is not None:
        value = torch.as_tensor(value)
    if torch is not None and isinstance(value, torch.Tensor):
        told = {
            "kind": "tensor",
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "device": value.device.type,
            "requires_grad": value.requires_grad,
        }
        if value.numel() > MAX_NUMBERS:
            raise ValueError(f"a tensor of {value.numel()} numbers is too large to be told")
        if value.device.type != "meta" and not value.is_complex():
            told["values"] = value.detach().cpu().tolist()
        return told
    return {"kind": "other", "type": type(value).__name__[:80]}


def decode(told: Any, objects: dict[str, Any]) -> Any:
    """Return the argument that a call describes: plain JSON, a tensor, a fixture or an earlier object."""
    if not isinstance(told, dict):
        return told
    if told.get("kind") == "tensor":
        import torch

        dtype = getattr(torch, told["dtype"])
        return torch.tensor(told["values"], dtype=dtype).reshape(told["shape"])
    if "object" in told:
        return objects[told["object"]]
    return FIXTURES[told["fixture"]](objects, **{k: v for k, v in told.items() if k != "fixture"})


# ---- fixtures: what JSON cannot carry ----


def _linear_decoder(objects: dict[str, Any], weight: Any) -> Callable[[Any], Any]:
    weight = decode(weight, objects)
    return lambda z: z @ weight.T


def _generator(objects: dict[str, Any], seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def _device(objects: dict[str, Any], name: str) -> Any:
    import torch

    return torch.device(name)


def _linear_model(
    objects: dict[str, Any], seed: int, width: int = 3, device: str = "cpu", stale: bool = False
) -> Any:
    """Return a model whose `model(x)` is a loss: the mean squared norm of a linear layer's output.

    A stale model has gradients of some earlier step.
    """
    import torch

    class LinearModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(width, width, dtype=torch.float64)

        def forward(self, x: Any) -> Any:
            return self.layer(x).square().sum(-1).mean()

    model = LinearModel()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    model = model.to(device)
    if stale:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
    return model


def _sgd(objects: dict[str, Any], learning_rate: float, momentum: float = 0.0, model: str = "model") -> Any:
    import torch

    return torch.optim.SGD(objects[model].parameters(), lr=learning_rate, momentum=momentum)


def _adam(objects: dict[str, Any], learning_rate: float, model: str = "model") -> Any:
    import torch

    return torch.optim.Adam(objects[model].parameters(), lr=learning_rate)


def _path(objects: dict[str, Any], name: str) -> Path:
    return Path.cwd() / name


FIXTURES: dict[str, Callable[..., Any]] = {
    "linear_decoder": _linear_decoder,
    "generator": _generator,
    "device": _device,
    "linear_model": _linear_model,
    "sgd": _sgd,
    "adam": _adam,
    "path": _path,
}


def train_steps(model: Any, optimizer: Any, generator: Any, num_steps: int) -> None:
    """Take steps whose batches come from the generator: what a resumed run has to repeat."""
    import torch

    width = next(model.parameters()).shape[-1]
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(torch.randn(4, width, generator=generator, dtype=torch.float64)).backward()
        optimizer.step()


# ---- calls ----


def answer(call: dict[str, Any], namespace: dict[str, Any], objects: dict[str, Any]) -> dict[str, Any]:
    """Carry out one call and return what is told of it.

    ``function`` is called with ``args`` and ``kwargs``; the rest of a call is optional:

    * ``make``: objects to build first, which arguments (``{"object": NAME}``) and later calls share
    * ``gradients``: positions of arguments; the gradient of the sum of value times ``weights``
    * ``autocast``: a dtype for torch.autocast on the CPU around the call
    * ``global_seed``: for the global generators of torch, numpy and random before it
    * ``count_lines``: also tell how many lines of Python ran, and what took numbers out of tensors
    * ``file_size_limit``: bytes that a file may have during the call
    * ``tell``: objects (a model, a generator) whose numbers are told afterwards
    * ``files``: names of files whose bytes are told afterwards
    """
    for name, made in call.get("make", {}).items():
        objects[name] = decode(made, objects)
    args = [decode(value, objects) for value in call.get("args", [])]
    kwargs = {name: decode(value, objects) for name, value in call.get("kwargs", {}).items()}
    function: Any = train_steps if call["function"] == "train_steps" else namespace.get(call["function"])
    if not callable(function):
        return {"missing": True}
    wanted = call.get("gradients", [])
    for position in wanted:
        args[position].requires_grad_()
    before = [_copy(value) for value in args]
    if "global_seed" in call:
        _seed_everything(call["global_seed"])
    told: dict[str, Any] = {}
    with _circumstances(call) as seen:
        value = function(*args, **kwargs)
    if "count_lines" in call:
        told |= {"lines": seen.lines, "host_reads": sorted(seen.host_reads)}
    told["value"] = encode(value)
    if wanted:
        told["gradients"] = _gradients(value, [args[position] for position in wanted], call["weights"])
    pairs = enumerate(zip(before, args, strict=True))
    told["changed"] = [position for position, (old, new) in pairs if _differs(old, new)]
    told["tell"] = {name: _numbers(objects[name]) for name in call.get("tell", [])}
    told["files"] = {name: _content(Path.cwd() / name) for name in call.get("files", [])}
    return told


HOST_READS = {"tolist", "item", "numpy", "__int__", "__index__", "__array__"}


class _Seen:
    """What was counted during a call."""

    def __init__(self) -> None:
        self.lines, self.host_reads = 0, set[str]()

    def trace(self, frame: types.FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename == __file__:
            return None  # our own lines do not count
        self.lines += event == "line"
        return self.trace


@contextlib.contextmanager
def _circumstances(call: dict[str, Any]) -> Iterator[_Seen]:
    """Provide what a call asks to be true, or to be counted, while it runs."""
    seen = _Seen()
    with contextlib.ExitStack() as stack:
        if dtype := call.get("autocast"):
            import torch

            stack.enter_context(torch.autocast("cpu", dtype=getattr(torch, dtype)))
        if limit := call.get("file_size_limit"):
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, before)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        if "count_lines" in call:
            stack.enter_context(_watch_host_reads(seen))
            stack.callback(sys.settrace, None)
            sys.settrace(seen.trace)
        yield seen


def _watch_host_reads(seen: _Seen) -> Any:
    import torch

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
            if (name := getattr(function, "__name__", "")) in HOST_READS:
                seen.host_reads.add(name)
            return function(*args, **(kwargs or {}))

    return Watch()


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _copy(value: Any) -> Any:
    return value.detach().clone() if _is_tensor(value) else None


def _differs(old: Any, new: Any) -> bool:
    return old is not None and not bool(sys.modules["torch"].equal(old, new.detach()))


def _gradients(value: Any, arguments: list[Any], weights: Any) -> list[Any]:
    import torch

    if not (_is_tensor(value) and value.requires_grad):
        return [None] * len(arguments)
    weights = decode(weights, {})
    if weights.shape != value.shape:  # the wrong shape is told with the value
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


# ---- running ----


def notebook_module() -> types.ModuleType:
    """Return a fresh module ``__main__``, as in a notebook: classes that cells define can be found there."""
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    return module


def run_cell(source: str, name: str, namespace: dict[str, Any]) -> None:
    """Execute the source of one cell; lines that only IPython understands do nothing."""
    name = f"{CELL}{name}"
    try:
        tree = ast.parse(source, name)
    except SyntaxError:
        kept = [
            line[: len(line) - len(line.lstrip())] + "pass" if line.lstrip().startswith(("%", "!")) else line
            for line in source.splitlines()
        ]
        tree = ast.parse("\n".join(kept), name)
    exec(compile(tree, name, "exec"), namespace)


def run_cells(cells: list[list[str]], seconds: float, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    """Execute named cells, each in at most so many seconds; return what failed."""
    failed = []
    for name, source in cells:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            run_cell(source, name, namespace)
        except BaseException as error:  # SystemExit and TimeIsUp too: the other cells are still run
            failed.append({"cell": name, "error": describe(error)})
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return failed


def describe(error: BaseException) -> str:
    """Return the type and the first line of an error, and the student's line where it came up."""
    try:
        text = str(error).strip().partition("\n")[0]
    except BaseException:  # an exception class of the student's
        text = "(its message could not be made)"
    place, trace = "", error.__traceback__
    while trace is not None:
        if (file := trace.tb_frame.f_code.co_filename).startswith(CELL):
            place = f" (line {trace.tb_lineno} of {file.removeprefix(CELL)})"
        trace = trace.tb_next
    return f"{type(error).__name__}{': ' if text else ''}{text}"[:MAX_MESSAGE] + place


def set_limits(limits: dict[str, Any]) -> None:
    """Limit this process and its children; the parent outside watches what they use together.

    A limit of 0 is none.
    """
    for name, value in (
        (resource.RLIMIT_CPU, math.ceil(limits["cpu"]) + 2),  # a little later than the parent
        (resource.RLIMIT_AS, limits["address_space"]),
        (resource.RLIMIT_FSIZE, limits["scratch"]),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        if value:
            resource.setrlimit(name, (value, value))


def say(results: int, told: dict[str, Any]) -> None:
    """Write one line of the results."""
    rest = (json.dumps(told) + "\n").encode()
    while rest:
        rest = rest[os.write(results, rest) :]


def answers(calls: list[dict[str, Any]], namespace: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the answers to the calls of a group, which share their objects."""
    objects: dict[str, Any] = {}
    for call in calls:
        try:
            told = answer(call, namespace, objects)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            told = {"error": describe(error)}
        yield {"id": call["id"], **told}


def in_a_child(work: Callable[[], None], seconds: float) -> str | None:
    """Run work in a forked process; return what went wrong: "timeout", "ended" or nothing."""
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(FINISHED)  # student code that exits does not know this status, or has no use for it
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        status = os.waitpid(child, 0)[1]
    except TimeIsUp:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "timeout"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None if os.waitstatus_to_exitcode(status) == FINISHED else "ended"


def _say_answers(results: int, calls: list[dict[str, Any]], namespace: dict[str, Any]) -> None:
    for told in answers(calls, namespace):
        say(results, told)


def time_is_up(signum: int, frame: object) -> NoReturn:
    """Handle the timer's signal."""
    raise TimeIsUp("it took too long")


def load_optimizers() -> None:
    """Make an optimizer once, so that what torch then imports is there in every process forked from here."""
    import torch

    for kind in (torch.optim.SGD, torch.optim.Adam):
        weight = torch.zeros(1, requires_grad=True)
        weight.grad = torch.ones(1)
        kind([weight], lr=0.1).step()


def main() -> None:
    """Serve one job."""
    results = os.dup(1)
    os.dup2(2, 1)
    job, *calls = [json.loads(line) for line in sys.stdin.buffer]
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    set_limits(job["limits"])
    signal.signal(signal.SIGALRM, time_is_up)
    namespace = notebook_module().__dict__
    failed = run_cells(job["cells"], job["limits"]["cell"], namespace)
    say(results, {"failed_cells": failed[:50]})
    if any("optimizer" in call.get("make", {}) for call in calls):
        load_optimizers()
    groups: dict[str, list[dict[str, Any]]] = {}
    for call in calls:
        groups.setdefault(call["group"], []).append(call)
    given_up = set()
    for name, group in groups.items():
        task = name.partition("/")[0]
        if task in given_up:
            continue
        problem = in_a_child(partial(_say_answers, results, group, namespace), job["limits"]["task"])
        if problem:
            given_up.add(task)
            say(results, {"group": name, "problem": problem})
    say(results, {"done": True})
    os._exit(0)


if __name__ == "__main__":
    main()
