"""What can be wrong with a benchmark: unequal contenders, a wrong count, a wrong table."""

import gzip
import json
import math
import platform
import subprocess
import sys
import urllib.request
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.benchmarks import __main__ as command
from tests.benchmarks import report, website
from tests.benchmarks.ceilings import step_flops, step_products
from tests.benchmarks.growth import exponents
from tests.benchmarks.libraries import pyro_svi, pythae_vae
from tests.benchmarks.likelihood import checked_distance
from tests.benchmarks.machine import machine, missing, versions
from tests.benchmarks.measuring import (
    Settings,
    alternate,
    growth_exponent,
    ratios,
    seconds_per_call,
    steady_rate,
)
from tests.benchmarks.record import command as command_of_run
from tests.benchmarks.record import record as run_record
from tests.benchmarks.record import write_weights
from tests.benchmarks.report import Goal, Outcome, Row
from tests.benchmarks.task import BATCH_SIZE, DATA_DIM, LATENT_DIM, new_vae
from tests.benchmarks.textbook import Images, TextbookVAE, textbook_loss, to_tensor
from tests.benchmarks.website import look_outcome, no_lighthouse, stock_config, summary
from tests.benchmarks.worker import RELAY
from vaecourse.cli import main
from vaecourse.cli.configuration import RunConfig
from vaecourse.cli.runs import evaluate, train
from vaecourse.datasets import to_unit_interval
from vaecourse.evaluation import nll_estimate
from vaecourse.models import VAE
from vaecourse.objectives import negative_elbo

# From the definition of the network 784-400-(2 x 20)-400-784: a multiply-add is 2 operations.
LAYERS = [784 * 400, 400 * 40, 20 * 400, 400 * 784]
# Forward, gradients of the weights, and of all inputs but the images.
FLOPS_PER_IMAGE = 2 * (sum(LAYERS) + sum(LAYERS) + sum(LAYERS[1:]))


@pytest.fixture
def batch() -> Tensor:
    return torch.rand(7, DATA_DIM, generator=torch.Generator().manual_seed(0))


def seeded(loss: Callable[[], Tensor | float]) -> float:
    """Value of a loss with the noise that every contender here draws in the same way."""
    torch.manual_seed(3)
    with torch.no_grad():
        return float(loss())


def ours(vae: VAE, x: Tensor) -> float:
    return seeded(lambda: negative_elbo(vae, x))


# ---- the contenders do the same ----


def as_textbook(vae: VAE) -> TextbookVAE:
    """The textbook's network with our weights; its second head puts out the log of the variance."""
    model = TextbookVAE()
    (first, _, heads), (third, _, fourth) = vae.encoder.network, vae.decoder.network
    model.fc1, model.fc3, model.fc4 = first, third, fourth
    with torch.no_grad():
        model.fc21.weight.copy_(heads.weight[:LATENT_DIM])
        model.fc21.bias.copy_(heads.bias[:LATENT_DIM])
        model.fc22.weight.copy_(2 * heads.weight[LATENT_DIM:])
        model.fc22.bias.copy_(2 * heads.bias[LATENT_DIM:])
    return model


def test_textbook_loss_is_our_objective(batch):
    vae = new_vae()
    model = as_textbook(vae)
    theirs = seeded(lambda: textbook_loss(*reordered(model(batch), batch)) / len(batch))
    assert theirs == pytest.approx(ours(vae, batch), rel=1e-6)


def reordered(outputs: tuple[Tensor, Tensor, Tensor], x: Tensor) -> tuple[Tensor, ...]:
    recon_x, mu, logvar = outputs
    return recon_x, x, mu, logvar


def test_textbook_network_has_as_many_weights_as_ours():
    counts = [sum(p.numel() for p in model.parameters()) for model in (TextbookVAE(), new_vae())]
    assert counts[0] == counts[1]


def test_textbook_images_are_our_images():
    levels = torch.arange(2 * 28 * 28, dtype=torch.uint8).view(2, 28, 28)
    images = Images(levels.numpy(), to_tensor)
    assert len(images) == 2
    assert images[1][0].shape == (1, 28, 28)
    torch.testing.assert_close(images[1][0].flatten(), to_unit_interval(levels)[1])


