"""The live figures, driven by mouse and keyboard in a real browser, against torch.

Runs after the build, in the stage ``site``.
"""

import base64
import itertools
import json
import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Locator, Page, expect
from torch import Tensor, nn

from tests.site.browser import ROOT, Watch, needs_browser
from vaecourse.datasets import mnist, to_unit_interval
from vaecourse.densities import gaussian_nll
from vaecourse.diagnosis import diagnose_loss
from vaecourse.linear_vae import LinearVAE
from vaecourse.models import mlp_vae

pytestmark = needs_browser
DATA = ROOT / "book" / "_static" / "live" / "data"


def read(name: str) -> dict:
    """The data that a page gets."""
    text = (DATA / f"{name}.js").read_text("utf-8")
    return json.loads(re.fullmatch(r"\(window\.vaecourse \?\?= \{\}\)\.\w+ = (.*);\n", text)[1])


def array(text: str, dtype: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype).copy())


@pytest.fixture(scope="module")
def page(browser: Browser, address: str) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    watch = Watch(page)
    page.goto(f"{address}book/live_figures.html")
    yield page
    page.close()
    assert watch.errors == []


def state(page: Page, name: str) -> dict:
    return page.evaluate("name => document.querySelector(name).state", name)


def set_range(control: Locator, value: float) -> None:
    """Move a range input to a value as a script would; keyboard and mouse are tried for themselves."""
    control.evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)


# --- the latent plane ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder() -> nn.Module:
    """The page's decoder in torch."""
    layers = read("plane")["layers"]
    model = mlp_vae(784, 2, hidden_dims=(256, 128)).decoder
    linears = [layer for layer in model.network if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for linear, packed in zip(linears, layers, strict=True):
            rows = array(packed["weights"], "i1").reshape(packed["outputs"], packed["inputs"])
            linear.weight.copy_(rows * array(packed["scales"], "<f4")[:, None])
            linear.bias.copy_(array(packed["biases"], "<f4"))
    return model


def test_latent_plane_decodes_as_torch_does(page, decoder):
    z = 2 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    shown = page.evaluate(
        "zs => zs.map(z => [...document.querySelector('latent-plane').decode(...z)])", z.tolist()
    )
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(shown), decoder(z), atol=1e-5, rtol=1e-5)


def test_latent_plane_belongs_to_the_test_images(decoder):
    """Decoding the codes gives the images back, with about the error that the model has learned to expect."""
    data = read("plane")
    codes = array(data["codes"], "<i2").reshape(-1, 2) * data["codeUnit"]
    images, labels = mnist("test")
    assert data["labels"] == "".join(str(int(label)) for label in labels[: len(codes)])
    with torch.no_grad():
        mse = (decoder(codes) - to_unit_interval(images[: len(codes)])).square().mean()
    assert 0.8 < mse / data["scale"] ** 2 < 1.15  # the scale is that of the training images


def test_latent_plane_follows_the_mouse_and_stays_inside(page):
    plane = page.locator("latent-plane .live-drag")
    plane.scroll_into_view_if_needed()
    box = plane.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"], steps=4)
    assert "z = (2.00, 2.00)" in page.locator("latent-plane .live-reading").inner_text()
    page.mouse.move(box["x"] + box["width"] + 80, box["y"] + 0.5 * box["height"], steps=4)
    page.mouse.up()
    assert "z = (4.00, " in page.locator("latent-plane .live-reading").inner_text()


def test_latent_plane_follows_the_keyboard(page, decoder):
    sliders = page.locator("latent-plane input[type=range]")
    for index in range(2):
        set_range(sliders.nth(index), 0.0)
    page.locator("latent-plane .live-drag").focus()
    for key in ["ArrowRight", "ArrowRight", "Shift+ArrowUp", "ArrowDown"]:
        page.keyboard.press(key)
    assert "z = (0.20, 0.40)" in page.locator("latent-plane .live-reading").inner_text()
    shown = torch.tensor(page.evaluate("[...document.querySelector('latent-plane').values]"))
    with torch.no_grad():
        torch.testing.assert_close(shown, decoder(torch.tensor([0.2, 0.4])), atol=1e-5, rtol=1e-5)
    expect(page.locator("latent-plane .live-spoken")).to_contain_text("(0.20, 0.40)")


