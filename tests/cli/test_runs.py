"""A run folder tells what was asked for, what training did, and what the model is worth."""

import dataclasses
import itertools
import json
import math

import matplotlib as mpl
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from vaecourse.cli import building, runs
from vaecourse.cli.building import build_model
from vaecourse.cli.configuration import RunConfig
from vaecourse.cli.runs import evaluate, is_finished, train
from vaecourse.datasets import binarize, digits, to_unit_interval
from vaecourse.evaluation import active_units, evaluate_elbo, nll_estimate
from vaecourse.likelihoods import (
    BernoulliLikelihood,
    ContinuousBernoulliLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
)
from vaecourse.objectives import elbo_terms, importance_weighted_bound, negative_elbo
from vaecourse.training import (
    CheckpointError,
    Checkpoints,
    History,
    TrainingDiverged,
    compiler_problem,
    load_checkpoint,
    save_checkpoint,
)
from vaecourse.training.processes import launched_processes

SMALL = {"data": "digits", "hidden_dims": [8], "latent_dim": 2, "num_epochs": 2, "batch_size": 500}


def small(**changes) -> RunConfig:
    return RunConfig(**(SMALL | changes))


def run(folder, **changes) -> dict:
    return train(small(**changes), folder, device="cpu", progress=False)


def read(path) -> dict:
    return json.loads(path.read_text("utf-8"))


# ---- the configuration ----


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        small(likelihood="gaussian", scale="per_pixel", hidden_dims=(30, 20), beta=0.5, seed=3),
        small(binarize=True, micro_batch_size=10, precision="bf16", schedule="cosine", num_processes=2),
        small(activation="tanh", pixel_bias=True, importance_samples=5),
    ],
    ids=["defaults", "gaussian", "binary", "weighted"],
)
def test_config_survives_a_round_trip(config):
    assert RunConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"latent_dims": 5}', "no setting latent_dims; it has data, likelihood"),
        ("[1]", "a configuration is a JSON object, got list"),
        ("{", "Expecting property name"),
        ('{"latent_dim": "5"}', "latent_dim must be a whole number, got '5'"),
    ],
)
def test_config_from_json_refuses_what_it_does_not_know(text, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.from_json(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", "cifar"),
        ("likelihood", "normal"),
        ("schedule", "linear"),
        ("precision", "fp16"),
        ("latent_dim", 0),
        ("latent_dim", 2.0),
        ("latent_dim", True),
        ("hidden_dims", [8, 0]),
        ("hidden_dims", "8"),
        ("activation", "gelu"),
        ("pixel_bias", 1),
        ("importance_samples", 0),
        ("binarize", 1),
        ("beta", -1.0),
        ("beta", math.nan),
        ("num_epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("micro_batch_size", 0),
        ("num_processes", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("scale", None),
    ],
)
def test_config_names_and_shows_the_impossible_value(name, value):
    with pytest.raises(ValueError, match=name) as caught:
        small(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("likelihood", "scale"),
    [
        ("gaussian", 0.0),
        ("gaussian", "wide"),
        ("laplace", "learned"),
        ("laplace", -1.0),
        ("bernoulli", 0.5),
        ("continuous-bernoulli", "learned"),
    ],
)
def test_config_refuses_a_scale_that_the_likelihood_does_not_have(likelihood, scale):
    with pytest.raises(ValueError, match="scale"):
        small(likelihood=likelihood, scale=scale)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_bias": True, "likelihood": "gaussian"}, "pixel_bias is for a bernoulli .* 'gaussian'"),
        ({"importance_samples": 5, "beta": 0.5}, "no KL term to weigh, got beta 0.5"),
    ],
)
def test_config_refuses_what_does_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("changes", "has_caveat"),
    [({}, True), ({"binarize": True}, False), ({"likelihood": "continuous-bernoulli"}, False)],
    ids=["grey", "binary", "continuous"],
)
def test_caveat_is_about_bernoulli_on_grey_levels(changes, has_caveat):
    assert (small(**changes).caveat is not None) == has_caveat


