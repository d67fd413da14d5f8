"""Problem set 5, training on a GPU: the inputs, and what can be seen on a CPU from outside."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vaecourse.coursework.box.values import build, train_steps
from vaecourse.coursework.oracle import Answer, Call, Check, Draw, Problems, compare, task, value_check
from vaecourse.divergences import kl_standard_normal

MAX_LINES = 5_000  # of Python, for 200 batches and 20,000 examples
FILE_SIZE_LIMIT = 4096  # bytes, a small part of a state
FEW, MANY = (7, 4), (20_000, 100)  # examples and the size of a batch
OBJECTS = MODEL, OPTIMIZER, GENERATOR = [{"object": name} for name in ("model", "optimizer", "generator")]
RUN = ["model", "generator"]  # what of them a resumed run has to repeat


def _fixture(name: str, /, **settings: Any) -> Call:
    return {"fixture": name, **settings}


_sgd = partial(_fixture, "optimizer", kind="SGD", model=MODEL)
_adam = partial(_fixture, "optimizer", kind="Adam", model=MODEL)


def _weights(model: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def _process(group: str, make: Call, *calls: Call) -> list[Call]:
    """Return calls that share a process; the first makes the objects of all."""
    return [{"group": group, "make": {} if number else make, **call} for number, call in enumerate(calls)]


# ---- train_step ----


@task("ps5", points=3)
def train_step(draw: Draw) -> Iterator[Check]:
    """Two steps on the CPU beside ours, one on the meta device, which has no numbers to wait for."""

    def step(batch: Tensor, device: str, **more: Any) -> Call:
        return {"args": [MODEL, batch, OPTIMIZER, _fixture("device", name=device)], **more}

    for momentum in (0.0, 0.9):
        make = {
            "model": _fixture("linear_model", seed=draw.seed(), is_stale=True),
            "optimizer": _sgd(lr=draw.number(0.02, 0.1), momentum=momentum),
        }
        batches = [draw.normal(draw.integer(2, 6), 3) for _ in range(2)]
        calls = _process(f"{momentum}", make, *(step(batch, "cpu", tell=["model"]) for batch in batches))
        ours = build(make, {})
        steps = [_reference_step(batch, **ours) for batch in batches]
        yield Check(calls, partial(_judge_steps, steps=steps))
    make = {"model": _fixture("linear_model", seed=1, device="meta"), "optimizer": _sgd(lr=0.1)}
    yield Check(_process("meta", make, step(draw.normal(4, 3), "meta")), _judge_meta_step)


def _reference_step(batch: Tensor, model: torch.nn.Module, optimizer: Any) -> tuple[Tensor, list[Tensor]]:
    """Take a step and return the loss before it and the weights after it."""
    optimizer.zero_grad()
    loss: Tensor = model(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach(), _weights(model)


def _judge_steps(answers: Iterator[Answer], steps: list[tuple[Tensor, list[Tensor]]]) -> Problems:
    for answer, (loss, weights) in zip(answers, steps, strict=True):
        yield from _judge_loss(answer, "cpu")
        yield compare(answer.tensor(), loss, "the loss before the update")
        for found, wanted in zip(answer.numbers("model"), weights, strict=True):
            problem = compare(found, wanted, "the weights after the step")
            yield problem and f"{problem}; the gradients of an earlier step must be cleared first"


def _judge_meta_step(answers: Iterator[Answer]) -> Problems:
    for problem in _judge_loss(next(answers), "meta"):
        yield problem and f"{problem}; here the model is on the meta device and the batch on the CPU"


def _judge_loss(answer: Answer, device: str) -> Problems:
    if answer.mismatch(kind="tensor"):
        yield "it does not return a tensor: a number would have to wait for the device"
    yield answer.mismatch(shape=[], device=device)
    if answer.mismatch(requires_grad=False):
        yield "the loss is not detached"


# ---- epoch_indices ----


@task("ps5", points=2)
def epoch_indices(draw: Draw) -> Iterator[Check]:
    """Shape, device, no repetition, no bias, no noise but the generator's, no loop over examples."""

    def generator() -> Call:
        return {"generator": _fixture("generator", seed=draw.seed())}

    def epoch(sizes: tuple[int, int], device: str = "cpu", **more: Any) -> Call:
        return {"args": [*sizes, GENERATOR, _fixture("device", name=device)], **more}

    for sizes in ((103, 10), (64, 64), (50, 1)):
        make = generator()
        calls = _process(f"{sizes}", make, *(epoch(sizes, global_seed=draw.seed()) for _ in range(3)))
        calls[2]["make"] = make  # another generator of the same seed: the third epoch repeats the first
        yield Check(calls, partial(_judge_epochs, sizes=sizes))
    yield Check(_process("few", generator(), *[epoch(FEW)] * 24), _judge_coverage)
    yield Check(_process("lines", generator(), epoch(MANY, count_lines=True)), _judge_lines)
    make = generator()
    unmoved = torch.randn(4, generator=build(make, {})["generator"], dtype=torch.float64)
    calls = _process("meta", make, epoch((20, 4), "meta", tell=["generator"]))
    yield Check(calls, partial(_judge_meta_epoch, unmoved=unmoved))


