"""What a task is, and whether answers to it are right.  Runs outside the sandbox and trusts nothing it reads.

A task draws inputs from a seed and yields checks.  A check is a call for the runner and a judge of
what comes back: a function that returns nothing if the answer is right, and otherwise a sentence
for the student.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

TOLERANCES = {"float64": (1e-9, 1e-7), "float32": (1e-5, 1e-5)}  # absolute and relative

SETUP = """\
import math

import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, kl_divergence"""

Judge = Callable[["Answer"], str | None]


class MalformedError(ValueError):
    """What came out of the sandbox is not what the runner writes."""


def told(value: Any) -> Any:
    """Return an argument as JSON data; fixtures and objects are data already."""
    if not isinstance(value, Tensor):
        return value
    dtype = str(value.dtype).removeprefix("torch.")
    values = value.double() if value.is_floating_point() else value
    return {"kind": "tensor", "dtype": dtype, "shape": list(value.shape), "values": values.tolist()}


def fixture(name: str, /, **settings: Any) -> dict[str, Any]:
    """Return an argument that JSON cannot carry: one of `vaecourse.coursework.runner.FIXTURES`."""
    return {"fixture": name, **{setting: told(value) for setting, value in settings.items()}}


def shared(name: str) -> dict[str, Any]:
    """Return an argument that stands for an object which an earlier call of the group has made."""
    return {"object": name}


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


@dataclass
class Check:
    """A call, and the judge of its answer; checks of one `group` run in one process, one after another."""

    call: dict[str, Any]
    judge: Judge = lambda answer: None
    group: str = ""
    may_fail: bool = False


class Task(NamedTuple):
    """A function that students write."""

    name: str
    assignment: str
    points: float
    checks: Callable[[Draw], Iterator[Check]]


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


@dataclass
class Answer:
    """What was told of one call, taken apart with suspicion."""

    told: dict[str, Any]

    def tensor(self) -> Tensor:
        """Return the value as a float64 tensor, without dimensions for a Python number."""
        return _tensor(self.told.get("value"))

    def numbers(self, name: str) -> list[Tensor]:
        """Return the numbers that were told of an object."""
        found = self._part("tell", dict).get(name)
        if not isinstance(found, list) or len(found) > 100:
            raise MalformedError(f"nothing was told of {name}")
        return [_tensor(entry) for entry in found]

    def file(self, name: str) -> bytes | None:
        """Return the bytes of a file, or nothing where there is none."""
        content = self._part("files", dict).get(name)
        if content is None:
            return None
        try:
            return base64.b64decode(content, validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise MalformedError(f"the file {name} is not base64") from error

    def gradients(self) -> list[Tensor | None]:
        """Return the gradients that were asked for; none where the value does not depend on an argument."""
        return [None if entry is None else _tensor(entry) for entry in self._part("gradients", list)]

    def describe(self, name: str) -> Any:
        """Return a part of the value's description: its device, dtype and so on."""
        value = self.told.get("value")
        return value.get(name) if isinstance(value, dict) else None

    def lines(self) -> int:
        """Return how many lines of Python ran."""
        return int(self._part("lines", int))

    def host_reads(self) -> str:
        """Return the names of torch's functions that took numbers out of tensors, or nothing."""
        return ", ".join(clean(name) for name in self._part("host_reads", list)[:5])

    def _part(self, name: str, kind: type) -> Any:
        found = self.told.get(name)
        if not isinstance(found, kind):
            raise MalformedError(f"the answer has no {name}")
        return found


def _tensor(entry: Any) -> Tensor:
    if not isinstance(entry, dict):
        raise MalformedError("a value is not described")
    if entry.get("kind") == "number":
        return _numbers(entry.get("value"), [])
    if entry.get("kind") == "tensor" and "values" in entry:
        return _numbers(entry["values"], entry.get("shape"))
    raise MalformedError("a value has no numbers")


def _numbers(values: Any, shape: Any) -> Tensor:
    try:
        tensor = torch.tensor(values, dtype=torch.float64)
        return tensor.reshape(shape)
    except (TypeError, ValueError, OverflowError, RuntimeError, RecursionError) as error:
        raise MalformedError("a value is not made of numbers") from error


def _returned(answer: Answer) -> str | None:
    """Say what was returned where it has no numbers."""
    value = answer.told.get("value")
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == "none":
        return "it returned nothing (None)"
    if kind == "other":
        assert isinstance(value, dict)
        return f"it returned a value of type {str(value.get('type'))[:40]}, not a tensor or number"
    return None


def compare(
    found: Tensor, expected: Tensor, tolerance: tuple[float | Tensor, float], what: str = ""
) -> str | None:
    """Return nothing if two tensors agree, and else a sentence that says how they differ."""
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