def needs(module: str) -> None:
    if reason := missing(module):
        pytest.skip(reason)


@pytest.mark.filterwarnings("default")  # warnings of other people's modules are theirs
def test_pythae_loss_is_our_objective(batch):
    needs("pythae")
    vae = new_vae()
    model = pythae_vae(vae)
    assert seeded(lambda: model({"data": batch}).loss) == pytest.approx(ours(vae, batch), rel=1e-6)


@pytest.mark.filterwarnings("default")
def test_pythae_likelihood_is_our_estimate(batch):
    needs("pythae")
    vae, num_samples = new_vae().eval(), 50
    values = [-float(pythae_vae(vae).get_nll(batch, num_samples, num_samples)) for _ in range(5)]
    estimates = [nll_estimate(vae, batch, num_samples=num_samples).nats for _ in range(5)]
    checked_distance(estimates, values)
    assert np.mean(values) == pytest.approx(np.mean(estimates), rel=0.01)


@pytest.mark.filterwarnings("default")
def test_pyro_loss_is_our_objective(batch):
    needs("pyro")
    vae = new_vae()
    svi = pyro_svi(vae)
    theirs = seeded(lambda: svi.evaluate_loss(batch) / len(batch))
    assert theirs == pytest.approx(ours(vae, batch), rel=1e-6)


def test_values_that_disagree_are_an_error():
    assert checked_distance([1.0, 2.0, 3.0], [1.1, 2.1, 3.1]) < 1
    with pytest.raises(ArithmeticError, match="standard errors apart"):
        checked_distance([1.0, 1.1, 0.9], [2.0, 2.1, 1.9])


# ---- counts and ceilings ----


def test_flops_are_those_counted_by_hand():
    assert FLOPS_PER_IMAGE == 3_280_000
    assert step_flops(new_vae(), torch.rand(BATCH_SIZE, DATA_DIM)) == BATCH_SIZE * FLOPS_PER_IMAGE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_recorded_products_are_those_of_a_step(batch, dtype):
    recorder = step_products(new_vae(), batch, dtype)
    operands = [args[-2:] for _, args in recorder.products]  # addmm begins with the bias
    assert {operand.dtype for pair in operands for operand in pair} == {dtype}
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in operands)
    assert (len(operands), flops) == (4 + 4 + 3, len(batch) * FLOPS_PER_IMAGE)
    recorder.replay()


# ---- what is made of the times ----