# ---- the model ----


@pytest.mark.parametrize(
    ("likelihood", "scale", "kind"),
    [
        ("bernoulli", 1.0, BernoulliLikelihood),
        ("continuous-bernoulli", 1.0, ContinuousBernoulliLikelihood),
        ("laplace", 0.3, LaplaceLikelihood),
        *(("gaussian", scale, GaussianLikelihood) for scale in (0.3, "learned", "optimal", "per_pixel")),
    ],
)
def test_model_has_the_likelihood_and_scale_that_were_asked_for(likelihood, scale, kind):
    made = build_model(small(likelihood=likelihood, scale=scale)).likelihood
    assert isinstance(made, kind)
    if kind is GaussianLikelihood:
        assert (made.way) == scale
    assert kind is not LaplaceLikelihood or made.scale == scale


def test_learned_scale_starts_at_the_deviation_of_the_pixels_from_their_means(fitted):
    given = fitted(likelihood="gaussian", scale="learned", learning_rate=0.01)
    x = to_unit_interval(digits()[0], max_level=16)[:1500]
    deviation = (x - x.mean(0)).square().mean().sqrt()
    torch.testing.assert_close(given["model"].likelihood.scale, deviation, rtol=1e-6, atol=0)
    assert [group["lr"] for group in given["optimizer"].param_groups] == [0.01, building.SCALE_RATE * 0.01]


def test_model_has_the_dimensions_that_were_asked_for():
    model = build_model(small(hidden_dims=[30, 20], latent_dim=3))
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim == 2]
    assert shapes == [(30, 64), (20, 30), (6, 20), (20, 3), (30, 20), (64, 30)]


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("tanh", nn.Tanh)])
def test_model_has_the_activation_that_was_asked_for(name, kind):
    model = build_model(small(activation=name, hidden_dims=[8, 8]))
    found = [type(layer) for layer in model.modules() if not list(layer.children())]
    assert [layer for layer in found if layer not in (nn.Linear, BernoulliLikelihood)] == 4 * [kind]


def test_output_starts_at_the_pixel_means_and_no_pixel_is_certain(fitted):
    biased, plain = (
        fitted(pixel_bias=pixel_bias)["model"].decoder.network[-1].bias.detach()
        for pixel_bias in (True, False)
    )
    mean = to_unit_interval(digits()[0], max_level=16)[:1500].mean(0)
    torch.testing.assert_close(biased.sigmoid(), mean.clamp(0.001, 0.999))
    assert (mean < 0.001).any()
    assert not torch.allclose(plain, biased, atol=0.5)


@pytest.mark.parametrize("binarize", [True, False], ids=["bits", "grey"])
@pytest.mark.parametrize("importance_samples", [1, 3])
def test_loss_is_the_bound_that_was_asked_for(binarize, importance_samples):
    config = small(importance_samples=importance_samples, binarize=binarize)
    model, x = build_model(config), to_unit_interval(digits()[0], max_level=16)[:50]
    torch.manual_seed(4)
    ours = building.loss(config, model, x)
    torch.manual_seed(4)
    shown = torch.bernoulli(x) if binarize else x
    if importance_samples == 1:
        expected = negative_elbo(model, shown)
    else:
        expected = -importance_weighted_bound(model, shown, num_samples=3).mean()
    torch.testing.assert_close(ours, expected)


