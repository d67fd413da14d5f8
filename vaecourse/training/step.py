"""One optimiser step on any device, in slices and shares, and the guard that keeps bad numbers out."""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vaecourse._checks import NotFinite
from vaecourse.training.batches import mixed
from vaecourse.training.devices import compiler_problem
from vaecourse.training.history import History, TrainingDiverged
from vaecourse.training.processes import place_among_processes

LossFn = Callable[..., Tensor]


class BatchLoss(nn.Module):
    """A loss function and its model as one module, so that compilation and DDP see a single forward."""

    def __init__(self, model: nn.Module, loss_fn: LossFn, precision: str, device_type: str) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn
        self.is_bf16, self.device_type = precision == "bf16", device_type

    def forward(self, *batch: Tensor) -> Tensor:
        """Mean loss over the batch, shape (), at least float32."""
        if self.is_bf16:
            with torch.autocast(self.device_type, torch.bfloat16):
                loss = self.loss_fn(self.model, *batch)
        else:
            loss = self.loss_fn(self.model, *batch)
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss_fn must return a tensor of shape (), got {type(loss).__name__}")
        if loss.shape != ():
            raise ValueError(f"loss_fn must return one number, of shape (), got shape {tuple(loss.shape)}")
        return loss if loss.dtype == torch.float64 else loss.float()


