"""One training loop for every chapter: it minimises what it is given and does not know what an ELBO is."""

import time
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from vaecourse.training.checkpoints import Checkpoints
from vaecourse.training.devices import choose_device
from vaecourse.training.resuming import Saver, Signals, deferred_signals, digest
from vaecourse.training.step import BatchLoss, History, LossFn, Run, epoch_order, own_randomness


def fit(
    model: nn.Module,
    loss_fn: LossFn,
    data: Tensor | tuple[Tensor, ...],
    *,
    num_epochs: int,
    batch_size: int,
    learning_rate: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    device: str | torch.device = "cpu",
    precision: Literal["float32", "bf16"] = "float32",
    compile: bool | str = False,
    micro_batch_size: int | None = None,
    checkpoints: Checkpoints | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train a model on minibatches and return its loss and time per epoch.

    The data are moved to the device once and batches are taken by index; an
    accelerator is waited for once an epoch.  The order of the data depends on
    seed and epoch alone; noise comes from torch's global generators, which are
    seeded, and put back afterwards.  The model ends in evaluation mode.

    Where `torch.distributed` is initialised, every process takes its share of
    each batch, and gradients are those of one process with the whole batch;
    the first process alone shows progress and writes.

    Parameters
    ----------
    model : nn.Module
        Trained in place, and moved to `device`.
    loss_fn : callable
        ``loss_fn(model, *batch) -> Tensor`` of shape (), a mean over the batch.  Slices and shares
        of a batch add up exactly for a mean over examples; batch norm and an "optimal" scale are none.
    data : Tensor or tuple of Tensor
        Examples along the first dimension, floating point values finite.
    num_epochs, batch_size : int
        At least 1 each; the last batch of an epoch may be smaller.
    learning_rate : float, optional
        Of Adam, 1e-3 if left out; give either it or `optimizer`.
    optimizer : torch.optim.Optimizer, optional
        Any other optimiser, made from the model's parameters.  The default is Adam, fused where
        torch can; an optimiser that is not fused makes an accelerator wait at each step.
    scheduler : torch.optim.lr_scheduler.LRScheduler, optional
        Stepped after each optimiser step; brings its own optimiser along.
    device : str or torch.device
        Where to train; "auto" for the best there is, see `choose_device`.
    precision : {"float32", "bf16"}
        "bf16" runs `loss_fn` under autocast: matrix products in bfloat16; densities and divergences
        of this package go on in float32.
    compile : bool or str
        Whether to compile the loss with torch.compile, or in which of its modes.  The first step then
        takes seconds to a minute; incomplete batches are not compiled, and values are checked in the
        first batch only.
    micro_batch_size : int, optional
        Examples that fit into memory: a batch is then worked off in slices, with one optimiser step.
    checkpoints : Checkpoints, optional
        Where to save.  If the folder holds a checkpoint of this same run, training goes on from it and
        ends, on the CPU, with the same bits as if it had never stopped.  SIGTERM and Ctrl-C then act
        after the step in hand (in many processes: at the next save) and a last checkpoint.
    seed : int
        Not negative; seeds the order of the data and all noise, so that a run can be repeated.
    progress : bool
        Whether to show a progress bar, if the output is a terminal.

    Returns
    -------
    History
        Loss and seconds per epoch, those before a resumption included.

    Raises
    ------
    ValueError
        If sizes do not fit, the data are empty or not finite, the device is missing, or optimiser,
        rate and schedule contradict each other.
    FloatingPointError
        If the loss or a gradient stops being finite, before it reaches a weight.  The message names
        the step, the parameters, and the last checkpoint.
    CheckpointError
        If a checkpoint cannot be written or read, or belongs to another run.
    RuntimeError
        If `compile` is asked for without a compiler.

    Examples
    --------
    >>> layer = nn.Linear(1, 1)
    >>> x = torch.linspace(-1, 1, 32).unsqueeze(1)
    >>> mse = lambda model, x, y: (model(x) - y).square().mean()
    >>> history = fit(layer, mse, (x, 3 * x), num_epochs=50, batch_size=8, learning_rate=0.1)
    >>> round(layer.weight.item(), 2)
    3.0
    """
    device = choose_device(device)
    tensors = _validated(data, num_epochs, batch_size, micro_batch_size, seed, precision)
    model.to(device).train()
    run = Run(
        BatchLoss(model, loss_fn, precision, device.type),
        _chosen_optimizer(model, learning_rate, optimizer, scheduler, device),
        scheduler,
        device=device,
        compile=compile,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
    )
    saver = None
    if checkpoints is not None:
        settings = {
            "data": digest(tensors),
            "batch_size": str(batch_size),
            "micro_batch_size": str(micro_batch_size),
            "precision": precision,
            "seed": str(seed),
        }
        saver = Saver(run, checkpoints, settings)
    tensors = tuple(tensor.to(device) for tensor in tensors)
    bar = tqdm(
        total=num_epochs * len(tensors[0]),
        unit=" examples",
        unit_scale=True,
        disable=None if progress and run.rank == 0 else True,
    )
    with own_randomness(seed, run.rank, device), deferred_signals(saver is not None) as signals, bar:
        try:
            _train(run, tensors, num_epochs, seed, saver, signals, bar)
        except FloatingPointError as error:
            error.add_note(
                f"the last checkpoint is {saver.last}" if saver else "no checkpoints were asked for"
            )
            raise
        finally:
            run.guard.release()
            model.eval()
    signals.deliver()
    return run.history


def _train(
    run: Run,
    tensors: tuple[Tensor, ...],
    num_epochs: int,
    seed: int,
    saver: Saver | None,
    signals: Signals,
    bar: "tqdm[object]",
) -> None:
    """Take the steps that are left, saving on the way."""
    num_examples = len(tensors[0])
    start = time.perf_counter() - (saver.resume(num_epochs) if saver else 0.0)
    bar.update(len(run.history.loss) * num_examples + run.batch * run.batch_size)
    while len(run.history.loss) < num_epochs:
        order = epoch_order(num_examples, seed, len(run.history.loss)).to(run.device)
        batches = torch.split(order, run.batch_size)
        for indices in batches[run.batch :]:
            run.take_step(tensors, indices)
            bar.update(len(indices))
            is_last = run.batch == len(batches)
            if is_last:
                run.end_epoch(num_examples, time.perf_counter() - start)
                start = time.perf_counter()
                bar.set_postfix(epoch=len(run.history.loss), loss=f"{run.history.loss[-1]:.4g}")
            stops_alone = signals.received is not None and run.world_size == 1
            if saver and (is_last or saver.is_due() or stops_alone):
                saver.save(time.perf_counter() - start)
                if signals.received_anywhere(run):
                    return


def _chosen_optimizer(
    model: nn.Module,
    learning_rate: float | None,
    optimizer: torch.optim.Optimizer | None,
    scheduler: LRScheduler | None,
    device: torch.device,
) -> torch.optim.Optimizer:
    if scheduler is not None:
        if optimizer is not None and scheduler.optimizer is not optimizer:
            raise ValueError(
                "scheduler is bound to another optimizer than the one given: leave optimizer out"
            )
        optimizer = scheduler.optimizer
    if optimizer is None:
        can_fuse = device.type in ("cpu", "cuda", "mps") and all(
            p.is_floating_point() for p in model.parameters()
        )
        rate = 1e-3 if learning_rate is None else learning_rate
        return torch.optim.Adam(model.parameters(), lr=rate, fused=can_fuse)
    if learning_rate is not None:
        raise ValueError("give learning_rate (for Adam) or an optimizer of your own, not both")
    return optimizer


def _validated(
    data: Tensor | tuple[Tensor, ...],
    num_epochs: int,
    batch_size: int,
    micro_batch_size: int | None,
    seed: int,
    precision: str,
) -> tuple[Tensor, ...]:
    tensors = (data,) if isinstance(data, Tensor) else tuple(data)
    if num_epochs < 1 or batch_size < 1:
        raise ValueError(f"num_epochs and batch_size must be at least 1, got {num_epochs} and {batch_size}")
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ValueError(f"micro_batch_size must be at least 1, got {micro_batch_size}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if precision not in ("float32", "bf16"):
        raise ValueError(f"precision must be 'float32' or 'bf16', got {precision!r}")
    if not tensors or len({len(tensor) for tensor in tensors}) != 1 or len(tensors[0]) == 0:
        raise ValueError(
            "data must hold at least one example, equally many in each tensor, got lengths "
            f"{[len(tensor) for tensor in tensors]}"
        )
    for position, tensor in enumerate(tensors):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"data[{position}] holds NaN or infinite values: remove them before training")
    return tensors
