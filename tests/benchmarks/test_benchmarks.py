"""What can be wrong with a benchmark: unequal contenders, a wrong count, a wrong table."""

import gzip
import json
import math
import platform
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from tests.benchmarks import __main__ as command
from tests.benchmarks import libraries, machine, measuring, report, website
from tests.benchmarks import record as runs
from tests.benchmarks.ceilings import step_flops, step_products
from tests.benchmarks.growth import exponents
from tests.benchmarks.likelihood import checked_distance
from tests.benchmarks.report import Goal, Outcome, Rounds, Row
from tests.benchmarks.task import BATCH_SIZE, DATA_DIM, LATENT_DIM, new_vae
from tests.benchmarks.textbook import Images, TextbookVAE, textbook_loss, to_tensor
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


def needs(module: str) -> None:
    if reason := machine.missing(module):
        pytest.skip(reason)


# ---- the contenders do the same ----


def textbook(vae: VAE, x: Tensor) -> Callable[[], Tensor]:
    """The textbook's loss with our weights; its second head puts out the log of the variance."""
    model = TextbookVAE()
    (first, _, heads), (third, _, fourth) = vae.encoder.network, vae.decoder.network
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in vae.parameters())
    model.fc1, model.fc3, model.fc4 = first, third, fourth
    halves = [slice(LATENT_DIM), slice(LATENT_DIM, None)]
    with torch.no_grad():
        for factor, head, half in zip([1, 2], [model.fc21, model.fc22], halves, strict=True):
            head.weight.copy_(factor * heads.weight[half])
            head.bias.copy_(factor * heads.bias[half])

    def loss() -> Tensor:
        recon_x, mu, logvar = model(x)
        return textbook_loss(recon_x, x, mu, logvar) / len(x)

    return loss


def pythae(vae: VAE, x: Tensor) -> Callable[[], Tensor]:
    model = libraries.pythae_vae(vae)
    return lambda: model({"data": x}).loss


def pyro(vae: VAE, x: Tensor) -> Callable[[], float]:
    svi = libraries.pyro_svi(vae)
    return lambda: svi.evaluate_loss(x) / len(x)


@pytest.mark.filterwarnings("default")  # warnings of other people's modules are theirs
@pytest.mark.parametrize("contender", [textbook, pythae, pyro])
def test_losses_of_all_contenders_are_our_objective(batch, contender):
    if contender is not textbook:
        needs(contender.__name__)
    vae = new_vae()
    values = []
    for loss in [lambda: negative_elbo(vae, batch), contender(vae, batch)]:
        torch.manual_seed(3)  # all draw their noise in the same way
        with torch.no_grad():
            values.append(float(loss()))
    assert values[1] == pytest.approx(values[0], rel=1e-6)


def test_textbook_images_are_our_images():
    levels = torch.arange(2 * 28 * 28, dtype=torch.uint8).view(2, 28, 28)
    images = Images(levels.numpy(), to_tensor)
    assert len(images) == 2
    assert images[1][0].shape == (1, 28, 28)
    torch.testing.assert_close(images[1][0].flatten(), to_unit_interval(levels)[1])