def test_latent_plane_draws_with_the_scale_of_the_model(page):
    values = "[...document.querySelector('latent-plane').values]"
    mean = torch.tensor(page.evaluate(values))
    box = page.locator("latent-plane").get_by_label("show a draw")
    box.check()
    noise = torch.tensor(page.evaluate(values)) - mean
    box.uncheck()
    scale = read("plane")["scale"]
    assert abs(noise.mean()) < 4 * scale / 28
    assert abs(noise.std() / scale - 1) < 4 / math.sqrt(2 * 784)


# --- drag sigma ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def x_train() -> Tensor:
    return to_unit_interval(mnist("train")[0]).double()


@pytest.fixture(scope="module")
def eigenvalues(x_train) -> Tensor:
    return torch.linalg.eigvalsh(torch.cov(x_train.T, correction=0)).flip(0)


def test_spectrum_is_that_of_the_training_images(eigenvalues):
    shown = torch.tensor(read("spectrum")["eigenvalues"], dtype=torch.float64)
    torch.testing.assert_close(shown, eigenvalues.clamp(min=0), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.1, 0.3162, 1.0, 2.2, 2.5, 19.8])
def test_drag_sigma_weighs_and_counts_as_python_does(page, eigenvalues, sigma):
    set_range(page.locator("drag-sigma input[type=range]").first, math.log10(sigma))
    shown = state(page, "drag-sigma")
    variance = shown["variance"]
    assert variance == pytest.approx(sigma**2, rel=0.02)  # the slider has steps
    assert shown["active"] == int((eigenvalues > variance).sum())
    assert (shown["weight"], shown["share"]) == pytest.approx((1 / (2 * variance), 2 * variance / 784))
    reading = page.locator("drag-sigma .live-reading").inner_text()
    assert f"uses {min(shown['active'], 20)}." in reading


def test_drag_sigma_shows_what_the_printed_code_assumes(page):
    """Both losses of the line below the slider have the scale that the slider shows."""
    set_range(page.locator("drag-sigma input[type=range]").first, math.log10(0.5))
    line = page.locator("drag-sigma pre").inner_text()
    factor = float(re.search(r"sum\(\) \* ([\d.]+)", line)[1])
    share = float(re.search(r"mean\(\) \+ ([\d.e−]+)", line)[1].replace("−", "-"))
    scale = state(page, "drag-sigma")["sigma"]

    def kl(mu, logvar):
        return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()

    for loss in [
        lambda y, t, mu, logvar: (y - t).square().sum(1).mean() * factor + kl(mu, logvar),
        lambda y, t, mu, logvar: (y - t).square().mean() + share * kl(mu, logvar),
    ]:
        assert diagnose_loss(loss, data_dim=784, latent_dim=20).scale == pytest.approx(scale, rel=1e-3)


def test_drag_sigma_landscape_is_the_likelihood_of_a_linear_vae(page, eigenvalues):
    """For data along one direction: minus log-likelihood as a function of the gain, from its value at 0."""
    lam, variance = eigenvalues[2].item(), 0.4
    x = torch.tensor([[math.sqrt(lam), 0.0], [-math.sqrt(lam), 0.0]], dtype=torch.float64)

    def nll(gain):
        model = LinearVAE(2, 1, scale=math.sqrt(variance)).double()
        with torch.no_grad():
            model.decoder.weight.copy_(torch.tensor([[gain], [0.0]]))
            model.decoder.bias.zero_()
            return -model.log_likelihood(x).mean().item()

    gains = [0.0, 0.3, 1.0, 1.7, 3.0]
    shown = page.evaluate(
        "([ws, l, v]) => ws.map(w => document.querySelector('drag-sigma').cost(w, l, v))",
        [gains, lam, variance],
    )
    assert shown == pytest.approx([nll(gain) - nll(0.0) for gain in gains])


