"""Problem set 5, training on a GPU: what is asked, and what of it can be seen on a CPU from outside."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vaecourse.coursework import runner
from vaecourse.coursework.oracle import (
    TOLERANCES,
    Answer,
    Check,
    Draw,
    compare,
    fixture,
    shared,
    task,
    told,
    value_check,
)

MAX_LINES = 5_000  # of Python, for 200 batches and 20,000 examples
FILE_SIZE_LIMIT = 4096  # bytes, a small part of a state
EXACT = (0.0, 0.0)


# ---- train_step ----


@task("ps5", points=3)
def train_step(draw: Draw) -> Iterator[Check]:
    """Two steps on the CPU beside ours, one on the meta device, which has no numbers to wait for."""
    for number, momentum in enumerate((0.0, 0.9)):
        group, rate = f"train_step/{number}", draw.number(0.02, 0.1)
        make = {
            "model": fixture("linear_model", seed=draw.integer(0, 10**6), stale=True),
            "optimizer": fixture("sgd", learning_rate=rate, momentum=momentum),
        }
        objects: dict[str, Any] = {}
        for name, made in make.items():
            objects[name] = runner.decode(made, objects)
        for _ in range(2):
            batch = draw.normal(draw.integer(2, 6), 3)
            loss = _reference_step(objects["model"], batch, objects["optimizer"])
            weights = [parameter.detach().clone() for parameter in objects["model"].parameters()]
            judge = partial(_judge_step, loss=loss, weights=weights)
            yield _step_call(group, make, batch, "cpu", judge)
            make = {}  # the second step goes on with the same objects
    make = {
        "model": fixture("linear_model", seed=1, device="meta"),
        "optimizer": fixture("sgd", learning_rate=0.1),
    }
    yield _step_call("train_step/meta", make, draw.normal(4, 3), "meta", _judge_meta_step)


def _step_call(group: str, make: dict[str, Any], batch: Tensor, device: str, judge: Any) -> Check:
    call = {
        "function": "train_step",
        "make": make,
        "args": [shared("model"), told(batch), shared("optimizer"), fixture("device", name=device)],
        "tell": ["model"] if device == "cpu" else [],
    }
    return Check(call, judge, group)


def _reference_step(model: torch.nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    loss: Tensor = model(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def _judge_step(answer: Answer, loss: Tensor, weights: Sequence[Tensor]) -> str | None:
    if problem := _judge_loss(answer, "cpu"):
        return problem
    if problem := compare(answer.tensor(), loss, TOLERANCES["float64"], "the loss before the update"):
        return problem
    for found, want in zip(answer.numbers("model"), weights, strict=True):
        if problem := compare(found, want, TOLERANCES["float64"], "the weights after the step"):
            return f"{problem}; the gradients of an earlier step must be cleared first"
    return None


def _judge_meta_step(answer: Answer) -> str | None:
    problem = _judge_loss(answer, "meta")
    return f"{problem}; here the model is on the meta device and the batch on the CPU" if problem else None


def _judge_loss(answer: Answer, device: str) -> str | None:
    if answer.describe("kind") != "tensor":
        return "it does not return a tensor: a number would have to wait for the device"
    if answer.describe("shape") != []:
        return f"the loss has shape {str(answer.describe('shape'))[:20]} where no dimensions are expected"
    if answer.describe("device") != device:
        return f"the loss is on {str(answer.describe('device'))[:10]} where {device} is expected"
    return "the loss is not detached" if answer.describe("requires_grad") is not False else None


# ---- epoch_indices ----


@task("ps5", points=2)
def epoch_indices(draw: Draw) -> Iterator[Check]:
    """Shape, device, no repetition, no preference, no noise but the generator's, no loop over examples."""
    for number, (examples, batch) in enumerate(((103, 10), (64, 64), (50, 1))):
        group, seed = f"epoch_indices/{number}", draw.integer(0, 10**6)
        seen: list[Tensor] = []
        for repeat in range(3):
            # one generator twice, then another of the same seed: the third epoch repeats the first
            make = {"generator": fixture("generator", seed=seed)} if repeat != 1 else {}
            judge = partial(_judge_epoch, examples=examples, batch=batch, seen=seen)
            yield _epoch_call(group, examples, batch, "cpu", judge, make, global_seed=draw.integer(0, 10**6))
    seen = []
    make = {"generator": fixture("generator", seed=draw.integer(0, 10**6))}
    for _ in range(24):
        judge = partial(_judge_coverage, examples=7, batch=4, seen=seen)
        yield _epoch_call("epoch_indices/few", 7, 4, "cpu", judge, make)
        make = {}
    make = {"generator": fixture("generator", seed=draw.integer(0, 10**6))}
    yield _epoch_call("epoch_indices/lines", 20_000, 100, "cpu", _judge_lines, make, count_lines=True)
    seed = draw.integer(0, 10**6)
    unmoved = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    make, judge = {"generator": fixture("generator", seed=seed)}, partial(_judge_meta_epoch, unmoved=unmoved)
    yield _epoch_call("epoch_indices/meta", 20, 4, "meta", judge, make, tell=["generator"])