def test_model_depends_on_the_seed_alone():
    before = torch.get_rng_state()
    first, second, other = (build_model(small(seed=seed)).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoder.network.0.weight"], other["encoder.network.0.weight"])


# ---- what reaches the training loop ----


@pytest.fixture
def fitted(tmp_path, monkeypatch):
    """Train without training: return what `fit` was given."""

    def call(**changes) -> dict:
        given = {}

        def fit(model, loss_fn, data, **settings):
            given.update(settings, model=model.eval(), loss_fn=loss_fn, data=data)
            return History([2.0] * settings["num_epochs"], [0.5] * settings["num_epochs"])

        monkeypatch.setattr(runs, "fit", fit)
        monkeypatch.setattr(runs, "_draw_loss", lambda history, config: b"")
        run(tmp_path / f"run-{len(list(tmp_path.iterdir()))}", **changes)
        return given

    return call


@pytest.mark.parametrize(("schedule", "kind"), [("cosine", CosineAnnealingLR), ("one-cycle", OneCycleLR)])
def test_schedule_spans_the_whole_run(fitted, schedule, kind):
    given = fitted(schedule=schedule, learning_rate=0.02, num_epochs=4, batch_size=400)  # 4 steps an epoch
    scheduler = given["scheduler"]
    assert type(scheduler) is kind and scheduler.optimizer is given["optimizer"]
    rates = []
    for _ in range(16):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(0.02, rel=0.05)
    assert rates[-1] < 0.01 * max(rates)


@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_loss_is_the_negative_elbo_with_beta(fitted, beta):
    given = fitted(beta=beta, likelihood="gaussian")
    x = given["data"][:5]
    torch.manual_seed(0)
    loss = given["loss_fn"](given["model"], x)
    torch.manual_seed(0)
    terms = elbo_terms(given["model"], x)
    assert loss.item() == pytest.approx((terms.nll + beta * terms.kl).mean().item(), rel=1e-6)


def test_binarize_draws_new_bits_at_every_presentation(fitted):
    given = fitted(binarize=True)
    seen = []
    given["model"].encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    grey = torch.full((200, 64), 0.25)
    for _ in range(2):
        given["loss_fn"](given["model"], grey)
    assert all(set(x.unique().tolist()) == {0.0, 1.0} for x in seen)
    assert not torch.equal(*seen)
    assert seen[0].mean().item() == pytest.approx(0.25, abs=0.02)  # 5 standard errors


def test_training_images_are_none_of_the_test_images(fitted):
    x = to_unit_interval(digits()[0], max_level=16)
    assert torch.equal(fitted()["data"], x[:1500])


def test_compiling_without_a_compiler_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiler_problem() is not None
    with pytest.raises(ValueError, match="no-such-compiler"):
        train(small(), tmp_path / "run", device="cpu", compile=True)
    assert not (tmp_path / "run").exists()


# ---- what a run folder holds ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and result of a finished run with bits."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, run(folder, binarize=True)


def by_hand(folder, config: RunConfig, step: int):
    """Model and test bits, put together without the package's own loader."""
    model = build_model(config)
    model.load_state_dict(load_checkpoint(folder / "checkpoints" / f"step-{step:09}.ckpt")["model"])
    x = to_unit_interval(digits()[0], max_level=16)[1500:]
    bits = binarize(x, generator=torch.Generator().manual_seed(building.TEST_BITS_SEED))
    return model.eval(), bits


def test_run_folder_holds_the_promised_files_and_no_others(finished):
    folder, history = finished
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.json",
        "history.json",
        "loss.png",
    ]
    assert RunConfig(**read(folder / "config.json")) == small(binarize=True)
    assert read(folder / "history.json") == history


def test_history_tells_loss_speed_and_test_elbo(finished):
    folder, history = finished
    assert len(history["loss"]) == len(history["seconds"]) == 2
    assert history["loss"][1] < history["loss"][0]
    assert history["images_per_second"] == [1500 / seconds for seconds in history["seconds"]]
    assert (history["unit"], history["caveat"], history["device"]) == ("nats per image", None, "cpu")
    model, bits = by_hand(folder, small(binarize=True), 6)
    terms = evaluate_elbo(model, bits, generator=torch.Generator().manual_seed(0))
    assert history["test"] == {
        "elbo": pytest.approx(terms.elbo().mean().item(), rel=1e-5),
        "nll": pytest.approx(terms.nll.mean().item(), rel=1e-5),
        "kl": pytest.approx(terms.kl.mean().item(), rel=1e-5),
        "num_images": 297,
    }