def test_drag_sigma_valleys_are_where_the_best_linear_vae_is(page, x_train):
    set_range(page.locator("drag-sigma input[type=range]").first, math.log10(0.7))
    set_range(page.locator("drag-sigma input[type=range]").nth(1), 3)
    shown = state(page, "drag-sigma")
    best = LinearVAE.from_ppca(x_train, 3, scale=shown["sigma"])
    assert shown["gain"] == pytest.approx(best.weight[:, 2].norm().item(), rel=1e-4)


def test_drag_sigma_shows_what_each_trained_model_pays(page):
    control = page.locator("drag-sigma input[type=range]").first
    control.focus()
    page.keyboard.press("Home")
    assert state(page, "drag-sigma")["rung"] == 0.01
    page.keyboard.press("End")
    assert state(page, "drag-sigma")["rung"] == 392
    text = page.locator("drag-sigma .live-title").last.inner_text()
    assert text.startswith("A VAE trained with σ² = 392: KL 0 nats, 0 of 20 latents active")
    control.scroll_into_view_if_needed()
    box = control.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert state(page, "drag-sigma")["sigma"] == pytest.approx(10**0.15, rel=0.1)


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


CHOICES = {
    "loss": ["squared", "absolute", "logits", "probabilities"],
    "pixels": ["sum", "mean"],
    "reconBatch": ["sum", "mean"],
    "latents": ["sum", "mean"],
    "klBatch": ["sum", "mean"],
}
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
@pytest.mark.parametrize("loss", CHOICES["loss"])
def test_calculator_finds_what_diagnose_loss_finds_in_the_code_it_prints(page, eigenvalues, loss, sizes):
    reductions = itertools.product(*list(CHOICES.values())[1:])
    cases = [
        {"loss": loss, **dict(zip(list(CHOICES)[1:], case, strict=True)), **sizes} for case in reductions
    ]
    answers = page.evaluate(
        "cases => cases.map(c => document.querySelector('loss-calculator').evaluate(c))", cases
    )
    for case, answer in zip(cases, answers, strict=True):
        found, dims = answer["found"], {"data_dim": sizes["dataDim"], "latent_dim": sizes["latentDim"]}
        spectrum = eigenvalues if sizes["dataDim"] == 784 else None
        truth = diagnose_loss(
            run_printed(answer["code"]), batch_size=sizes["batchSize"], eigenvalues=spectrum, **dims
        )
        assert (found["family"], found["isElbo"]) == (truth.family, truth.is_elbo), case
        assert found["numActive"] == truth.num_active, case
        for name, value in [
            ("scale", truth.scale),
            ("beta", truth.beta),
            ("reconWeight", truth.recon_weight),
            ("klWeight", truth.kl_weight),
        ]:
            assert (found[name] is None) == (value is None), (name, case)
            assert value is None or found[name] == pytest.approx(value, rel=1e-3), (name, case)


def test_calculator_without_a_kl_claims_no_scale(page):
    answer = page.evaluate("document.querySelector('loss-calculator').evaluate({klWeight: 0})")
    truth = diagnose_loss(run_printed(answer["code"]), data_dim=784, latent_dim=20)
    assert truth.kl_fault == "missing"
    assert (answer["found"]["scale"], answer["found"]["beta"], truth.scale) == (None, None, None)


def test_calculator_counts_the_directions_of_a_bernoulli(page, eigenvalues):
    text = page.evaluate(
        "document.querySelector('loss-calculator').evaluate({loss: 'logits', pixels: 'sum'})"
    )["text"]
    assert f"{int((eigenvalues > 0.25).sum())} directions vary by more than β/4" in text


def test_calculator_answers_the_keyboard_and_refuses_nonsense(page):
    calculator = page.locator("loss-calculator")
    calculator.get_by_label("reconstruction").focus()
    page.keyboard.press("ArrowDown")
    assert "laplace" in calculator.locator("table").inner_text()
    page.keyboard.press("ArrowUp")
    weight = calculator.get_by_label("KL weight")
    weight.fill("-1")
    assert calculator.get_by_text("a number from 0").is_visible()
    assert state(page, "loss-calculator")["options"]["klWeight"] == 1
    weight.fill("0.002")
    assert not calculator.get_by_text("a number from 0").is_visible()
    assert "σ = 0.8854" in calculator.locator("table").inner_text()  # sqrt(0.002 * 784 / 2)


