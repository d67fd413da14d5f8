"""The cheat sheet: every line of code, and every number in its tables, computed again."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import softplus

from tests.book.notebook_rules import ROOT
from tests.book.oracles import F64, generator
from vaecourse.datasets import mnist
from vaecourse.densities import bernoulli_nll, continuous_bernoulli_log_normalizer, gaussian_nll
from vaecourse.diagnosis import diagnose_loss
from vaecourse.divergences import kl_standard_normal
from vaecourse.evaluation import nats_to_bits_per_dim
from vaecourse.objectives import implied_variance

PAGE = (ROOT / "book" / "cheat_sheet.md").read_text("utf-8")
CODE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
FAMILIES = {"sq": "gaussian", "ab": "laplace", "bce": "bernoulli"}  # by the first name in a line of code
ASSUMED = {r"\sigma^2": "gaussian", "b": "laplace", r"\beta": "bernoulli"}  # by the symbol


def table(section: str) -> list[list[str]]:
    """Return the cells of the one table in a section, without its head."""
    lines = [line for line in PAGE.split(f"## {section}")[1].split("\n## ")[0].split("\n") if line[:1] == "|"]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


LINES = {row[0].strip("`"): row[1:] for row in table("What code assumes")}
NUMBERS = {name: value.removesuffix(" nats") for name, value, _ in table("Numbers of MNIST")}


def family_of(line: str) -> str:
    return FAMILIES[re.match(r"\W*(\w+)", line)[1]]


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


def weights(loss_fn, family: str, sizes: dict[str, float]) -> tuple[float, float]:
    """Return the weights of error and KL, both summed, in the average over the images of a batch."""
    numbers = generator()
    y, x, mu, logvar = (torch.randn(sizes["B"], sizes[size], generator=numbers).double() for size in "DDKK")
    x = x.sigmoid()
    sq, ab, bce = (y - x).square(), (y - x).abs(), bernoulli_nll(x, y)[:, None]
    error = {"gaussian": sq, "laplace": ab, "bernoulli": bce}[family].sum(1)
    at_prior = loss_fn(y, x, torch.zeros_like(mu), torch.zeros_like(logvar))
    kl = kl_standard_normal(mu, logvar / 2)
    return float(at_prior / error.mean()), float((loss_fn(y, x, mu, logvar) - at_prior) / kl.mean())


def test_tables_are_complete():
    assert sorted(map(family_of, LINES)) == ["bernoulli"] * 3 + ["gaussian"] * 9 + ["laplace"] * 2
    assert len(NUMBERS) == 8


@pytest.mark.parametrize("sizes", [(784, 20, 8), (12, 5, 3)], ids=["mnist", "small"])
@pytest.mark.parametrize("line", LINES)
def test_line_of_code_assumes_what_the_sheet_says_and_shows_an_equation_of_its_family(line, sizes):
    recon_weight, kl_weight, claim, at_mnist, equation = LINES[line]
    names = {**dict(zip("DKB", sizes, strict=True)), "beta": 0.37, "s0": 0.6}
    symbol, formula = claim.strip("$").split(" = ")
    family, claimed = ASSUMED[symbol], value(formula, names)
    assert family == family_of(line)
    (path,) = (ROOT / "book").glob("03_*.ipynb" if family == "gaussian" else "04_*.ipynb")
    label = re.fullmatch(r"\{eq\}`(eq-[a-z-]+)`", equation)[1]
    assert f"$$ ({label})" in path.read_text("utf-8")

    a, w = value(recon_weight, names), value(kl_weight, names)
    assert weights(loss(line, names), family, names) == pytest.approx((a, w), rel=1e-9)
    assert claimed == pytest.approx(implied_variance(a, w) if family == "gaussian" else w / a, rel=1e-9)
    d, k, b = sizes
    found = diagnose_loss(loss(line, names), data_dim=d, latent_dim=k, batch_size=b)
    assert (found.family, found.kl_fault) == (family, None)
    assumed = {"gaussian": (found.scale or 0) ** 2, "laplace": found.scale, "bernoulli": found.beta}[family]
    assert assumed == pytest.approx(claimed, rel=1e-6)
    if names["D"] == 784:
        del names["D"], names["K"]
        assert value(at_mnist, names) == pytest.approx(claimed, rel=1e-9)


def check_printed(start: str, *values: float, digits: int = 2) -> None:
    """Hold the numbers of the one row of the last table that starts so against values."""
    (cell,) = (cell for name, cell in NUMBERS.items() if name.startswith(start))
    assert cell == ", ".join(f"{float(value):.{digits}f}" for value in values)


def test_constants():
    zeros = torch.zeros(1, 784, dtype=F64)
    check_printed(r"$\frac D2\log 2\pi$", gaussian_nll(zeros, zeros, 1.0))
    check_printed(r"$D\log 2$", continuous_bernoulli_log_normalizer(zeros).sum())
    # a density of so many nats gives each level the probability 1, and needs no bits
    no_nats, one_nat = (nats_to_bits_per_dim(nats, 784) for nats in (0.0, 1.0))
    check_printed(r"$D\log 256$", no_nats / (one_nat - no_nats))
    check_printed("$D/4$", 784 / 4, digits=0)


@pytest.mark.xdist_group("mnist-spectrum")
def test_spectrum_of_mnist(mnist_spectrum):
    (name,) = (name for name in NUMBERS if name.startswith("directions"))
    variances = [float(number) for number in name.split("$ = ")[1].split(", ")]
    assert len(variances) == 5
    eigenvalues = mnist_spectrum.eigenvalues
    check_printed("directions", *((eigenvalues > variance).sum() for variance in variances), digits=0)
    check_printed(r"$\lambda_1$", eigenvalues[0], digits=3)


def test_entropies_of_mnist(mnist_train):
    entropies = stats.bernoulli.entropy(np.arange(256) / 255)  # of a pixel, by its level
    sets = mnist_train, mnist("test")[0]
    check_printed("$H(x)$", *(x.flatten().bincount().numpy() @ entropies / len(x) for x in sets))
    mean = mnist_train.sum(0).double().flatten() / (255 * len(mnist_train))
    inked = mean[mean > 0][None]
    check_printed("BCE of the mean image", bernoulli_nll(inked, inked.logit()))
