"""What people try in their first ten minutes works, or says in one sentence what to write instead."""

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vaecourse
from tests.core.examples import F64, data, generator
from vaecourse import densities, divergences, evaluation, likelihoods, objectives
from vaecourse.datasets import binarize, dequantize, digits, mnist, noisy_line, to_unit_interval
from vaecourse.likelihoods import BernoulliLikelihood, GaussianLikelihood, LaplaceLikelihood
from vaecourse.linear_vae import LinearVAE
from vaecourse.models import VAE, GaussianRegressor, mlp_vae
from vaecourse.networks import Decoder, Encoder, mlp
from vaecourse.objectives import elbo_terms, negative_elbo
from vaecourse.plotting import plot_curves, plot_images, plot_latent_plane, plot_regression
from vaecourse.training import Checkpoints, History, fit, load_checkpoint, save_checkpoint

IMAGES = data(8, 6).float()
LEVELS = torch.randint(0, 256, (8, 2, 3), dtype=torch.uint8, generator=generator())


def small(likelihood=None) -> VAE:
    torch.manual_seed(0)
    return mlp_vae(6, 2, hidden_dims=(5,), likelihood=likelihood)


def convolutional(likelihood, channels: int = 1) -> VAE:
    """For images of 8 by 8 pixels."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(channels, 4, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    upward = nn.ConvTranspose2d(4, channels * likelihood.num_params, 4, 2, 1)
    decoder = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Unflatten(1, (4, 4, 4)), upward)
    return VAE(Encoder(encoder), decoder, likelihood, latent_dim=2)


def train(images=IMAGES, loss_fn=negative_elbo, *, model=None, **options) -> History:
    options = {"num_epochs": 1, "batch_size": 4, "progress": False, **options}
    if isinstance(images, DataLoader):
        del options["batch_size"]
    return fit(small() if model is None else model, loss_fn, images, **options)


# --- wishes ----------------------------------------------------------------------------------------------


def test_names_that_matter_can_be_had_from_the_package():
    text = "import vaecourse, sys; assert 'torch' not in sys.modules; print(vaecourse.VAE, vaecourse.fit)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("<class 'vaecourse.models.VAE'> <function fit")
    for name in vaecourse._MODULES:
        assert getattr(vaecourse, name).__name__ == name and name in dir(vaecourse)
    source = Path(vaecourse.__file__).read_text("utf-8")
    for_checkers = re.findall(r"from vaecourse\.(\w+) import (\w+) as (\w+)", source)
    assert {alias: module for module, name, alias in for_checkers if name == alias} == vaecourse._MODULES


@pytest.mark.parametrize(
    "given",
    [
        IMAGES,
        IMAGES.numpy(),
        IMAGES.double(),
        IMAGES.double().numpy(),
        IMAGES.tolist(),
        (IMAGES,),
        [IMAGES.numpy()],
        TensorDataset(IMAGES),
        IMAGES.half().float().half(),
    ],
    ids=["tensor", "array", "float64", "float64-array", "list", "tuple", "list-of-array", "dataset", "half"],
)
def test_fit_takes_what_people_have(given):
    history = train(given)
    rel = 1e-2 if isinstance(given, torch.Tensor) and given.dtype == torch.float16 else 1e-6
    assert history.loss == pytest.approx(train().loss, rel=rel)


@pytest.mark.parametrize("dataset", [TensorDataset(IMAGES), list(IMAGES)], ids=["tuples", "tensors"])
def test_fit_takes_a_loader(dataset):
    model = small()
    before = model.decoder.network[0].weight.clone()
    loader = DataLoader(dataset, batch_size=3, shuffle=True)
    history = train(loader, model=model, num_epochs=3, micro_batch_size=2)
    assert len(history.loss) == 3 and not torch.equal(model.decoder.network[0].weight, before)
    again = small()
    assert train(loader, model=again, num_epochs=3, micro_batch_size=2).loss == history.loss
    assert torch.equal(again.decoder.network[0].weight, model.decoder.network[0].weight)


def test_grey_levels_come_as_arrays_too():
    torch.testing.assert_close(to_unit_interval(LEVELS.numpy()), to_unit_interval(LEVELS))
    assert binarize(IMAGES.numpy(), generator=generator()).equal(binarize(IMAGES, generator=generator()))


def test_digits_without_their_highest_level_are_refused_and_dark_images_can_be_said_to_be_dark():
    images, _ = digits()
    for function in (to_unit_interval, dequantize):
        with pytest.raises(
            ValueError, match=r"highest level of these images is 16, far below 255: pass max_l"
        ):
            function(images)
    assert to_unit_interval(images, max_level=16).max() == 1
    assert to_unit_interval(images, max_level=255).max() == torch.tensor(16 / 255)
    assert to_unit_interval(torch.zeros(1, 2, dtype=torch.uint8)).max() == 0
    assert to_unit_interval(mnist("test")[0][:1]).max() == 1


def test_forward_reconstruct_and_sample_are_what_they_say():
    model, x = small(GaussianLikelihood(0.3)), IMAGES
    loc, log_scale = model.encode(x)
    eps = torch.randn(loc.shape, generator=generator())
    torch.testing.assert_close(model(x, generator=generator()), model.decode(loc + log_scale.exp() * eps))
    assert not torch.equal(model(x), model(x))
    torch.testing.assert_close(model.reconstruct(x), model.decode(loc).detach(), rtol=0, atol=0)
    z = torch.randn(5, 2, generator=generator())
    torch.testing.assert_close(model.sample(5, generator=generator()), model.decode(z).detach())
    noisy = model.sample(20_000, pixel_noise=True, generator=generator())
    spread = (noisy - model.sample(20_000, generator=generator())).std().item()
    assert spread == pytest.approx(0.3, rel=0.02)
    assert not (model.reconstruct(x).requires_grad or noisy.requires_grad)


def test_reconstruction_of_a_bernoulli_is_a_probability():
    model = small()
    torch.testing.assert_close(model.reconstruct(IMAGES), model.decode(model.encode(IMAGES)[0]).sigmoid())


LIKELIHOODS = {
    "bernoulli": BernoulliLikelihood,
    "fixed": lambda: GaussianLikelihood(0.3),
    "per_pixel": lambda: GaussianLikelihood("per_pixel"),
    "laplace": lambda: LaplaceLikelihood(0.3),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_convolutional_networks_do_everything_that_perceptrons_do(make, channels):
    model, x = convolutional(make(), channels), data(6, channels, 8, 8).float()
    history = fit(model, negative_elbo, x, num_epochs=2, batch_size=3, progress=False)
    assert len(history.loss) == 2
    estimate = evaluation.nll_estimate(model, x, num_samples=7, batch_size=4, chunk_size=3)
    assert estimate.per_image.shape == (6,) and estimate.standard_error < abs(estimate.nats)
    assert elbo_terms(model, x, num_samples=4).nll.shape == (6,)
    assert (
        model(x).shape[2:] == x.shape[2:] and model.reconstruct(x).shape == model.sample(6).shape == x.shape
    )
    assert (
        plot_images(model.sample(5), columns=3, ax=Figure().subplots()).images[0].get_array().shape[0] == 16
    )


def test_samples_decode_as_they_would_one_by_one():
    model, z = convolutional(BernoulliLikelihood()), torch.randn(3, 5, 2, generator=generator())
    torch.testing.assert_close(model.decode(z), torch.stack([model.decode(part) for part in z]))


def test_per_pixel_scales_of_images_are_the_second_half_of_the_channels():
    likelihood, params = GaussianLikelihood("per_pixel"), data(2, 6, 4, 4)
    distribution = likelihood.distribution(params)
    assert torch.equal(distribution.loc, params[:, :3]) and torch.equal(
        likelihood.mean(params), params[:, :3]
    )
    flat = torch.cat([params[:, :3].flatten(1), params[:, 3:].flatten(1)], dim=1)
    x = data(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(likelihood.nll(x, params), likelihood.nll(x.flatten(1), flat))
    assert likelihood.sample(params.expand(7, 2, 6, 4, 4)).shape == (7, 2, 3, 4, 4)


def test_one_image_has_no_sampling_error_and_a_thousand_samples():
    estimate = evaluation.nll_estimate(small().eval(), IMAGES[:1])
    assert estimate.sampling_error is None and estimate.num_samples == 1000


def test_evaluation_takes_arrays():
    model = small().eval()
    by_array = evaluation.nll_estimate(model, IMAGES.numpy(), num_samples=5, generator=generator())
    assert by_array.nats == evaluation.nll_estimate(model, IMAGES, num_samples=5, generator=generator()).nats


def test_weights_of_a_run_load_in_one_line_and_silently(tmp_path, recwarn, capsys):
    checkpoints = Checkpoints(tmp_path, identity="negative ELBO")
    train(model=(trained := small()), checkpoints=checkpoints)
    (other := small()).load_state_dict(load_checkpoint(Checkpoints(tmp_path).latest())["model"])
    assert torch.equal(other.reconstruct(IMAGES), trained.reconstruct(IMAGES))
    assert not recwarn.list and capsys.readouterr() == ("", "")


def test_history_plots_itself():
    history = train(num_epochs=3, validation=IMAGES[:4])
    ax = history.plot(ax=Figure().subplots())
    assert [line.get_ydata().tolist() for line in ax.lines] == [history.loss, history.validation]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training", "validation"]
    assert len(train().plot().lines) == 1


# --- likelihoods: one entrance, four classes -------------------------------------------------------------

WAYS = [0.3, "learned", "optimal", "per_pixel"]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_gaussian_modes_agree_with_themselves(way, training):
    likelihood = GaussianLikelihood(way).double()
    params = data(5, 4 * likelihood.num_params, seed=1)
    likelihood.nll(data(5, 4, seed=7), params)  # so that "optimal" has seen a batch, another one
    likelihood.train(training)
    x = data(5, 4)
    nll, distribution = likelihood.nll(x, params), likelihood.distribution(params)
    torch.testing.assert_close(nll, -distribution.log_prob(x).sum(1))
    torch.testing.assert_close(likelihood.mean(params), distribution.mean)
    if way != "per_pixel":
        scale = torch.as_tensor(likelihood.scale, dtype=F64)
        torch.testing.assert_close(distribution.scale, scale.expand(5, 4))
    draws = torch.stack([likelihood.sample(params, generator=generator(s)) for s in range(4000)])
    torch.testing.assert_close(draws.mean(0), distribution.mean, rtol=0, atol=5 * 1.5 / 4000**0.5)
    torch.testing.assert_close(draws.std(0), distribution.stddev, rtol=0.1, atol=0)


def test_optimal_scale_that_was_loaded_serves_in_training_until_the_first_batch():
    seen = GaussianLikelihood("optimal")
    seen.nll(IMAGES, IMAGES + 0.5)
    (fresh := GaussianLikelihood("optimal")).load_state_dict(seen.state_dict())
    assert fresh.scale.item() == pytest.approx(0.5)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_gaussian_modes_are_gaussian_likelihoods_that_can_be_copied(way):
    likelihood = GaussianLikelihood(way)
    assert isinstance(likelihood, GaussianLikelihood)
    for twin in (copy.deepcopy(likelihood), pickle.loads(pickle.dumps(likelihood))):
        assert type(twin) is type(likelihood) and repr(twin) == repr(likelihood)
        assert twin.state_dict().keys() == likelihood.state_dict().keys()


@pytest.mark.parametrize(
    ("likelihood", "text", "keys"),
    [
        (GaussianLikelihood(0.3), "GaussianLikelihood(scale=0.3)", []),
        (GaussianLikelihood(1), "GaussianLikelihood(scale=1.0)", []),
        (GaussianLikelihood("learned"), "GaussianLikelihood(scale='learned')", ["log_scale"]),
        (
            GaussianLikelihood("optimal"),
            "GaussianLikelihood(scale='optimal')",
            ["mean_squared_error", "num_updates"],
        ),
        (
            GaussianLikelihood("per_pixel", min_log_scale=-3.0),
            "GaussianLikelihood(scale='per_pixel', min_log_scale=-3.0)",
            [],
        ),
        (LaplaceLikelihood(0.2), "LaplaceLikelihood(scale=0.2)", []),
        (BernoulliLikelihood(), "BernoulliLikelihood()", []),
        (likelihoods.ContinuousBernoulliLikelihood(), "ContinuousBernoulliLikelihood()", []),
    ],
    ids=str,
)
def test_likelihood_states_what_is_fixed_and_keeps_its_keys(likelihood, text, keys):
    assert repr(likelihood) == text and list(likelihood.state_dict()) == keys


def test_learned_scale_starts_where_it_is_told():
    assert GaussianLikelihood("learned", initial_scale=0.2).scale.item() == pytest.approx(0.2)


# --- mistakes --------------------------------------------------------------------------------------------


def with_nan() -> torch.Tensor:
    x = IMAGES.clone()
    x[2, 3] = torch.nan
    return x


def spoiled() -> VAE:
    model = small().eval()
    nn.init.constant_(model.encoder.network[0].weight, torch.nan)
    return model


def of_another_model(**options):
    return lambda: train(optimizer=torch.optim.Adam(small().parameters(), **options))


class OnlyLength(torch.utils.data.Dataset):
    def __len__(self):
        return 8


VALUE, TYPE = ValueError, TypeError
MISTAKES = {
    # models
    "likelihood as a word": (
        lambda: small("gaussian"),
        TYPE,
        r"such as GaussianLikelihood\(\).*got 'gaussian'",
    ),
    "likelihood as a class": (lambda: small(GaussianLikelihood), TYPE, "must be an object such as Gauss"),
    "likelihood of VAE as a word": (
        lambda: VAE(Encoder(mlp([6, 4])), Decoder(mlp([2, 6])), "bernoulli"),
        TYPE,
        "likelihood must be an object",
    ),
    "likelihood of a regressor as a word": (
        lambda: GaussianRegressor(mlp([1, 1]), "learned"),
        TYPE,
        "an object",
    ),
    "encoder without a pair": (
        lambda: VAE(mlp([6, 4]), Decoder(mlp([2, 6])), BernoulliLikelihood())(IMAGES[:2]),
        TYPE,
        r"must return loc and log_scale, got Tensor: networks.Encoder",
    ),
    "sample without latent_dim": (
        lambda: VAE(Encoder(mlp([6, 4])), Decoder(mlp([2, 6])), BernoulliLikelihood()).sample(2),
        VALUE,
        r"VAE\(\.\.\., latent_dim=20\)",
    ),
    "sample none": (lambda: small().sample(0), VALUE, "num_images must be at least 1, got 0"),
    "sample a half": (lambda: small().sample(1.5), VALUE, "num_images must be a whole number, got 1.5"),
    "no hidden unit": (lambda: mlp_vae(6, 2, hidden_dims=(0,)), VALUE, r"all positive, got \[6, 0, 4\]"),
    "no latent": (lambda: mlp_vae(6, 0), VALUE, "all positive"),
    # what goes into a model
    "bytes into a model": (lambda: small()(LEVELS), VALUE, "got torch.uint8: datasets.to_unit_interval"),
    "bytes into a loss": (
        lambda: negative_elbo(small(), LEVELS),
        VALUE,
        "x must be floating point, got torch.u",
    ),
    "labels into a loss": (lambda: negative_elbo(small(), torch.arange(6)), VALUE, "got torch.int64"),
    "images not flattened": (
        lambda: negative_elbo(small(), data(8, 2, 3).float()),
        VALUE,
        r"input has shape \(8, 2, 3\) and the network takes \(\.\.\., 6\): flatten images.*x.flatten\(1\)",
    ),
    "images with a channel": (
        lambda: small()(data(8, 1, 2, 3).float()),
        VALUE,
        r"shape \(8, 1, 2, 3\).*flatten",
    ),
    "flat images too long": (lambda: small()(torch.zeros(2, 7)), VALUE, r"shape \(2, 7\)"),
    "one image without a batch": (
        lambda: negative_elbo(small(), IMAGES[0]),
        VALUE,
        r"one example is x\[None\]",
    ),
    "pixels as examples": (
        lambda: train(DataLoader(IMAGES, batch_size=None)),
        VALUE,
        r"must have shape \(batch, \*event\), got \(6,\)",
    ),
    "an array into a loss": (lambda: negative_elbo(small(), IMAGES.numpy()), VALUE, r"torch.as_tensor\(x\)"),
    "classes for networks": (
        lambda: VAE(Encoder, Decoder, BernoulliLikelihood()),
        TYPE,
        "encoder must be a netw",
    ),
    "no decoder": (
        lambda: VAE(mlp([6, 4]), None, BernoulliLikelihood()),
        TYPE,
        "decoder must be .* got None",
    ),
    "latent_dim as text": (
        lambda: VAE(mlp([6, 4]), mlp([2, 6]), BernoulliLikelihood(), latent_dim="2"),
        VALUE,
        "latent_dim must be a whole number, got '2'",
    ),
    "an encoder with one number": (
        lambda: VAE(mlp([6, 4]), mlp([2, 6]), BernoulliLikelihood()).posterior(IMAGES),
        TYPE,
        "must return loc and log_scale, got Tensor",
    ),
    "an odd number of posterior numbers": (
        lambda: Encoder(mlp([6, 5]))(IMAGES),
        VALUE,
        r"2 \* latent_dim numbers, got 5",
    ),
    "dimension as text": (lambda: mlp_vae("6", 2), VALUE, "each of dims must be a whole number, got '6'"),
    "dimension as a float": (lambda: mlp_vae(6.0, 2), VALUE, "whole number, got 6.0"),
    "shape as dimension": (lambda: mlp_vae((1, 28, 28), 2), VALUE, r"whole number, got \(1, 28, 28\)"),
    "hidden_dims as a number": (lambda: mlp_vae(6, 2, hidden_dims=5), VALUE, r"a sequence, \(5,\) for one"),
    "activation as a word": (lambda: mlp_vae(6, 2, activation="relu"), TYPE, "such as nn.ReLU, got 'relu'"),
    "activation as an object": (lambda: mlp_vae(6, 2, activation=nn.ReLU()), TYPE, r"got ReLU\(\)"),
    "a model in 16 bits": (
        lambda: negative_elbo(small().bfloat16(), IMAGES.bfloat16()),
        VALUE,
        r"keep weights in float32 .* fit\(precision='bf16'\)",
    ),
    "float64 into float32": (
        lambda: negative_elbo(small(), IMAGES.double()),
        VALUE,
        r"dtype torch.float64 and the network torch.float32: convert the data with \.to\(torch.float32\)",
    ),
    "half into float32": (lambda: small().reconstruct(IMAGES.half()), VALUE, "dtype torch.float16"),
    "latents of the wrong number": (lambda: small().decode(torch.zeros(4, 3)), VALUE, r"takes \(\.\.\., 2\)"),
    "levels to 255": (lambda: negative_elbo(small(), IMAGES * 255), VALUE, "divide grey levels by 255"),
    "levels to 16": (
        lambda: negative_elbo(small(), (IMAGES * 16).round()),
        VALUE,
        "divide grey levels by 16",
    ),
    "pixels from -1 to 1": (lambda: negative_elbo(small(), IMAGES * 2 - 1), VALUE, r"become \(x \+ 1\) / 2"),
    "standardised pixels": (lambda: negative_elbo(small(), IMAGES * 9 - 4), VALUE, "choose a Gaussian"),
    "missing pixels": (
        lambda: negative_elbo(small(GaussianLikelihood()), with_nan()),
        VALUE,
        "must be finite, got nan",
    ),
    "no image": (lambda: negative_elbo(small(), IMAGES[:0]), VALUE, "at least one example"),
    # data sets
    "an unknown split": (lambda: mnist("validation"), VALUE, "'train' or 'test', got 'validation'"),
    "pixels scaled twice": (
        lambda: to_unit_interval(IMAGES),
        VALUE,
        "must be uint8 grey levels, got torch.float32",
    ),
    "images as text": (lambda: to_unit_interval("mnist"), VALUE, "tensor or an array of numbers, got str"),
    "images of objects": (
        lambda: to_unit_interval(np.array([{}, {}])),
        VALUE,
        "array of numbers, got ndarray",
    ),
    "one row of pixels": (lambda: to_unit_interval(LEVELS[0, 0]), VALUE, r"\(N, \*pixels\), got \(3,\)"),
    "levels above the highest": (lambda: to_unit_interval(LEVELS, max_level=16), VALUE, "above max_level=16"),
    "no level": (lambda: to_unit_interval(LEVELS, max_level=0), VALUE, "max_level must be at least 1, got 0"),
    "levels binarized": (lambda: binarize(LEVELS), VALUE, "got torch.uint8: datasets.to_unit_interval"),
    "levels as floats binarized": (lambda: binarize(LEVELS.float()), VALUE, "divide grey levels by 255"),
    "a list of words binarized": (lambda: binarize(["a"]), VALUE, "array of numbers, got list"),
    "half a point": (lambda: noisy_line(2.5), VALUE, "num_points must be a whole number, got 2.5"),
    # likelihoods and densities
    "scale 0": (lambda: GaussianLikelihood(0), VALUE, "scale must be a positive number, got 0"),
    "scale none": (lambda: GaussianLikelihood(None), VALUE, "scale must be a positive number, got None"),
    "variance as a tensor": (lambda: GaussianLikelihood(torch.ones(3)), VALUE, "positive number, got tensor"),
    "scale misspelt": (
        lambda: GaussianLikelihood("optimum"),
        VALUE,
        "'optimal' or 'per_pixel', got 'optimum'",
    ),
    "floor for a fixed scale": (lambda: GaussianLikelihood(0.5, min_log_scale=-3.0), TYPE, "min_log_scale"),
    "start for an optimal scale": (
        lambda: GaussianLikelihood("optimal", initial_scale=2.0),
        TYPE,
        "initial_scale",
    ),
    "negative start": (
        lambda: GaussianLikelihood("learned", initial_scale=-1),
        VALUE,
        "initial_scale must be a p",
    ),
    "laplace learned": (lambda: LaplaceLikelihood("learned"), VALUE, "positive number, got 'learned'"),
    "density of an array": (
        lambda: densities.gaussian_nll(np.zeros((1, 2)), torch.zeros(1, 2), 1.0),
        VALUE,
        r"got ndarray: convert it with torch.as_tensor\(x\)",
    ),
    "density of whole numbers": (
        lambda: densities.bernoulli_nll(torch.ones(1, 2, dtype=int), torch.zeros(1, 2)),
        VALUE,
        r"got torch.int64.*\.float\(\)",
    ),
    "targets of another shape": (
        lambda: densities.gaussian_nll(torch.zeros(4), torch.zeros(4, 1), 1.0),
        VALUE,
        "broadcasting is refused",
    ),
    "negative scale": (
        lambda: densities.gaussian_nll(torch.zeros(1, 2), torch.zeros(1, 2), -1.0),
        VALUE,
        "standard deviation and must be positive",
    ),
    "KL of whole numbers": (
        lambda: divergences.kl_standard_normal(torch.zeros(1, 2, dtype=int), torch.zeros(1, 2)),
        VALUE,
        "loc must be floating point",
    ),
    # objectives
    "negative beta": (lambda: negative_elbo(small(), IMAGES, beta=-1.0), VALUE, "beta is a weight.*got -1.0"),
    "beta nan": (lambda: negative_elbo(small(), IMAGES, beta=torch.nan), VALUE, "beta is a weight.*got nan"),
    "beta infinite": (
        lambda: elbo_terms(small(), IMAGES).elbo(torch.inf),
        VALUE,
        "beta is a weight.*got inf",
    ),
    "no sample": (
        lambda: elbo_terms(small(), IMAGES, num_samples=0),
        VALUE,
        "num_samples must be at least 1",
    ),
    "half a sample": (
        lambda: elbo_terms(small(), IMAGES, num_samples=1.5),
        VALUE,
        "num_samples must be a whole",
    ),
    "weight 0": (
        lambda: objectives.implied_variance(0.0, 1.0),
        VALUE,
        "recon_weight must be a positive number",
    ),
    # evaluation
    "evaluation while training": (
        lambda: evaluation.evaluate_elbo(small().train(), IMAGES),
        VALUE,
        r"in training mode, .*call model.eval\(\) first",
    ),
    "estimate while training": (lambda: evaluation.nll_estimate(small(), IMAGES), VALUE, "in training mode"),
    "activity while training": (lambda: evaluation.active_units(small(), IMAGES), VALUE, "in training mode"),
    "activity of missing data": (
        lambda: evaluation.active_units(small().eval(), with_nan()),
        VALUE,
        "the posterior mean must be finite, got nan",
    ),
    "activity of a spoiled model": (
        lambda: evaluation.active_units(spoiled(), IMAGES),
        VALUE,
        "mean must be fin",
    ),
    "estimate from one sample": (
        lambda: evaluation.nll_estimate(small().eval(), IMAGES, num_samples=1),
        VALUE,
        "num_samples must be at least 2, got 1",
    ),
    "half a batch": (
        lambda: evaluation.evaluate_elbo(small().eval(), IMAGES, batch_size=2.5),
        VALUE,
        "batch_size must be a whole number, got 2.5",
    ),
    "estimate of no image": (
        lambda: evaluation.nll_estimate(small().eval(), IMAGES[:0]),
        VALUE,
        "at least one",
    ),
    "estimate of text": (lambda: evaluation.nll_estimate(small().eval(), "mnist"), VALUE, "numbers, got str"),
    # training
    "epochs and a half": (lambda: train(num_epochs=1.5), VALUE, "num_epochs must be a whole number, got 1.5"),
    "true epochs": (lambda: train(num_epochs=True), VALUE, "num_epochs must be a whole number, got True"),
    "learning rate 0": (
        lambda: train(learning_rate=0.0),
        VALUE,
        "learning_rate must be a positive number, got 0.0",
    ),
    "learning rate nan": (lambda: train(learning_rate=torch.nan), VALUE, "learning_rate must be a positive"),
    "learning rate as text": (lambda: train(learning_rate="fast"), VALUE, "positive number, got 'fast'"),
    "no batch size": (lambda: train(batch_size=None), VALUE, "batch_size is missing"),
    "batch size of a loader": (
        lambda: fit(small(), negative_elbo, DataLoader(IMAGES), num_epochs=1, batch_size=4),
        VALUE,
        "a DataLoader brings its own batch size: leave out batch_size=4",
    ),
    "half a seed": (lambda: train(seed=0.5), VALUE, "seed must be a whole number, got 0.5"),
    "half a micro-batch": (
        lambda: train(micro_batch_size=2.5),
        VALUE,
        "micro_batch_size must be a whole number",
    ),
    "a Dataset": (
        lambda: train(OnlyLength()),
        VALUE,
        r"data is a OnlyLength: pass DataLoader\(data, batch_size=128\)",
    ),
    "a dictionary": (lambda: train({"x": IMAGES}), VALUE, "data is a dictionary with x: make it a tuple"),
    "batches that are dictionaries": (
        lambda: train(DataLoader([{"x": x} for x in IMAGES])),
        VALUE,
        "a batch of the DataLoader is a dictionary with x",
    ),
    "an empty loader": (
        lambda: train(DataLoader(TensorDataset(IMAGES), batch_size=9, drop_last=True)),
        VALUE,
        "the DataLoader gives no batch",
    ),
    "one number": (lambda: train(torch.tensor(1.0)), VALUE, r"got lengths \[None\]"),
    "nothing": (lambda: train([]), VALUE, r"got lengths \[\]"),
    "missing data": (lambda: train(with_nan()), VALUE, r"data\[0\] holds NaN"),
    "missing validation data": (lambda: train(validation=with_nan()), VALUE, r"validation\[0\] holds NaN"),
    "bytes to train on": (lambda: train(LEVELS), VALUE, "got torch.uint8: datasets.to_unit_interval"),
    "images not flattened to train on": (lambda: train(data(8, 2, 3)), VALUE, r"shape \(4, 2, 3\).*flatten"),
    "labels beside the images": (
        lambda: train((IMAGES, torch.arange(8))),
        TYPE,
        r"takes 2 positional arguments but 3",
    ),
    "a loss that returns a pair": (
        lambda: train(loss_fn=lambda model, x: elbo_terms(model, x)),
        TYPE,
        "loss_fn must return a tensor of shape .*got ElboTerms",
    ),
    "a loss that returns a float": (
        lambda: train(loss_fn=lambda model, x: negative_elbo(model, x).item()),
        TYPE,
        "loss_fn must return a tensor of shape .*got float",
    ),
    "a loss for each example": (
        lambda: train(loss_fn=lambda model, x: elbo_terms(model, x).nll),
        VALUE,
        r"must return one number, of shape \(\), got shape \(4,\)",
    ),
    "optimiser of another model": (of_another_model(), VALUE, "holds 8 parameters that are not this model's"),
    "no device": (lambda: train(device="gpu0"), VALUE, "torch knows no device 'gpu0'"),
    "checkpoints without identity": (
        lambda: train(checkpoints=Checkpoints("unused")),
        VALUE,
        r"need an identity.*Checkpoints\(folder, identity=",
    ),
    "an empty identity": (lambda: Checkpoints("unused", identity=" "), VALUE, "says in words .* got ' '"),
    "an identity of another kind": (
        lambda: Checkpoints("unused", identity=3),
        VALUE,
        "says in words .* got 3",
    ),
    "checkpoints inside the epoch of a loader": (
        lambda: train(DataLoader(IMAGES), checkpoints=Checkpoints("unused", identity="a", every=2)),
        VALUE,
        "a run with a DataLoader resumes at the end of an epoch only: leave `every` out",
    ),
    "model and loss exchanged": (
        lambda: fit(negative_elbo, small(), IMAGES, num_epochs=1, batch_size=4),
        TYPE,
        r"fit\(model, loss_fn, data\): model must be an object",
    ),
    "a class for the model": (
        lambda: train(model=VAE),
        TYPE,
        "model must be an object of an nn.Module, got <cla",
    ),
    "a word for the loss": (lambda: train(loss_fn="elbo"), TYPE, "loss_fn must be a function, got 'elbo'"),
    "a callback that is none": (lambda: train(callback=[print]), TYPE, "callback must be a function"),
    "a class for the optimiser": (
        lambda: train(optimizer=torch.optim.Adam),
        TYPE,
        "optimizer must be an object",
    ),
    "a word for the optimiser": (
        lambda: train(optimizer="adam"),
        TYPE,
        r"Adam\(model.parameters\(\)\), got 'adam'",
    ),
    "a class for the schedule": (
        lambda: train(scheduler=torch.optim.lr_scheduler.StepLR),
        TYPE,
        "scheduler must be an object",
    ),
    "an optimiser with a closure": (
        lambda: train(model=(m := small()), optimizer=torch.optim.LBFGS(m.parameters())),
        TYPE,
        "fit cannot use them",
    ),
    "a folder for checkpoints": (
        lambda: train(checkpoints="runs/a"),
        TYPE,
        r"must be Checkpoints\(folder, ident",
    ),
    "checkpoints nowhere": (
        lambda: Checkpoints(None, identity="a"),
        VALUE,
        "folder must be a path, got None",
    ),
    "every as text": (lambda: Checkpoints("a", every="1"), VALUE, "every must be a whole number, got '1'"),
    "keep a half": (lambda: Checkpoints("a", keep=2.5), VALUE, "keep must be a whole number, got 2.5"),
    "no device at all": (lambda: train(device=None), VALUE, "torch knows no device None"),
    "a seed of 65 bits": (lambda: train(seed=2**64), VALUE, r"seed must be below 2\*\*63"),
    "true as learning rate": (
        lambda: train(learning_rate=True),
        VALUE,
        "learning_rate must be a positive number",
    ),
    "a loss of nothing trained": (
        lambda: train(model=small().requires_grad_(False)),
        VALUE,
        "does not depend on any weight that can be trained",
    ),
    "a loader for validation": (
        lambda: train(validation=DataLoader(IMAGES)),
        VALUE,
        "validation is a DataLoader: pass its examples stacked into tensors",
    ),
    "a Dataset for validation": (
        lambda: train(validation=OnlyLength()),
        VALUE,
        "its examples stacked into tensors",
    ),
    "a list of images": (
        lambda: train(list(data(9, 6).float())),
        VALUE,
        "data is a list of 9 tensors: torch.stack makes one",
    ),
    "beta none": (lambda: negative_elbo(small(), IMAGES, beta=None), VALUE, "beta is a weight.*got None"),
    "beta as text": (lambda: negative_elbo(small(), IMAGES, beta="1"), VALUE, "beta is a weight.*got '1'"),
    "a floor that is no number": (
        lambda: GaussianLikelihood("per_pixel", min_log_scale=torch.nan),
        VALUE,
        "min_log_scale must be a finite number, got nan",
    ),
    "a decoder that was not doubled": (
        lambda: negative_elbo(VAE(small().encoder, small().decoder, GaussianLikelihood("per_pixel")), IMAGES),
        VALUE,
        r"hold loc and log_scale of shape \(8, 3\), which must have the shape of x.*x has \(8, 6\); emit 2 D",
    ),
    "samples of images without channels": (
        lambda: GaussianLikelihood("per_pixel").nll(data(4, 6, 6), data(2, 4, 6, 12)),
        VALUE,
        "2 C channels for images",
    ),
    "estimate of none": (
        lambda: evaluation.nll_estimate(small().eval(), None),
        VALUE,
        "numbers, got NoneType",
    ),
    "bytes as pictures": (
        lambda: plot_images(LEVELS, columns=2, ax=Figure().subplots()),
        VALUE,
        "whole numbers up to 2.*to_unit_interval",
    ),
    "a plot of nothing": (lambda: History().plot(), VALUE, "no epoch has been completed"),
    "a checkpoint of a model": (
        lambda: save_checkpoint("unused", {"model": small()}),
        VALUE,
        "state.model, which",
    ),
    "pictures of no columns": (
        lambda: plot_images(IMAGES[:, :4], columns=0, ax=Figure().subplots()),
        VALUE,
        "columns must be at least 1, got 0",
    ),
    "pictures that are not square": (
        lambda: plot_images(IMAGES, columns=2, ax=Figure().subplots()),
        VALUE,
        r"D a square.*got an array of shape \(8, 6\)",
    ),
    "a name that the package does not have": (
        lambda: vaecourse.Vae,
        AttributeError,
        "'Vae'; it has VAE, mlp_vae",
    ),
    "a linear VAE with a word": (lambda: LinearVAE(3, 2, scale="wide"), VALUE, "positive number.*got 'wide'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_answered_with_the_way_out(mistake):
    action, kind, message = MISTAKES[mistake]
    with pytest.raises(kind, match=message):
        action()


def test_loss_that_is_called_with_too_much_is_told_how_it_is_called():
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3") as caught:
        train((IMAGES, torch.arange(8)))
    assert caught.value.__notes__ == [
        "fit calls loss_fn(model, x, y) because each batch holds 2 tensors; what is not needed can be left "
        "out: lambda model, x, y: other_loss(model, x)"
    ]


def test_optimiser_of_another_model_leaves_the_model_alone():
    model = small()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"make it after the model, from model\.parameters"):
        train(model=model, optimizer=torch.optim.Adam([*model.parameters(), nn.Parameter(torch.ones(3))]))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_gaussian_likelihood_cannot_be_subclassed():
    with pytest.raises(TypeError, match="a class for each way to set its scale: subclass Likelihood"):

        class Mine(GaussianLikelihood):
            pass


def test_loaded_scale_replaces_that_of_the_last_batch():
    first, second = GaussianLikelihood("optimal"), GaussianLikelihood("optimal")
    first.nll(IMAGES, IMAGES + 2)
    second.nll(IMAGES, IMAGES + 0.5)
    second.load_state_dict(first.state_dict())
    assert second.scale.item() == pytest.approx(2)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_gaussian_modes_compute_in_float32_whatever_the_network_puts_out(way):
    likelihood = GaussianLikelihood(way)
    params = data(5, 4 * likelihood.num_params).bfloat16()
    nll = likelihood.nll(x := data(5, 4).float(), params)
    distribution = likelihood.distribution(params)
    torch.testing.assert_close(nll, -distribution.log_prob(x).sum(1), rtol=1e-5, atol=1e-5)
    assert {nll.dtype, likelihood.mean(params).dtype, likelihood.sample(params).dtype} == {torch.float32}


def test_callback_cannot_spoil_the_history():
    assert len(train(num_epochs=2, callback=lambda history: history.loss.clear()).loss) == 2


def test_evaluation_brings_data_to_the_precision_of_the_model():
    model = small().eval()
    double = evaluation.nll_estimate(model, IMAGES.double().numpy(), num_samples=5, generator=generator())
    assert double.nats == evaluation.nll_estimate(model, IMAGES, num_samples=5, generator=generator()).nats


def test_plots_take_tensors_with_gradients():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    plot_curves([0, 1], {"curve": values}, ax=(ax := Figure().subplots()))
    plot_regression([0, 1], [0, 1], grid=[0, 1], loc=values, scale=values, ax=ax)
    plot_latent_plane(torch.zeros(2, 2, requires_grad=True), torch.tensor([1, 2]), ax=ax)
    assert all(line.get_ydata().tolist() == [1, 2] for line in ax.lines)


def test_modules_can_be_had_from_the_package():
    text = "import vaecourse; print(vaecourse.training.fit, vaecourse.densities.gaussian_nll)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("<function fit")


def test_optimiser_of_part_of_the_model_is_accepted():
    model = small()
    frozen = model.encoder.network[0].weight.clone()
    train(model=model, optimizer=torch.optim.Adam(model.decoder.parameters()))
    assert torch.equal(model.encoder.network[0].weight, frozen)