# --- Gaussian regression ---------------------------------------------------------------------------------


def truth(shown: dict) -> dict:
    x, y = torch.tensor(shown["points"], dtype=torch.float64).T
    names = ["intercept", "slope"]
    intercept, slope = (torch.tensor(shown[name], dtype=torch.float64, requires_grad=True) for name in names)
    log_sigma = torch.tensor(math.log(shown["sigma"]), dtype=torch.float64, requires_grad=True)
    nll = gaussian_nll(y[:, None], (intercept + slope * x)[:, None], log_sigma.exp()).sum()
    gradient = torch.autograd.grad(nll, [intercept, slope, log_sigma])
    sse = (y - intercept - slope * x).square().sum().item()
    return {"sse": sse, "nll": nll.item(), "gradient": [value.item() for value in gradient]}


def compare(page: Page) -> dict:
    shown = state(page, "gaussian-regression")
    expected = truth(shown)
    assert (shown["sse"], shown["nll"]) == pytest.approx((expected["sse"], expected["nll"]))
    assert list(shown["gradient"].values()) == pytest.approx(expected["gradient"], abs=1e-9)
    return shown


def test_regression_measures_as_torch_does_after_mouse_and_keyboard(page):
    before = compare(page)
    point = page.locator("gaussian-regression circle[role=slider]").nth(3)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 30, box["y"] - 60, steps=5)
    page.mouse.up()
    dragged = compare(page)
    assert dragged["points"][3][1] > before["points"][3][1] + 1
    assert dragged["points"][3][0] == before["points"][3][0]
    point.focus()
    page.keyboard.press("PageDown")
    assert compare(page)["points"][3][1] == pytest.approx(dragged["points"][3][1] - 1)
    assert float(point.get_attribute("aria-valuenow")) == pytest.approx(dragged["points"][3][1] - 1, abs=0.01)
    page.locator("gaussian-regression input[type=range]").nth(1).focus()
    page.keyboard.press("ArrowRight")
    assert compare(page)["slope"] == pytest.approx(dragged["slope"] + 0.01)


def test_regression_buttons_reach_the_minimum(page):
    figure = page.locator("gaussian-regression")
    figure.get_by_role("button", name="best line").click()
    line = compare(page)
    gradient = line["gradient"]
    assert (gradient["intercept"], gradient["slope"]) == pytest.approx((0, 0), abs=1e-9)
    shown = figure.locator("input[type=range]").nth(1).get_attribute("aria-valuetext").replace("−", "-")
    assert float(shown) == pytest.approx(line["slope"], rel=0.01)
    set_range(figure.locator("input[type=range]").nth(2), -0.5)
    moved = compare(page)
    assert (moved["intercept"], moved["slope"]) == (line["intercept"], line["slope"])
    figure.get_by_role("button", name="best σ").click()
    assert compare(page)["gradient"]["logSigma"] == pytest.approx(0, abs=1e-9)
    assert compare(page)["sse"] == pytest.approx(line["sse"])
    assert "intercept 0, slope 0, log σ 0." in figure.locator(".live-reading").inner_text()


# --- what a reader sees ----------------------------------------------------------------------------------