@pytest.mark.filterwarnings("default")
def test_pythae_likelihood_is_our_estimate(batch):
    needs("pythae")
    vae, num_samples = new_vae().eval(), 50
    values = [-float(libraries.pythae_vae(vae).get_nll(batch, num_samples, num_samples)) for _ in range(5)]
    estimates = [nll_estimate(vae, batch, num_samples=num_samples).nats for _ in range(5)]
    checked_distance(estimates, values)
    assert np.mean(values) == pytest.approx(np.mean(estimates), rel=0.01)


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
    result = measuring.alternate({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(runs) for name, runs in result.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_round_by_round():
    # a slow second round slows both; the ratio of the medians would be the same by accident only
    assert measuring.ratios([10.0, 2.0, 12.0], [5.0, 1.0, 4.0]) == [2.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        measuring.ratios([1.0, 2.0], [1.0])


def test_rate_leaves_out_the_first_epoch():
    assert measuring.steady_rate(100, [50.0, 2.0, 1.0, 4.0]) == 50.0
    with pytest.raises(ValueError, match="two are needed"):
        measuring.steady_rate(100, [1.0])


def test_growth_exponent_of_a_power_is_its_exponent():
    sizes = [1.0, 2.0, 8.0]
    assert measuring.growth_exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert exponents({"1": [5.0, 1.0], "2": [10.0, 1.0], "4": [20.0, 1.0]}) == pytest.approx([1.0, 0.0])


def test_short_calls_are_timed():
    assert 0 < measuring.seconds_per_call(lambda: None, 1, min_run_time=0.001) < 1


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
    files = [website.ROOT / "_config.yml", website.stock_config(tmp_path / "stock")]
    ours, stock = (yaml.safe_load(file.read_text("utf-8")) for file in files)
    full, rest = ours.pop("sphinx"), stock.pop("sphinx")
    assert ours == stock
    removed = full["config"].keys() - rest["config"].keys()
    assert [name for name in full["config"] if name.startswith(website.LOOK) != (name in removed)] == []
    assert "mathjax_path" not in removed
    assert set(full["extra_extensions"]) - set(rest["extra_extensions"]) == website.ADDED
    assert list(rest["local_extensions"]) == ["stock_site"]


@pytest.mark.parametrize(("name", "encoding"), [("page.html", "gzip"), ("icon.png", None)])
def test_host_compresses_text_and_lets_browsers_keep_it(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(b"a" * 1000)
    with website.serve(tmp_path, website.Host) as address:
        request = urllib.request.Request(address + name, headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request) as answer:
            body, headers = answer.read(), answer.headers
    assert (headers["Content-Encoding"], headers["Cache-Control"]) == (encoding, "max-age=600")
    assert (gzip.decompress(body) if encoding else body) == b"a" * 1000


def lighthouse_report(points: float) -> dict:
    """The parts of a report of Lighthouse that are read."""
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
            **{name: {"numericValue": 2000 * points} for name in website.METRICS},
        },
    }


def test_rows_compare_the_site_with_the_stock_theme():
    ours, stock = (website.summary(lighthouse_report(points)) for points in (0.5, 1.0))
    assert (ours.scores["seo"], ours.transferred, ours.raw, ours.requests) == (50, 1, 4, 2)
    sites = {website.OURS: ours, website.STOCK: stock}
    looks = {("p", site, form): [one] for form in website.FORM_FACTORS for site, one in sites.items()}
    rows = {row.what: (row.unit, *row.values) for row in website.look_outcome(looks).rows}
    assert len(rows) == 2 * 9 + 4
    assert rows["p, this site: performance, desktop"] == ("points", 50)
    assert rows["p, stock theme: SEO"] == ("points", 100, 100)
    assert rows["p, this site: uncompressed"] == ("kB", 4)
    assert rows["p, this site / stock theme: largest paint, mobile"] == ("×", 0.5)
    assert rows["p, this site / stock theme: transferred"] == ("×", 1)
    with pytest.raises(RuntimeError, match="could not judge http://a/page: no page"):
        website.summary(lighthouse_report(1.0) | {"runtimeError": {"message": "no page"}})


@pytest.mark.parametrize(("chromium", "word"), [(None, "Chromium"), ("/usr/bin/chromium", "npx")])
def test_missing_program_says_what_to_install(monkeypatch, chromium, word):
    monkeypatch.setattr(website, "CHROMIUM", chromium)
    monkeypatch.setattr(website.shutil, "which", lambda name: None)
    assert re.match(f"no {word}.*; to install: ", website.no_lighthouse())


# ---- rows, table, file ----

ROWS = [
    Row("a / b", "×", Goal("≥", 4), [4.5, 3.0, 5.0]),
    Row("c", "images/s", None, [61234.5]),
    Row("d / e", "×", Goal("≤", 1.15), [1.2, 1.3, 1.1]),
    Row("f", "s", Goal("≤", 2), (), "g is missing"),
]
RECORD = {
    "date": "2026-01-31",
    "machine": {"cpu": "C", "cores": 2, "instructions": "I", "memory_gb": 8.0, "system": "S"},
    "versions": {"python": "3.11", "torch": "2.13"},
    "threads": 2,
    "is_quick": False,
    "load": 0.1,
    "rows": [row.as_json() for row in ROWS],
    "measurements": {"c": [61234.5]},
}
PLACE = "2026-01-31, threads: 2, C (2 cores, I), 8.0 GB, S, Python 3.11, torch 2.13."
TABLE = f"""\
| benchmark | what | median | range of the rounds | goal | reached |
| --- | --- | --- | --- | --- | --- |
| n | a / b | 4.50 × | 3.00 to 5.00 | ≥ 4 × | yes |
| n | c | 61,234 images/s | – | – | – |
| n | d / e | 1.20 × | 1.10 to 1.30 | ≤ 1.15 × | no |
| n | f | not run | – | ≤ 2 s | – |

- Not run: g is missing
- n: {PLACE}"""


def test_row_holds_median_range_and_verdict():
    assert ROWS[0].as_json() == {
        "what": "a / b", "unit": "×", "median": 4.5, "lowest": 3.0, "highest": 5.0,
        "goal": {"relation": "≥", "value": 4}, "reached": True, "not_run": None,
    }  # fmt: skip
    assert [row.as_json()["reached"] for row in ROWS] == [True, None, False, None]
    assert (ROWS[3].as_json()["median"], ROWS[3].as_json()["not_run"]) == (None, "g is missing")


def test_rounds_make_rows_of_contenders_and_of_their_ratios():
    rounds = Rounds({"a": [4.0, 9.0], "b": [2.0, 3.0]}, {"a": None, "c": "c is missing"})
    assert rounds.row("a", "ms", scale=1000) == Row("a", "ms", None, [4000, 9000])
    assert rounds.row("c", "s", what="d") == Row("d", "s", None, [], "c is missing")
    assert rounds.ratio("a", "b", goal=Goal("≥", 2)) == Row("a / b", "×", Goal("≥", 2), [2, 3])
    assert rounds.ratio("b", "a", "%", what="share", scale=100).values == pytest.approx([50, 100 / 3])
    assert rounds.ratio("a", "c") == Row("a / c", "×", None, [], "c is missing")


def test_numbers_have_three_digits_at_least():
    texts = ["0", "0.0123", "4.50", "61,234", "-0.500", "1,000,000"]
    assert [report.number(value) for value in (0.0, 0.012345, 4.5, 61234.5, -0.5, 1e6)] == texts


def test_tables_of_terminal_and_book_have_the_same_cells():
    assert report.markdown_table({"n": RECORD}) == TABLE
    lines = report.text_table({"n": RECORD}).splitlines()
    columns = [lines[0].index(name) for name in report.HEADER]
    cells = [
        [line[a:b].strip() for a, b in zip(columns, [*columns[1:], None], strict=True)] for line in lines
    ]
    assert cells[2:6] == [line.strip("| ").split(" | ") for line in TABLE.splitlines()[2:6]]
    assert set("".join(cells[1])) == {"-"}
    assert lines[6:] == ["", "Not run: g is missing", f"n: {PLACE}"]


def test_benchmarks_of_one_run_share_a_line():
    later = RECORD | {"rows": [], "is_quick": True, "load": 3.0}
    assert report.notes({"a": later, "b": later, "c": RECORD | {"rows": []}}) == [
        f"a, b: {PLACE} A quick run, which says nothing about speed. Other work ran beside it.",
        f"c: {PLACE}",
    ]


def test_records_survive_the_file(tmp_path):
    path = tmp_path / "new" / "results.json"
    assert report.read_records(path) == {}
    report.write_records(path, {"n": RECORD})
    assert report.read_records(path) == {"n": RECORD}
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 0"):
        report.read_records(path)


def test_table_replaces_what_stands_between_the_markers():
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    new = report.page_with_table(page, {"n": RECORD})
    assert new == f"before\n{report.BEGIN}\n\n{TABLE}\n\n{report.END}\nafter\n"
    assert report.page_with_table(new, {"n": RECORD}) == new
    with pytest.raises(ValueError, match="each marker once"):
        report.page_with_table("nothing", {})


def test_page_explains_every_benchmark_and_shows_the_stored_results():
    records, page = report.read_records(command.PAGE_RESULTS), command.PAGE.read_text("utf-8")
    assert records
    assert set(records) <= set(command.BENCHMARKS)
    expected = report.page_with_table(page, records)
    assert page == expected, "the page is not that of the stored results: python -m tests.benchmarks --page"
    assert [name for name in command.BENCHMARKS if f"`{name}`" not in page] == []


# ---- machine and command line ----


def test_description_names_no_single_machine():
    text = json.dumps([machine.machine(), machine.versions()])
    assert machine.machine()["cores"] >= 1
    assert machine.versions()["torch"] == torch.__version__
    assert len(platform.node()) < 4 or platform.node() not in text


def test_missing_module_says_how_to_install_it():
    assert machine.missing("torch", "json") is None
    reason = machine.missing("torch", "no_such_module")
    assert reason.startswith("no_such_module cannot be imported; to install: make bench")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return command.main()


WRONG = {
    "training no-such": "no benchmark no-such; there are training, floor",
    "--rounds 1": "two rounds are needed",
    "--threads 0": "two rounds are needed",
}


@pytest.mark.parametrize(("words", "message"), WRONG.items(), ids=WRONG)
def test_wrong_arguments_are_an_error(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit) as error:
        call(monkeypatch, *words.split())
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_list_names_every_benchmark(monkeypatch, capsys):
    assert call(monkeypatch, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(command.BENCHMARKS)


def test_new_results_join_the_stored_ones(monkeypatch, capsys, tmp_path):
    path, seen = tmp_path / "results.json", []

    def run(settings: measuring.Settings) -> Outcome:
        seen.append(settings)
        return Outcome(ROWS[:1], {"a": [float(len(seen))]})

    for name in ("first", "second"):
        monkeypatch.setitem(sys.modules, f"tests.benchmarks.{name}", SimpleNamespace(**{name: run}))
    fakes = {name: (name, "a fake") for name in ("first", "second")}
    monkeypatch.setattr(command, "BENCHMARKS", fakes)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # as it will be set
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert call(monkeypatch, "second", "--output", str(path)) == 0
    assert call(monkeypatch, "first", "--output", str(path), "--quick", "--threads", "3") == 0
    records = report.read_records(path)
    assert list(records) == ["first", "second"]  # in the order of the list
    assert [records[name]["is_quick"] for name in records] == [True, False]
    assert records["first"]["measurements"] == {"a": [2.0]}
    assert (seen[0].rounds, seen[1].rounds, seen[1].threads) == (5, 3, 3)
    assert "4.50 ×" in capsys.readouterr().out
    assert math.isfinite(records["first"]["load"])
    assert call(monkeypatch, "--quick") == 0
    assert len(seen) == 4  # both, where none is named


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
    words = runs.command(config, is_compiled=True).replace("RUN_FOLDER", str(tmp_path)).split()
    seen = []
    monkeypatch.setattr("vaecourse.cli.runs.is_finished", lambda found, folder: seen.append(found) or True)
    assert (words[0], main(words[1:])) == ("vaecourse", 0)
    assert seen == [config]
    assert words[-1] == "--compile"


def test_record_tells_what_the_files_of_a_run_tell(monkeypatch, tmp_path):
    config = RunConfig(data="digits", hidden_dims=[8], latent_dim=2, num_epochs=2, binarize=True)
    history = train(config, tmp_path / "run", device="cpu", progress=False)
    evaluation = evaluate(tmp_path / "run", num_samples=5, num_images=250, device="cpu")
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["record", str(tmp_path / "run"), "kept", "--weights"])
    runs.main()
    found = json.loads((tmp_path / "kept.json").read_text("utf-8"))
    assert [found[name] for name in ("k", "epochs", "seed", "num_images")] == [1, 2, 0, 250]
    assert found["model"] == "64-8-2, relu, bernoulli"
    assert found["nll"] == pytest.approx(evaluation["importance_weighted_nll"], abs=1e-4)
    assert found["minutes"] == pytest.approx(sum(history["seconds"]) / 60, abs=0.05)
    hundreds = found["nll_of_each_hundred"]
    assert np.average(hundreds, weights=[100, 100, 50]) == pytest.approx(found["nll"], abs=1e-3)
    again = evaluate(tmp_path / "kept", num_samples=5, num_images=250, device="cpu")
    assert again["per_image"] == evaluation["per_image"]
    sizes = [checkpoint_size(tmp_path / name) for name in ("kept", "run")]
    assert sizes[0] < 0.5 * sizes[1]


def checkpoint_size(folder: Path) -> int:
    return next((folder / "checkpoints").iterdir()).stat().st_size