def test_loss_figure_is_a_png_and_leaves_matplotlib_alone(tmp_path):
    with mpl.rc_context():
        mpl.rcdefaults()
        before = dict(mpl.rcParams)
        run(tmp_path, num_epochs=1)
        assert dict(mpl.rcParams) == before
    content = (tmp_path / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 5000


@pytest.mark.parametrize(("loss", "verb"), [([3.0, 2.0], "falls"), ([2.0, 3.0], "goes"), ([2.0], "goes")])
def test_loss_figure_says_what_is_seen_and_in_which_unit(loss, verb):
    with mpl.rc_context():
        (ax,) = runs._loss_figure({"loss": loss}, small(beta=0.5)).axes
    assert ax.get_title(loc="left") == (
        f"The training loss {verb} from {loss[0]:g} to {loss[-1]:g} nats in {len(loss)} epochs"
    )
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "nll + 0.5 × kl (nats per image)")
    assert ax.lines[0].get_ydata().tolist() == loss


def test_loss_figure_names_the_importance_weighted_bound():
    with mpl.rc_context():
        (ax,) = runs._loss_figure({"loss": [3.0, 2.0]}, small(importance_samples=50)).axes
    assert ax.get_ylabel() == "negative bound of 50 samples (nats per image)"


# ---- going on ----


def test_finished_run_is_not_trained_again(finished, monkeypatch):
    folder, history = finished
    monkeypatch.setattr(runs, "fit", None)
    assert is_finished(small(binarize=True), folder)
    assert run(folder, binarize=True) == history


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_prolonged_run_equals_one_without_a_break(tmp_path, likelihood):
    run(tmp_path / "two", likelihood=likelihood, num_epochs=1)
    prolonged = run(tmp_path / "two", likelihood=likelihood, num_epochs=3)
    straight = run(tmp_path / "one", likelihood=likelihood, num_epochs=3)
    assert (prolonged["loss"], prolonged["test"]) == (straight["loss"], straight["test"])
    assert read(tmp_path / "two" / "config.json")["num_epochs"] == 3


def test_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    straight = run(tmp_path / "straight", num_epochs=3)

    def stop_after(model, loss_fn, data, **settings):
        fit(model, loss_fn, data, **(settings | {"num_epochs": 1}))
        raise KeyboardInterrupt

    fit = runs.fit
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "fit", stop_after)
        run(tmp_path / "stopped", num_epochs=3)
    assert not is_finished(small(num_epochs=3), tmp_path / "stopped")
    assert run(tmp_path / "stopped", num_epochs=3)["loss"] == straight["loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 3}, "latent_dim was 2, is 3"),
        ({"likelihood": "gaussian", "seed": 1}, "likelihood was bernoulli, is gaussian; seed was 0, is 1"),
        ({"num_epochs": 1}, "num_epochs was 2, is 1"),
        ({"num_epochs": 3, "beta": 2.0}, "beta was 1.0, is 2.0; num_epochs was 2, is 3"),
        ({"num_epochs": 3, "schedule": "cosine"}, "num_epochs was 2, is 3; schedule was constant, is cosine"),
    ],
)
def test_folder_of_another_configuration_is_refused_by_the_names_of_what_differs(finished, changes, message):
    folder, _ = finished
    before = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        run(folder, **({"binarize": True} | changes))
    assert (folder / "config.json").read_bytes() == before


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_run_with_a_schedule_cannot_be_prolonged(tmp_path, schedule):
    run(tmp_path, schedule=schedule)
    with pytest.raises(ValueError, match="only the epochs may grow, with a constant schedule"):
        run(tmp_path, schedule=schedule, num_epochs=3)


def test_identity_says_everything_but_what_may_grow():
    default = RunConfig()
    for name in RunConfig.__dataclass_fields__:
        assert (name in default.identity) == (name != "num_epochs")
    assert "num_epochs" in RunConfig(schedule="cosine").identity


