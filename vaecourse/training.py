"""One training loop for every chapter: it minimises what it is given and does not know what an ELBO is."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass
class History:
    """What happened during training, one entry per epoch.

    Attributes
    ----------
    loss : list of float
        Mean loss over the examples of the epoch, measured while the weights changed.
    seconds : list of float
        Wall time of the epoch.
    """

    loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def fit(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    data: Tensor | tuple[Tensor, ...],
    *,
    num_epochs: int,
    batch_size: int,
    learning_rate: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train a model on minibatches and return its loss and time per epoch.

    The data are moved to the device once and batches are taken by index; the
    loss is read back once an epoch.  The global random state is put back
    afterwards.  The model ends in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        Trained in place, and moved to `device`.
    loss_fn : callable
        ``loss_fn(model, *batch) -> Tensor`` of shape (), a mean over the batch.
    data : Tensor or tuple of Tensor
        Examples along the first dimension, floating point values finite.
    num_epochs, batch_size : int
        At least 1 each; the last batch of an epoch may be smaller.
    learning_rate : float, optional
        Of Adam, 1e-3 if left out; give either it or `optimizer`.
    optimizer : torch.optim.Optimizer, optional
        Any other optimiser, made from the model's parameters.
    device : str or torch.device
        Where to train.
    seed : int
        Seeds the order of the data and all noise, so that a run can be repeated.
    progress : bool
        Whether to show a progress bar, if the output is a terminal.

    Returns
    -------
    History
        Loss and seconds per epoch.

    Raises
    ------
    ValueError
        If sizes do not fit, the data are empty or not finite, or both optimiser and rate are given.
    FloatingPointError
        If the loss (on the CPU, or a gradient) stops being finite; there, before the weights are touched.

    Examples
    --------
    >>> layer = nn.Linear(1, 1)
    >>> x = torch.linspace(-1, 1, 32).unsqueeze(1)
    >>> mse = lambda model, x, y: (model(x) - y).square().mean()
    >>> history = fit(layer, mse, (x, 3 * x), num_epochs=50, batch_size=8, learning_rate=0.1)
    >>> round(layer.weight.item(), 2)
    3.0
    """
    tensors = _validated(data, num_epochs, batch_size)
    if optimizer is not None and learning_rate is not None:
        raise ValueError("give learning_rate (for Adam) or an optimizer of your own, not both")
    model.to(device).train()
    tensors = tuple(tensor.to(device) for tensor in tensors)
    if optimizer is None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if learning_rate is None else learning_rate)
    history = History()
    epochs = tqdm(range(num_epochs), unit="epoch", disable=None if progress else True)
    with torch.random.fork_rng(devices=_accelerators(device), device_type=_device_type(device)):
        torch.manual_seed(seed)
        for epoch in epochs:
            start = time.perf_counter()
            history.loss.append(_run_epoch(model, loss_fn, tensors, batch_size, optimizer, epoch))
            history.seconds.append(time.perf_counter() - start)
            epochs.set_postfix(loss=f"{history.loss[-1]:.4g}")
    model.eval()
    return history


def _run_epoch(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    tensors: tuple[Tensor, ...],
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    epoch: int,
) -> float:
    num_examples, device = len(tensors[0]), tensors[0].device
    total = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    order = torch.randperm(num_examples).to(device)
    for step, indices in enumerate(torch.split(order, batch_size)):
        try:
            loss = loss_fn(model, *(tensor[indices] for tensor in tensors))
        except ValueError as error:
            error.add_note(f"raised by loss_fn at epoch {epoch}, step {step}")
            raise
        if device.type == "cpu" and not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at epoch {epoch}, step {step}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if device.type == "cpu" and not _has_finite_gradients(model):
            raise FloatingPointError(f"a gradient is not finite at epoch {epoch}, step {step}")
        optimizer.step()
        total += loss.detach() * len(indices)
    mean = total.item() / num_examples
    if not math.isfinite(mean):
        raise FloatingPointError(f"the mean loss of epoch {epoch} is {mean}")
    return mean


def _has_finite_gradients(model: nn.Module) -> bool:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def _validated(data: Tensor | tuple[Tensor, ...], num_epochs: int, batch_size: int) -> tuple[Tensor, ...]:
    tensors = (data,) if isinstance(data, Tensor) else tuple(data)
    if num_epochs < 1 or batch_size < 1:
        raise ValueError(f"num_epochs and batch_size must be at least 1, got {num_epochs} and {batch_size}")
    if not tensors or len({len(tensor) for tensor in tensors}) != 1 or len(tensors[0]) == 0:
        raise ValueError(
            "data must hold at least one example, equally many in each tensor, got lengths "
            f"{[len(tensor) for tensor in tensors]}"
        )
    for position, tensor in enumerate(tensors):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"data[{position}] holds NaN or infinite values: remove them before training")
    return tensors


def _device_type(device: str | torch.device) -> str:
    kind = torch.device(device).type
    return "cuda" if kind == "cpu" else kind  # fork_rng wants an accelerator's name even for an empty list


def _accelerators(device: str | torch.device) -> list[int]:
    """Indices of the accelerators whose random state training uses."""
    device = torch.device(device)
    return [] if device.type == "cpu" else [device.index or 0]
