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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vaecourse
from tests.core.examples import F64, data, generator
from vaecourse import likelihoods
from vaecourse.datasets import binarize, dequantize, digits, mnist, noisy_line, to_unit_interval
from vaecourse.densities import bernoulli_nll, gaussian_nll
from vaecourse.divergences import kl_standard_normal
from vaecourse.evaluation import NllEstimate, active_units, evaluate_elbo, nll_estimate
from vaecourse.likelihoods import BernoulliLikelihood, GaussianLikelihood, LaplaceLikelihood
from vaecourse.linear_vae import LinearVAE
from vaecourse.models import VAE, GaussianRegressor, mlp_vae
from vaecourse.networks import Decoder, Encoder, mlp
from vaecourse.objectives import elbo_terms, implied_variance, negative_elbo
from vaecourse.plotting import plot_curves, plot_images, plot_latent_plane, plot_regression
from vaecourse.training import Checkpoints, History, fit, load_checkpoint, save_checkpoint

IMAGES = data(8, 6).float()
ZEROS = torch.zeros(1, 2)
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
    text = """import vaecourse, sys; assert 'torch' not in sys.modules
from vaecourse import *
assert fit is vaecourse.fit
print(vaecourse.VAE, vaecourse.densities.gaussian_nll, vaecourse.fit, vaecourse.training.fit)"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert re.match(
        "<class 'vaecourse.models.VAE'> <function gaussian_nll .*<function fit .*fit", done.stdout
    )
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
    estimate = nll_estimate(model, x, num_samples=7, batch_size=4, chunk_size=3)
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
    estimate = nll_estimate(small().eval(), IMAGES[:1])
    assert estimate.sampling_error is None and estimate.num_samples == 1000


def test_evaluation_takes_arrays():
    model = small().eval()
    by_array = nll_estimate(model, IMAGES.numpy(), num_samples=5, generator=generator())
    assert by_array.nats == nll_estimate(model, IMAGES, num_samples=5, generator=generator()).nats


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
    draws = likelihood.sample(params.expand(4000, *params.shape), generator=generator())
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


def elbo(x, **options) -> torch.Tensor:
    return negative_elbo(small(), x, **options)


def estimate(x, **options) -> NllEstimate:
    return nll_estimate(small().eval(), x, **options)


def draw(images, columns: int) -> Axes:
    return plot_images(images, columns=columns, ax=Figure().subplots())


def vae() -> VAE:
    return VAE(Encoder(mlp([6, 4])), Decoder(mlp([2, 6])), BernoulliLikelihood())


class OnlyLength(torch.utils.data.Dataset):
    def __len__(self):
        return 8


VALUE_ERRORS = [
    (lambda: vae().sample(2), r"VAE\(\.\.\., latent_dim=20\)"),
    (lambda: small().sample(0), "num_images must be at least 1, got 0"),
    (lambda: small().sample(1.5), "num_images must be a whole number, got 1.5"),
    (lambda: mlp_vae(6, 2, hidden_dims=(0,)), "each of dims must be at least 1, got 0"),
    (lambda: mlp_vae(6, 0), "each of dims must be at least 1, got 0"),
    (lambda: small()(LEVELS), "got torch.uint8: datasets.to_unit_interval"),
    (lambda: elbo(LEVELS), "x must be floating point, got torch.u"),
    (lambda: elbo(torch.arange(6)), "got torch.int64"),
    (
        lambda: elbo(data(8, 2, 3).float()),
        r"input has shape \(8, 2, 3\) and the network takes \(\.\.\., 6\): flatten images.*x.flatten\(1\)",
    ),
    (lambda: small()(data(8, 1, 2, 3).float()), r"shape \(8, 1, 2, 3\).*flatten"),
    (lambda: small()(torch.zeros(2, 7)), r"shape \(2, 7\)"),
    (lambda: elbo(IMAGES[0]), r"one example is x\[None\]"),
    (lambda: train(DataLoader(IMAGES, batch_size=None)), r"must have shape \(batch, \*event\), got \(6,\)"),
    (lambda: elbo(IMAGES.numpy()), r"torch.as_tensor\(x\)"),
    (
        lambda: VAE(mlp([6, 4]), mlp([2, 6]), BernoulliLikelihood(), latent_dim="2"),
        "latent_dim must be a whole number, got '2'",
    ),
    (lambda: Encoder(mlp([6, 5]))(IMAGES), r"2 \* latent_dim numbers, got 5"),
    (lambda: mlp_vae("6", 2), "each of dims must be a whole number, got '6'"),
    (lambda: mlp_vae(6.0, 2), "whole number, got 6.0"),
    (lambda: mlp_vae((1, 28, 28), 2), r"whole number, got \(1, 28, 28\)"),
    (lambda: mlp_vae(6, 2, hidden_dims=5), r"a sequence, \(5,\) for one"),
    (
        lambda: negative_elbo(small().bfloat16(), IMAGES.bfloat16()),
        r"keep weights in float32 .* fit\(precision='bf16'\)",
    ),
    (
        lambda: elbo(IMAGES.double()),
        r"dtype torch.float64 and the network torch.float32: convert the data with \.to\(torch.float32\)",
    ),
    (lambda: small().reconstruct(IMAGES.half()), "dtype torch.float16"),
    (lambda: small().decode(torch.zeros(4, 3)), r"takes \(\.\.\., 2\)"),
    (lambda: elbo(IMAGES * 255), "divide grey levels by 255"),
    (lambda: elbo((IMAGES * 16).round()), "divide grey levels by 16"),
    (lambda: elbo(IMAGES * 2 - 1), r"become \(x \+ 1\) / 2"),
    (lambda: elbo(IMAGES * 9 - 4), "choose a Gaussian"),
    (lambda: negative_elbo(small(GaussianLikelihood()), with_nan()), "must be finite, got nan"),
    (lambda: elbo(IMAGES[:0]), "at least one example"),
    (lambda: mnist("validation"), "'train' or 'test', got 'validation'"),
    (lambda: to_unit_interval(IMAGES), "must be uint8 grey levels, got torch.float32"),
    (lambda: to_unit_interval("mnist"), "tensor or an array of numbers, got str"),
    (lambda: to_unit_interval(np.array([{}, {}])), "array of numbers, got ndarray"),
    (lambda: to_unit_interval(LEVELS[0, 0]), r"\(N, \*pixels\), got \(3,\)"),
    (lambda: to_unit_interval(LEVELS, max_level=16), "above max_level=16"),
    (lambda: to_unit_interval(LEVELS, max_level=0), "max_level must be at least 1, got 0"),
    (lambda: binarize(LEVELS), "got torch.uint8: datasets.to_unit_interval"),
    (lambda: binarize(LEVELS.float()), "divide grey levels by 255"),
    (lambda: binarize(["a"]), "array of numbers, got list"),
    (lambda: noisy_line(2.5), "num_points must be a whole number, got 2.5"),
    (lambda: GaussianLikelihood(0), "scale must be a positive number, got 0"),
    (lambda: GaussianLikelihood(None), "scale must be a positive number, got None"),
    (lambda: GaussianLikelihood(torch.ones(3)), "positive number, got tensor"),
    (lambda: GaussianLikelihood("optimum"), "'optimal' or 'per_pixel', got 'optimum'"),
    (lambda: GaussianLikelihood("learned", initial_scale=-1), "initial_scale must be a p"),
    (lambda: LaplaceLikelihood("learned"), "positive number, got 'learned'"),
    (
        lambda: gaussian_nll(np.zeros((1, 2)), ZEROS, 1.0),
        r"got ndarray: convert it with torch.as_tensor\(x\)",
    ),
    (lambda: bernoulli_nll(torch.ones(1, 2, dtype=int), ZEROS), r"got torch.int64.*\.float\(\)"),
    (lambda: gaussian_nll(torch.zeros(4), torch.zeros(4, 1), 1.0), "broadcasting is refused"),
    (lambda: gaussian_nll(ZEROS, ZEROS, -1.0), "standard deviation and must be positive"),
    (lambda: kl_standard_normal(torch.zeros(1, 2, dtype=int), ZEROS), "loc must be floating point"),
    (lambda: elbo(IMAGES, beta=-1.0), "beta is a weight.*got -1.0"),
    (lambda: elbo(IMAGES, beta=torch.nan), "beta is a weight.*got nan"),
    (lambda: elbo_terms(small(), IMAGES).elbo(torch.inf), "beta is a weight.*got inf"),
    (lambda: elbo_terms(small(), IMAGES, num_samples=0), "num_samples must be at least 1"),
    (lambda: elbo_terms(small(), IMAGES, num_samples=1.5), "num_samples must be a whole"),
    (lambda: implied_variance(0.0, 1.0), "recon_weight must be a positive number"),
    (lambda: evaluate_elbo(small().train(), IMAGES), r"in training mode, .*call model.eval\(\) first"),
    (lambda: nll_estimate(small(), IMAGES), "in training mode"),
    (lambda: active_units(small(), IMAGES), "in training mode"),
    (lambda: active_units(small().eval(), with_nan()), "the posterior mean must be finite, got nan"),
    (lambda: active_units(spoiled(), IMAGES), "mean must be fin"),
    (lambda: estimate(IMAGES, num_samples=1), "num_samples must be at least 2, got 1"),
    (
        lambda: evaluate_elbo(small().eval(), IMAGES, batch_size=2.5),
        "batch_size must be a whole number, got 2.5",
    ),
    (lambda: estimate(IMAGES[:0]), "at least one"),
    (lambda: estimate("mnist"), "numbers, got str"),
    (lambda: train(num_epochs=1.5), "num_epochs must be a whole number, got 1.5"),
    (lambda: train(num_epochs=True), "num_epochs must be a whole number, got True"),
    (lambda: train(learning_rate=0.0), "learning_rate must be a positive number, got 0.0"),
    (lambda: train(learning_rate=torch.nan), "learning_rate must be a positive"),
    (lambda: train(learning_rate="fast"), "positive number, got 'fast'"),
    (lambda: train(batch_size=None), "batch_size is missing"),
    (
        lambda: fit(small(), negative_elbo, DataLoader(IMAGES), num_epochs=1, batch_size=4),
        "a DataLoader brings its own batch size: leave out batch_size=4",
    ),
    (lambda: train(seed=0.5), "seed must be a whole number, got 0.5"),
    (lambda: train(micro_batch_size=2.5), "micro_batch_size must be a whole number"),
    (lambda: train(OnlyLength()), r"data is a OnlyLength: pass DataLoader\(data, batch_size=128\)"),
    (lambda: train({"x": IMAGES}), "data is a dictionary with x: make it a tuple"),
    (
        lambda: train(DataLoader([{"x": x} for x in IMAGES])),
        "a batch of the DataLoader is a dictionary with x",
    ),
    (
        lambda: train(DataLoader(TensorDataset(IMAGES), batch_size=9, drop_last=True)),
        "the DataLoader gives no batch",
    ),
    (lambda: train(torch.tensor(1.0)), r"got lengths \[None\]"),
    (lambda: train([]), r"got lengths \[\]"),
    (lambda: train(with_nan()), r"data\[0\] holds NaN"),
    (lambda: train(validation=with_nan()), r"validation\[0\] holds NaN"),
    (lambda: train(LEVELS), "got torch.uint8: datasets.to_unit_interval"),
    (lambda: train(data(8, 2, 3)), r"shape \(4, 2, 3\).*flatten"),
    (
        lambda: train(loss_fn=lambda model, x: elbo_terms(model, x).nll),
        r"must return one number, of shape \(\), got shape \(4,\)",
    ),
    (of_another_model(), "holds 8 parameters that are not this model's"),
    (lambda: train(device="gpu0"), "torch knows no device 'gpu0'"),
    (lambda: train(checkpoints=Checkpoints("unused")), r"need an identity.*Checkpoints\(folder, identity="),
    (lambda: Checkpoints("a", identity=" "), "says in words .* got ' '"),
    (lambda: Checkpoints("a", identity=3), "says in words .* got 3"),
    (
        lambda: train(DataLoader(IMAGES), checkpoints=Checkpoints("a", identity="a", every=2)),
        "a run with a DataLoader resumes at the end of an epoch only: leave `every` out",
    ),
    (lambda: Checkpoints(None, identity="a"), "folder must be a path, got None"),
    (lambda: Checkpoints("a", every="1"), "every must be a whole number, got '1'"),
    (lambda: Checkpoints("a", keep=2.5), "keep must be a whole number, got 2.5"),
    (lambda: train(device=None), "torch knows no device None"),
    (lambda: train(seed=2**64), r"seed must be below 2\*\*63"),
    (lambda: train(learning_rate=True), "learning_rate must be a positive number"),
    (lambda: train(model=small().requires_grad_(False)), "does not depend on any weight that can be trained"),
    (
        lambda: train(validation=DataLoader(IMAGES)),
        "validation is a DataLoader: pass its examples stacked into tensors",
    ),
    (lambda: train(validation=OnlyLength()), "its examples stacked into tensors"),
    (lambda: train(list(data(9, 6).float())), "data is a list of 9 tensors: torch.stack makes one"),
    (lambda: elbo(IMAGES, beta=None), "beta is a weight.*got None"),
    (lambda: elbo(IMAGES, beta="1"), "beta is a weight.*got '1'"),
    (
        lambda: GaussianLikelihood("per_pixel", min_log_scale=torch.nan),
        "min_log_scale must be a finite number, got nan",
    ),
    (
        lambda: negative_elbo(VAE(small().encoder, small().decoder, GaussianLikelihood("per_pixel")), IMAGES),
        r"hold loc and log_scale of shape \(8, 3\), which must have the shape of x.*x has \(8, 6\); emit 2 D",
    ),
    (
        lambda: GaussianLikelihood("per_pixel").nll(data(4, 6, 6), data(2, 4, 6, 12)),
        "2 C channels for images",
    ),
    (lambda: estimate(None), "numbers, got NoneType"),
    (lambda: draw(LEVELS, columns=2), "whole numbers up to 2.*to_unit_interval"),
    (lambda: History().plot(), "no epoch has been completed"),
    (lambda: save_checkpoint("unused", {"model": small()}), "state.model, which"),
    (lambda: draw(IMAGES[:, :4], columns=0), "columns must be at least 1, got 0"),
    (lambda: draw(IMAGES, columns=2), r"D a square.*got an array of shape \(8, 6\)"),
    (lambda: LinearVAE(3, 2, scale="wide"), "positive number.*got 'wide'"),
]
TYPE_ERRORS = [
    (lambda: small("gaussian"), r"such as GaussianLikelihood\(\).*got 'gaussian'"),
    (lambda: small(GaussianLikelihood), "must be an object such as Gauss"),
    (lambda: VAE(Encoder(mlp([6, 4])), Decoder(mlp([2, 6])), "bernoulli"), "likelihood must be an object"),
    (lambda: GaussianRegressor(mlp([1, 1]), "learned"), "an object"),
    (
        lambda: VAE(mlp([6, 4]), Decoder(mlp([2, 6])), BernoulliLikelihood())(IMAGES[:2]),
        r"must return loc and log_scale, got Tensor: networks.Encoder",
    ),
    (lambda: VAE(Encoder, Decoder, BernoulliLikelihood()), "encoder must be a netw"),
    (lambda: VAE(mlp([6, 4]), None, BernoulliLikelihood()), "decoder must be .* got None"),
    (
        lambda: VAE(mlp([6, 4]), mlp([2, 6]), BernoulliLikelihood()).posterior(IMAGES),
        "must return loc and log_scale, got Tensor",
    ),
    (lambda: mlp_vae(6, 2, activation="relu"), "such as nn.ReLU, got 'relu'"),
    (lambda: mlp_vae(6, 2, activation=nn.ReLU()), r"got ReLU\(\)"),
    (lambda: GaussianLikelihood(0.5, min_log_scale=-3.0), "min_log_scale"),
    (lambda: GaussianLikelihood("optimal", initial_scale=2.0), "initial_scale"),
    (lambda: train((IMAGES, torch.arange(8))), r"takes 2 positional arguments but 3"),
    (
        lambda: train(loss_fn=lambda model, x: elbo_terms(model, x)),
        "loss_fn must return a tensor of shape .*got ElboTerms",
    ),
    (
        lambda: train(loss_fn=lambda model, x: negative_elbo(model, x).item()),
        "loss_fn must return a tensor of shape .*got float",
    ),
    (
        lambda: fit(negative_elbo, small(), IMAGES, num_epochs=1, batch_size=4),
        r"fit\(model, loss_fn, data\): model must be an object",
    ),
    (lambda: train(model=VAE), "model must be an object of an nn.Module, got <cla"),
    (lambda: train(loss_fn="elbo"), "loss_fn must be a function, got 'elbo'"),
    (lambda: train(callback=[print]), "callback must be a function"),
    (lambda: train(optimizer=torch.optim.Adam), "optimizer must be an object"),
    (lambda: train(optimizer="adam"), r"Adam\(model.parameters\(\)\), got 'adam'"),
    (lambda: train(scheduler=torch.optim.lr_scheduler.StepLR), "scheduler must be an object"),
    (lambda: train(model=(m := small()), optimizer=torch.optim.LBFGS(m.parameters())), "fit cannot use them"),
    (lambda: train(checkpoints="runs/a"), r"must be Checkpoints\(folder, ident"),
]


MISTAKES = [
    (*row, kind) for rows, kind in ((VALUE_ERRORS, ValueError), (TYPE_ERRORS, TypeError)) for row in rows
]


@pytest.mark.parametrize(("action", "message", "kind"), MISTAKES, ids=[row[1] for row in MISTAKES])
def test_mistake_is_answered_with_the_way_out(action, message, kind):
    with pytest.raises(kind, match=message):
        action()


def test_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(AttributeError, match="'Vae'; it has VAE, mlp_vae"):
        _ = vaecourse.Vae


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
    double = nll_estimate(model, IMAGES.double().numpy(), num_samples=5, generator=generator())
    assert double.nats == nll_estimate(model, IMAGES, num_samples=5, generator=generator()).nats


def test_plots_take_tensors_with_gradients():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    plot_curves([0, 1], {"curve": values}, ax=(ax := Figure().subplots()))
    plot_regression([0, 1], [0, 1], grid=[0, 1], loc=values, scale=values, ax=ax)
    plot_latent_plane(torch.zeros(2, 2, requires_grad=True), torch.tensor([1, 2]), ax=ax)
    assert all(line.get_ydata().tolist() == [1, 2] for line in ax.lines)


def test_optimiser_of_part_of_the_model_is_accepted():
    model = small()
    frozen = model.encoder.network[0].weight.clone()
    train(model=model, optimizer=torch.optim.Adam(model.decoder.parameters()))
    assert torch.equal(model.encoder.network[0].weight, frozen)