def test_folder_whose_configuration_is_gone_is_refused(tmp_path):
    """Else another likelihood would find the old history there, or go on with it."""
    run(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds checkpoints but no config\.json: restore it"):
        run(tmp_path, likelihood="gaussian")


def test_configuration_that_was_edited_does_not_fit_the_checkpoints(tmp_path):
    run(tmp_path, likelihood="gaussian", num_epochs=1)
    edited = small(likelihood="gaussian", beta=4.0)
    (tmp_path / "config.json").write_text(edited.to_json(), "utf-8")
    with pytest.raises(CheckpointError, match=r'identity was "beta": 1\.0, is "beta": 4\.0'):
        train(edited, tmp_path, device="cpu", progress=False)


@pytest.mark.parametrize("changes", [{"scale": 1.0}, {"likelihood": "laplace"}, {"beta": 4.0}, {"seed": 1}])
def test_finished_run_whose_configuration_was_edited_is_neither_finished_nor_judged(tmp_path, changes):
    config = small(likelihood="gaussian", scale=0.3)
    train(config, tmp_path, device="cpu", progress=False)
    edited = dataclasses.replace(config, **changes)
    (tmp_path / "config.json").write_text(edited.to_json(), "utf-8")
    message = rf"is not of the run that config\.json describes \(setting was \"{next(iter(changes))}\""
    for judge in (lambda: is_finished(edited, tmp_path), lambda: evaluate(tmp_path, device="cpu")):
        with pytest.raises(CheckpointError, match=message):
            judge()


def test_checkpoint_under_another_name_does_not_finish_a_run(tmp_path):
    train(small(), tmp_path, device="cpu", progress=False)
    first, last = Checkpoints(tmp_path / "checkpoints").paths()
    first.replace(last)
    assert not is_finished(small(), tmp_path)
    result = evaluate(tmp_path, num_samples=2, device="cpu")
    assert (result["epochs"], result["is_finished"]) == (1, False)


def test_damaged_last_checkpoint_is_not_the_end_of_a_finished_run(tmp_path):
    run(tmp_path)
    newest = Checkpoints(tmp_path / "checkpoints").latest()
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"is damaged.*delete it"):
        is_finished(small(), tmp_path)


@pytest.mark.parametrize("content", ["[1, 2]", '{"loss": 3}', "null"])
def test_history_of_another_kind_is_written_again(tmp_path, content):
    history = run(tmp_path)
    (tmp_path / "history.json").write_text(content, "utf-8")
    assert run(tmp_path)["loss"] == history["loss"]


def test_run_is_finished_only_with_its_last_checkpoint(tmp_path):
    history = run(tmp_path)
    (newest := Checkpoints(tmp_path / "checkpoints").latest()).unlink()
    assert not is_finished(small(), tmp_path)
    assert evaluate(tmp_path, num_samples=2, device="cpu")["is_finished"] is False
    assert run(tmp_path)["loss"] == history["loss"] and newest.exists()
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="holds no checkpoint: vaecourse train makes one"):
        evaluate(tmp_path)
    assert run(tmp_path)["loss"] == history["loss"] and newest.exists()


def test_evaluation_says_where_the_run_stands(tmp_path, monkeypatch):
    def stopping(model, loss_fn, data, **settings):
        calls = itertools.count()

        def stopped(*batch):
            if next(calls) == 4:
                raise KeyboardInterrupt
            return loss_fn(*batch)

        return fit(model, stopped, data, **settings)

    fit = runs.fit
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "fit", stopping)
        train(small(), tmp_path, device="cpu", checkpoint_every=1, progress=False)
    result = evaluate(tmp_path, num_samples=2, device="cpu")
    assert (result["checkpoint"], result["step"], result["epochs"]) == ("step-000000004.ckpt", 4, 1)
    assert not result["is_finished"]
    run(tmp_path)
    assert evaluate(tmp_path, num_samples=2, device="cpu")["is_finished"]