class Guard:
    """Keeps a step whose loss or gradient is not finite from the weights, and says which it was.

    On the CPU, and for an optimiser that is not fused, it looks at once.  On
    an accelerator looking means waiting, so a fused optimiser is told on the
    device to leave the weights alone (as a gradient scaler tells it), from the
    first bad step on, and `report` looks later.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        group_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.parameters = {
            f"{name} (parameter group {group_of[id(p)]})": p
            for name, p in model.named_parameters()
            if id(p) in group_of
        }
        self.is_fused = all(group.get("fused") for group in optimizer.param_groups)
        self.looks_later = device.type == "meta" or (device.type != "cpu" and self.is_fused)
        self.is_bad = torch.zeros((), dtype=torch.bool, device=device)
        self.record: Tensor | None = None

    def check(self, loss: Tensor, epoch: int, batch: int) -> None:
        """Look at the loss and the sum of each gradient, before the optimiser's step.

        An entry that is not finite makes the sum so; a sum is forty times
        faster than a largest entry, and overflows only where the run is lost.
        """
        zero = torch.zeros((), device=loss.device)
        sums = [zero if p.grad is None else p.grad.sum() for p in self.parameters.values()]
        position = [torch.full((), float(number), device=loss.device) for number in (epoch, batch)]
        record = torch.stack([*position, loss, *sums])
        is_bad = ~record.isfinite().all()
        if not self.looks_later:
            self.record, self.is_bad = record, is_bad
            self.report()
            return
        if self.record is not None:
            record = torch.where(self.is_bad, self.record, record)
        self.record, self.is_bad = record, self.is_bad | is_bad
        if self.is_fused:
            self.optimizer.found_inf = self.is_bad.float()  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]

    def report(self) -> None:
        """Wait for the device, and raise TrainingDiverged if a step was bad."""
        if self.record is None or not self.is_bad.item():
            return
        epoch, batch, loss, *sums = self.record.tolist()
        bad = [name for name, x in zip(self.parameters, sums, strict=True) if not math.isfinite(x)]
        reason = f"the gradient of {', '.join(bad)} is not finite" if bad else ""
        if not math.isfinite(loss):
            reason = f"the loss is {loss}"
        raise TrainingDiverged(int(epoch), int(batch), reason)

    def release(self) -> None:
        """Take back what the optimiser was told."""
        for name in ("found_inf", "grad_scale"):
            if hasattr(self.optimizer, name):
                delattr(self.optimizer, name)


class Run:
    """Everything that a training run changes, and the step that changes it.

    Attributes
    ----------
    step, batch : int
        Optimiser steps so far, and those of the present epoch; the number of
        epochs done is the length of ``history.loss``.
    total : Tensor, shape ()
        Sum over the examples of the epoch so far, of those of this process.
    """

    def __init__(
        self,
        loss: BatchLoss,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        *,
        device: torch.device,
        compile: bool | str,
        batch_size: int,
        micro_batch_size: int | None,
    ) -> None:
        self.model, self.optimizer, self.scheduler, self.device = loss.model, optimizer, scheduler, device
        self.batch_loss = loss
        self.rank, self.world_size = place_among_processes()
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        if batch_size < self.world_size > 1:
            raise ValueError(f"a batch of {batch_size} cannot be shared by {self.world_size} processes")
        self.loss: nn.Module = loss
        if self.world_size > 1:
            self.loss = DistributedDataParallel(loss, [device.index] if device.type == "cuda" else None)
        if compile and not batch_size:
            raise ValueError("compile needs a DataLoader with a batch_size, so that one shape is compiled")
        mode = compile if isinstance(compile, str) else None
        self.fast_loss = compiled(self.loss, mode, device) if compile else self.loss
        self.full_slice = min(len(self.share(torch.arange(batch_size))), micro_batch_size or batch_size)
        self.guard = Guard(self.model, optimizer, device)
        self.history = History()
        self.step = self.batch = 0
        self.total = self.zero()

    def zero(self) -> Tensor:
        """An empty sum, in double precision where the device has it."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.zeros((), dtype=dtype, device=self.device)

    def share(self, indices: Tensor) -> Tensor:
        """Part of a batch that falls to this process; parts differ by one example at most."""
        return indices.tensor_split(self.world_size)[self.rank]

    def take_step(self, tensors: tuple[Tensor, ...], indices: Tensor) -> None:
        """Take one optimiser step on the examples with these indices, the same in every process."""
        self.optimizer.zero_grad()
        share = self.share(indices)
        # With nothing to do, a process takes part with weight 0: the others wait for its gradients.
        size = self.micro_batch_size or len(indices)
        slices = torch.split(share, size) if len(share) else (indices[:1],)
        batch_loss = self.zero()
        for position, rows in enumerate(slices):
            fraction = len(rows) / len(indices) if len(share) else 0.0
            with self._synchronized(position == len(slices) - 1):
                loss = self._evaluate(rows, tensors)
                if not loss.requires_grad:
                    raise ValueError("the loss does not depend on any weight that can be trained")
                # DDP averages over processes, where a mean over the whole batch needs the sum
                (loss * (fraction * self.world_size)).backward()  # type: ignore[no-untyped-call]
            batch_loss += loss.detach() * fraction
        self.guard.check(batch_loss, len(self.history.loss), self.batch)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.total += batch_loss * len(indices)
        self.step += 1
        self.batch += 1

    def end_epoch(
        self, num_examples: int, seconds: float, validation: tuple[Tensor, ...] | None, seed: int
    ) -> None:
        """Add the epoch to the history."""
        if validation is not None:
            self.history.validation.append(self._validate(validation, seed))
        if self.world_size > 1:
            dist.all_reduce(self.total)
        self.history.loss.append(self.total.item() / num_examples)
        self.history.seconds.append(seconds)
        self.batch, self.total = 0, self.zero()

    def _evaluate(self, rows: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        # A shape that was not compiled would be compiled anew: the first batch is run eagerly too,
        # because only then are the values of data and parameters looked at.
        is_fast = len(rows) == self.full_slice and self.step > 0
        module = self.fast_loss if is_fast else self.loss
        batch = [tensor.index_select(0, rows) for tensor in tensors]
        try:
            loss: Tensor = module(*batch)
        except NotFinite as error:
            raise TrainingDiverged(len(self.history.loss), self.batch, str(error)) from error
        except ValueError as error:
            error.add_note(f"raised by loss_fn at epoch {len(self.history.loss)}, step {self.batch}")
            raise
        except TypeError as error:
            _explain_call(error, self.batch_loss.loss_fn, len(batch))
            raise
        return loss

    @torch.no_grad()
    def _validate(self, tensors: tuple[Tensor, ...], seed: int) -> float:
        """Mean loss over examples in evaluation mode; each process looks at all of them."""
        self.model.eval()
        total, rows = self.zero(), torch.arange(len(tensors[0]), device=self.device)
        try:
            with own_randomness(mixed(seed, 2), 0, self.device):
                for part in torch.split(rows, self.micro_batch_size or self.batch_size or len(rows)):
                    loss = self.batch_loss(*(tensor.index_select(0, part) for tensor in tensors))
                    total += loss * len(part)
        except NotFinite as error:
            reason = f"in the validation loss, {error}"
            raise TrainingDiverged(len(self.history.loss), self.batch - 1, reason) from error
        except (TypeError, ValueError, RuntimeError) as error:
            error.add_note("raised by loss_fn for the validation data")
            raise
        finally:
            self.model.train()
        return total.item() / len(rows)

    def _synchronized(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Exchange gradients between processes once a step, with the last slice."""
        if is_last or not isinstance(self.loss, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.loss.no_sync()


def compiled(module: nn.Module, mode: str | None, device: torch.device) -> nn.Module:
    """The module under torch.compile, for one shape of batch."""
    problem = compiler_problem() if device.type == "cpu" else None
    if problem is not None:
        raise RuntimeError(problem)
    return cast("nn.Module", torch.compile(module, dynamic=False, mode=mode))


@contextlib.contextmanager
def own_randomness(seed: int, rank: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, differently in each process, and put them back at the end."""
    is_accelerator = device.type in ("cuda", "mps")
    kind = (
        device.type if is_accelerator else "cuda"
    )  # fork_rng wants an accelerator's name for no devices too
    with torch.random.fork_rng(devices=[device.index or 0] if is_accelerator else [], device_type=kind):
        torch.manual_seed(seed if rank == 0 else mixed(seed, 1, rank))
        yield


def _explain_call(error: TypeError, loss_fn: LossFn, num_tensors: int) -> None:
    """Say how loss_fn is called, if it cannot be called so."""
    try:
        inspect.signature(loss_fn).bind(*range(num_tensors + 1))
    except TypeError:
        names = ", ".join(
            ["model", "x", "y", *(f"t{n}" for n in range(3, num_tensors + 1))][: num_tensors + 1]
        )
        error.add_note(
            f"fit calls loss_fn({names}) because each batch holds {num_tensors} tensors; what is not needed "
            f"can be left out: lambda {names}: other_loss(model, x)"
        )
