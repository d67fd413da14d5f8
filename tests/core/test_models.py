import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from tests.core.examples import EVERY_LIKELIHOOD, F64, linear_vae, normal
from vaecourse.likelihoods import BernoulliLikelihood
from vaecourse.linear_vae import LinearVAE
from vaecourse.models import VAE, GaussianRegressor, mlp_vae
from vaecourse.networks import Decoder, Encoder, mlp
from vaecourse.objectives import ElboTerms, negative_elbo
from vaecourse.training import fit


def shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in module.parameters() if parameter.ndim == 2]


def squared_column_norms(model: LinearVAE) -> Tensor:
    return model.weight.detach().square().sum(0)


def exact_negative_elbo(model: LinearVAE, x: Tensor, beta: float = 1.0) -> float:
    with torch.no_grad():
        return -model.exact_elbo_terms(x).elbo(beta).mean().item()


# --- networks --------------------------------------------------------------------------------------------


def test_mlp_has_activations_between_its_layers_only():
    layers = mlp([4, 8, 6, 2], activation=nn.Tanh)
    assert [type(layer) for layer in layers] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert shapes(layers) == [(8, 4), (6, 8), (2, 6)]


def test_mlp_vae_has_the_activation_asked_for_in_both_networks():
    vae = mlp_vae(4, 2, hidden_dims=(3,), activation=nn.Tanh)
    for network in (vae.encoder, vae.decoder):
        layers = [type(part) for part in network.modules()]
        assert (layers.count(nn.Tanh), layers.count(nn.ReLU)) == (1, 0)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ([], r"must hold input and output dimension, got \[\]"),
        ([3], r"must hold input and output dimension, got \[3\]"),
        ([3, 0], "each of dims must be at least 1, got 0"),
        ([3, -5, 2], "each of dims must be at least 1, got -5"),
    ],
    ids=str,
)
def test_mlp_rejects_dimensions_that_make_no_network(dims, message):
    with pytest.raises(ValueError, match=message):
        mlp(dims)


def test_encoder_splits_output_into_loc_and_log_scale():
    loc, log_scale = Encoder(nn.Identity())(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert (loc.tolist(), log_scale.tolist()) == ([[1.0, 2.0]], [[3.0, 4.0]])


def test_decoder_keeps_sample_dimensions():
    assert Decoder(mlp([2, 7]))(torch.zeros(3, 5, 2)).shape == (3, 5, 7)


def test_posterior_exponentiates_the_log_scale():
    vae = VAE(Encoder(nn.Identity()), Decoder(mlp([2, 3])), BernoulliLikelihood())
    posterior = vae.posterior(torch.tensor([[1.0, 2.0, 0.0, math.log(3)]]))
    z = torch.tensor([[1.5, 1.0]])
    expected = stats.norm.logpdf([1.5, 1.0], [1, 2], [1, 3]).sum()
    assert posterior.log_prob(z).item() == pytest.approx(expected, rel=1e-6)


def test_mlp_vae_mirrors_the_encoder():
    vae = mlp_vae(9, 2, hidden_dims=(7, 5))
    assert shapes(vae.decoder) == [(5, 2), (7, 5), (9, 7)]
    assert shapes(vae.encoder) == [(7, 9), (5, 7), (4, 5)]


def test_mlp_vae_is_bernoulli_unless_told():
    assert isinstance(mlp_vae(9, 2).likelihood, BernoulliLikelihood)


@EVERY_LIKELIHOOD
def test_mlp_vae_with_any_likelihood_learns(make):
    torch.manual_seed(0)
    vae = mlp_vae(6, 2, hidden_dims=(8,), likelihood=make())
    x = torch.rand(64, 1).expand(64, 6).contiguous()  # one grey level an image: easily learnt
    loss = fit(vae, negative_elbo, x, num_epochs=80, batch_size=64, learning_rate=1e-2).loss
    assert sum(loss[-10:]) < sum(loss[:10])
    params = vae.decode(torch.zeros(3, 2))
    assert vae.likelihood.mean(params).shape == vae.likelihood.sample(params).shape == (3, 6)


def test_regressor_fits_a_unit_gaussian_unless_told():
    assert GaussianRegressor(mlp([1, 1])).likelihood.scale == 1.0


# --- the linear VAE's exact answers ----------------------------------------------------------------------


@pytest.mark.equation("eq-linear-evidence")
@pytest.mark.parametrize("scale", [0.6, "learned"])
def test_log_likelihood_matches_scipy(scale):
    model, x = linear_vae(scale), normal(4, 5, seed=9)
    weight = model.weight.detach().numpy()
    variance = 0.36 if scale == 0.6 else model.likelihood.log_scale.detach().mul(2).exp().item()
    covariance = weight @ weight.T + variance * np.eye(5)
    expected = stats.multivariate_normal(model.decoder.bias.detach().numpy(), covariance).logpdf(x.numpy())
    np.testing.assert_allclose(model.log_likelihood(x).detach().numpy(), expected, rtol=1e-10)


@pytest.mark.equation("eq-linear-posterior")
@pytest.mark.parametrize("scale", [0.6, "learned"])
def test_exact_posterior_obeys_bayes_rule(scale):
    model, x, z = linear_vae(scale), normal(4, 5, seed=9), normal(4, 2, seed=10)
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    log_joint = log_prior - model.likelihood.nll(x, model.decode(z))
    torch.testing.assert_close(log_joint - model.exact_posterior(x).log_prob(z), model.log_likelihood(x))


@pytest.mark.equation("eq-linear-expected-error")
@pytest.mark.parametrize("scale", [0.6, "learned"])
def test_exact_elbo_terms_match_quadrature(scale):
    """Gauss-Hermite quadrature over the two latents is exact for the quadratic log-likelihood."""
    model, x = linear_vae(scale), normal(4, 5, seed=9)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(6))
    eps = torch.cartesian_prod(nodes, nodes)[:, None]  # (36, 1, 2)
    weight = torch.cartesian_prod(weights, weights).prod(1) / (2 * math.pi)  # (36,)
    loc, log_scale = model.encode(x)
    nll = weight @ model.likelihood.nll(x, model.decode(loc + log_scale.exp() * eps))
    q = torch.distributions.Normal(loc, log_scale.exp())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(model.exact_elbo_terms(x), ElboTerms(nll, kl))