def test_diverged_run_can_be_tried_again_with_another_rate(tmp_path):
    with pytest.raises(TrainingDiverged):
        run(tmp_path, learning_rate=1e30)
    assert len(run(tmp_path)["loss"]) == 2
    with pytest.raises(ValueError, match=r"learning_rate was 0\.001, is 0\.002"):
        run(tmp_path, learning_rate=0.002)


def test_history_grows_with_the_run(tmp_path):
    heard = []

    def say(line: str) -> None:
        heard.append((line.partition(" s")[0], len(read(tmp_path / "history.json")["loss"])))

    history = train(small(num_epochs=3), tmp_path, device="cpu", progress=False, say=say)
    assert [count for _, count in heard] == [1, 2, 3]
    for number, ((line, _), loss) in enumerate(zip(heard, history["loss"], strict=True), start=1):
        assert line.startswith(f"epoch {number} of 3: loss {loss:.2f} nats per image, ")


@pytest.mark.parametrize("scale", [0.4, "learned", "optimal"])
def test_history_holds_sigma_and_what_the_errors_ask_for(tmp_path, scale):
    history = run(tmp_path, likelihood="gaussian", scale=scale, num_epochs=1)
    model = build_model(small(likelihood="gaussian", scale=scale))
    model.load_state_dict(load_checkpoint(Checkpoints(tmp_path / "checkpoints").latest())["model"])
    x = to_unit_interval(digits()[0], max_level=16)[:1500]
    error = (x - model.eval()(x)).square().mean().sqrt().item()
    assert history["scale"]["best_sigma"] == pytest.approx(error, rel=0.01)  # other draws of z
    assert history["scale"]["sigma"] == pytest.approx(float(torch.as_tensor(model.likelihood.scale).detach()))


@pytest.mark.parametrize("scale", ["per_pixel", 1.0])
def test_history_holds_no_sigma_where_there_is_none(tmp_path, scale):
    assert run(tmp_path, likelihood="gaussian" if scale != 1.0 else "laplace", scale=scale)["scale"] is None


def test_damaged_history_is_written_again(tmp_path):
    history = run(tmp_path)
    (tmp_path / "history.json").write_text('{"loss": [1.0', "utf-8")
    assert run(tmp_path)["loss"] == history["loss"]


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_divergence_is_a_floating_point_error(tmp_path, likelihood):
    with pytest.raises(FloatingPointError) as caught:
        run(tmp_path, likelihood=likelihood, learning_rate=1e30)
    text = str(caught.value)
    assert "epoch 0, step" in text and text.endswith("there is no checkpoint")


def test_other_value_errors_are_no_divergence(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 2"):
        train(small(), tmp_path, device="cpu", keep=1)


# ---- many processes ----


def test_processes_of_torchrun_are_counted(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launched_processes() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launched_processes() == 4


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "2 processes are started by --processes or by torchrun"),
        ({"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4"}, "torchrun started 4 processes, not 2"),
    ],
    ids=["alone", "others"],
)
def test_number_of_processes_must_be_the_configured_one(tmp_path, monkeypatch, environment, message):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", num_processes=2)
    assert not (tmp_path / "run").exists()


# ---- evaluation ----