def drawn(plot: Locator) -> dict:
    """Marks of a plot by their class, in the data coordinates that its tick labels give."""
    ticks = plot.locator(".live-frame text:not([transform])").evaluate_all(
        "all => all.map(t => [t.getAttribute('text-anchor'), +t.getAttribute('x'), +t.getAttribute('y'),"
        " t.textContent.replace('−', '-')])"
    )
    scales = []
    for axis, (anchor, shift) in enumerate([("middle", 0), ("end", -4)]):
        found = [tick for tick in ticks if tick[0] == anchor and re.fullmatch(r"-?[\d.]+(e-?\d+)?", tick[3])]
        at = np.array([tick[1 + axis] + shift for tick in found])
        values = np.array([float(tick[3]) for tick in found])
        is_log = (values > 0).all() and not np.allclose(np.diff(values, 2), 0)
        is_log |= len(values) == 2 and values[1] == 10 * values[0]
        slope, intercept = np.polyfit(at, np.log10(values) if is_log else values, 1)
        assert slope > 0 if axis == 0 else slope < 0  # to the right, and upwards
        scales.append((slope, intercept, is_log))

    def place(points: list) -> np.ndarray:
        values = np.array(points, dtype=float).reshape(-1, 2) * [s[0] for s in scales]
        values += [s[1] for s in scales]
        for axis, (_, _, is_log) in enumerate(scales):
            if is_log:
                values[:, axis] = 10 ** values[:, axis]
        return values

    marks = plot.locator("svg > g:not(.live-frame) *").evaluate_all(
        """all => all.map(e => {
             const n = (name) => +e.getAttribute(name), shape = e.tagName;
             const text = e.getAttribute('d') ?? e.getAttribute('points') ?? '';
             const corners = [n('x'), n('y'), n('x') + n('width'), n('y') + n('height')];
             const simple = {rect: corners, circle: [n('cx'), n('cy')]}[shape];
             const pairs = simple ?? (text.match(/-?[\\d.]+/g) ?? []).map(Number);
             return [`${shape} ${e.getAttribute('class')}`, pairs];
           })"""
    )
    result: dict = {}
    for name, pairs in marks:
        if not name.startswith(("text", "g ")):
            result.setdefault(name, []).append(place(pairs))
    return result


def grey(canvas: Locator) -> Tensor:
    """What a canvas shows, from 0 (black) to 255."""
    pixels = canvas.evaluate(
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 == 0)"
    )
    height = int(canvas.get_attribute("height") or 0)
    return torch.tensor(pixels, dtype=torch.float64).reshape(height, -1)


def ink(canvas: Locator) -> Tensor:
    """Where a canvas is painted on."""
    alpha = canvas.evaluate(
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 == 3)"
    )
    return torch.tensor(alpha).reshape(int(canvas.get_attribute("height") or 0), -1) > 128


def in_words(text: str) -> list[float]:
    """The numbers of a read-out."""
    return [
        float(number.replace("−", "-")) for number in re.findall(r"−?\d[\d.]*(?<!\.)(?:e[−+]?\d+)?", text)
    ]


def test_latent_plane_paints_what_it_computes(page):
    for sliders in [(1.5, -1.0), (-2.0, 0.5)]:
        for index, value in enumerate(sliders):
            set_range(page.locator("latent-plane input[type=range]").nth(index), value)
        reading = page.locator("latent-plane .live-reading").inner_text()
        assert in_words(reading)[:2] == list(sliders)
        assert in_words(reading)[2] == pytest.approx(math.hypot(*sliders), rel=1e-2)
        values = torch.tensor(
            page.evaluate("[...document.querySelector('latent-plane').values]"), dtype=torch.float64
        )
        shown = grey(page.locator("latent-plane .live-pixels"))
        assert (shown.flatten() - 255 * values.clamp(0, 1)).abs().max() <= 0.51
        assert "Shown: the decoded mean." in reading
        data = read("plane")
        codes = array(data["codes"], "<i2").reshape(-1, 2) * data["codeUnit"]
        distance, index = (codes - torch.tensor(sliders)).norm(dim=1).min(0)
        said = re.search(r"images is a (\d), (\S+) away", reading)
        assert said and said[1] == data["labels"][index]
        assert float(said[2]) == pytest.approx(distance.item(), rel=0.06)
    box = page.locator("latent-plane").get_by_label("show a draw")
    box.check()
    assert (
        f"a draw, the mean plus noise of scale {read('plane')['scale']:.3g}"
        in page.locator("latent-plane .live-reading").inner_text()
    )
    box.uncheck()


