"""The live figures, driven by mouse and keyboard in a real browser, against torch.

Runs after the build, in the stage ``site``.
"""

import base64
import contextlib
import io
import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from torch import Tensor, nn

from tests.site.browser import ROOT, opened
from vaecourse.datasets import mnist, to_unit_interval
from vaecourse.densities import gaussian_nll
from vaecourse.diagnosis import diagnose_loss
from vaecourse.divergences import kl_standard_normal
from vaecourse.linear_vae import LinearVAE
from vaecourse.models import mlp_vae

pytestmark = pytest.mark.xdist_group("live")
DATA = ROOT / "book" / "_static" / "live" / "data"
NUMBER = re.compile(r"−?\d[\d.]*(?<!\.)(?:e[−+]?\d+)?")
MOVE = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }"


def read(name: str) -> dict:
    """The data that a page gets."""
    text = (DATA / f"{name}.js").read_text("utf-8")
    return json.loads(re.fullmatch(r"\(window\.vaecourse \?\?= \{\}\)\.\w+ = (.*);\n", text)[1])


def array(text: str, dtype: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype).copy())


def rows_of_images(text: str) -> Tensor:
    """Ten images side by side, as a figure shows them."""
    return array(text, "u1").reshape(10, 28, 28).transpose(0, 1).reshape(28, 280).double()


def numbers(text: str) -> list[float]:
    """The numbers of a read-out."""
    return [float(number.replace("−", "-")) for number in NUMBER.findall(text)]


class Figure:
    """One of the figures on the page."""

    def __init__(self, page: Page, name: str) -> None:
        self.page, self.root = page, page.locator(name)
        self.sliders = self.root.locator("input[type=range]")
        self.plots = self.root.locator(".live-plot:has(svg)")
        self.drag = self.root.locator(".live-drag")

    @property
    def state(self) -> dict:
        return self.root.evaluate("figure => figure.state")

    @property
    def values(self) -> Tensor:
        return torch.tensor(self.root.evaluate("figure => [...figure.values]"))

    @property
    def reading(self) -> str:
        return self.root.locator(".live-reading").inner_text()

    def call(self, method: str, *cases: list) -> list:
        """Return what one of the figure's methods answers to each list of arguments."""
        script = "(figure, [name, cases]) => cases.map((one) => figure[name](...one))"
        return self.root.evaluate(script, [method, cases])

    def set(self, *values: float) -> dict:
        """Move the first range inputs as a script would; keyboard and mouse are tried for themselves."""
        for slider, value in zip(self.sliders.all(), values, strict=False):
            slider.evaluate(MOVE, value)
        return self.state

    def press(self, target: Locator, *keys: str) -> None:
        target.focus()
        for key in keys:
            self.page.keyboard.press(key)


def place(target: Locator, right: float, down: float) -> tuple[float, float]:
    """Where the mouse meets a point of an element, given in widths and heights of it."""
    target.scroll_into_view_if_needed()
    box = target.bounding_box()
    return box["x"] + right * box["width"], box["y"] + down * box["height"]


def canvas(target: Locator) -> Tensor:
    """What a canvas shows, (height, width, 4): red, green, blue and cover, from 0 to 255."""
    png = target.evaluate("canvas => canvas.toDataURL()").partition(",")[2]
    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")))


@pytest.fixture(scope="module")
def page(tab: Page, address: str) -> Iterator[Page]:
    with opened(tab, f"{address}book/live_figures.html") as page:
        yield page


def figure(name: str) -> Any:
    """A fixture that is one of the figures."""

    @pytest.fixture
    def find(page: Page) -> Figure:
        return Figure(page, name)

    return find


NAMES = ["latent-plane", "drag-sigma", "loss-calculator", "gaussian-regression"]
plane, sigma, calculator, regression = map(figure, NAMES)


# --- the latent plane ------------------------------------------------------------------------------------

PLANE = read("plane")
CODES = array(PLANE["codes"], "<i2").reshape(-1, 2) * PLANE["codeUnit"]