def judge_value(
    expected: Tensor | float,
    *,
    tolerance: tuple[float | Tensor, float],
    gradients: Sequence[Tensor] = (),
    names: Sequence[str] = (),
    dtype: str | None = None,
    hint: str = "",
) -> Judge:
    """Return a judge that expects a value, and gradients where they were asked for."""
    wanted = torch.as_tensor(expected, dtype=torch.float64)

    def judge(answer: Answer) -> str | None:
        if problem := _returned(answer):
            return problem
        if dtype is not None and answer.describe("dtype") != dtype:
            return f"the dtype is {str(answer.describe('dtype'))[:20]} where {dtype} is expected"
        problem = compare(answer.tensor(), wanted, tolerance)
        if problem is None and gradients:
            for name, want, found in zip(names, gradients, answer.gradients(), strict=True):
                if found is None:
                    return f"no gradient flows to {name}"
                problem = problem or compare(found, want, tolerance, f"gradient with respect to {name}")
        return f"{problem}; {hint}" if problem and hint else problem

    return judge


def value_check(
    function: str,
    args: Sequence[Any],
    expected: Tensor | float | Callable[..., Tensor],
    *,
    kwargs: dict[str, Any] | None = None,
    gradients: dict[int, str] | None = None,
    tolerance: tuple[float | Tensor, float] = TOLERANCES["float64"],
    dtype: str | None = None,
    hint: str = "",
    **more: Any,
) -> Check:
    """Return a check that a function has a value.

    Parameters
    ----------
    function : str
        Its name.
    args : sequence
        Numbers, strings, tensors and fixtures.
    expected : torch.Tensor, float or callable
        The value, or a function of the arguments (and keyword arguments) that computes it.
    kwargs : dict, optional
        Keyword arguments.
    gradients : dict, optional
        Positions of arguments whose gradient is compared too, with their names; `expected` is callable then.
    tolerance : tuple
        Absolute (a number, or one for each element) and relative.
    dtype : str, optional
        Demanded of the value, where the task says so.
    hint : str
        Added to the sentence for the student.
    **more
        Other parts of the call, see `vaecourse.coursework.runner.answer`.

    Returns
    -------
    Check
        The call and the judge.
    """
    kwargs, gradients = kwargs or {}, gradients or {}
    call = {
        "function": function,
        "args": [told(value) for value in args],
        "kwargs": {name: told(value) for name, value in kwargs.items()},
        **more,
    }
    slopes: Sequence[Tensor] = ()
    if callable(expected):
        inputs = list(args)
        for position in gradients:
            inputs[position] = args[position].clone().requires_grad_()
        expected = torch.as_tensor(expected(*inputs, **kwargs), dtype=torch.float64)
        if gradients:
            # unequal weights, so that gradients which are right only in sum are found out
            weights = torch.linspace(1.0, 2.0, expected.numel(), dtype=torch.float64).reshape(expected.shape)
            slopes = torch.autograd.grad(
                (expected * weights).sum(), [inputs[position] for position in gradients]
            )
            call |= {"gradients": list(gradients), "weights": told(weights)}
            expected = expected.detach()
    names = list(gradients.values())
    judge = judge_value(expected, tolerance=tolerance, gradients=slopes, names=names, dtype=dtype, hint=hint)
    return Check(call, judge)


# ---- verdicts ----


class Mark(NamedTuple):
    """The mark of one task: points, points possible, and ``ok`` or the reason."""

    task: str
    score: float
    max_score: float
    verdict: str


def verdict_of(answers: Sequence[tuple[Check, dict[str, Any]]]) -> str:
    """Return ``ok``, or the reason of the first check that fails."""
    for check, reply in answers:
        if reply.get("missing") is True:
            return f"error: there is no function {check.call['function']}"
        if "error" in reply:
            if check.may_fail:
                continue
            said = clean(reply["error"])
            return "error: not written yet" if said.startswith("NotImplementedError") else f"error: {said}"
        try:
            problem = _changed(reply) or check.judge(Answer(reply))
        except MalformedError as error:
            return f"malformed: {clean(error)}"
        except Exception as error:  # an answer that nobody has thought of must not stop the others
            return f"malformed: the answer cannot be judged ({type(error).__name__})"
        if problem:
            return f"wrong: {problem}"
    return "ok"


def _changed(reply: dict[str, Any]) -> str | None:
    changed = reply.get("changed")
    if isinstance(changed, list) and changed and isinstance(changed[0], int):
        return f"it changed its argument number {changed[0] + 1} in place"
    return None


def clean(text: Any) -> str:
    """Return foreign text as one printable line of bounded length."""
    return "".join(character if character.isprintable() else " " for character in str(text)[:400]).strip()