def _indices_problem(answer: Answer, sizes: tuple[int, int], device: str = "cpu") -> str | None:
    shape = [sizes[0] // sizes[1], sizes[1]]
    return answer.mismatch(kind="tensor", shape=shape, dtype="int64", device=device)


def _judge_epochs(answers: Iterator[Answer], sizes: tuple[int, int]) -> Problems:
    seen = []
    for answer in answers:
        yield _indices_problem(answer, sizes)
        seen.append(found := answer.tensor().flatten())
        if found.min() < 0 or found.max() >= sizes[0]:
            yield f"an index lies outside 0 to {sizes[0] - 1}"
        if len(set(found.tolist())) < len(found):
            yield "an example comes twice in one epoch"
        if len(found) > 1 and found.equal(found.sort().values):
            yield "the examples come in their old order"
    if seen[0].equal(seen[1]):
        yield "a second epoch from the same generator has the same order"
    if not seen[0].equal(seen[2]):
        yield "the order is not a function of the generator alone: the same seed gave another one"


def _judge_coverage(answers: Iterator[Answer]) -> Problems:
    seen = []
    for answer in answers:
        yield _indices_problem(answer, FEW)
        seen.append(answer.tensor().flatten())
    if len(set(torch.cat(seen).tolist())) < FEW[0]:
        yield "in 24 epochs of 7 examples some never came: those left out must change"
    if len({float(epoch[0]) for epoch in seen}) < 2:
        yield "each of 24 epochs begins with the same example"
    if len({float(epoch[1] - epoch[0]) % FEW[0] for epoch in seen}) < 2:
        yield "the order is always the old one, begun at another place"


def _judge_lines(answers: Iterator[Answer]) -> Problems:
    (answer,) = answers
    yield _indices_problem(answer, MANY)
    if (lines := answer.part("lines", int)) > MAX_LINES:
        yield f"{lines} lines of Python ran for {MANY[0]} examples: leave the loop to torch"
    if reads := ", ".join(map(str, answer.part("host_reads", list)[:5])):
        yield f"it takes the numbers out of the tensor ({reads}): leave the work to torch"


def _judge_meta_epoch(answers: Iterator[Answer], unmoved: Tensor) -> Problems:
    (answer,) = answers
    yield _indices_problem(answer, (20, 4), "meta")
    if answer.numbers("generator")[0].equal(unmoved):
        yield "for a device other than the generator's own, nothing was drawn from the generator"


# ---- kl_in_float32 ----


@task("ps5", points=2)
def kl_in_float32(draw: Draw) -> Iterator[Check]:
    """Every dtype, inside autocast and outside, against the same inputs in double precision."""

    def kl(*args: Tensor) -> Tensor:
        return kl_standard_normal(*(value.float().double() for value in args))

    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        for where, more in (("outside", {}), ("inside", {"autocast": "bfloat16"})):
            for spread, shape in ((1.0, (5, 16)), (0.05, (3, 1)), (5.0, (4, 64))):
                draws = (draw.normal(*shape, scale=spread), draw.uniform(-spread, spread, *shape))
                here = f"the inputs are {str(dtype).removeprefix('torch.')}, {where} autocast"
                args = [value.to(dtype) for value in draws]
                yield value_check(args, kl, tolerance=(1e-5, 1e-5), dtype="float32", here=here, more=more)


# ---- ddp_equivalent_learning_rate ----


@task("ps5", points=2)
def ddp_equivalent_learning_rate(draw: Draw) -> Iterator[Check]:
    """DDP averages gradients, which is right for means; for sums it divides by the number of shards."""

    def right(learning_rate: float, world_size: int, loss_reduction: str) -> float:
        return learning_rate * (world_size if loss_reduction == "sum" else 1)

    for world_size in (1, 2, 3, 8, draw.integer(9, 64)):
        for reduction in ("mean", "sum"):
            yield value_check([draw.number(1e-4, 1.0), world_size, reduction], right)


# ---- save_state ----


@task("ps5", points=3)
def save_state(draw: Draw) -> Iterator[Check]:
    """A resumed run beside an unbroken one, in another process, then a save that fails part-way."""

    def objects(width: int, optimizer: Call) -> Call:
        model = _fixture("linear_model", seed=draw.seed(), width=width)
        return {"model": model, "optimizer": optimizer, "generator": _fixture("generator", seed=draw.seed())}

    for name, optimizer in {"adam": _adam, "sgd": partial(_sgd, momentum=0.9)}.items():
        first, other = objects(3, optimizer(lr=0.05)), objects(3, optimizer(lr=0.01))
        train_steps(**(ours := build(first, {})), num_steps=7)
        unbroken = _process(f"{name}, unbroken", first, _train(3), _state("save_state"), _train(4, tell=RUN))
        resumed = _process(f"{name}, resumed", other, _state("load_state"), _train(4, tell=RUN))
        yield Check(unbroken + resumed, partial(_judge_resumed, expected=_weights(ours["model"])))
    failing = _state("save_state", file_size_limit=FILE_SIZE_LIMIT, may_fail=True)
    save, load = _state("save_state", tell=RUN, files=["state"]), _state("load_state", tell=RUN)
    first, other, last = (objects(24, _adam(lr=rate)) for rate in (0.05, 0.01, 0.01))
    crash = _process("crash", first, _train(2), save, _train(2), failing, _train(0, files=["state"]))
    after = _process("after", other, load, _train(1), save)
    yield Check([*crash, *after, *_process("last", last, load)], _judge_crash)


def _train(num_steps: int, **more: Any) -> Call:
    return {"function": "train_steps", "args": [*OBJECTS, num_steps], **more}


def _state(function: str, **more: Any) -> Call:
    return {"function": function, "args": [_fixture("path", name="state"), *OBJECTS], **more}


def _judge_resumed(answers: Iterator[Answer], expected: list[Tensor]) -> Problems:
    _, _, unbroken, _, resumed = answers
    yield from _differences(resumed, unbroken)
    for found, wanted in zip(resumed.numbers("model"), expected, strict=True):
        problem = compare(found, wanted, "the weights of the run")
        yield problem and f"{problem}: saving has changed it"


def _judge_crash(answers: Iterator[Answer]) -> Problems:
    _, saved = next(answers), next(answers)
    if not (file := saved.part("files", dict).get("state")):
        yield "nothing was written to the path"
    _, _, kept = next(answers), next(answers), next(answers)
    if kept.part("files", dict).get("state") != file:
        yield "a save that failed part-way has destroyed the file of the save before"
    yield from _differences(next(answers), saved)
    _, later, last = answers
    yield from _differences(last, later)


def _differences(resumed: Answer, unbroken: Answer) -> Problems:
    """Yield differences between two runs whose numbers must agree to the last bit."""
    names = {"model": "the weights of the resumed run", "generator": "the draws of the resumed generator"}
    for thing, name in names.items():
        for found, wanted in zip(resumed.numbers(thing), unbroken.numbers(thing), strict=True):
            problem = compare(found, wanted, name, (0.0, 0.0))
            yield problem and f"{problem} by the run that was not stopped"
