"""Figures are made of the arrays given, in the places where a reader looks for them."""

import re

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from vaecourse.plotting import plot_images, plot_latent_plane


@pytest.fixture
def ax():
    return Figure().subplots()


def numbered_images(count: int, side: int = 2) -> np.ndarray:
    """Images whose pixels all hold their number."""
    return np.repeat(np.arange(count), side * side).reshape(count, side * side) / count


def test_plot_images_places_them_row_by_row(ax):
    mosaic = plot_images(numbered_images(6), columns=3, ax=ax).images[0].get_array()
    assert (mosaic[::2, ::2] * 6).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_plot_images_keeps_each_image_upright(ax):
    image = np.array([[0.1, 0.2], [0.3, 0.4]])  # first row on top
    plot_images([image, image], columns=2, ax=ax)
    assert ax.images[0].get_array().tolist() == [[0.1, 0.2, 0.1, 0.2], [0.3, 0.4, 0.3, 0.4]]
    assert ax.images[0].origin == "upper"


def test_plot_images_accepts_flat_and_square_images(ax):
    for shape in [(4, 4), (4, 2, 2)]:
        plot_images(numbered_images(4).reshape(shape), columns=2, ax=ax)
    np.testing.assert_array_equal(*(image.get_array() for image in ax.images))


def test_plot_images_leaves_the_rest_of_the_last_row_blank(ax):
    mosaic = plot_images(np.ones((4, 4)), columns=3, ax=ax).images[0].get_array()
    assert mosaic[::2, ::2].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_plot_images_takes_oblong_images_and_tensors_with_gradients(ax):
    images = torch.rand(2, 2, 3, requires_grad=True)
    mosaic = plot_images(images, columns=1, ax=ax).images[0].get_array()
    assert mosaic.tolist() == images.reshape(4, 3).tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_plot_images_takes_channels_first_or_last(ax, channels):
    images = np.random.default_rng(0).random((5, 4, 4, channels))
    for arrangement in (images, np.moveaxis(images, 3, 1)):
        plot_images(arrangement, columns=2, ax=ax)
    first, second = (image.get_array() for image in ax.images)
    np.testing.assert_array_equal(first, second)
    assert first.shape == ((12, 8) if channels == 1 else (12, 8, 3))
    np.testing.assert_array_equal(first[4:8, 4:8], images[3].squeeze())
    assert (first[8:, 4:] == (0 if channels == 1 else 1)).all()  # paper is white in both


def test_plot_images_draws_ink_black_on_one_scale_for_all_images(ax):
    image = plot_images(numbered_images(2), columns=2, ax=ax).images[0]
    assert image.get_clim() == (0, 1)
    assert image.cmap(1.0)[:3] == (0, 0, 0) and image.cmap(0.0)[:3] == (1, 1, 1)


def test_plot_images_shows_axes_only_with_an_extent(ax):
    assert not plot_images(numbered_images(2), columns=2, ax=ax).axison
    other = Figure().subplots()
    plot_images(numbered_images(2), columns=2, extent=(-1, 1, -2, 2), ax=other)
    assert other.axison and list(other.images[0].get_extent()) == [-1, 1, -2, 2]


@pytest.mark.parametrize(
    ("shape", "columns"),
    [((6, 5), 3), ((0, 4), 1), ((6,), 1), ((6, 2, 2, 2), 3), ((6, 4), 0)],
    ids=["not-square", "none", "no-images", "two-channels", "no-columns"],
)
def test_plot_images_rejects_what_makes_no_mosaic(ax, shape, columns):
    message = (
        f"got an array of shape {re.escape(str(shape))}" if columns else "columns must be at least 1, got 0"
    )
    with pytest.raises(ValueError, match=message):
        plot_images(np.zeros(shape), columns=columns, ax=ax)


def test_plot_latent_plane_puts_each_numeral_at_its_code(ax):
    codes, labels = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]), [7, 3, 7]
    threes, sevens = plot_latent_plane(codes, labels, ax=ax).collections
    np.testing.assert_array_equal(threes.get_offsets(), codes[[1]])
    np.testing.assert_array_equal(sevens.get_offsets(), codes[[0, 2]])


def test_plot_latent_plane_draws_different_digits_in_different_shapes(ax):
    plot_latent_plane(np.zeros((10, 2)), range(10), ax=ax)
    outlines = {collection.get_paths()[0].vertices.tobytes() for collection in ax.collections}
    assert len(outlines) == 10


def test_plot_latent_plane_has_equal_units(ax):
    assert plot_latent_plane([[0, 0], [1, 5]], [1, 2], ax=ax).get_aspect() == 1


def test_plots_leave_global_state_alone(ax):
    before = dict(mpl.rcParams)
    plot_images(numbered_images(2), columns=2, ax=ax)
    plot_latent_plane([[0, 0]], [1], ax=ax)
    assert dict(mpl.rcParams) == before
