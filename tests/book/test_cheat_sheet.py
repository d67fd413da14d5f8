"""The cheat sheet: every line of code, and every number in its tables, computed again."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from tests.site.browser import ROOT
from vaecourse.datasets import mnist, to_unit_interval
from vaecourse.densities import bernoulli_nll, continuous_bernoulli_log_normalizer, gaussian_nll
from vaecourse.diagnosis import LossDiagnosis, diagnose_loss
from vaecourse.divergences import kl_standard_normal
from vaecourse.evaluation import nats_to_bits_per_dim
from vaecourse.objectives import implied_variance

PAGE = (ROOT / "book" / "cheat_sheet.md").read_text("utf-8")
CODE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
FAMILIES = {"sq": "gaussian", "ab": "laplace", "bce": "bernoulli"}
FIRST = re.compile(r"\W*(\w+)")
ASSUMED = {r"\sigma^2": "gaussian", "b": "laplace", r"\beta": "bernoulli"}


def table(section: str) -> list[list[str]]:
    """Return the cells of the one table in a section, without its head."""
    lines = [line for line in PAGE.split(f"## {section}")[1].split("\n## ")[0].split("\n") if line[:1] == "|"]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


LINES = table("What code assumes")
NUMBERS = {name: value.removesuffix(" nats") for name, value, _ in table("Numbers of MNIST")}


def value(formula: str, names: dict[str, float]) -> float:
    """Evaluate a cell such as ``$D/(2K)$``."""
    text = formula.strip("$").replace(r"\sigma_0^2", "s0**2").replace(r"\beta", "beta").replace(r"\,", "*")
    return eval(re.sub(r"(\d)([DK])", r"\1*\2", text), {}, names)


def loss(line: str, names: dict[str, float]):
    """Return a printed line of code as a function."""

    def loss_fn(y: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        scope: dict[str, Any] = {"softplus": softplus, "y": y, "x": x, "mu": mu, "logvar": logvar, **names}
        exec(CODE, scope)
        return eval(line, scope)

    return loss_fn


def assumed(found: LossDiagnosis) -> float:
    if found.family == "gaussian":
        return found.scale**2
    return found.scale if found.family == "laplace" else found.beta


def weights(loss_fn, family: str, sizes: dict[str, float]) -> tuple[float, float]:
    """Return the weights of error and KL, both summed, in the average over the images of a batch."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"y": "D", "x": "D", "mu": "K", "logvar": "K"}
    y, x, mu, logvar = (
        torch.randn(sizes["B"], sizes[size], generator=generator).double() for size in shapes.values()
    )
    x = x.sigmoid()
    error = {
        "gaussian": (y - x).square().sum(1),
        "laplace": (y - x).abs().sum(1),
        "bernoulli": bernoulli_nll(x, y),
    }[family]
    at_prior = loss_fn(y, x, torch.zeros_like(mu), torch.zeros_like(logvar))
    kl = kl_standard_normal(mu, logvar / 2)
    return float(at_prior / error.mean()), float((loss_fn(y, x, mu, logvar) - at_prior) / kl.mean())


def test_tables_are_complete():
    firsts = [FIRST.match(row[0])[1] for row in LINES]
    assert {first: firsts.count(first) for first in FAMILIES} == {"sq": 9, "ab": 2, "bce": 3}
    assert len(LINES) == 14
    assert len(NUMBERS) == 8


@pytest.mark.parametrize("sizes", [(784, 20, 8), (12, 5, 3)], ids=["mnist", "small"])
@pytest.mark.parametrize("row", LINES, ids=[row[0].strip("`") for row in LINES])
def test_line_of_code_assumes_what_the_sheet_says(row, sizes):
    line, recon_weight, kl_weight, claim, at_mnist, _ = row
    names = {**dict(zip("DKB", sizes, strict=True)), "beta": 0.37, "s0": 0.6}
    loss_fn = loss(line.strip("`"), names)
    symbol, formula = claim.strip("$").split(" = ")
    family = ASSUMED[symbol]
    assert family == FAMILIES[FIRST.match(line)[1]]

    a, w = value(recon_weight, names), value(kl_weight, names)
    assert weights(loss_fn, family, names) == pytest.approx((a, w), rel=1e-9)
    assert value(formula, names) == pytest.approx(
        implied_variance(a, w) if family == "gaussian" else w / a, rel=1e-9
    )
    found = diagnose_loss(loss_fn, data_dim=names["D"], latent_dim=names["K"], batch_size=names["B"])
    assert (found.family, found.kl_fault) == (family, None)
    assert assumed(found) == pytest.approx(value(formula, names), rel=1e-6)
    if names["D"] == 784:
        others = {name: names[name] for name in ("B", "beta", "s0")}
        assert value(at_mnist, others) == pytest.approx(value(formula, names), rel=1e-9)


@pytest.mark.parametrize("row", LINES, ids=[row[0].strip("`") for row in LINES])
def test_line_of_code_shows_an_equation_of_its_family(row):
    chapter = {"gaussian": "03", "laplace": "04", "bernoulli": "04"}[FAMILIES[FIRST.match(row[0])[1]]]
    label = re.fullmatch(r"\{eq\}`(eq-[a-z-]+)`", row[5])[1]
    (path,) = (ROOT / "book").glob(f"{chapter}_*.ipynb")
    assert f"$$ ({label})" in path.read_text("utf-8")


def printed(start: str) -> list[float]:
    """Return the numbers of the one row of the last table that starts so."""
    (cell,) = [value for name, value in NUMBERS.items() if name.startswith(start)]
    return [float(number) for number in cell.split(", ")]


def rounded(*values: float, digits: int) -> list[float]:
    return [round(float(value), digits) for value in values]


@pytest.fixture(scope="module")
def mnist_x(mnist_train) -> Tensor:
    return to_unit_interval(mnist_train).double()


def test_constants():
    zeros = torch.zeros(1, 784).double()
    assert printed(r"$\frac D2\log 2\pi$") == rounded(gaussian_nll(zeros, zeros, 1.0), digits=2)
    least = continuous_bernoulli_log_normalizer(zeros).sum()
    assert printed(r"$D\log 2$") == rounded(least, digits=2)
    # a density of nats -D log 256 gives each level the probability 1, and needs no bits
    (nats,) = printed(r"$D\log 256$")
    assert nats_to_bits_per_dim(-nats, 784) == pytest.approx(0, abs=0.005 / (784 * math.log(2)))


def test_spectrum_of_mnist(mnist_spectrum):
    (name,) = [name for name in NUMBERS if name.startswith("directions")]
    variances = [float(number) for number in name.split("$ = ")[1].split(", ")]
    counts = [int((mnist_spectrum.eigenvalues > variance).sum()) for variance in variances]
    assert len(counts) == 5
    assert printed("directions") == counts
    assert printed(r"$\lambda_1$") == rounded(mnist_spectrum.eigenvalues[0], digits=3)
    assert printed("$D/4$") == [784 / 4]


def test_entropies_of_mnist(mnist_x):
    floors = []
    for x in (mnist_x, to_unit_interval(mnist("test")[0]).double()):
        floors.append((-torch.xlogy(x, x) - torch.xlogy(1 - x, 1 - x)).sum(1).mean())
    assert printed("$H(x)$") == rounded(*floors, digits=2)
    mean = mnist_x.mean(0)
    inked = (mean > 0).nonzero().squeeze()
    bce = bernoulli_nll(mean[inked][None], mean[inked].logit()[None])
    assert printed("BCE of the mean image") == rounded(bce, digits=2)
