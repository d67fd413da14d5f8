"""Where batches come from: tensors that are on the device as a whole, or a DataLoader."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from vaecourse._checks import as_tensor
from vaecourse.training.processes import place_among_processes

Data = Tensor | np.ndarray | Sequence[Any] | TensorDataset | DataLoader[Any]


class TensorBatches:
    """Batches by index; the order depends on seed and epoch alone, on every device and in every process.

    Attributes
    ----------
    name : str
        What stands in a checkpoint for the data.
    batch_size : int
        Examples in a full batch; 0 if it is not known.
    num_batches : int or None
        Batches of an epoch; None if a run can go on at the end of an epoch only.
    num_examples : int or None
        Examples of an epoch, where that is known beforehand.
    """

    def __init__(self, tensors: tuple[Tensor, ...], batch_size: int, seed: int, device: torch.device) -> None:
        self.tensors = tuple(tensor.to(device) for tensor in tensors)
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.num_examples = len(tensors[0])
        self.num_batches = -(-self.num_examples // batch_size)

    @property
    def name(self) -> str:
        """A digest of the content."""
        return digest(self.tensors)

    def of_epoch(self, epoch: int, start: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Tensors on the device, and which of their rows make the batch, from the given batch on."""
        generator = torch.Generator().manual_seed(mixed(self.seed, 0, epoch))
        order = torch.randperm(self.num_examples, generator=generator).to(self.device)
        for indices in torch.split(order, self.batch_size)[start:]:
            yield self.tensors, indices


class LoaderBatches:
    """Batches as a DataLoader makes them, moved to the device one by one; attributes as above."""

    name = "a DataLoader (the identity says which data)"
    num_batches = num_examples = None

    def __init__(self, loader: "DataLoader[Any]", dtype: torch.dtype, device: torch.device) -> None:
        self.loader, self.dtype, self.device = loader, dtype, device
        self.batch_size = loader.batch_size or 0

    def of_epoch(self, epoch: int, start: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Each batch of the loader with all of its rows."""
        batch = None
        for batch in self.loader:
            tensors = tensors_of(batch, "a batch of the DataLoader", self.dtype)
            yield (
                tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors),
                torch.arange(len(tensors[0]), device=self.device),
            )
        if batch is None:
            raise ValueError("the DataLoader gives no batch")


Batches = TensorBatches | LoaderBatches


def batches_of(
    data: Data, model: nn.Module, batch_size: int | None, seed: int, device: torch.device
) -> Batches:
    """Batches of whatever `fit` accepts as data."""
    dtype = precision_of(model)
    if isinstance(data, DataLoader):
        if batch_size is not None:
            raise ValueError(f"a DataLoader brings its own batch size: leave out batch_size={batch_size}")
        if place_among_processes()[1] > 1:
            raise ValueError("a DataLoader works in one process only; for several processes pass tensors")
        return LoaderBatches(data, dtype, device)
    if batch_size is None:
        raise ValueError("batch_size is missing: say how many examples make a batch, 128 for instance")
    return TensorBatches(examples_of(data, "data", dtype), batch_size, seed, device)


def precision_of(model: nn.Module) -> torch.dtype:
    """Dtype of the model's weights."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def examples_of(data: Data, name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """All examples as tensors, looked through once for values that are not finite."""
    if isinstance(data, Dataset | DataLoader) and not isinstance(data, TensorDataset):
        way = "DataLoader(data, batch_size=128)" if name == "data" else "its examples stacked into tensors"
        raise ValueError(f"{name} is a {type(data).__name__}: pass {way}")
    tensors = tensors_of(data, name, dtype)
    for position, tensor in enumerate(tensors):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name}[{position}] holds NaN or infinite values: remove them before training")
    return tensors


def tensors_of(data: Any, name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """One or several tensors with equally many rows; floating point numbers in the model's precision."""
    if isinstance(data, dict):
        raise ValueError(
            f"{name} is a dictionary with {', '.join(map(str, data))}: make it a tuple of tensors"
        )
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, list) and len(data) > 8 and isinstance(data[0], Tensor | np.ndarray):
        raise ValueError(f"{name} is a list of {len(data)} tensors: torch.stack makes one tensor of examples")
    several = isinstance(data, tuple | list) and not (data and isinstance(data[0], int | float | list))
    tensors = [as_tensor(name, item) for item in (data if several else [data])]
    lengths = [len(tensor) if tensor.ndim else None for tensor in tensors]
    if not tensors or len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(
            f"{name} must hold at least one example, equally many in each tensor, got lengths {lengths}"
        )
    return tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors)


def digest(tensors: tuple[Tensor, ...]) -> str:
    """A short name for the content of the data."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


def mixed(seed: int, *key: int) -> int:
    """A seed of its own for each key."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> 1)