@pytest.fixture(scope="module")
def decoder() -> nn.Module:
    """The page's decoder in torch."""
    model = mlp_vae(784, 2, hidden_dims=(256, 128)).decoder.requires_grad_(False)
    linears = [layer for layer in model.network if isinstance(layer, nn.Linear)]
    for linear, packed in zip(linears, PLANE["layers"], strict=True):
        rows = array(packed["weights"], "i1").reshape(packed["outputs"], packed["inputs"])
        linear.weight.copy_(rows * array(packed["scales"], "<f4")[:, None])
        linear.bias.copy_(array(packed["biases"], "<f4"))
    return model


def test_latent_plane_decodes_as_torch_does(plane, decoder):
    z = 2 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    script = "(figure, zs) => zs.map((z) => [...figure.decode(...z)])"
    shown = torch.tensor(plane.root.evaluate(script, z.tolist()))
    torch.testing.assert_close(shown, decoder(z), atol=1e-5, rtol=1e-5)


def test_latent_plane_belongs_to_the_test_images(decoder):
    """Decoding the codes gives the images back, with about the error that the model has learned to expect."""
    images, labels = mnist("test")
    assert PLANE["labels"] == "".join(str(int(label)) for label in labels[: len(CODES)])
    mse = (decoder(CODES) - to_unit_interval(images[: len(CODES)])).square().mean()
    assert 0.8 < mse / PLANE["scale"] ** 2 < 1.15  # the scale is that of the training images


def test_latent_plane_follows_the_mouse_and_stays_inside(page, plane):
    page.mouse.move(*place(plane.drag, 0.5, 0.5))
    page.mouse.down()
    page.mouse.move(*place(plane.drag, 0.75, 0.25), steps=4)
    assert "z = (2.00, 2.00)" in plane.reading
    page.mouse.move(*place(plane.drag, 1.2, 0.5), steps=4)
    page.mouse.up()
    assert "z = (4.00, " in plane.reading


def test_latent_plane_follows_the_keyboard(plane, decoder):
    plane.set(0, 0)
    plane.press(plane.drag, "ArrowRight", "ArrowRight", "Shift+ArrowUp", "ArrowDown")
    assert "z = (0.20, 0.40)" in plane.reading
    torch.testing.assert_close(plane.values, decoder(torch.tensor([0.2, 0.4])), atol=1e-5, rtol=1e-5)
    expect(plane.root.locator(".live-spoken")).to_contain_text("(0.20, 0.40)")


def test_latent_plane_draws_with_the_scale_of_the_model(plane):
    mean, scale, box = plane.values, PLANE["scale"], plane.root.get_by_label("show a draw")
    box.check()
    noise = plane.values - mean
    assert f"a draw, the mean plus noise of scale {scale:.3g}" in plane.reading
    box.uncheck()
    assert abs(noise.mean()) < 4 * scale / 28
    assert abs(noise.std() / scale - 1) < 4 / math.sqrt(2 * 784)


@pytest.mark.parametrize("z", [(1.5, -1.0), (-2.0, 0.5)])
def test_latent_plane_paints_and_says_what_it_computes(plane, z):
    plane.set(*z)
    first, second, radius, count, label, away = numbers(plane.reading)
    distance, index = (CODES - torch.tensor(z)).norm(dim=1).min(0)
    assert (first, second, count, label) == (*z, len(CODES), int(PLANE["labels"][index]))
    assert radius == pytest.approx(math.hypot(*z), rel=1e-2)
    assert away == pytest.approx(distance.item(), rel=0.06)
    assert "Shown: the decoded mean." in plane.reading
    shown = canvas(plane.root.locator(".live-pixels"))[..., 0].flatten()
    assert (shown - 255 * plane.values.double().clamp(0, 1)).abs().max() <= 0.51


