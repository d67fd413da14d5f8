"""One look for every figure: functions that draw arrays on given axes, and compute nothing."""

import math
import sys
from collections.abc import Mapping
from importlib import resources
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike


def use_style() -> None:
    """Switch matplotlib to the course's style and, inside IPython, its figures to vector graphics.

    Examples
    --------
    >>> use_style()
    >>> matplotlib.rcParams["axes.spines.top"]
    False
    """
    with resources.as_file(resources.files("vaecourse") / "style.mplstyle") as path:
        matplotlib.style.use(path)
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")  # type: ignore[no-untyped-call]


def plot_regression(
    x: ArrayLike,
    y: ArrayLike,
    *,
    grid: ArrayLike,
    loc: ArrayLike,
    scale: ArrayLike | None = None,
    label: str | None = None,
    ax: Axes,
) -> Axes:
    """Draw points, the predicted mean, and a band of two standard deviations around it.

    Parameters
    ----------
    x, y : array_like, N values
        The data.
    grid, loc : array_like, M values
        Where the mean is drawn, and its values.
    scale : array_like, M values or one, optional
        Standard deviation along the grid; no band if left out.
    label : str, optional
        Legend entry of the mean; no entry if left out.
    ax : Axes
        Where to draw.

    Returns
    -------
    Axes
        The axes given.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> ax = plot_regression([0, 1], [0, 1], grid=[0, 1], loc=[0, 1], ax=plt.figure().subplots())
    >>> len(ax.lines)
    1
    """
    grid, loc = np.ravel(_as_array(grid)), np.ravel(_as_array(loc))
    (line,) = ax.plot(grid, loc, label=label)
    if scale is not None:
        width = 2 * np.ravel(_as_array(scale))
        ax.fill_between(grid, loc - width, loc + width, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.scatter(np.ravel(x), np.ravel(y), s=16, color="black", alpha=0.7, zorder=3, linewidth=0)
    return ax


def plot_curves(
    x: ArrayLike, curves: Mapping[str, ArrayLike], *, mark_minimum: bool = False, ax: Axes
) -> Axes:
    """Draw several curves over the same values, one legend entry each.

    Parameters
    ----------
    x : array_like, M values
        Common horizontal positions.
    curves : mapping of str to array_like, M values each
        Label and heights of each curve.
    mark_minimum : bool
        Whether to put a dot on the lowest point of each curve.
    ax : Axes
        Where to draw.

    Returns
    -------
    Axes
        The axes given.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> ax = plot_curves([0, 1, 2], {"parabola": [1, 0, 1]}, mark_minimum=True, ax=plt.figure().subplots())
    >>> ax.get_legend_handles_labels()[1]
    ['parabola']
    """
    x = np.ravel(x)
    for (label, values), style in zip(curves.items(), _line_styles(len(curves)), strict=True):
        heights = np.ravel(_as_array(values))
        (line,) = ax.plot(x, heights, style, label=label)
        if mark_minimum:
            lowest = int(np.argmin(heights))
            ax.plot(x[lowest], heights[lowest], "o", color=line.get_color())
    ax.legend()
    return ax


def plot_trajectories(paths: Mapping[str, ArrayLike], *, target: ArrayLike, ax: Axes) -> Axes:
    """Draw the paths that optimisers take through a plane of two parameters.

    Parameters
    ----------
    paths : mapping of str to array_like, shape (steps, 2)
        Label and visited points of each path; later ones are drawn thinner, so that
        coinciding paths stay visible.
    target : array_like, 2 values
        The minimum, marked with a star.
    ax : Axes
        Where to draw.

    Returns
    -------
    Axes
        The axes given.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> ax = plot_trajectories({"path": [[0, 0], [1, 1]]}, target=[1, 1], ax=plt.figure().subplots())
    >>> len(ax.lines)
    2
    """
    widths = np.linspace(6.0, 1.5, len(paths)) if len(paths) > 1 else [2.0]
    for (label, path), width in zip(paths.items(), widths, strict=True):
        points = _as_array(path)
        ax.plot(points[:, 0], points[:, 1], ".-", linewidth=width, markersize=width + 4, label=label)
    ax.plot(*np.ravel(target), "*", color="black", markersize=12)
    ax.legend()
    return ax


def plot_images(
    images: ArrayLike,
    *,
    columns: int,
    extent: tuple[float, float, float, float] | None = None,
    ax: Axes,
) -> Axes:
    """Draw images as one mosaic, row by row: grey levels black on white, or colours.

    Parameters
    ----------
    images : array_like, shape (N, D), (N, height, width), (N, channels, ...) or (N, ..., channels)
        Grey levels, 0 for paper and 1 for ink, or red, green and blue; D is the square of the side,
        channels are 1 or 3.  Values beyond 0 and 1 are drawn as the nearest of the two.  Tensors
        may carry gradients.
    columns : int
        Images in a row; the last row may be shorter.
    extent : tuple of float, optional
        Left, right, bottom and top of the mosaic in the coordinates of the axes, which
        are hidden if left out.
    ax : Axes
        Where to draw.

    Returns
    -------
    Axes
        The axes given.

    Raises
    ------
    ValueError
        If there is no image, a flat one is not square, or `columns` is below 1.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> ax = plot_images(np.zeros((6, 4)), columns=3, ax=plt.figure().subplots())
    >>> ax.images[0].get_array().shape  # two rows of three images of 2 by 2 pixels
    (4, 6)
    """
    pixels = _with_channels(images)
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    count, height, width, channels = pixels.shape
    num_rows = -(-count // columns)
    paper = np.full((num_rows * columns - count, height, width, channels), 0.0 if channels == 1 else 1.0)
    rows = np.concatenate([pixels, paper]).reshape(num_rows, columns, height, width, channels)
    mosaic = rows.swapaxes(1, 2).reshape(num_rows * height, columns * width, channels)
    mosaic = mosaic.squeeze(-1) if channels == 1 else mosaic.clip(0, 1)
    ax.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    if extent is None:
        ax.set_axis_off()
    return ax


def plot_latent_plane(codes: ArrayLike, labels: ArrayLike, *, ax: Axes) -> Axes:
    """Draw two-dimensional codes, each as the numeral of its label; the colour repeats it.

    Parameters
    ----------
    codes : array_like, shape (N, 2)
        Where to draw.
    labels : array_like, N integers from 0 to 9
        What to draw there.
    ax : Axes
        Where to draw.

    Returns
    -------
    Axes
        The axes given, with equal units across and up.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> ax = plot_latent_plane([[0, 0], [1, 1]], [3, 7], ax=plt.figure().subplots())
    >>> len(ax.collections)  # one for each label that occurs
    2
    """
    points, digits = _as_array(codes), np.ravel(_as_array(labels))
    for digit in np.unique(digits):
        chosen = points[digits == digit]
        marker, color = f"${digit}$", matplotlib.colormaps["tab10"](int(digit))
        ax.scatter(chosen[:, 0], chosen[:, 1], s=30, marker=marker, color=color, linewidth=0, rasterized=True)
    ax.set_aspect("equal", adjustable="datalim")
    return ax


def _with_channels(images: ArrayLike) -> np.ndarray:
    """Images as an array of shape (N, height, width, channels)."""
    pixels = _as_array(images)
    if np.issubdtype(pixels.dtype, np.integer) and pixels.size and pixels.max() > 1:
        raise ValueError(
            f"images must have grey levels from 0 to 1, got whole numbers up to {pixels.max()}: "
            "datasets.to_unit_interval scales them"
        )
    shape = pixels.shape
    if pixels.ndim == 2:
        side = math.isqrt(pixels.shape[1])
        if side**2 == pixels.shape[1]:
            pixels = pixels.reshape(len(pixels), side, side)  # (N, D) -> (N, side, side)
    if pixels.ndim == 3:
        pixels = pixels[..., np.newaxis]
    elif pixels.ndim == 4 and pixels.shape[3] not in (1, 3):
        pixels = np.moveaxis(pixels, 1, 3)  # (N, channels, height, width) -> (N, height, width, channels)
    if pixels.ndim != 4 or pixels.size == 0 or pixels.shape[3] not in (1, 3):
        raise ValueError(
            "images must have shape (N, D) with D a square, (N, height, width), or 1 or 3 channels beside "
            f"these, got an array of shape {shape}"
        )
    return pixels


def _as_array(values: Any) -> np.ndarray:
    """An array of what may be a tensor, on any device and with a gradient."""
    return np.asarray(values.numpy(force=True) if hasattr(values, "detach") else values)


def _line_styles(count: int) -> list[str]:
    """Line styles that differ where there are several curves, for readers who see no colours."""
    return (["-", "--", "-.", ":"] * count)[:count]
