"""What a task is, and whether answers to it are right.  Runs outside the sandbox; trusts nothing it reads.

A task draws inputs from a seed and yields checks.  A check is one or more calls for the runner, and one
judge of all their answers.  The judge goes through the answers in order and yields problems, as sentences
for the student, or None where there is no problem; the first problem is the verdict.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import signature
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tolerance = tuple[float | Tensor, float]  # absolute (a number, or one for each element) and relative
TOLERANCE: Tolerance = (1e-9, 1e-7)

SETUP = """\
import math

import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, kl_divergence"""

Call = dict[str, Any]  # what the runner reads, or a part of it
Problems = Iterator[str | None]
Judge = Callable[[Iterator["Answer"]], Problems]


class RefusedError(Exception):
    """There is no answer to judge; the message is the verdict."""


def told(value: Any) -> Any:
    """Return a value in which tensors are replaced by JSON data, however deep they are."""
    if isinstance(value, dict):
        return {name: told(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [told(part) for part in value]
    if not isinstance(value, Tensor):
        return value
    dtype = str(value.dtype).removeprefix("torch.")
    values = value.double() if value.is_floating_point() else value
    return {"kind": "tensor", "dtype": dtype, "shape": list(value.shape), "values": values.tolist()}


class Draw:
    """Random inputs from one seed, the same on every machine: float64 on the CPU."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, loc: float = 0.0, scale: float = 1.0) -> Tensor:
        """Return draws from a normal distribution."""
        return loc + scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return draws between two numbers."""
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def number(self, low: float, high: float) -> float:
        """Return one draw between two numbers, as a Python number."""
        return float(self.uniform(low, high))

    def integer(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def seed(self) -> int:
        """Return a seed for another generator."""
        return self.integer(0, 10**6)


class Check(NamedTuple):
    """Calls, and the judge of their answers.

    A call is what the runner reads (see `vaecourse.coursework.box.calls.answer`), but may hold tensors.
    Without a ``function`` it calls the task's own.  All calls of a task without a ``group`` share a
    process.  A call with ``may_fail`` may raise an error.
    """

    calls: list[Call]
    judge: Judge


class Task(NamedTuple):
    """A function that students write."""

    name: str
    assignment: str
    points: float
    checks: Callable[[Draw], Iterator[Check]]

    def calls(self, checks: Iterable[Check]) -> list[Call]:
        """Return the calls of checks, complete except for their ids."""
        mine = {"task": self.name, "group": "", "function": self.name}
        return [{**mine, **call} for check in checks for call in check.calls]


TASKS: dict[str, Task] = {}


def task(assignment: str, points: float) -> Callable[[Callable[[Draw], Iterator[Check]]], Task]:
    """Register the checks of the task that has the decorated function's name."""

    def register(checks: Callable[[Draw], Iterator[Check]]) -> Task:
        made = Task(checks.__name__, assignment, points, checks)
        if made.name in TASKS:
            raise ValueError(f"there are two tasks named {made.name}")
        return TASKS.setdefault(made.name, made)

    return register


# ---- answers ----


class Answer:
    """The runner's report of one call, read with suspicion."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told

    def part(self, name: str, kind: type) -> Any:
        """Return a part of the report."""
        found = self.told.get(name)
        if not isinstance(found, kind):
            raise RefusedError(f"malformed: the answer has no {name}")
        return found

    def tensor(self) -> Tensor:
        """Return the value as a float64 tensor, without dimensions for a Python number."""
        return read_tensor(self.part("value", dict))

    def numbers(self, name: str) -> list[Tensor]:
        """Return the numbers of an object."""
        found = self.part("tell", dict).get(name)
        if not isinstance(found, list) or len(found) > 100:
            raise RefusedError(f"malformed: nothing was told of {name}")
        return [read_tensor(entry) for entry in found]

    def mismatch(self, **expected: Any) -> str | None:
        """Return a sentence if the value's kind, dtype, shape or device is not the expected one."""
        value = self.part("value", dict)
        if value.get("kind") == "none":
            return "it returned nothing (None)"
        if value.get("kind") == "other":
            return f"it returned a value of type {str(value.get('type'))[:40]}, not a tensor or number"
        for name, wanted in expected.items():
            if (found := value.get(name)) != wanted:
                return f"the {name} is {str(found)[:30]} where {wanted} is expected"
        return None


def read_tensor(entry: Any) -> Tensor:
    """Return a reported number or tensor as a tensor."""
    if not isinstance(entry, dict):
        raise RefusedError("malformed: a value is not described")
    is_number = entry.get("kind") == "number"
    if not is_number and not (entry.get("kind") == "tensor" and "values" in entry):
        raise RefusedError("malformed: a value has no numbers")
    values, shape = entry.get("value" if is_number else "values"), [] if is_number else entry.get("shape")
    try:
        return torch.tensor(values, dtype=torch.float64).reshape(shape)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError, RecursionError) as error:
        raise RefusedError("malformed: a value is not made of numbers") from error