def _epoch_call(
    group: str, examples: int, batch: int, device: str, judge: Any, make: dict[str, Any], **more: Any
) -> Check:
    call = {
        "function": "epoch_indices",
        "make": make,
        "args": [examples, batch, shared("generator"), fixture("device", name=device)],
        **more,
    }
    return Check(call, judge, group)


def _judge_indices(answer: Answer, examples: int, batch: int) -> str | None:
    shape = [examples // batch, batch]
    if answer.describe("kind") != "tensor":
        return "it does not return a tensor"
    if answer.describe("shape") != shape:
        return f"the shape is {str(answer.describe('shape'))[:30]} where {shape} is expected"
    if answer.describe("dtype") != "int64":
        return f"the dtype is {str(answer.describe('dtype'))[:20]} where int64 is expected"
    return None


def _judge_epoch(answer: Answer, examples: int, batch: int, seen: list[Tensor]) -> str | None:
    if problem := _judge_indices(answer, examples, batch):
        return problem
    found = answer.tensor().flatten()
    seen.append(found)
    if found.min() < 0 or found.max() >= examples:
        return f"an index lies outside 0 to {examples - 1}"
    if len(set(found.tolist())) < len(found):
        return "an example comes twice in one epoch"
    if len(found) > 1 and found.equal(found.sort().values):
        return "the examples come in their old order"
    if len(seen) == 2 and seen[0].equal(seen[1]):
        return "a second epoch from the same generator has the same order"
    if len(seen) == 3 and not seen[0].equal(seen[2]):
        return "the order is not a function of the generator alone: the same seed gave another one"
    return None


def _judge_coverage(answer: Answer, examples: int, batch: int, seen: list[Tensor]) -> str | None:
    if problem := _judge_indices(answer, examples, batch):
        return problem
    seen.append(answer.tensor().flatten())
    if len(seen) == 24:
        if len(set(torch.cat(seen).tolist())) < examples:
            return "in 24 epochs of 7 examples some never came: those left out must change"
        if len({float(epoch[0]) for epoch in seen}) < 2:
            return "each of 24 epochs begins with the same example"
        if len({float(epoch[1] - epoch[0]) % examples for epoch in seen}) < 2:
            return "the order is always the old one, begun at another place"
    return None


def _judge_lines(answer: Answer) -> str | None:
    if problem := _judge_indices(answer, 20_000, 100):
        return problem
    if (lines := answer.lines()) > MAX_LINES:
        return f"{lines} lines of Python ran for 20000 examples: leave the loop to torch"
    if reads := answer.host_reads():
        return f"it takes the numbers out of the tensor ({reads}): leave the work to torch"
    return None


def _judge_meta_epoch(answer: Answer, unmoved: Tensor) -> str | None:
    if problem := _judge_indices(answer, 20, 4):
        return problem
    if (device := answer.describe("device")) != "meta":
        return f"the indices are on {str(device)[:10]} where meta is expected"
    if answer.numbers("generator")[0].equal(unmoved):
        return "for a device other than the generator's own, nothing was drawn from the generator"
    return None


# ---- kl_in_float32 ----


@task("ps5", points=2)
def kl_in_float32(draw: Draw) -> Iterator[Check]:
    """Every dtype, inside autocast and outside, against the same inputs in double precision."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        for autocast in (None, "bfloat16"):
            for spread, shape in ((1.0, (5, 16)), (0.05, (3, 1)), (5.0, (4, 64))):
                loc = draw.normal(*shape, scale=spread).to(dtype)
                log_scale = draw.uniform(-spread, spread, *shape).to(dtype)
                first, second = loc.float().double(), log_scale.float().double()
                kl = 0.5 * (first.square() + (2 * second).exp() - 1 - 2 * second).sum(1)
                more: dict[str, Any] = {"autocast": autocast} if autocast else {}
                yield value_check(
                    "kl_in_float32",
                    [loc, log_scale],
                    kl,
                    tolerance=TOLERANCES["float32"],
                    dtype="float32",
                    hint=f"here the inputs are {str(dtype).removeprefix('torch.')}, "
                    + ("inside autocast" if autocast else "outside autocast"),
                    **more,
                )


# ---- ddp_equivalent_learning_rate ----


@task("ps5", points=2)
def ddp_equivalent_learning_rate(draw: Draw) -> Iterator[Check]:
    """DDP averages gradients: right for means over equal shards, too small for sums by their number."""
    for world_size in (1, 2, 3, 8, draw.integer(9, 64)):
        for reduction, factor in (("mean", 1), ("sum", world_size)):
            rate = draw.number(1e-4, 1.0)
            yield value_check(
                "ddp_equivalent_learning_rate",
                [rate, world_size, reduction],
                rate * factor,
                hint=f'here world_size = {world_size} and loss_reduction = "{reduction}"',
            )


# ---- save_state ----


@task("ps5", points=3)
def save_state(draw: Draw) -> Iterator[Check]:
    """A resumed run beside an unbroken one, in another process, then a save that fails part-way."""
    for number, (name, extra) in enumerate((("adam", {}), ("sgd", {"momentum": 0.9}))):
        optimizer = partial(fixture, name, **extra)
        unbroken: list[Tensor] = []
        first = _State(f"save_state/{number}a", draw, partial(optimizer, learning_rate=0.05), width=3)
        yield first.train(3)
        yield first.call("save_state")
        yield first.train(4, partial(_keep, into=unbroken))
        other = _State(f"save_state/{number}b", draw, partial(optimizer, learning_rate=0.01), width=3)
        yield other.call("load_state")
        judge = partial(_judge_resumed, unbroken=unbroken, expected=first.reference(7))
        yield other.train(4, judge)
    saved: list[Tensor] = []
    kept: list[bytes | None] = []
    adam = partial(fixture, "adam")
    crash = _State("save_state/crash", draw, partial(adam, learning_rate=0.05), width=24)
    yield crash.train(2)
    yield crash.call("save_state", files=["state"])
    yield crash.train(0, partial(_keep, into=saved, files=kept))
    yield crash.train(2)
    yield crash.call("save_state", file_size_limit=FILE_SIZE_LIMIT, may_fail=True)
    yield crash.train(0, partial(_judge_kept, kept=kept))
    after = _State("save_state/after", draw, partial(adam, learning_rate=0.01), width=24)
    yield after.call("load_state")
    yield after.train(0, partial(_judge_resumed, unbroken=saved, expected=None))
    later: list[Tensor] = []
    yield after.train(1)
    yield after.call("save_state")
    yield after.train(0, partial(_keep, into=later))
    last = _State("save_state/last", draw, partial(adam, learning_rate=0.01), width=24)
    yield last.call("load_state")
    yield last.train(0, partial(_judge_resumed, unbroken=later, expected=None))


class _State:
    """A model, an optimizer and a generator in a process of their own, and the calls on them."""

    def __init__(self, group: str, draw: Draw, optimizer: Any, width: int) -> None:
        self.group = group
        self.make = {
            "model": fixture("linear_model", seed=draw.integer(0, 10**6), width=width),
            "optimizer": optimizer(),
            "generator": fixture("generator", seed=draw.integer(0, 10**6)),
        }
        self.all = dict(self.make)

    def call(self, function: str, *, may_fail: bool = False, **more: Any) -> Check:
        return self._check(function, [fixture("path", name="state")], [], None, may_fail, **more)

    def train(self, num_steps: int, judge: Any = None) -> Check:
        told_too: dict[str, Any] = {"tell": ["model", "generator"], "files": ["state"]} if judge else {}
        return self._check("train_steps", [], [num_steps], judge, **told_too)

    def _check(
        self,
        function: str,
        before: list[Any],
        after: list[Any],
        judge: Any,
        may_fail: bool = False,
        **more: Any,
    ) -> Check:
        make, self.make = self.make, {}
        args = [*before, shared("model"), shared("optimizer"), shared("generator"), *after]
        call = {"function": function, "make": make, "args": args, **more}
        return Check(call, judge or (lambda answer: None), self.group, may_fail)

    def reference(self, num_steps: int) -> list[Tensor]:
        """Return the weights after as many steps without an interruption, computed here."""
        objects: dict[str, Any] = {}
        for name, made in self.all.items():
            objects[name] = runner.decode(made, objects)
        runner.train_steps(objects["model"], objects["optimizer"], objects["generator"], num_steps)
        return [parameter.detach() for parameter in objects["model"].parameters()]


def _keep(answer: Answer, into: list[Tensor], files: list[bytes | None] | None = None) -> str | None:
    into += [*answer.numbers("model"), *answer.numbers("generator")]
    if files is None:
        return None
    files.append(answer.file("state"))
    return "nothing was written to the path" if not files[0] else None


def _judge_resumed(answer: Answer, unbroken: list[Tensor], expected: list[Tensor] | None) -> str | None:
    found = [*answer.numbers("model"), *answer.numbers("generator")]
    names = [*["the weights of the resumed run"] * (len(found) - 1), "the draws of the resumed generator"]
    for name, got, want in zip(names, found, unbroken, strict=True):
        if problem := compare(got, want, EXACT, name):
            return f"{problem} by the run that was not stopped"
    if expected is None:
        return None
    for got, want in zip(found[:-1], expected, strict=True):
        if problem := compare(got, want, TOLERANCES["float64"], "the weights of the run"):
            return f"{problem}: saving has changed it"
    return None


def _judge_kept(answer: Answer, kept: list[bytes | None]) -> str | None:
    if answer.file("state") != kept[0]:
        return "a save that failed part-way has destroyed the file of the save before"
    return None