def test_contenders_alternate():
    order = []
    result = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(runs) for name, runs in result.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_round_by_round():
    # a slow second round slows both; the ratio of the medians would be the same by accident only
    assert ratios([10.0, 2.0, 12.0], [5.0, 1.0, 4.0]) == [2.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ratios([1.0, 2.0], [1.0])


def test_rate_leaves_out_the_first_epoch():
    assert steady_rate(100, [50.0, 2.0, 1.0, 4.0]) == 50.0
    with pytest.raises(ValueError, match="two are needed"):
        steady_rate(100, [1.0])


def test_growth_exponent_of_a_power_is_its_exponent():
    sizes = [1.0, 2.0, 8.0]
    assert growth_exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert exponents({"1": [5.0, 1.0], "2": [10.0, 1.0], "4": [20.0, 1.0]}) == pytest.approx([1.0, 0.0])


def test_short_calls_are_timed():
    assert 0 < seconds_per_call(lambda: None, 1, min_run_time=0.001) < 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a peculiarity of Linux")
def test_memory_of_a_worker_is_its_own():
    import resource  # Windows has none

    ballast = bytearray(b"x") * 200_000_000
    code = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run([*RELAY, sys.executable, "-c", code], check=True, capture_output=True, text=True)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert int(done.stdout) < 100_000 < len(ballast) / 1024 < own


# ---- the website ----


def test_stock_site_has_the_text_and_none_of_the_looks(tmp_path):
    import yaml

    config = yaml.safe_load(stock_config(tmp_path / "stock").read_text("utf-8"))
    ours = yaml.safe_load((website.ROOT / "_config.yml").read_text("utf-8"))
    assert ours["sphinx"]["config"].keys() - config["sphinx"]["config"].keys() == set(website.LOOK)
    assert (
        set(ours["sphinx"]["extra_extensions"]) - set(config["sphinx"]["extra_extensions"]) == website.ADDED
    )
    assert list(config["sphinx"]["local_extensions"]) == ["stock_site"]
    same = ours.keys() - {"sphinx"}
    assert {name: config[name] for name in same} == {name: ours[name] for name in same}


def test_host_compresses_text_and_lets_browsers_keep_it(tmp_path):
    (tmp_path / "page.html").write_text("a" * 1000)
    (tmp_path / "icon.png").write_bytes(b"b" * 1000)
    with website.serve(tmp_path, website.Host) as address:
        for name, encoding in [("page.html", "gzip"), ("icon.png", None)]:
            request = urllib.request.Request(address + name, headers={"Accept-Encoding": "gzip"})
            with urllib.request.urlopen(request) as answer:
                assert (answer.headers["Content-Encoding"], answer.headers["Cache-Control"]) == (
                    encoding,
                    "max-age=600",
                )
                body = answer.read()
            assert (gzip.decompress(body) if encoding else body) == (tmp_path / name).read_bytes()


def lighthouse_report(points: float) -> dict:
    """The parts of a report of Lighthouse that are read."""
    metrics = ["first-contentful-paint", "largest-contentful-paint"]
    metrics += ["total-blocking-time", "cumulative-layout-shift"]
    files = [
        {"url": "http://a/page", "transferSize": 1000, "resourceSize": 4000},
        {"url": "http://a/gone"},
        {"url": "data:image/png", "transferSize": 0, "resourceSize": 500},
    ]
    return {
        "requestedUrl": "http://a/page",
        "categories": {key: {"score": points} for key in ["performance", *website.CATEGORIES]},
        "audits": {
            "network-requests": {"details": {"items": files}},
            **{name: {"numericValue": 2000 * points} for name in metrics},
        },
    }


def test_rows_compare_the_site_with_the_stock_theme():
    ours, stock = summary(lighthouse_report(0.5)), summary(lighthouse_report(1.0))
    assert (ours.scores["seo"], ours.transferred, ours.raw, ours.requests) == (50, 1, 4, 2)
    sites = {website.OURS: ours, website.STOCK: stock}
    looks = {("p", site, form): [one] for form in website.FORM_FACTORS for site, one in sites.items()}
    rows = {row.what: list(row.values) for row in look_outcome(looks).rows}
    assert rows["p, this site: performance, desktop"] == [50]
    assert rows["p, this site / stock theme: largest paint, mobile"] == [0.5]
    assert rows["p, this site / stock theme: transferred"] == [1]
    with pytest.raises(RuntimeError, match="could not judge http://a/page: no page"):
        summary(lighthouse_report(1.0) | {"runtimeError": {"message": "no page"}})


@pytest.mark.parametrize(("present", "word"), [([], "Chromium"), (["chromium"], "npx")])
def test_missing_program_says_what_to_install(monkeypatch, present, word):
    monkeypatch.setattr(website, "CHROMIUM", next(iter(present), None))
    monkeypatch.setattr(website.shutil, "which", lambda name: name if name in present else None)
    assert word in no_lighthouse()
    assert "to install: " in no_lighthouse()


# ---- rows, table, file ----

ROWS = [
    Row("a / b", "×", Goal("≥", 4), [4.5, 3.0, 5.0]),
    Row("c", "images/s", None, [61234.5]),
    Row("d / e", "×", Goal("≤", 1.15), [1.2, 1.3, 1.1]),
    Row("f", "s", Goal("≤", 2), (), "g is missing"),
]


def record(rows: list[Row] = ROWS) -> dict:
    where = {"cpu": "C", "cores": 2, "instructions": "I", "memory_gb": 8.0, "system": "S"}
    return {
        "date": "2026-01-31",
        "machine": where,
        "versions": {"python": "3.11", "torch": "2.13"},
        "threads": 2,
        "is_quick": False,
        "load": 0.1,
        "rows": [row.as_json() for row in rows],
        "measurements": {"c": [61234.5]},
    }


def test_row_holds_median_range_and_verdict():
    assert ROWS[0].as_json() == {
        "what": "a / b", "unit": "×", "median": 4.5, "lowest": 3.0, "highest": 5.0,
        "goal": {"relation": "≥", "value": 4}, "reached": True, "not_run": None,
    }  # fmt: skip
    assert [row.as_json()["reached"] for row in ROWS] == [True, None, False, None]


def test_a_row_that_was_not_run_has_no_figure():
    row = ROWS[3].as_json()
    assert (row["median"], row["not_run"]) == (None, "g is missing")
    assert report.cells("n", row) == ["n", "f", "not run", "–", "≤ 2 s", "–"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.012345, "0.0123"),
        (4.5, "4.50"),
        (61234.5, "61,234"),
        (-0.5, "-0.500"),
        (1e6, "1,000,000"),
    ],
)
def test_numbers_have_three_digits_at_least(value, text):
    assert report.number(value) == text


