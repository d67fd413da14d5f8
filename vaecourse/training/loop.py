"""One training loop for every chapter: it minimises what it is given and does not know what an ELBO is."""

import copy
import time
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from vaecourse._checks import check_count, positive
from vaecourse.training.batches import Batches, Data, batches_of, digest, examples_of, mixed, precision_of
from vaecourse.training.checkpoints import Checkpoints
from vaecourse.training.devices import choose_device
from vaecourse.training.history import History, TrainingDiverged
from vaecourse.training.resuming import Saver, Signals, deferred_signals
from vaecourse.training.step import BatchLoss, LossFn, Run, own_randomness


def fit(
    model: nn.Module,
    loss_fn: LossFn,
    data: Data,
    *,
    num_epochs: int,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    validation: Data | None = None,
    callback: Callable[[History], object] | None = None,
    device: str | torch.device = "cpu",
    precision: Literal["float32", "bf16"] = "float32",
    compile: bool | str = False,
    micro_batch_size: int | None = None,
    checkpoints: Checkpoints | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train a model on minibatches and return its loss and time per epoch.

    Tensors are moved to the device once and batches are taken by index; an
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
        What is promised here of bits holds for a loss without a state of its own (a counter, a generator
        that it keeps), which draws from torch's global generators.
    data : Tensor, array, tuple of them, or DataLoader
        Examples along the first dimension, finite.  Floating point numbers are brought to the model's
        precision; whole numbers stay what they are, so scale grey levels before
        (`datasets.to_unit_interval`).  A DataLoader is for data that do not fit into memory: one
        process only, and no more than the ends of epochs to go on from.
    num_epochs : int
        At least 1.
    batch_size : int, optional
        At least 1; needed for all but a DataLoader.  The last batch of an epoch may be smaller.
    learning_rate : float, optional
        Of Adam, 1e-3 if left out; give either it or `optimizer`.
    optimizer : torch.optim.Optimizer, optional
        Any other optimiser, made from the model's parameters.  The default is Adam, fused where
        torch can; an optimiser that is not fused makes an accelerator wait at each step.
    scheduler : torch.optim.lr_scheduler.LRScheduler, optional
        Stepped after each optimiser step; brings its own optimiser along.
    validation : Tensor, array, or tuple of them, optional
        Examples whose mean loss after each epoch stands in ``History.validation``.  Training goes on
        as if they were not there, unless `loss_fn` has a state of its own.
    callback : callable, optional
        Called in every process as ``callback(history)`` when an epoch is done and saved, with the model
        in evaluation mode; what it draws does not change the training.
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
        Examples that fit into memory: a batch is then processed in micro-batches, with one optimiser step.
    checkpoints : Checkpoints, optional
        Where to save, with an identity.  If the folder holds a checkpoint of this same run, training
        goes on from it and ends, on the CPU, with the same bits as if it had never stopped.  What is
        compared are identity, data, the text of the model (not its first weights), which parameters
        are trained, optimiser, schedule, sizes, precision and seed.  The identity must cover what
        these do not show: numbers that a module leaves out of its text (the heads of
        ``nn.MultiheadAttention``), functions (of a LambdaLR), and the data of a DataLoader, with which
        bits may differ too.  SIGTERM and Ctrl-C act after the step in hand (in
        many processes: at the next save) and a last checkpoint, which a run with a DataLoader cannot
        write.
    seed : int
        Not negative; seeds the order of the data and all noise, so that a run can be repeated.
    progress : bool
        Whether to show a progress bar, if the output is a terminal.

    Returns
    -------
    History
        Loss and seconds per epoch, those before a resumption included.  If Ctrl-C ends the run, the
        epochs until then are the attribute ``history`` of the KeyboardInterrupt.

    Raises
    ------
    ValueError
        If sizes do not fit, the data are empty or not finite, the device is missing, checkpoints have
        no identity, or optimiser, rate and schedule contradict each other or the model.
    TypeError
        If an argument is of another kind, or the loss is no tensor or cannot be called with a batch.
    TrainingDiverged
        If the loss, a gradient, or a number inside the loss stops being finite, before it reaches a
        weight.  It is a FloatingPointError that names step, reason and last checkpoint.
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
    _check_kinds(model, loss_fn, optimizer, scheduler, callback, checkpoints)
    _check_sizes(num_epochs, batch_size, micro_batch_size, seed, precision)
    batches = batches_of(data, model, batch_size, seed, device)
    held_out = None if validation is None else examples_of(validation, "validation", precision_of(model))
    optimizer = _chosen_optimizer(model, learning_rate, optimizer, scheduler, device)
    model.to(device).train()
    run = Run(
        BatchLoss(model, loss_fn, precision, device.type),
        optimizer,
        scheduler,
        device=device,
        compile=compile,
        batch_size=batches.batch_size,
        micro_batch_size=micro_batch_size,
    )
    settings = {"precision": precision, "seed": str(seed)}
    saver = None if checkpoints is None else _saver(run, checkpoints, batches, held_out, settings)
    if held_out is not None:
        held_out = tuple(tensor.to(device) for tensor in held_out)
    total = batches.num_examples and batches.num_examples * num_epochs
    is_silent = None if progress and run.rank == 0 else True
    bar = tqdm(total=total, unit=" examples", unit_scale=True, disable=is_silent)
    try:
        with own_randomness(seed, run.rank, device), deferred_signals(saver is not None) as signals, bar:
            for _ in _epochs(run, batches, num_epochs, held_out, seed, saver, signals, bar):
                if callback is not None:
                    model.eval()
                    with own_randomness(mixed(seed, 3), run.rank, device):
                        callback(copy.deepcopy(run.history))
                    model.train()
        signals.deliver()
    except (TrainingDiverged, KeyboardInterrupt) as end:
        end.history = run.history  # type: ignore[union-attr]
        if isinstance(end, TrainingDiverged) and saver is not None:
            end.checkpoint = saver.last
        raise
    finally:
        run.guard.release()
        model.eval()
    return run.history


def _epochs(
    run: Run,
    batches: Batches,
    num_epochs: int,
    held_out: tuple[Tensor, ...] | None,
    seed: int,
    saver: Saver | None,
    signals: Signals,
    bar: "tqdm[object]",
) -> Iterator[None]:
    """Take the steps that are left, saving on the way; yield after each epoch."""
    start = time.perf_counter() - (saver.resume(num_epochs) if saver else 0.0)
    bar.update(len(run.history.loss) * (batches.num_examples or 0) + run.batch * run.batch_size)
    while len(run.history.loss) < num_epochs:
        num_seen = 0
        for tensors, indices in batches.of_epoch(len(run.history.loss), run.batch):
            run.take_step(tensors, indices)
            num_seen += len(indices)
            bar.update(len(indices))
            stops_alone = signals.received is not None and run.world_size == 1
            if stops_alone and batches.num_batches is None:
                return
            is_inside = batches.num_batches is not None and run.batch < batches.num_batches
            if saver and is_inside and (saver.is_due() or stops_alone):
                saver.save(time.perf_counter() - start)
                if signals.received_anywhere(run):
                    return
        run.guard.report()  # waits for the device
        seconds = time.perf_counter() - start
        run.end_epoch(batches.num_examples or num_seen, seconds, held_out, seed)
        losses = {name: values for name, values in vars(run.history).items() if values and name != "seconds"}
        bar.set_postfix(epoch=len(run.history.loss), **{name: f"{of[-1]:.4g}" for name, of in losses.items()})
        if saver:
            saver.save(0.0)
        yield
        if saver and signals.received_anywhere(run):
            return
        start = time.perf_counter()


def _saver(
    run: Run,
    checkpoints: Checkpoints,
    batches: Batches,
    held_out: tuple[Tensor, ...] | None,
    settings: dict[str, str],
) -> Saver:
    if checkpoints.every is not None and batches.num_batches is None:
        raise ValueError("a run with a DataLoader resumes at the end of an epoch only: leave `every` out")
    of_data = {
        "data": batches.name,
        "validation": str(held_out and digest(held_out)),
        "batch_size": str(batches.batch_size),
        "micro_batch_size": str(run.micro_batch_size),
    }
    return Saver(run, checkpoints, settings | of_data)


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
        rate = 1e-3 if learning_rate is None else positive("learning_rate", learning_rate)
        return torch.optim.Adam(model.parameters(), lr=rate, fused=can_fuse)
    if learning_rate is not None:
        raise ValueError("give learning_rate (for Adam) or an optimizer of your own, not both")
    own = {id(parameter) for parameter in model.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if strange := [tuple(parameter.shape) for parameter in held if id(parameter) not in own]:
        raise ValueError(
            f"optimizer holds {len(strange)} parameters that are not this model's (shapes {strange[:3]}): "
            "make it after the model, from model.parameters(); a parameter of the loss belongs in the model"
        )
    return optimizer


def _check_kinds(
    model: object,
    loss_fn: object,
    optimizer: object,
    scheduler: object,
    callback: object,
    checkpoints: object,
) -> None:
    """Refuse what is of another kind than it should be, classes in place of objects above all."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"fit(model, loss_fn, data): model must be an object of an nn.Module, got {model!r}")
    for name, function in (("loss_fn", loss_fn), ("callback", callback)):
        if not callable(function) and not (function is None and name == "callback"):
            raise TypeError(f"{name} must be a function, got {function!r}")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be an object such as Adam(model.parameters()), got {optimizer!r}")
    if scheduler is not None and not isinstance(scheduler, LRScheduler):
        raise TypeError(f"scheduler must be an object such as StepLR(optimizer, 10), got {scheduler!r}")
    if isinstance(optimizer, torch.optim.LBFGS) or isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError("LBFGS and ReduceLROnPlateau need more than a step: fit cannot use them")
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        raise TypeError(f"checkpoints must be Checkpoints(folder, identity=...), got {checkpoints!r}")


def _check_sizes(
    num_epochs: int, batch_size: int | None, micro_batch_size: int | None, seed: int, precision: str
) -> None:
    check_count("num_epochs", num_epochs)
    check_count("seed", seed, least=0)
    if seed >= 2**63:
        raise ValueError(f"seed must be below 2**63, got {seed}")
    for name, size in {"batch_size": batch_size, "micro_batch_size": micro_batch_size}.items():
        if size is not None:
            check_count(name, size)
    if precision not in ("float32", "bf16"):
        raise ValueError(f"precision must be 'float32' or 'bf16', got {precision!r}")
