import functools
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import datasets as sklearn_datasets

import vaecourse.datasets
from vaecourse.datasets import (
    MNIST_SHA256,
    binarize,
    dequantize,
    diabetes,
    digits,
    mnist,
    noisy_line,
    to_unit_interval,
)

DATA_FILE = Path(vaecourse.datasets.__file__).parent / "data" / "mnist.npz"

# SHA-256 of the uncompressed files that LeCun, Cortes and Burges published
PUBLISHED_SHA256 = {
    "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "test-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "test-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grey_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


# --- the files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_images_are_the_published_bytes(split):
    images, _ = mnist(split)
    header = struct.pack(">IIII", 0x0803, *images.shape)
    assert (
        hashlib.sha256(header + images.numpy().tobytes()).hexdigest() == PUBLISHED_SHA256[f"{split}-images"]
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_labels_are_the_published_bytes(split):
    _, labels = mnist(split)
    header = struct.pack(">II", 0x0801, len(labels))
    content = header + labels.numpy().astype(np.uint8).tobytes()
    assert hashlib.sha256(content).hexdigest() == PUBLISHED_SHA256[f"{split}-labels"]


def test_mnist_has_documented_dtypes():
    images, labels = mnist("test")
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)


def test_mnist_gives_each_caller_its_own_copy():
    images, labels = mnist("test")
    images.zero_()
    labels.zero_()
    again, labels_again = mnist("test")
    assert again.any() and labels_again.any()


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


def assert_flips_are_detected(path: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = path.stat().st_size
    with path.open("r+b", buffering=0) as file:
        for _ in range(count):
            position, mask = int(rng.integers(size)), int(rng.integers(1, 256))
            file.seek(position)
            original = file.read(1)
            file.seek(position)
            file.write(bytes([original[0] ^ mask]))
            with pytest.raises(RuntimeError, match="is damaged"):
                vaecourse.datasets._read_verified(path)
            file.seek(position)
            file.write(original)
    vaecourse.datasets._read_verified(path)  # whole again: it was the flips that were refused


def assert_truncations_are_detected(path: Path, count: int, seed: int) -> None:
    content = path.read_bytes()
    lengths = np.random.default_rng(seed).integers(len(content), size=count - 2)
    for length in [0, len(content) - 1, *lengths.tolist()]:
        path.write_bytes(content[:length])
        with pytest.raises(RuntimeError, match="is damaged"):
            vaecourse.datasets._read_verified(path)


def test_data_file_flipped_bytes_are_detected(damaged_file):
    assert_flips_are_detected(damaged_file, count=40, seed=0)


def test_data_file_truncation_is_detected(damaged_file):
    assert_truncations_are_detected(damaged_file, count=10, seed=0)


@pytest.mark.slow
def test_data_file_every_one_of_many_flipped_bytes_is_detected(damaged_file):
    assert_flips_are_detected(damaged_file, count=1000, seed=1)


@pytest.mark.slow
def test_data_file_every_one_of_many_truncations_is_detected(damaged_file):
    assert_truncations_are_detected(damaged_file, count=100, seed=1)


@pytest.mark.parametrize("part", ["mnist.npz", MNIST_SHA256, "reinstall", "git checkout -- vaecourse/data"])
def test_mnist_damaged_file_error_says_what_to_do(damaged_file, part):
    damaged_file.write_bytes(b"garbage")
    with pytest.raises(RuntimeError, match=part):
        vaecourse.datasets._read_verified(damaged_file)


@pytest.mark.parametrize("part", ["mnist.npz", MNIST_SHA256, "reinstall", "git checkout -- vaecourse/data"])
def test_mnist_missing_file_error_says_what_to_do(tmp_path, part):
    with pytest.raises(FileNotFoundError, match=part):
        vaecourse.datasets._read_verified(tmp_path / "mnist.npz")


def test_mnist_reads_through_the_verification(monkeypatch, damaged_file):
    damaged_file.write_bytes(b"garbage")
    read = vaecourse.datasets._read_verified
    monkeypatch.setattr(vaecourse.datasets, "_read_verified", lambda path: read(damaged_file))
    with pytest.raises(RuntimeError, match="is damaged"):
        vaecourse.datasets._load_mnist.__wrapped__("test")  # without the cache


def test_digits_matches_scikit_learn():
    images, labels = digits()
    bunch = sklearn_datasets.load_digits()
    np.testing.assert_array_equal(images.flatten(1).numpy(), bunch.data)
    np.testing.assert_array_equal(labels.numpy(), bunch.target)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)


def test_diabetes_pairs_each_patient_with_their_score():
    x, y = diabetes()
    bunch = sklearn_datasets.load_diabetes()
    np.testing.assert_array_equal(x.numpy(), bunch.data)
    np.testing.assert_array_equal(y.numpy(), bunch.target[:, None])


# --- toy data --------------------------------------------------------------------------------------------


def line(x):
    return 5 - 3 * x


toy = functools.partial(noisy_line, slope=-3.0, intercept=5.0)


def test_noisy_line_is_reproducible_given_seed():
    first, second, other = toy(9, seed=1), toy(9, seed=1), toy(9, seed=2)
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], other[1])