def test_terminal_table_is_aligned():
    lines = report.text_table({"n": record()}).splitlines()
    column = lines[0].index("median")
    assert {line[column - 2 : column] for line in lines[: 2 + len(ROWS)]} == {"  "}
    assert [line.split()[-1] for line in lines[2 : 2 + len(ROWS)]] == ["yes", "–", "no", "–"]
    assert "not run: g is missing" in lines


def test_markdown_table_has_the_same_cells():
    lines = report.markdown_table({"n": record()}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: 2 + len(ROWS)]]
    assert cells[0] == report.HEADER
    assert cells[2:] == report.all_cells({"n": record()})
    assert "- Not run: g is missing" in lines


def test_benchmarks_of_one_run_share_a_line():
    later = record() | {"date": "2026-02-01", "is_quick": True, "load": 3.0}
    lines = report.provenance({"a": record(), "b": record(), "c": later})
    assert [line.partition(":")[0] for line in lines] == ["a, b", "c"]
    assert "quick" in lines[1]
    assert "Other work" in lines[1]


def test_records_survive_the_file(tmp_path):
    path = tmp_path / "new" / "results.json"
    assert report.read_records(path) == {}
    report.write_records(path, {"n": record()})
    assert report.read_records(path) == {"n": record()}
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 0"):
        report.read_records(path)


def test_table_replaces_what_stands_between_the_markers():
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    new = report.page_with_table(page, {"n": record()})
    assert new.startswith("before\n")
    assert new.endswith("\nafter\n")
    assert "old" not in new
    assert "| n | a / b | 4.50 × | 3.00 to 5.00 | ≥ 4 × | yes |" in new.splitlines()
    assert report.page_with_table(new, {"n": record()}) == new
    with pytest.raises(ValueError, match="each marker once"):
        report.page_with_table("nothing", {})


def test_page_shows_the_stored_results():
    records, page = report.read_records(command.PAGE_RESULTS), command.PAGE.read_text("utf-8")
    assert records
    assert set(records) <= set(command.BENCHMARKS)
    expected = report.page_with_table(page, records)
    assert page == expected, "the page is not that of the stored results: python -m tests.benchmarks --page"


def test_page_explains_every_benchmark():
    page = command.PAGE.read_text("utf-8")
    assert [name for name in command.BENCHMARKS if f"`{name}`" not in page] == []


# ---- machine and command line ----


def test_description_names_no_single_machine():
    text = json.dumps([machine(), versions()])
    assert machine()["cores"] >= 1
    assert versions()["torch"] == torch.__version__
    assert len(platform.node()) < 4 or platform.node() not in text


def test_missing_module_says_how_to_install_it():
    assert missing("torch", "json") is None
    reason = missing("torch", "no_such_module")
    assert reason.startswith("no_such_module cannot be imported; to install: make bench")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return command.main()


def test_unknown_name_is_an_error(monkeypatch, capsys):
    with pytest.raises(SystemExit) as error:
        call(monkeypatch, "training", "no-such")
    assert error.value.code == 2
    assert "no benchmark no-such; there are training, floor" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--rounds", "1"], ["--threads", "0"]], ids=" ".join)