def test_latent_plane_draws_codes_circles_and_ring_where_they_belong(plane):
    plane.set(3.0, -2.5)
    box = plane.root.get_by_label("show where test images lie")
    with_codes = canvas(plane.drag)[..., 3] > 128
    box.uncheck()
    without = canvas(plane.drag)[..., 3] > 128
    box.check()
    size = len(without)

    def around(first: float, second: float) -> Tensor:
        row, column = round(size * (4 - second) / 8), round(size * (first + 4) / 8)
        return without[row - 4 : row + 5, column - 4 : column + 5]

    assert around(3.0, -2.5).all()
    for z in [(1, 0), (0, 1), (-2, 0), (0, -2)]:
        assert around(*z).any(), z
    for z in [(3.0, 2.5), (0, 0), (3, 0)]:
        assert not around(*z).any(), z
    first, second = CODES.numpy().T
    counts = np.histogram2d(-second, first, bins=16, range=[[-4, 4], [-4, 4]])[0]
    painted = (with_codes & ~without).reshape(16, size // 16, 16, size // 16).sum((1, 3)).numpy()
    ranks = [found.flatten().argsort().argsort() for found in (counts, painted)]
    assert np.corrcoef(*ranks)[0, 1] > 0.8


# --- drag sigma ------------------------------------------------------------------------------------------


def test_spectrum_is_that_of_the_training_images(mnist_spectrum):
    shown = torch.tensor(read("spectrum")["eigenvalues"], dtype=torch.float64)
    torch.testing.assert_close(shown, mnist_spectrum.eigenvalues, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("scale", [0.1, 0.3162, 1.0, 2.2, 2.5, 19.8])
def test_drag_sigma_weighs_and_counts_as_python_does(sigma, mnist_spectrum, scale):
    shown = sigma.set(math.log10(scale))
    variance = shown["variance"]
    assert variance == pytest.approx(scale**2, rel=0.02)  # the slider has steps
    assert shown["active"] == int((mnist_spectrum.eigenvalues > variance).sum())
    assert (shown["weight"], shown["share"]) == pytest.approx((1 / (2 * variance), 2 * variance / 784))
    assert f"uses {min(shown['active'], 20)}." in sigma.reading


def test_drag_sigma_shows_what_the_printed_code_assumes(sigma):
    """Both losses of the line below the slider have the scale that the slider shows."""
    shown = sigma.set(math.log10(0.5))
    line = sigma.root.locator("pre").inner_text()
    factor = float(re.search(r"sum\(\) \* ([\d.]+)", line)[1])
    share = float(re.search(r"mean\(\) \+ ([\d.e−]+)", line)[1].replace("−", "-"))
    for weight, beta in [(factor * 784, 1), (1, share)]:

        def loss(y, t, mu, logvar, weight=weight, beta=beta):
            kl = kl_standard_normal(mu, logvar / 2).mean()
            return weight * (y - t).square().mean() + beta * kl

        found = diagnose_loss(loss, data_dim=784, latent_dim=20)
        assert found.scale == pytest.approx(shown["sigma"], rel=1e-3)


def test_drag_sigma_landscape_is_the_likelihood_of_a_linear_vae(sigma, mnist_spectrum):
    """For data along one direction: minus log-likelihood as a function of the gain, from its value at 0."""
    lam, variance = mnist_spectrum.eigenvalues[2].item(), 0.4
    x = torch.tensor([[math.sqrt(lam), 0.0], [-math.sqrt(lam), 0.0]], dtype=torch.float64)

    def nll(gain):
        model = LinearVAE(2, 1, scale=math.sqrt(variance)).double().requires_grad_(False)
        model.decoder.weight.copy_(torch.tensor([[gain], [0.0]]))
        model.decoder.bias.zero_()
        return -model.log_likelihood(x).mean().item()

    gains = [0.0, 0.3, 1.0, 1.7, 3.0]
    shown = sigma.call("cost", *([gain, lam, variance] for gain in gains))
    assert shown == pytest.approx([nll(gain) - nll(0.0) for gain in gains])


def test_drag_sigma_valleys_are_where_the_best_linear_vae_is(sigma, mnist_spectrum):
    shown = sigma.set(math.log10(0.7), 3)
    best = LinearVAE.from_ppca(mnist_spectrum.stand_in, 3, scale=shown["sigma"])
    assert shown["gain"] == pytest.approx(best.weight[:, 2].norm().item(), rel=1e-4)


def test_drag_sigma_shows_what_each_trained_model_pays(page, sigma):
    control = sigma.sliders.first
    sigma.press(control, "Home")
    assert sigma.state["rung"] == 0.01
    sigma.press(control, "End")
    assert sigma.state["rung"] == 392
    text = sigma.root.locator(".live-title").last.inner_text()
    assert text.startswith("A VAE trained with σ² = 392: KL 0 nats, 0 of 20 latents active")
    page.mouse.click(*place(control, 0.5, 0.5))
    assert sigma.state["sigma"] == pytest.approx(10**0.15, rel=0.1)


def test_ladder_holds_test_images_and_a_trade():
    ladder = read("ladder")
    images, labels = mnist("test")
    first = torch.stack([images[(labels == digit).nonzero()[0, 0]] for digit in range(10)])
    assert torch.equal(array(ladder["images"], "u1"), first.flatten())
    rungs = ladder["rungs"]
    for low, high in itertools.pairwise(rungs):
        assert low["variance"] < high["variance"]
        assert low["kl"] >= high["kl"] and low["sse"] <= 1.01 * high["sse"]
    assert rungs[-1]["kl"] < 0.05 and rungs[-1]["activeUnits"] == 0
    mean = images.double().mean(0).flatten() / 255  # a collapsed decoder shows one image
    collapsed = array(rungs[-1]["means"], "u1").reshape(10, 784) / 255
    assert (collapsed - collapsed[0]).abs().max() < 0.02
    assert (collapsed[0] - mean).abs().mean() < 0.02


# --- the loss calculator ---------------------------------------------------------------------------------

REDUCTIONS = ["pixels", "reconBatch", "latents", "klBatch"]
SIZES = [
    {"reconWeight": 1, "klWeight": 1, "dataDim": 784, "latentDim": 20, "batchSize": 8},
    {"reconWeight": 0.37, "klWeight": 2.5, "dataDim": 12, "latentDim": 3, "batchSize": 5},
    {"reconWeight": 784, "klWeight": 0.00025, "dataDim": 784, "latentDim": 50, "batchSize": 16},
]


def run_printed(code: str):
    names = {"F": nn.functional}
    exec(code, names)
    return names["loss_fn"]


@pytest.mark.parametrize("sizes", SIZES, ids=["plain", "odd", "small-kl"])
@pytest.mark.parametrize("loss", ["squared", "absolute", "logits", "probabilities"])
def test_calculator_finds_what_diagnose_loss_finds_in_the_code_it_prints(
    calculator, mnist_spectrum, loss, sizes
):
    reductions = itertools.product(["sum", "mean"], repeat=len(REDUCTIONS))
    cases = [{"loss": loss, **dict(zip(REDUCTIONS, one, strict=True)), **sizes} for one in reductions]
    dims = {"data_dim": sizes["dataDim"], "latent_dim": sizes["latentDim"], "batch_size": sizes["batchSize"]}
    data = mnist_spectrum.stand_in if sizes["dataDim"] == 784 else None
    answers = calculator.call("evaluate", *([case] for case in cases))
    for case, answer in zip(cases, answers, strict=True):
        found = answer["found"]
        truth = diagnose_loss(run_printed(answer["code"]), data=data, **dims)
        exact = [truth.family, truth.is_elbo, truth.num_active]
        rounded = [truth.scale, truth.beta, truth.recon_weight, truth.kl_weight]
        expected = [*exact, *(value and pytest.approx(value, rel=1e-3) for value in rounded)]
        names = ["family", "isElbo", "numActive", "scale", "beta", "reconWeight", "klWeight"]
        assert [found[name] for name in names] == expected, case


def test_calculator_without_a_kl_claims_no_scale(calculator):
    (answer,) = calculator.call("evaluate", [{"klWeight": 0}])
    truth = diagnose_loss(run_printed(answer["code"]), data_dim=784, latent_dim=20)
    assert truth.kl_fault == "missing"
    assert (answer["found"]["scale"], answer["found"]["beta"], truth.scale) == (None, None, None)


def test_calculator_counts_the_directions_of_a_bernoulli(calculator, mnist_spectrum):
    (answer,) = calculator.call("evaluate", [{"loss": "logits", "pixels": "sum"}])
    count = int((mnist_spectrum.eigenvalues > 0.25).sum())
    assert f"{count} directions vary by more than β/4" in answer["text"]


def test_calculator_answers_the_keyboard_and_refuses_nonsense(calculator):
    table, refusal = calculator.root.locator("table"), calculator.root.get_by_text("a number from 0")
    calculator.press(calculator.root.get_by_label("reconstruction"), "ArrowDown")
    assert "laplace" in table.inner_text()
    calculator.page.keyboard.press("ArrowUp")
    weight = calculator.root.get_by_label("KL weight")
    weight.fill("-1")
    assert refusal.is_visible()
    assert calculator.state["options"]["klWeight"] == 1
    weight.fill("0.002")
    assert not refusal.is_visible()
    assert "σ = 0.8854" in table.inner_text()  # sqrt(0.002 * 784 / 2)


def test_calculator_shows_what_it_finds_for_the_chosen_options(calculator):
    """Each control sets the option that its label names, and the table says what was found."""

    def control(label: str) -> Locator:
        field = calculator.root.locator(f".live-field:has(> span:text-is('{label}'))")
        return field.locator("select, input")

    start = calculator.state["options"]
    reductions = ["over the D numbers", "over the batch", "KL over the K latents", "KL over the batch"]
    for label, name in zip(reductions, REDUCTIONS, strict=True):
        for value in ["sum", "mean", start[name]]:
            control(label).select_option(value)
            assert calculator.state["options"] == {**start, name: value}
    sizes = {
        "weight": ("reconWeight", 0.5),
        "KL weight": ("klWeight", 0.001),
        "D": ("dataDim", 784),
        "K": ("latentDim", 10),
        "batch size": ("batchSize", 64),
    }
    for label, (name, value) in sizes.items():
        control(label).fill(str(value))
        assert calculator.state["options"][name] == value

    def rows() -> dict[str, str]:
        cells = "all => all.map(row => [...row.children].map(cell => cell.textContent))"
        return dict(calculator.root.locator("tbody tr").evaluate_all(cells))

    assert rows() == {  # weights 0.5 / 784 and 0.001: the variance is 0.784
        "likelihood": "gaussian",
        "scale": "σ = 0.8854",
        "β": "0.784",
        "weight of the summed error": f"{0.5 / 784:.4g}",
        "weight of the summed KL": "0.001",
        "negative ELBO": "yes",
        "active latents of a linear VAE on MNIST": "10",
    }
    assert calculator.state["found"]["beta"] == pytest.approx(0.784)
    assert "σ = 0.8854 (σ² = 0.784)" in calculator.reading
    assert "changes with the batch size" not in calculator.reading
    control("KL over the batch").select_option("sum")
    said = calculator.root.inner_text()
    assert "β changes with the batch size; the values are for 64 examples" in said
    control("KL over the batch").select_option("mean")
    control("reconstruction").select_option("logits")
    assert rows()["negative ELBO"] == "no" and rows()["scale"] == "none"
    calculator.page.reload()


# --- Gaussian regression ---------------------------------------------------------------------------------


def compare(regression: Figure) -> dict:
    """Return what the figure computes, which is what torch computes."""
    shown = regression.state
    x, y = torch.tensor(shown["points"], dtype=torch.float64).T
    start = [shown["intercept"], shown["slope"], math.log(shown["sigma"])]
    parameters = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    intercept, slope, log_sigma = parameters
    line = intercept + slope * x
    nll = gaussian_nll(y[:, None], line[:, None], log_sigma.exp()).sum()
    (gradient,) = torch.autograd.grad(nll, parameters)
    assert (shown["sse"], shown["nll"]) == pytest.approx(((y - line).square().sum().item(), nll.item()))
    assert list(shown["gradient"].values()) == pytest.approx(gradient.tolist(), abs=1e-9)
    return shown


def test_regression_measures_as_torch_does_after_mouse_and_keyboard(page, regression):
    before = compare(regression)
    point = regression.root.locator("circle[role=slider]").nth(3)
    x, y = place(point, 0.5, 0.5)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 25, y - 65, steps=5)
    page.mouse.up()
    dragged = compare(regression)
    assert dragged["points"][3][1] > before["points"][3][1] + 1
    assert dragged["points"][3][0] == before["points"][3][0]
    regression.press(point, "PageDown")
    assert compare(regression)["points"][3][1] == pytest.approx(dragged["points"][3][1] - 1)
    assert float(point.get_attribute("aria-valuenow")) == pytest.approx(dragged["points"][3][1] - 1, abs=0.01)
    regression.press(regression.sliders.nth(1), "ArrowRight")
    assert compare(regression)["slope"] == pytest.approx(dragged["slope"] + 0.01)


def test_regression_buttons_reach_the_minimum(regression):
    _, slope, sigma = regression.sliders.all()
    regression.root.get_by_role("button", name="best line").click()
    line = compare(regression)
    gradient = line["gradient"]
    assert (gradient["intercept"], gradient["slope"]) == pytest.approx((0, 0), abs=1e-9)
    assert numbers(slope.get_attribute("aria-valuetext")) == pytest.approx([line["slope"]], rel=0.01)
    sigma.evaluate(MOVE, -0.5)
    moved = compare(regression)
    assert (moved["intercept"], moved["slope"]) == (line["intercept"], line["slope"])
    regression.root.get_by_role("button", name="best σ").click()
    best = compare(regression)
    assert best["gradient"]["logSigma"] == pytest.approx(0, abs=1e-9)
    assert best["sse"] == pytest.approx(line["sse"])
    assert "intercept 0, slope 0, log σ 0." in regression.reading


# --- what a reader sees ----------------------------------------------------------------------------------

TICKS = """all => all.map((tick) => [
  tick.getAttribute("text-anchor"), tick.getAttribute("x"), tick.getAttribute("y"), tick.textContent])"""
MARKS = r"""all => all.map((mark) => {
  const n = (name) => +mark.getAttribute(name), shape = mark.tagName;
  const text = mark.getAttribute("d") ?? mark.getAttribute("points") ?? "";
  const corners = [n("x"), n("y"), n("x") + n("width"), n("y") + n("height")];
  const simple = { rect: corners, circle: [n("cx"), n("cy")] }[shape];
  return [`${shape} ${mark.getAttribute("class")}`, simple ?? (text.match(/-?[\d.]+/g) ?? []).map(Number)];
})"""


def drawn(plot: Locator) -> dict[str, list[np.ndarray]]:
    """Marks of a plot by their class, in the data coordinates that its tick labels give."""
    ticks = plot.locator(".live-frame text:not([transform])").evaluate_all(TICKS)
    scales = []
    for axis, (anchor, shift) in enumerate([("middle", 0), ("end", -4)]):
        found = [tick for tick in ticks if tick[0] == anchor and NUMBER.fullmatch(tick[3])]
        at, values = np.array([(float(tick[1 + axis]) + shift, *numbers(tick[3])) for tick in found]).T
        is_log = (values > 0).all() and not np.allclose(np.diff(values, 2), 0)
        is_log |= len(values) == 2 and values[1] == 10 * values[0]
        slope, intercept = np.polyfit(at, np.log10(values) if is_log else values, 1)
        assert slope > 0 if axis == 0 else slope < 0  # to the right, and upwards
        scales.append((slope, intercept, is_log))
    slopes, intercepts, is_log = map(np.array, zip(*scales, strict=True))
    result: dict = {}
    for name, pairs in plot.locator("svg > g:not(.live-frame) *").evaluate_all(MARKS):
        if not name.startswith(("text", "g ")):
            values = np.array(pairs, dtype=float).reshape(-1, 2) * slopes + intercepts
            values[:, is_log] = 10 ** values[:, is_log]
            result.setdefault(name, []).append(values)
    return result


@pytest.mark.parametrize("scale", [0.2, 0.6, 3.0])
def test_drag_sigma_draws_spectrum_and_landscape(sigma, mnist_spectrum, scale):
    shown, eigenvalues = sigma.set(math.log10(scale), 5), mnist_spectrum.eigenvalues
    lam, variance = eigenvalues[4].item(), shown["variance"]
    told, chosen = (numbers(slider.get_attribute("aria-valuetext")) for slider in sigma.sliders.all())
    assert told == pytest.approx([shown["sigma"]], rel=0.01)
    assert chosen == pytest.approx([5, lam], rel=0.01)
    left, right = sigma.plots.nth(0), sigma.plots.nth(1)
    spectrum, landscape = drawn(left), drawn(right)
    blue, faint = ([m[0, 1] for m in spectrum.get(f"rect live-{c}", [])] for c in ("blue", "faint"))
    assert blue + faint == pytest.approx(eigenvalues[:60].tolist(), rel=0.01)
    assert len(blue) == min(shown["active"], 60)
    (level,) = spectrum["path live-stroke-orange"]
    assert level[:, 1] == pytest.approx([variance] * 2, rel=0.01)
    assert f"{shown['active']} direction" in left.locator(".live-title").inner_text()
    (curve,) = landscape["path live-stroke-blue"]
    height, gain = np.ptp(curve[:, 1]), math.sqrt(max(lam - variance, 0))
    *costs, lowest = sigma.call("cost", *([x, lam, variance] for x in [*curve[:, 0].tolist(), gain]))
    assert curve[:, 1] == pytest.approx(costs, abs=0.01 * height)
    circles = np.concatenate(landscape["circle live-orange"])
    assert sorted({round(abs(x), 2) for x in circles[:, 0]}) == pytest.approx([gain], abs=0.02)
    assert circles[:, 1] == pytest.approx([curve[:, 1].min()] * len(circles), abs=0.01 * height)
    title = right.locator(".live-title").inner_text()
    if gain:
        assert numbers(title) == pytest.approx([5, -lowest], rel=0.01)
    else:
        assert "does not pay" in title


@pytest.mark.parametrize("scale", [0.12, 0.75, 1.3, 10.0, 18.0])
def test_drag_sigma_shows_the_nearest_trained_model(sigma, scale):
    """Its images, its draws with the noise of its scale, and what it pays."""
    sigma.set(math.log10(scale))
    ladder, pixels = read("ladder"), sigma.root.locator(".live-pixels")
    rung = min(ladder["rungs"], key=lambda rung: abs(math.log(rung["variance"] / scale**2)))
    originals, means = rows_of_images(ladder["images"]), rows_of_images(rung["means"])
    shown = canvas(pixels)[..., 0]
    assert torch.equal(shown[:28], originals) and torch.equal(shown[-28:], means)
    title = sigma.root.locator(".live-title").last.inner_text()
    expected = [rung["variance"], rung["kl"], rung["activeUnits"], 20, rung["sse"] / 784]
    assert numbers(title.replace("σ²", "")) == pytest.approx(expected, rel=0.01)
    box = sigma.root.get_by_label("show draws")
    box.check()
    noisy = canvas(pixels)[..., 0]
    box.uncheck()
    assert torch.equal(noisy[:28], originals)
    is_above = (noisy[-28:] > means).double()[(means > 100) & (means < 155)]
    assert is_above.numel() < 100 or 0.35 < is_above.mean() < 0.65
    white = (noisy[-28:] == 255).double()  # of Gaussian noise, what lies above 1
    below = torch.special.ndtr((1 - 0.5 / 255 - means / 255) / math.sqrt(rung["variance"]))
    assert white.mean().item() == pytest.approx((1 - below).mean().item(), abs=0.02)


def test_regression_draws_and_says_what_it_computes(regression):
    shown = regression.set(1.2, 0.4, math.log10(0.6))
    intercept, slope, sigma, sse = (shown[name] for name in ("intercept", "slope", "sigma", "sse"))
    left, right = drawn(regression.plots.nth(0)), drawn(regression.plots.nth(1))
    points = np.array(shown["points"])
    assert np.concatenate(left["circle live-handle"]) == pytest.approx(points, abs=0.01)
    (line,) = left["polyline live-stroke-blue"]
    assert line[:, 1] == pytest.approx(intercept + slope * line[:, 0], abs=0.02)
    sticks = np.array(left["path live-stroke-orange"])
    assert sticks[:, 0] == pytest.approx(points, abs=0.02)
    assert sticks[:, 1, 1] == pytest.approx(intercept + slope * points[:, 0], abs=0.02)
    (band,) = left["polygon live-band"]
    distance = band[:, 1] - intercept - slope * band[:, 0]
    assert sorted(distance) == pytest.approx([-sigma, -sigma, sigma, sigma], abs=0.02)

    (curve,), (dot,) = right["path live-stroke-blue"], right["circle live-orange"]
    nll = sse / (2 * curve[:, 0] ** 2) + len(points) / 2 * np.log(2 * np.pi * curve[:, 0] ** 2)
    assert curve[:, 1] == pytest.approx(nll, abs=0.02 * np.ptp(nll))
    assert dot[0] == pytest.approx([sigma, shown["nll"]], rel=0.02)
    title = regression.plots.nth(1).locator(".live-title").inner_text()
    assert numbers(title) == pytest.approx([math.sqrt(sse / len(points)), sigma], rel=1e-2)
    gradient = shown["gradient"]
    expected = [sse, shown["nll"], gradient["intercept"], gradient["slope"], gradient["logSigma"]]
    assert numbers(regression.reading) == pytest.approx(expected, rel=1e-2)

    halved = regression.set(1.2, 0.4, math.log10(0.3))
    ratio = (sigma / halved["sigma"]) ** 2
    for name in ["intercept", "slope"]:
        assert halved["gradient"][name] == pytest.approx(ratio * gradient[name])
    assert "Halving σ multiplies the first two by four." in regression.reading


def test_regression_starts_again_as_often_as_asked(regression):
    again = regression.root.get_by_role("button", name="start again")
    again.click()
    first = regression.state["points"]
    for _ in range(2):
        regression.press(regression.root.locator("circle[role=slider]").first, "PageUp")
        assert regression.state["points"][0][1] == pytest.approx(first[0][1] + 1)
        again.click()
        start = regression.state
        assert start["points"] == first
        assert [start[name] for name in ("intercept", "slope", "sigma")] == [1.5, 0.2, 1]


# --- what all of them share ------------------------------------------------------------------------------


def test_numbers_are_formatted_as_python_formats_them(page):
    values = [0.0, 1.0, -2.5, 392.0, 0.00127551, 1234.567, 99999.5, 123456.0, -0.07]
    shown = page.evaluate("values => values.map(v => vaecourse.live.format(v))", values)
    assert [float(text.replace("−", "-")) for text in shown] == [float(f"{value:.4g}") for value in values]


def test_noise_is_standard_normal(page):
    sample = torch.tensor(page.evaluate("Array.from({length: 20000}, vaecourse.live.normal(3))"))
    assert abs(sample.mean()) < 4 / math.sqrt(20000)
    assert abs(sample.square().mean() - 1) < 4 * math.sqrt(2 / 20000)
    assert abs(sample.pow(4).mean() - 3) < 4 * math.sqrt(96 / 20000)


def test_figures_say_what_they_are_without_scripts(browser, address):
    with contextlib.closing(browser.new_page(java_script_enabled=False)) as page:
        page.goto(f"{address}book/live_figures.html")
        assert page.get_by_text("This figure needs scripts").count() == 4


def test_figures_fit_a_phone_and_follow_a_finger(browser, address):
    phone = browser.new_page(viewport={"width": 320, "height": 900}, has_touch=True, is_mobile=True)
    with contextlib.closing(phone), opened(phone, f"{address}book/live_figures.html", width=320) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        plane = Figure(page, "latent-plane")
        page.touchscreen.tap(*place(plane.drag, 0.75, 0.75))
        assert "z = (2.0" in plane.reading
