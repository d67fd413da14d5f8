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

from tests.browser import ROOT, Watch, needs_browser
from vaecourse.datasets import mnist, to_unit_interval
from vaecourse.densities import gaussian_nll
from vaecourse.diagnosis import diagnose_loss
from vaecourse.models import LinearVAE, mlp_vae

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
    assert text.startswith("A VAE trained with σ² = 392: KL 0") or "0 of 20 latents active" in text
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
    set_range(figure.locator("input[type=range]").nth(2), -0.5)
    moved = compare(page)
    assert (moved["intercept"], moved["slope"]) == (line["intercept"], line["slope"])
    figure.get_by_role("button", name="best σ").click()
    assert compare(page)["gradient"]["logSigma"] == pytest.approx(0, abs=1e-9)
    assert compare(page)["sse"] == pytest.approx(line["sse"])


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