def compare(found: Tensor, expected: Tensor, what: str = "", tolerance: Tolerance = TOLERANCE) -> str | None:
    """Return a sentence that says how two tensors differ, or None if they agree."""
    what = f"{what}: " if what else ""
    if found.shape != expected.shape:
        return f"{what}the shape is {tuple(found.shape)} where {tuple(expected.shape)} is expected"
    off = ~((found - expected).abs() <= tolerance[0] + tolerance[1] * expected.abs())  # NaN is off
    if not off.any():
        return None
    if not found.isfinite().all():
        place = ~found.isfinite()
        return f"{what}got {float(found[place][0])} where {float(expected[place][0]):.6g} is expected"
    worst = int((found - expected).abs().mul(off).flatten().argmax())
    numbers = _got(float(found.flatten()[worst]), float(expected.flatten()[worst]))
    return f"{what}{numbers}" + (f" ({int(off.sum())} of {off.numel()} numbers are off)" if off.dim() else "")


def _got(found: float, expected: float) -> str:
    if abs(found - expected) > 1e-5 * abs(expected):
        return f"got {found:.6g} where {expected:.6g} is expected"
    advice = "the first digits are right: was it computed in float32, rounded, or searched for?"
    return f"got {found:.12g} where {expected:.12g} is expected; {advice}"


def value_check(
    args: Sequence[Any],
    expected: Tensor | float | Callable[..., Tensor | float],
    *,
    here: str = "",
    kwargs: Mapping[str, Any] | None = None,
    gradients: Mapping[int, str] | None = None,
    tolerance: Tolerance = TOLERANCE,
    dtype: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> Check:
    """Return a check of the function's value for these arguments.

    `expected` is the value, or a function that computes it from the arguments.  `gradients` maps the
    positions of arguments to their names; their gradients are compared too, which needs such a function.
    `dtype` is what the value must have.  `here` tells the student what is special about the inputs; by
    default it lists them.  `more` holds other parts of the call.
    """
    kwargs, gradients = kwargs or {}, gradients or {}
    inputs = [value.clone().requires_grad_() if n in gradients else value for n, value in enumerate(args)]
    wanted = expected(*inputs, **kwargs) if callable(expected) else expected
    value = torch.as_tensor(wanted, dtype=torch.float64)
    call: Call = {"args": args, "kwargs": kwargs, **(more or {})}
    slopes: dict[str, Tensor] = {}
    if gradients:
        # unequal weights, so that gradients which are right only in sum are found out
        weights = torch.linspace(1.0, 2.0, value.numel(), dtype=torch.float64).reshape(value.shape)
        gradient = torch.autograd.grad((value * weights).sum(), [inputs[n] for n in gradients])
        slopes = dict(zip(gradients.values(), gradient, strict=True))
        call |= {"gradients": list(gradients), "weights": weights}
    if callable(expected) and not here:
        given = signature(expected).bind(*args, **kwargs)
        given.apply_defaults()
        shown = {name: value for name, value in given.arguments.items() if not isinstance(value, dict)}
        here = ", ".join(_described(name, value) for name, value in shown.items())

    def judge(answers: Iterator[Answer]) -> Problems:
        (answer,) = answers
        yield answer.mismatch(**({"dtype": dtype} if dtype else {}))
        problem = compare(answer.tensor(), value.detach(), "", tolerance)
        yield problem and f"{problem}; here {here}"
        found = answer.part("gradients", list) if slopes else []
        for (name, wanted), slope in zip(slopes.items(), found, strict=True):
            if slope is None:
                yield f"no gradient flows to {name}"
            problem = compare(read_tensor(slope), wanted, f"gradient with respect to {name}", tolerance)
            yield problem and f"{problem}; here {here}"

    return Check([call], judge)


def _described(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{name} has shape {tuple(value.shape)}"
    return f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value!r}"


# ---- verdicts ----


class Mark(NamedTuple):
    """The mark of one task: points, points possible, and ``ok`` or the reason."""

    task: str
    score: float
    max_score: float
    verdict: str


def verdict_of(task: Task, checks: Iterable[Check], replies: Iterable[Any]) -> str:
    """Return ``ok`` or the reason why the first check fails, given the replies to all calls."""
    checks = list(checks)
    answers = map(_sound_answer, task.calls(checks), replies)
    try:
        for check in checks:
            mine = islice(answers, len(check.calls))
            if problem := next(filter(None, check.judge(mine)), None):
                return f"wrong: {problem}"
            list(mine)  # calls that the judge had no need to look at must have worked, too
    except RefusedError as refused:
        return str(refused)
    except Exception as error:  # an answer that nobody has thought of must not stop the others
        return f"malformed: the answer cannot be judged ({type(error).__name__})"
    return "ok"


def _sound_answer(call: Call, reply: dict[str, Any]) -> Answer:
    if reply.get("missing") is True:
        raise RefusedError(f"error: there is no function {call['function']}")
    if "error" in reply and "may_fail" not in call:
        said = clean(reply["error"])
        raise RefusedError(f"error: {'not written yet' if said.startswith('NotImplementedError') else said}")
    changed = reply.get("changed")
    if isinstance(changed, list) and changed and isinstance(changed[0], int):
        raise RefusedError(f"wrong: it changed its argument number {changed[0] + 1} in place")
    return Answer(reply)


def clean(text: Any) -> str:
    """Return foreign text as one printable line of bounded length."""
    return "".join(character if character.isprintable() else " " for character in str(text)[:400]).strip()