def test_exact_elbo_terms_gradient_reaches_every_parameter():
    model = linear_vae("learned")
    model.exact_elbo_terms(normal(4, 5)).elbo().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("shape", [(4, 6), (5,)], ids=str)
def test_exact_elbo_terms_rejects_other_shapes(shape):
    with pytest.raises(ValueError, match=re.escape(f"x must have shape (batch, 5), got {shape}")):
        linear_vae().exact_elbo_terms(normal(*shape))


def test_linear_encoder_scale_does_not_depend_on_x():
    _, log_scale = linear_vae().encode(normal(4, 5))
    assert torch.equal(log_scale, log_scale[:1].expand(4, 2))


@pytest.mark.parametrize("scale", ["optimal", "per_pixel"])
def test_linear_vae_rejects_scale_without_closed_form(scale):
    with pytest.raises(ValueError, match=f"one fixed or 'learned' scale, got {scale!r}"):
        LinearVAE(5, 2, scale=scale)


# --- probabilistic PCA on the small digits ---------------------------------------------------------------


@pytest.mark.equation("eq-ppca-variance")
@pytest.mark.equation("eq-ppca-likelihood")
def test_from_ppca_maximises_likelihood_of_digits(digits_x):
    model = LinearVAE.from_ppca(digits_x, 10)
    assert model.likelihood.scale**2 == pytest.approx(0.0227514, abs=5e-8)
    by_model = model.log_likelihood(digits_x).mean().item()
    eigenvalues = np.linalg.eigvalsh(np.cov(digits_x.numpy().T, bias=True))[::-1]
    noise = eigenvalues[10:].mean()
    log_determinant = np.log(eigenvalues[:10]).sum() + 54 * np.log(noise)
    by_eigenvalues = -0.5 * (log_determinant + 64 * np.log(2 * np.pi) + 64)
    assert by_model == pytest.approx(17.4519, abs=5e-5)
    assert by_model == pytest.approx(by_eigenvalues, rel=1e-10)


@pytest.mark.equation("eq-ppca-weights")
@pytest.mark.parametrize(
    ("variance", "norms", "negative_elbo"),
    [(0.5, [0.199, 0.139, 0.054, 0, 0], 41.2741), (1.0, [0, 0, 0, 0, 0], 61.1587)],
    ids=["three-active", "total-collapse"],
)
def test_from_ppca_reaches_known_optimum_on_digits(digits_x, variance, norms, negative_elbo):
    model = LinearVAE.from_ppca(digits_x, 5, scale=variance**0.5)
    assert squared_column_norms(model).tolist() == pytest.approx(norms, abs=5e-4)
    assert exact_negative_elbo(model, digits_x) == pytest.approx(negative_elbo, abs=5e-5)
    assert -model.log_likelihood(digits_x).mean().item() == pytest.approx(negative_elbo, abs=5e-5)