def test_evaluation_equals_one_by_hand_from_the_checkpoint(finished):
    folder, _ = finished
    result = evaluate(folder, num_samples=20, num_images=50, device="cpu", seed=3)
    model, bits = by_hand(folder, small(binarize=True), 6)
    terms = evaluate_elbo(model, bits[:50], generator=torch.Generator().manual_seed(3))
    estimate = nll_estimate(model, bits[:50], num_samples=20, generator=torch.Generator().manual_seed(3))
    expected = {
        "elbo": terms.elbo().mean().item(),
        "nll": terms.nll.mean().item(),
        "kl": terms.kl.mean().item(),
        "importance_weighted_nll": estimate.nats,
        "standard_error": estimate.standard_error,
        "sampling_error": estimate.sampling_error,
        "active_units": active_units(model, bits[:50]).count,
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert result["per_image"] == pytest.approx(estimate.per_image.tolist(), abs=1e-3)


def test_evaluation_file_tells_what_was_computed_how(finished):
    folder, _ = finished
    result = evaluate(folder, num_samples=5, device="cpu", seed=1)
    assert read(folder / "evaluation.json") == result
    assert result["num_images"] == 297  # all that there are
    assert result["importance_weighted_nll"] < -result["elbo"]
    assert (result["num_samples"], result["seed"], result["latent_dim"]) == (5, 1, 2)
    assert (result["checkpoint"], result["device"]) == ("step-000000006.ckpt", "cpu")
    assert result["versions"]["torch"] == torch.__version__
    assert set(result["versions"]) == {"vaecourse", "torch", "python"}


def test_evaluation_depends_on_the_seed_alone(finished):
    folder, _ = finished
    first, second, other = (
        evaluate(folder, num_samples=5, num_images=20, device="cpu", seed=seed) for seed in (0, 0, 1)
    )
    assert first == second
    assert first["nll"] != other["nll"]
    assert first["kl"] == other["kl"]  # the same images: bits are drawn once


def test_evaluation_takes_the_newest_checkpoint(tmp_path):
    run(tmp_path, num_epochs=1)
    before = evaluate(tmp_path, num_samples=5, device="cpu")
    run(tmp_path, num_epochs=3)
    after = evaluate(tmp_path, num_samples=5, device="cpu")
    assert (before["checkpoint"], after["checkpoint"]) == ("step-000000003.ckpt", "step-000000009.ckpt")
    assert after["elbo"] > before["elbo"]


def test_evaluation_keeps_what_training_learned_about_the_scale(tmp_path):
    run(tmp_path, likelihood="gaussian", scale="optimal")
    result = evaluate(tmp_path, num_samples=2, device="cpu")
    model = build_model(small(likelihood="gaussian", scale="optimal"))
    state = load_checkpoint(tmp_path / "checkpoints" / result["checkpoint"])["model"]
    model.load_state_dict(state)
    assert state["likelihood.num_updates"] == 6
    x = to_unit_interval(digits()[0], max_level=16)[1500:]
    nll = nll_estimate(model.eval(), x, num_samples=2, generator=torch.Generator().manual_seed(0)).nats
    assert result["importance_weighted_nll"] == pytest.approx(nll, rel=1e-5)


@pytest.mark.parametrize(("name", "value"), [("num_images", 1), ("num_samples", 1)])
def test_evaluation_refuses_too_few(finished, name, value):
    with pytest.raises(ValueError, match=f"{name}.* must be at least 2, got"):
        evaluate(finished[0], **{name: value})


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no run folder \(no config.json in it\)"):
        evaluate(tmp_path)


def test_run_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(small().to_json(), "utf-8")
    with pytest.raises(ValueError, match="holds no checkpoint: vaecourse train makes one"):
        evaluate(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"depth": 3}'], ids=["damaged", "foreign"])
def test_unusable_config_file_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"config\.json cannot be used: "):
        evaluate(tmp_path)


@pytest.mark.parametrize("changes", [{"latent_dim": 3}, {"likelihood": "gaussian", "scale": "learned"}])
def test_checkpoint_with_other_parameters_is_refused(tmp_path, changes):
    """Weights alone say nothing of their run, but these do not fit."""
    run(tmp_path, num_epochs=1)
    weights = load_checkpoint(newest := Checkpoints(tmp_path / "checkpoints").latest())["model"]
    save_checkpoint(newest, {"model": weights})
    config = dataclasses.replace(small(num_epochs=1), **changes)
    (tmp_path / "config.json").write_text(config.to_json(), "utf-8")
    with pytest.raises(CheckpointError, match=r"ckpt does not fit .*config\.json"):
        evaluate(tmp_path)


def test_damaged_checkpoint_is_refused(tmp_path):
    run(tmp_path, num_epochs=1)
    (path,) = (tmp_path / "checkpoints").glob("*.ckpt")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        evaluate(tmp_path)
