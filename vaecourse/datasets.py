"""Real and toy data that every chapter can use offline, and the maps from pixels to model inputs.

Images are returned as the integers that were measured; turning them into
inputs of a likelihood (`to_unit_interval`, `binarize`, `dequantize`) is a
modelling step of its own and therefore a call of its own.
"""

import functools
import hashlib
import io
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vaecourse._checks import as_tensor, check_count, check_floating, check_unit_interval, positive

FAR_BELOW = 4  # images whose highest level is less than 255 by this factor have another scale
MNIST_SHA256 = "39b9b1ffaa0ba4d8995a616551f0966941fe02a3fe79ba4a9db7373db16d53ad"


def mnist(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Images and labels of one split of the complete MNIST, read from the package's own data file.

    Parameters
    ----------
    split : {"train", "test"}
        Which part: 60,000 training or 10,000 test images.

    Returns
    -------
    images : Tensor, uint8, shape (N, 28, 28)
        Grey levels from 0 (background) to 255.
    labels : Tensor, int64, shape (N,)
        The digit that was written, 0 to 9.

    Raises
    ------
    ValueError
        If `split` is neither "train" nor "test".
    FileNotFoundError
        If the data file is missing from the installation.
    RuntimeError
        If the data file does not have the expected checksum.

    References
    ----------
    LeCun, Cortes and Burges, The MNIST database of handwritten digits (CC BY-SA 3.0).

    Examples
    --------
    >>> images, labels = mnist("test")
    >>> images.shape, labels[:5].tolist()
    (torch.Size([10000, 28, 28]), [7, 2, 1, 0, 4])
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    images, labels = _load_mnist(split)
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def digits() -> tuple[Tensor, Tensor]:
    """Images and labels of the small handwritten digits that scikit-learn ships.

    Returns
    -------
    images : Tensor, uint8, shape (1797, 8, 8)
        Grey levels from 0 to 16: scale them with ``to_unit_interval(images, max_level=16)``.
    labels : Tensor, int64, shape (1797,)
        The digit that was written, 0 to 9.

    References
    ----------
    Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI (1998).

    Examples
    --------
    >>> images, labels = digits()
    >>> images.shape, int(images.max())
    (torch.Size([1797, 8, 8]), 16)
    """
    from sklearn.datasets import load_digits  # costs as much time to import as all the rest

    bunch = load_digits()
    return torch.from_numpy(bunch.images.astype(np.uint8)), torch.from_numpy(bunch.target.astype(np.int64))


def diabetes() -> tuple[Tensor, Tensor]:
    """Ten measurements of 442 patients, and how far their diabetes had progressed a year later.

    Features are scaled by scikit-learn to mean 0 and sum of squares 1; the
    target keeps its unit.

    Returns
    -------
    x : Tensor, float64, shape (442, 10)
        Age, sex, body mass index, blood pressure and six blood values.
    y : Tensor, float64, shape (442, 1)
        The progression score, 25 to 346.

    References
    ----------
    Efron, Hastie, Johnstone and Tibshirani, Least Angle Regression, Annals of Statistics (2004).

    Examples
    --------
    >>> x, y = diabetes()
    >>> x.shape, y.mean().item()
    (torch.Size([442, 10]), 152.13348416289594)
    """
    from sklearn.datasets import load_diabetes  # as in digits

    x, y = load_diabetes(return_X_y=True)
    return torch.from_numpy(x), torch.from_numpy(y).unsqueeze(1)  # (442,) -> (442, 1)


def noisy_line(
    num_points: int,
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
    scale: float = 0.2,
    growth: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Toy regression data: a straight line seen through Gaussian noise.

    Implements: ``y = intercept + slope * x + scale * exp(growth * x) * eps``, ``eps ~ N(0, 1)``,
    ``x ~ U(0, 1)``.

    Parameters
    ----------
    num_points : int
        How many points, at least 1.
    slope, intercept : float
        The line.
    scale : float
        Standard deviation of the noise at ``x = 0``, positive.
    growth : float
        How fast the log of that standard deviation grows with x; 0 keeps it constant.
    seed : int
        Seed of the generator that draws x and the noise.

    Returns
    -------
    x : Tensor, float64, shape (num_points, 1)
        Sorted positions in (0, 1).
    y : Tensor, float64, shape (num_points, 1)
        Noisy observations.

    Raises
    ------
    ValueError
        If `num_points` is below 1 or `scale` is not a positive number.

    Examples
    --------
    >>> x, y = noisy_line(5)
    >>> x.shape == y.shape == (5, 1)
    True
    """
    check_count("num_points", num_points)
    scale = positive("scale", scale)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(num_points, 1, generator=generator, dtype=torch.float64).sort(dim=0).values
    noise = torch.randn(num_points, 1, generator=generator, dtype=torch.float64)
    return x, intercept + slope * x + scale * torch.exp(growth * x) * noise


def to_unit_interval(images: Tensor, *, max_level: int | None = None) -> Tensor:
    """Grey levels divided by the highest level and flattened: inputs in [0, 1].

    Implements: ``x = images / max_level``.

    Parameters
    ----------
    images : Tensor or array, uint8, shape (N, *pixels)
        Integer grey levels from 0 to `max_level`.
    max_level : int, optional
        The highest grey level that is possible: 16 for `digits`, 255 if left out.

    Returns
    -------
    Tensor, float32, shape (N, D)
        One row an image, D the product of the pixel dimensions.

    Raises
    ------
    ValueError
        If `images` are not uint8 (already scaled, for instance), exceed `max_level`, or, without
        one, are so dark that 255 can hardly be it.

    Examples
    --------
    >>> to_unit_interval(torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8))
    tensor([[0.0000, 1.0000, 0.2000, 0.4000]])
    """
    images, max_level = _checked_levels(images, max_level)
    return images.flatten(1).float() / max_level  # (N, H, W) -> (N, H * W)


def dequantize(
    images: Tensor, *, max_level: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Grey levels with uniform noise of one level added, scaled to [0, 1): continuous data with a density.

    Implements: ``x = (images + u) / (max_level + 1)``, ``u ~ U(0, 1)``.

    Parameters
    ----------
    images : Tensor or array, uint8, shape (N, *pixels)
        Integer grey levels from 0 to `max_level`.
    max_level : int, optional
        The highest grey level that is possible: 16 for `digits`, 255 if left out.
    generator : torch.Generator, optional
        Source of the noise, on the device of `images`; the global one if left out.

    Returns
    -------
    Tensor, float32, shape (N, D)
        One row an image; a model's density of it bounds the probability of the integers.

    Raises
    ------
    ValueError
        As in `to_unit_interval`.

    References
    ----------
    Theis, van den Oord and Bethge, A note on the evaluation of generative models (2016), section 3.1.

    Examples
    --------
    >>> x = dequantize(torch.full((1, 2, 2), 255, dtype=torch.uint8), generator=torch.Generator())
    >>> bool((x >= 255 / 256).all() and (x < 1).all())
    True
    """
    images, max_level = _checked_levels(images, max_level)
    # in float32, 255 + u may round up to 256; MPS has nothing wider, hence the last line
    exact = torch.float32 if images.device.type == "mps" else torch.float64
    levels = images.flatten(1).to(exact)  # (N, H, W) -> (N, H * W)
    noise = torch.rand(levels.shape, generator=generator, device=levels.device)
    x = ((levels + noise.to(exact)) / (max_level + 1)).float()
    return torch.minimum(x, torch.tensor(1 - 2.0**-24, device=x.device))


def binarize(x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """One black-or-white draw of each grey pixel: 1 with probability x, else 0.

    Implements: ``b ~ Bernoulli(x)``.

    Parameters
    ----------
    x : Tensor, floating point, any shape
        Pixel intensities in [0, 1], read as probabilities.
    generator : torch.Generator, optional
        Source of the draw, on the device of `x`; the global one if left out.

    Returns
    -------
    Tensor, dtype and shape of `x`
        Zeros and ones.

    Raises
    ------
    ValueError
        If `x` is not floating point or leaves [0, 1].

    References
    ----------
    Salakhutdinov and Murray, On the quantitative analysis of deep belief networks (2008).

    Examples
    --------
    >>> binarize(torch.tensor([0.0, 1.0]))
    tensor([0., 1.])
    """
    x = as_tensor("x", x)
    check_floating("x", x)
    check_unit_interval(x.cpu())  # a look that waits for an accelerator, once for the whole data set
    return torch.bernoulli(x, generator=generator)


def _checked_levels(images: Tensor, max_level: int | None) -> tuple[Tensor, int]:
    """Images as a tensor, and the highest level that they may have."""
    images = as_tensor("images", images)
    if images.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 grey levels, got {images.dtype}: pass what mnist() or digits() returned"
        )
    if images.ndim < 2:
        raise ValueError(f"images must have shape (N, *pixels), got {tuple(images.shape)}")
    highest = int(images.max()) if images.numel() else 0
    if max_level is None:
        if 0 < highest <= 255 / FAR_BELOW:
            raise ValueError(
                f"the highest level of these images is {highest}, far below 255: pass max_level={highest} if "
                "no level can be higher (as in digits), or max_level=255 if the images really are that dark"
            )
        return images, 255
    check_count("max_level", max_level)
    if highest > max_level:
        raise ValueError(f"images hold the level {highest}, above max_level={max_level}")
    return images, max_level


@functools.cache
def _load_mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    content = _read_verified(resources.files("vaecourse") / "data" / "mnist.npz")
    with np.load(io.BytesIO(content)) as archive:
        return archive[f"{split}_images"], archive[f"{split}_labels"]


def _read_verified(path: Traversable) -> bytes:
    repair = "reinstall the package, or restore the file from the repository (git checkout -- vaecourse/data)"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing (SHA-256 {MNIST_SHA256}): {repair}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != MNIST_SHA256:
        raise RuntimeError(f"{path} is damaged: its SHA-256 is {found}, expected {MNIST_SHA256}: {repair}")
    return content