@pytest.mark.equation("eq-active-latents")
@pytest.mark.parametrize(("variance", "count"), [(32, 0), (1, 0), (0.5, 3), (0.1, 12), (0.02, 30)])
def test_from_ppca_keeps_latents_whose_eigenvalue_exceeds_the_variance(digits_x, variance, count):
    model = LinearVAE.from_ppca(digits_x, 63, scale=variance**0.5)
    assert (squared_column_norms(model) > 0).sum() == count


@pytest.mark.equation("eq-ppca-weights")
@pytest.mark.equation("eq-active-latents")
@pytest.mark.parametrize("beta", [0.2, 1.0, 3.0])
def test_from_ppca_is_a_stationary_point_of_its_objective(digits_x, beta):
    """The gradient of the exact beta-weighted objective vanishes, for decoder and encoder."""
    model = LinearVAE.from_ppca(digits_x, 5, scale=0.4, beta=beta)
    loc, log_scale = model.encode(digits_x)
    square = (digits_x - model.decode(loc)).square().sum(1)
    square = square + ((2 * log_scale).exp() * model.weight.square().sum(0)).sum(1)
    kl = (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1) / 2
    (square / (2 * 0.4**2) + beta * kl).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() < 1e-9, name


@pytest.mark.equation("eq-ppca-weights")
@pytest.mark.parametrize("beta", [0.2, 3.0])
def test_from_ppca_is_a_minimum_of_its_objective(digits_x, beta):
    model = LinearVAE.from_ppca(digits_x, 5, scale=0.4, beta=beta)
    best = exact_negative_elbo(model, digits_x, beta)
    for seed in range(20):
        other = LinearVAE.from_ppca(digits_x, 5, scale=0.4, beta=beta)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter += 0.01 * normal(*parameter.shape, seed=seed)
        assert exact_negative_elbo(other, digits_x, beta) > best


def test_beta_and_variance_enter_the_weights_through_their_product(digits_x):
    """(s2, beta) = (0.1, 5) and (0.5, 1): the same decoder and posterior, hence not identifiable."""
    first = LinearVAE.from_ppca(digits_x, 5, scale=0.1**0.5, beta=5.0)
    second = LinearVAE.from_ppca(digits_x, 5, scale=0.5**0.5)
    # 1e-16 under a square root, where norms are 0
    torch.testing.assert_close([*first.parameters()], [*second.parameters()], rtol=0, atol=1e-7)
    assert first.encoder.log_scale.detach().exp().square()[0].item() == pytest.approx(0.715454, abs=5e-6)
    evidence = [model.log_likelihood(digits_x[:9]) for model in (first, second)]
    assert not torch.allclose(*evidence, rtol=0.1)


@pytest.mark.equation("eq-exact-encoder")
@pytest.mark.parametrize("variance", [0.02, 0.1, 0.5])
def test_from_ppca_posterior_is_exact(digits_x, variance):
    model = LinearVAE.from_ppca(digits_x, 5, scale=variance**0.5)
    exact = model.exact_posterior(digits_x)
    loc, log_scale = model.encode(digits_x)
    covariance = torch.diag((2 * log_scale[0]).exp())
    torch.testing.assert_close(loc, exact.loc, rtol=0, atol=1e-9)
    torch.testing.assert_close(covariance, exact.covariance_matrix[0], rtol=0, atol=1e-9)


def test_from_ppca_aggregate_posterior_has_unit_variance(digits_x):
    loc, log_scale = LinearVAE.from_ppca(digits_x, 5, scale=0.4).encode(digits_x)
    total = loc.var(0, correction=0) + (2 * log_scale[0]).exp()
    torch.testing.assert_close(total, torch.ones(5, dtype=F64))


# --- probabilistic PCA on MNIST --------------------------------------------------------------------------


def sweep(test):
    """The spectrum of all of MNIST takes seconds, in each process that needs it."""
    return pytest.mark.long(pytest.mark.xdist_group("mnist")(test))


@sweep
def test_mnist_spectrum_matches_known_values(mnist_spectrum, mnist_train):
    eigenvalues = mnist_spectrum.eigenvalues
    known = [5.1168, 3.7413, 3.2527, 2.8416, 2.5671, 2.2736, 1.7251, 1.5205, 1.4563, 1.2427, 1.1121, 1.0666]
    assert eigenvalues[:12].tolist() == pytest.approx(known, abs=5.1e-5)
    assert eigenvalues.sum().item() == pytest.approx(52.72504, abs=5e-6)
    assert (mnist_train.amax(0) == mnist_train.amin(0)).sum() == 67