def test_too_few_rounds_or_threads_are_an_error(monkeypatch, capsys, arguments):
    with pytest.raises(SystemExit) as error:
        call(monkeypatch, *arguments)
    assert error.value.code == 2
    assert "two rounds are needed" in capsys.readouterr().err


def test_list_names_every_benchmark(monkeypatch, capsys):
    assert call(monkeypatch, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(command.BENCHMARKS)


@pytest.fixture
def two_benchmarks(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Two benchmarks instead of the real ones, and the settings with which they were run."""
    seen = []

    def run(settings: Settings) -> Outcome:
        seen.append(settings)
        return Outcome(ROWS[:1], {"a": [float(len(seen))]})

    fakes = {
        "first": command.Benchmark(run, "one"),
        "second": command.Benchmark(run, "two"),
    }
    monkeypatch.setattr(command, "BENCHMARKS", fakes)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    return seen


def test_new_results_join_the_stored_ones(monkeypatch, capsys, tmp_path, two_benchmarks):
    path = tmp_path / "results.json"
    assert call(monkeypatch, "second", "--output", str(path)) == 0
    assert call(monkeypatch, "first", "--output", str(path), "--quick", "--threads", "3") == 0
    records = report.read_records(path)
    assert list(records) == ["first", "second"]  # in the order of the list
    assert [records[name]["is_quick"] for name in records] == [True, False]
    assert records["first"]["measurements"] == {"a": [2.0]}
    assert (two_benchmarks[0].rounds, two_benchmarks[1].rounds, two_benchmarks[1].threads) == (5, 3, 3)
    assert "4.50 ×" in capsys.readouterr().out
    assert math.isfinite(records["first"]["load"])
    assert call(monkeypatch, "--quick") == 0
    assert len(two_benchmarks) == 4  # both, where none is named


# ---- records of the book's long runs ----


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(data="digits", likelihood="gaussian", scale="learned", hidden_dims=[30, 20], num_epochs=3),
        RunConfig(binarize=True, pixel_bias=True, activation="tanh", importance_samples=5, num_processes=2),
    ],
    ids=["defaults", "gaussian", "binary"],
)
def test_recorded_command_trains_the_recorded_configuration(monkeypatch, tmp_path, config):
    words = command_of_run(config, is_compiled=True).replace("RUN_FOLDER", str(tmp_path)).split()
    seen = []
    monkeypatch.setattr("vaecourse.cli.runs.is_finished", lambda found, folder: seen.append(found) or True)
    assert (words[0], main(words[1:])) == ("vaecourse", 0)
    assert seen == [config]
    assert words[-1] == "--compile"


def test_record_tells_what_the_files_of_a_run_tell(tmp_path):
    config = RunConfig(data="digits", hidden_dims=[8], latent_dim=2, num_epochs=2, binarize=True)
    history = train(config, tmp_path / "run", device="cpu", progress=False)
    evaluation = evaluate(tmp_path / "run", num_samples=5, num_images=250, device="cpu")
    found = run_record(tmp_path / "run", is_compiled=False)
    assert (found["k"], found["epochs"], found["seed"], found["model"]) == (
        1,
        2,
        0,
        "64-8-2, relu, bernoulli",
    )
    assert found["num_images"] == 250
    assert found["nll"] == pytest.approx(evaluation["importance_weighted_nll"], abs=1e-4)
    assert found["minutes"] == pytest.approx(sum(history["seconds"]) / 60, abs=0.05)
    hundreds = found["nll_of_each_hundred"]
    assert np.average(hundreds, weights=[100, 100, 50]) == pytest.approx(found["nll"], abs=1e-3)
    write_weights(tmp_path / "run", tmp_path / "kept")
    again = evaluate(tmp_path / "kept", num_samples=5, num_images=250, device="cpu")
    assert again["per_image"] == evaluation["per_image"]
    sizes = [next((tmp_path / name / "checkpoints").iterdir()).stat().st_size for name in ("kept", "run")]
    assert sizes[0] < 0.5 * sizes[1]