def test_noisy_line_positions_are_sorted_in_unit_interval():
    x, _ = toy(1000)
    assert torch.equal(x, x.sort(dim=0).values)
    assert 0 <= x.min() < 0.01 and 0.99 < x.max() <= 1


@pytest.mark.parametrize(("scale", "growth"), [(0.2, 0.0), (0.05, 3.0)], ids=["constant", "growing"])
def test_noisy_line_noise_has_declared_scale(scale, growth):
    x, y = toy(40_000, scale=scale, growth=growth)
    standardised = (y - line(x)) / (scale * torch.exp(growth * x))
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
    with pytest.raises(ValueError, match=f"scale .* must be positive, got {scale}"):
        toy(3, scale=scale)


# --- pixels to inputs ------------------------------------------------------------------------------------


def test_to_unit_interval_matches_hand_value():
    images = torch.tensor([[[0, 51], [102, 255]], [[255, 0], [0, 0]]], dtype=torch.uint8)
    expected = torch.tensor([[0, 0.2, 0.4, 1.0], [1.0, 0, 0, 0]])
    x = to_unit_interval(images)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-7)


def test_to_unit_interval_divides_by_the_given_level():
    assert to_unit_interval(torch.full((1, 2, 2), 16, dtype=torch.uint8), max_level=16).tolist() == [
        [1.0] * 4
    ]


def test_dequantize_stays_in_the_cell_of_its_level():
    images = grey_images(50, 40, 40)
    x = dequantize(images, generator=generator(0))
    levels = images.flatten(1).double()
    lower, upper = levels / 256, (levels + 1) / 256
    assert ((x >= lower - 2e-8) & (x <= upper + 2e-8)).all()  # half a float32 step at the cell's border
    assert x.max() < 1


def test_dequantize_noise_is_uniform_within_the_cell():
    x = dequantize(torch.full((1, 200, 200), 9, dtype=torch.uint8), max_level=16, generator=generator(0))
    u = (x.double() * 17 - 9).numpy().ravel()
    distance = np.abs(np.sort(u) - (np.arange(u.size) + 0.5) / u.size).max()
    assert distance < 1.95 / u.size**0.5  # Kolmogorov-Smirnov, 0.1 % level


def test_dequantize_never_reaches_one(monkeypatch):
    largest = 1 - 2.0**-24  # torch.rand's largest float32
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, largest))
    assert dequantize(torch.full((1, 2, 2), 255, dtype=torch.uint8)).max() < 1


def test_binarize_gives_zeros_and_ones_with_mean_x():
    x = torch.full((100, 1000), 0.3)
    b = binarize(x, generator=generator(0))
    assert set(b.unique().tolist()) == {0.0, 1.0}
    assert (b.mean() - 0.3).abs() < 4 * (0.21 / 1e5) ** 0.5  # 4 standard errors


@pytest.mark.parametrize("function", [dequantize, binarize], ids=["dequantize", "binarize"])
def test_noise_is_reproducible_given_generator(function):
    images = grey_images(4, 8, 8)
    argument = images if function is dequantize else to_unit_interval(images)
    first, second = (function(argument, generator=generator(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, function(argument, generator=generator(6)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize("function", [to_unit_interval, dequantize], ids=["to_unit_interval", "dequantize"])
def test_pixels_reject_other_dtypes_than_uint8(function, dtype):
    with pytest.raises(ValueError, match=f"images must be uint8 grey levels, got {dtype}"):
        function(torch.zeros(2, 3, 3, dtype=dtype))


@pytest.mark.parametrize("function", [to_unit_interval, dequantize], ids=["to_unit_interval", "dequantize"])
def test_pixels_reject_levels_above_the_highest(function):
    with pytest.raises(ValueError, match="images hold the level 17, above max_level=16"):
        function(torch.full((2, 3, 3), 17, dtype=torch.uint8), max_level=16)


@pytest.mark.parametrize("function", [to_unit_interval, dequantize], ids=["to_unit_interval", "dequantize"])
def test_pixels_reject_missing_batch_dimension(function):
    with pytest.raises(ValueError, match=r"images must have shape \(N, \*pixels\), got \(9,\)"):
        function(torch.zeros(9, dtype=torch.uint8))


@pytest.mark.parametrize("value", [-0.1, 1.1, 255.0, float("nan")])
def test_binarize_rejects_values_outside_unit_interval(value):
    with pytest.raises(ValueError, match=rf"x must lie in \[0, 1\], got values from .*{value:g}"):
        binarize(torch.tensor([0.5, value]))


def test_binarize_rejects_unscaled_pixels():
    with pytest.raises(ValueError, match=r"x must be floating point .*uint8.*to_unit_interval"):
        binarize(torch.zeros(2, dtype=torch.uint8))