@sweep
@pytest.mark.equation("eq-active-latents")
@pytest.mark.parametrize(
    ("variance", "count"),
    [
        *[(392, 0), (19.6, 0), (6, 0), (5, 1), (4, 1), (3, 3), (2, 6), (1, 12)],
        *[(0.5, 23), (0.25, 39), (0.1, 69), (0.05, 102), (0.01, 251)],
    ],
)
def test_active_latents_of_mnist_are_eigenvalues_above_the_variance(mnist_spectrum, variance, count):
    model = LinearVAE.from_ppca(mnist_spectrum.stand_in, 300, scale=variance**0.5)
    assert (squared_column_norms(model) > 0).sum() == count


@sweep
@pytest.mark.equation("eq-ppca-variance")
@pytest.mark.equation("eq-ppca-likelihood")
@pytest.mark.parametrize(
    ("latent_dim", "given", "variance", "log_likelihood"),
    [
        *[(2, None, 0.0560958, 12.4277), (10, None, 0.0348673, 182.1547)],
        *[(20, None, 0.0245971, 299.7584), (50, None, 0.0125960, 507.9054)],
        *[(20, 392, 392, -3061.2497), (20, 1, 1, -743.1862)],
        *[(20, 0.5, 0.5, -487.60945), (20, 0.1, 0.1, 52.0270)],
    ],
)
def test_from_ppca_has_known_likelihood_on_mnist(mnist_spectrum, latent_dim, given, variance, log_likelihood):
    """Of the best variance, or of a given one."""
    x = mnist_spectrum.stand_in
    model = LinearVAE.from_ppca(x, latent_dim, scale=given and given**0.5)
    assert model.likelihood.scale**2 == pytest.approx(variance, abs=5e-8)
    # a Gaussian's mean log-likelihood needs the data's mean and covariance only, and these are MNIST's
    assert model.log_likelihood(x).mean().item() == pytest.approx(log_likelihood, abs=5e-5)


# --- bad input of from_ppca ------------------------------------------------------------------------------

NINE = normal(9, 3)
NO_MATRIX = r"x must be a floating point matrix \(N, D\), N >= 2, got torch"
SCALE, BETA = "scale must be a positive number, got", "beta must be a positive number, got"
NONFINITE = [torch.where(torch.arange(27).reshape(9, 3) == 13, bad, NINE) for bad in (math.nan, math.inf)]
SHAPES = [((5,), F64), ((1, 3), F64), ((2, 3, 4), F64), ((5, 3), torch.uint8)]
BAD_INPUT = [
    *((torch.zeros(shape, dtype=dtype), 1, {}, NO_MATRIX) for shape, dtype in SHAPES),
    *((x, 1, {}, f"x must be finite, got {x[4, 1]:g}") for x in NONFINITE),
    *((NINE, n, {}, rf"latent_dim must lie in 1 \.\.\. 2, got {n}") for n in (0, -1, 3, 4)),
    *((NINE, 1, {"scale": bad}, f"{SCALE} {bad}") for bad in (0.0, -1.0, math.nan)),
    (NINE, 1, {"beta": 2.0}, r"beta=2\.0 needs a given scale"),
    *((NINE, 1, {"scale": 1.0, "beta": bad}, f"{BETA} {bad}") for bad in (0.0, -1.0, math.nan, math.inf)),
]


@pytest.mark.parametrize(("x", "latent_dim", "how", "message"), BAD_INPUT, ids=[row[3] for row in BAD_INPUT])
def test_from_ppca_rejects_bad_input(x, latent_dim, how, message):
    with pytest.raises(ValueError, match=message):
        LinearVAE.from_ppca(x, latent_dim, **how)


@pytest.mark.parametrize("seed", range(10))
def test_from_ppca_of_data_without_noise_is_refused_or_almost_noiseless(seed):
    """Discarded eigenvalues that are 0 come out as tiny numbers of either sign."""
    x = normal(50, 1, seed=seed) @ normal(1, 3, seed=seed + 100)
    try:
        model = LinearVAE.from_ppca(x, 1)
    except ValueError as error:
        assert "scale must be a positive number, got 0.0" in str(error)
    else:
        assert 0 < model.likelihood.scale < 1e-6