def test_latent_plane_draws_codes_circles_and_ring_where_they_belong(page):
    canvas = page.locator("latent-plane .live-drag")
    size = int(canvas.get_attribute("width") or 0)
    for index, value in enumerate([3.0, -2.5]):
        set_range(page.locator("latent-plane input[type=range]").nth(index), value)
    box = page.locator("latent-plane").get_by_label("show where test images lie")
    with_codes = ink(canvas)
    box.uncheck()
    without = ink(canvas)
    box.check()

    def at(first: float, second: float) -> tuple[slice, slice]:
        row, column = round(size * (4 - second) / 8), round(size * (first + 4) / 8)
        return slice(row - 4, row + 5), slice(column - 4, column + 5)

    assert without[at(3.0, -2.5)].all()
    assert not without[at(3.0, 2.5)].any()
    for first, second in [(1, 0), (0, 1), (-2, 0), (0, -2)]:
        assert without[at(first, second)].any()
    assert not without[at(0, 0)].any() and not without[at(3, 0)].any()
    data = read("plane")
    codes = array(data["codes"], "<i2").reshape(-1, 2).numpy() * data["codeUnit"]
    counts = np.histogram2d(-codes[:, 1], codes[:, 0], bins=16, range=[[-4, 4], [-4, 4]])[0]
    painted = (with_codes & ~without).reshape(16, size // 16, 16, size // 16).sum((1, 3)).numpy()
    ranks = [counts.flatten().argsort().argsort(), painted.flatten().argsort().argsort()]
    assert np.corrcoef(*ranks)[0, 1] > 0.8


@pytest.mark.parametrize("sigma", [0.2, 0.6, 3.0])
def test_drag_sigma_draws_spectrum_and_landscape(page, eigenvalues, sigma):
    control, chosen = page.locator("drag-sigma input[type=range]").all()
    set_range(control, math.log10(sigma))
    set_range(chosen, 5)
    shown, lam = state(page, "drag-sigma"), eigenvalues[4].item()
    assert float(control.get_attribute("aria-valuetext") or "") == pytest.approx(shown["sigma"], rel=0.01)
    assert in_words(chosen.get_attribute("aria-valuetext") or "") == pytest.approx([5, lam], rel=0.01)
    plots = page.locator("drag-sigma .live-plot:has(svg)")
    spectrum, landscape = drawn(plots.nth(0)), drawn(plots.nth(1))
    blue = [mark[0, 1] for mark in spectrum.get("rect live-blue", [])]
    faint = [mark[0, 1] for mark in spectrum.get("rect live-faint", [])]
    assert blue + faint == pytest.approx(eigenvalues[:60].tolist(), rel=0.01)
    assert len(blue) == min(shown["active"], 60)
    (level,) = spectrum["path live-stroke-orange"]
    assert level[:, 1] == pytest.approx([shown["variance"]] * 2, rel=0.01)
    assert f"{shown['active']} direction" in plots.nth(0).locator(".live-title").inner_text()

    variance = shown["variance"]

    def cost(gain: np.ndarray) -> np.ndarray:
        total = gain**2 + variance
        return 0.5 * (np.log(total / variance) + lam / total - lam / variance)

    (curve,) = landscape["path live-stroke-blue"]
    height = np.ptp(curve[:, 1])
    assert curve[:, 1] == pytest.approx(cost(curve[:, 0]), abs=0.01 * height)
    gain = math.sqrt(max(lam - variance, 0))
    circles = np.concatenate(landscape["circle live-orange"])
    assert sorted({round(abs(x), 2) for x in circles[:, 0]}) == pytest.approx([gain], abs=0.02)
    assert circles[:, 1] == pytest.approx([curve[:, 1].min()] * len(circles), abs=0.01 * height)
    title = plots.nth(1).locator(".live-title").inner_text()
    if gain:
        assert in_words(title) == pytest.approx([5, -float(cost(np.array(gain)))], rel=0.01)
    else:
        assert "does not pay" in title


def test_drag_sigma_shows_the_nearest_trained_model(page):
    """Its images, its draws with the noise of its scale, and what it pays."""
    ladder, control = read("ladder"), page.locator("drag-sigma input[type=range]").first
    canvas, box = (
        page.locator("drag-sigma .live-pixels"),
        page.locator("drag-sigma").get_by_label("show draws"),
    )
    originals = array(ladder["images"], "u1").reshape(10, 28, 28).transpose(0, 1).reshape(28, 280)
    for sigma in [0.12, 0.75, 1.3, 10.0, 18.0]:
        set_range(control, math.log10(sigma))
        rung = min(ladder["rungs"], key=lambda rung: abs(math.log(rung["variance"] / sigma**2)))
        means = array(rung["means"], "u1").reshape(10, 28, 28).transpose(0, 1).reshape(28, 280)
        shown = grey(canvas)
        assert torch.equal(shown[:28], originals.double()) and torch.equal(shown[-28:], means.double())
        title = page.locator("drag-sigma .live-title").last.inner_text()
        expected = [rung["variance"], rung["kl"], rung["activeUnits"], 20, rung["sse"] / 784]
        assert in_words(title.replace("σ²", "")) == pytest.approx(expected, rel=0.01)
        box.check()
        noisy, scale = grey(canvas), math.sqrt(rung["variance"])
        box.uncheck()
        assert torch.equal(noisy[:28], originals.double())
        is_above = (noisy[-28:] > means).double()[(means > 100) & (means < 155)]
        assert is_above.numel() < 100 or 0.35 < is_above.mean() < 0.65
        white = (noisy[-28:] == 255).double()  # of Gaussian noise, what lies above 1
        below = torch.special.ndtr((1 - 0.5 / 255 - means.double() / 255) / scale)
        assert white.mean().item() == pytest.approx((1 - below).mean().item(), abs=0.02)


def test_regression_draws_and_says_what_it_computes(page):
    figure = page.locator("gaussian-regression")
    for index, value in enumerate([1.2, 0.4, math.log10(0.6)]):
        set_range(figure.locator("input[type=range]").nth(index), value)
    shown = state(page, "gaussian-regression")
    intercept, slope, sigma = shown["intercept"], shown["slope"], shown["sigma"]
    plots = figure.locator(".live-plot:has(svg)")
    left, right = drawn(plots.nth(0)), drawn(plots.nth(1))
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

    count, sse = len(points), shown["sse"]
    (curve,), (dot,) = right["path live-stroke-blue"], right["circle live-orange"]
    nll = sse / (2 * curve[:, 0] ** 2) + count / 2 * np.log(2 * np.pi * curve[:, 0] ** 2)
    assert curve[:, 1] == pytest.approx(nll, abs=0.02 * np.ptp(nll))
    assert dot[0] == pytest.approx([sigma, shown["nll"]], rel=0.02)
    title = plots.nth(1).locator(".live-title").inner_text()
    assert in_words(title) == pytest.approx([math.sqrt(sse / count), sigma], rel=1e-2)
    gradient = shown["gradient"]
    said = in_words(figure.locator(".live-reading").inner_text())
    expected = [sse, shown["nll"], gradient["intercept"], gradient["slope"], gradient["logSigma"]]
    assert said == pytest.approx(expected, rel=1e-2)

    set_range(figure.locator("input[type=range]").nth(2), math.log10(0.3))
    halved = state(page, "gaussian-regression")
    ratio = (sigma / halved["sigma"]) ** 2
    for name in ["intercept", "slope"]:
        assert halved["gradient"][name] == pytest.approx(ratio * gradient[name])
    assert "Halving σ multiplies the first two by four." in figure.locator(".live-reading").inner_text()


def test_regression_starts_again_as_often_as_asked(page):
    figure = page.locator("gaussian-regression")
    again = figure.get_by_role("button", name="start again")
    again.click()
    first = state(page, "gaussian-regression")["points"]
    for _ in range(2):
        figure.locator("circle[role=slider]").first.focus()
        page.keyboard.press("PageUp")
        assert state(page, "gaussian-regression")["points"][0][1] == pytest.approx(first[0][1] + 1)
        again.click()
        start = state(page, "gaussian-regression")
        assert start["points"] == first
        assert [start[name] for name in ("intercept", "slope", "sigma")] == [1.5, 0.2, 1]


def test_calculator_shows_what_it_finds_for_the_chosen_options(page):
    """Each control sets the option that its label names, and the table says what was found."""
    figure = page.locator("loss-calculator")

    def control(label: str) -> Locator:
        return figure.locator(f".live-field:has(> span:text-is('{label}'))").locator("select, input")

    start = state(page, "loss-calculator")["options"]
    selects = {
        "over the D numbers": "pixels",
        "over the batch": "reconBatch",
        "KL over the K latents": "latents",
        "KL over the batch": "klBatch",
    }
    for label, name in selects.items():
        for value in ["sum", "mean", start[name]]:
            control(label).select_option(value)
            assert state(page, "loss-calculator")["options"] == {**start, name: value}
    numbers = {
        "weight": ("reconWeight", 0.5),
        "KL weight": ("klWeight", 0.001),
        "D": ("dataDim", 784),
        "K": ("latentDim", 10),
        "batch size": ("batchSize", 64),
    }
    for label, (name, value) in numbers.items():
        control(label).fill(str(value))
        assert state(page, "loss-calculator")["options"][name] == value

    def rows() -> dict[str, str]:
        cells = figure.locator("tbody tr").evaluate_all(
            "all => all.map(row => [...row.children].map(cell => cell.textContent))"
        )
        return dict(cells)

    found = state(page, "loss-calculator")["found"]  # weights 0.5 / 784 and 0.001: the variance is 0.784
    assert rows() == {
        "likelihood": "gaussian",
        "scale": "σ = 0.8854",
        "β": "0.784",
        "weight of the summed error": f"{0.5 / 784:.4g}",
        "weight of the summed KL": "0.001",
        "negative ELBO": "yes",
        "active latents of a linear VAE on MNIST": "10",
    }
    assert found["beta"] == pytest.approx(0.784)
    assert "σ = 0.8854 (σ² = 0.784)" in figure.locator(".live-reading").inner_text()
    assert "changes with the batch size" not in figure.locator(".live-reading").inner_text()
    control("KL over the batch").select_option("sum")
    assert "β changes with the batch size; the values are for 64 examples" in figure.inner_text()
    control("KL over the batch").select_option("mean")
    control("reconstruction").select_option("logits")
    assert rows()["negative ELBO"] == "no" and rows()["scale"] == "none"
    control("reconstruction").select_option("squared")
    for label, (name, _) in numbers.items():
        control(label).fill(str(start[name]))
    assert state(page, "loss-calculator")["options"] == start


# --- what all of them share ------------------------------------------------------------------------------


def test_numbers_are_formatted_as_python_formats_them(page):
    values = [0.0, 1.0, -2.5, 392.0, 0.00127551, 1234.567, 99999.5, 123456.0, -0.07]
    shown = page.evaluate("values => values.map(v => vaecourse.live.format(v))", values)
    assert [float(text.replace("−", "-")) for text in shown] == [float(f"{value:.4g}") for value in values]


def test_noise_is_standard_normal(page):
    draws = page.evaluate(
        "(() => { const n = vaecourse.live.normal(3); return Array.from({length: 20000}, n); })()"
    )
    sample = torch.tensor(draws)
    assert abs(sample.mean()) < 4 / math.sqrt(20000)
    assert abs(sample.square().mean() - 1) < 4 * math.sqrt(2 / 20000)
    assert abs(sample.pow(4).mean() - 3) < 4 * math.sqrt(96 / 20000)


def test_figures_say_what_they_are_without_scripts(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}book/live_figures.html")
    assert page.get_by_text("This figure needs scripts").count() == 4
    context.close()


def test_figures_fit_a_phone_and_follow_a_finger(browser, address):
    context = browser.new_context(viewport={"width": 320, "height": 700}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(f"{address}book/live_figures.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    plane = page.locator("latent-plane .live-drag")
    plane.scroll_into_view_if_needed()
    box = plane.bounding_box()
    page.touchscreen.tap(box["x"] + 0.75 * box["width"], box["y"] + 0.75 * box["height"])
    assert "z = (2.0" in page.locator("latent-plane .live-reading").inner_text()
    context.close()
