import functools
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import datasets as sklearn_datasets

from tests.core.examples import generator
from vaecourse import datasets
from vaecourse.datasets import MNIST_SHA256, binarize, dequantize, mnist, noisy_line, to_unit_interval

U8, I64 = torch.uint8, torch.int64

DATA_FILE = Path(datasets.__file__).parent / "data" / "mnist.npz"


def grey_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=U8, generator=generator())


# --- the files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "part", "dtype", "magic", "digest"),
    [  # SHA-256 of the uncompressed files that LeCun, Cortes and Burges published
        ("train", 0, U8, 0x0803, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("train", 1, I64, 0x0801, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        ("test", 0, U8, 0x0803, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("test", 1, I64, 0x0801, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ],
    ids=["train-images", "train-labels", "test-images", "test-labels"],
)
def test_mnist_is_the_published_bytes_in_the_documented_dtype(split, part, dtype, magic, digest):
    values = mnist(split)[part]
    assert values.dtype == dtype
    header = struct.pack(f">{1 + values.ndim}I", magic, *values.shape)
    assert hashlib.sha256(header + values.byte().numpy().tobytes()).hexdigest() == digest


def test_mnist_gives_each_caller_its_own_copy():
    for values in mnist("test"):
        values.zero_()
    assert all(values.any() for values in mnist("test"))


@pytest.mark.parametrize("split", ["Train", "validation", "", None])
def test_mnist_rejects_unknown_split(split):
    with pytest.raises(ValueError, match=f"split must be 'train' or 'test', got {split!r}"):
        mnist(split)


def test_checksum_is_of_the_file_that_is_shipped():
    assert hashlib.sha256(DATA_FILE.read_bytes()).hexdigest() == MNIST_SHA256


@pytest.fixture
def damaged_file(tmp_path):
    """A copy of the data file that a test may damage."""
    copy = tmp_path / "mnist.npz"
    copy.write_bytes(DATA_FILE.read_bytes())
    return copy


@pytest.mark.parametrize(("count", "seed"), [(40, 0), pytest.param(1000, 1, marks=pytest.mark.slow)])
def test_data_file_flipped_bytes_are_detected(damaged_file, count, seed):
    content, rng = np.memmap(damaged_file, np.uint8, "r+"), np.random.default_rng(seed)
    positions = rng.integers(content.size, size=count)
    for position, mask in zip(positions, rng.integers(1, 256, size=count, dtype=np.uint8), strict=True):
        content[position] ^= mask
        with pytest.raises(RuntimeError, match="is damaged"):
            datasets._read_verified(damaged_file)
        content[position] ^= mask
    datasets._read_verified(damaged_file)  # whole again: it was the flips that were refused


@pytest.mark.parametrize(("count", "seed"), [(8, 0), pytest.param(98, 1, marks=pytest.mark.slow)])
def test_data_file_truncation_is_detected(damaged_file, count, seed):
    content = damaged_file.read_bytes()
    lengths = np.random.default_rng(seed).integers(len(content), size=count)
    for length in [0, len(content) - 1, *lengths]:
        damaged_file.write_bytes(content[:length])
        with pytest.raises(RuntimeError, match="is damaged"):
            datasets._read_verified(damaged_file)


@pytest.mark.parametrize("part", ["mnist.npz", MNIST_SHA256, "reinstall", "git checkout -- vaecourse/data"])
def test_mnist_file_error_says_what_to_do(damaged_file, part):
    damaged_file.write_bytes(b"garbage")
    with pytest.raises(RuntimeError, match=part):
        datasets._read_verified(damaged_file)
    damaged_file.unlink()
    with pytest.raises(FileNotFoundError, match=part):
        datasets._read_verified(damaged_file)


def test_mnist_reads_through_the_verification(monkeypatch, damaged_file):
    damaged_file.write_bytes(b"garbage")
    read = datasets._read_verified
    monkeypatch.setattr(datasets, "_read_verified", lambda path: read(damaged_file))
    with pytest.raises(RuntimeError, match="is damaged"):
        datasets._load_mnist.__wrapped__("test")  # without the cache


def test_digits_matches_scikit_learn():
    images, labels = datasets.digits()
    bunch = sklearn_datasets.load_digits()
    np.testing.assert_array_equal(images.flatten(1).numpy(), bunch.data)
    np.testing.assert_array_equal(labels.numpy(), bunch.target)
    assert (images.dtype, labels.dtype) == (U8, I64)


def test_diabetes_pairs_each_patient_with_their_score():
    x, y = datasets.diabetes()
    bunch = sklearn_datasets.load_diabetes()
    np.testing.assert_array_equal(x.numpy(), bunch.data)
    np.testing.assert_array_equal(y.numpy(), bunch.target[:, None])


# --- toy data --------------------------------------------------------------------------------------------


toy = functools.partial(noisy_line, slope=-3.0, intercept=5.0)


def test_noisy_line_is_reproducible_given_seed():
    first, again, other = (toy(9, seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_noisy_line_positions_are_sorted_in_unit_interval():
    x, _ = toy(1000)
    assert torch.equal(x, x.sort(dim=0).values)
    assert 0 <= x.min() < 0.01 and 0.99 < x.max() <= 1


@pytest.mark.parametrize(("scale", "growth"), [(0.2, 0.0), (0.05, 3.0)], ids=["constant", "growing"])
def test_noisy_line_noise_has_declared_scale(scale, growth):
    x, y = toy(40_000, scale=scale, growth=growth)
    standardised = (y - (5 - 3 * x)) / (scale * torch.exp(growth * x))
    for half in (standardised[:20_000], standardised[20_000:]):  # x is sorted: left and right
        assert half.mean().abs() < 4 / 20_000**0.5
        assert (half.std() - 1).abs() < 4 / 40_000**0.5  # 4 standard errors of a standard deviation


def test_noisy_line_rises_by_one_unless_told():
    x, y = noisy_line(100, scale=1e-9)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-7)


@pytest.mark.parametrize("num_points", [0, -3])
def test_noisy_line_rejects_empty_data(num_points):
    with pytest.raises(ValueError, match=f"num_points must be at least 1, got {num_points}"):
        toy(num_points)


@pytest.mark.parametrize("scale", [0.0, -0.2, float("nan"), float("inf")])
def test_noisy_line_rejects_nonpositive_scale(scale):
    with pytest.raises(ValueError, match=f"scale must be a positive number, got {scale}"):
        toy(3, scale=scale)


# --- pixels to inputs ------------------------------------------------------------------------------------


def test_to_unit_interval_matches_hand_value():
    images = torch.tensor([[[0, 51], [102, 255]], [[255, 0], [0, 0]]], dtype=U8)
    expected = torch.tensor([[0, 0.2, 0.4, 1.0], [1.0, 0, 0, 0]])  # float32, as the result must be
    torch.testing.assert_close(to_unit_interval(images), expected, rtol=0, atol=1e-7)


def test_to_unit_interval_divides_by_the_given_level():
    assert to_unit_interval(torch.full((1, 2, 2), 16, dtype=U8), max_level=16).tolist() == [[1.0] * 4]


def test_dequantize_stays_in_the_cell_of_its_level():
    images = grey_images(50, 40, 40)
    x = dequantize(images, generator=generator())
    levels = images.flatten(1).double()
    lower, upper = levels / 256, (levels + 1) / 256
    assert ((x >= lower - 2e-8) & (x <= upper + 2e-8)).all()  # half a float32 step at the cell's border
    assert x.max() < 1


def test_dequantize_noise_is_uniform_within_the_cell():
    x = dequantize(torch.full((1, 200, 200), 9, dtype=U8), max_level=16, generator=generator())
    u = (x.double() * 17 - 9).numpy().ravel()
    distance = np.abs(np.sort(u) - (np.arange(u.size) + 0.5) / u.size).max()
    assert distance < 1.95 / u.size**0.5  # Kolmogorov-Smirnov, 0.1 % level


def test_dequantize_never_reaches_one(monkeypatch):
    largest = 1 - 2.0**-24  # torch.rand's largest float32
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, largest))
    assert dequantize(torch.full((1, 2, 2), 255, dtype=U8)).max() < 1


def test_binarize_gives_zeros_and_ones_with_mean_x():
    x = torch.full((100, 1000), 0.3)
    b = binarize(x, generator=generator())
    assert set(b.unique().tolist()) == {0.0, 1.0}
    assert (b.mean() - 0.3).abs() < 4 * (0.21 / 1e5) ** 0.5  # 4 standard errors


@pytest.mark.parametrize(
    "function",
    [dequantize, lambda images, **options: binarize(images / 255, **options)],
    ids=["dequantize", "binarize"],
)
def test_noise_is_reproducible_given_generator(function):
    first, again, other = (function(grey_images(4, 8, 8), generator=generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("function", [to_unit_interval, dequantize], ids=["to_unit_interval", "dequantize"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 3), r"images must be uint8 grey levels, got torch\.float32"),
        (torch.zeros(2, 3, 3, dtype=I64), r"images must be uint8 grey levels, got torch\.int64"),
        (torch.full((2, 3, 3), 17, dtype=U8), "images hold the level 17, above max_level=16"),
        (torch.zeros(9, dtype=U8), r"images must have shape \(N, \*pixels\), got \(9,\)"),
    ],
    ids=["float32", "int64", "level-too-high", "no-batch-dimension"],
)
def test_pixels_reject_what_is_no_batch_of_grey_levels(function, images, message):
    with pytest.raises(ValueError, match=message):
        function(images, max_level=16)


@pytest.mark.parametrize("value", [-0.1, 1.1, 255.0, float("nan")])
def test_binarize_rejects_values_outside_unit_interval(value):
    with pytest.raises(ValueError, match=rf"x must lie in \[0, 1\], got values from .*{value:g}"):
        binarize(torch.tensor([0.5, value]))


def test_binarize_rejects_unscaled_pixels():
    with pytest.raises(ValueError, match=r"x must be floating point, got torch.uint8.*to_unit_interval"):
        binarize(torch.zeros(2, dtype=U8))
