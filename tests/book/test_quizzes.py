"""The quizzes "Check yourself": their form, and the numbers of their choices and answers.

A right number is computed by something that does not contain the chapter's formula, where there is such a
thing; the numbers of the wrong choices are computed by the mistakes to which the answers attribute them.
"""

import math
import re
from collections import Counter
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import optimize
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torch.special import digamma

from tests.book.notebook_rules import ROOT, read
from tests.book.oracles import F64, column, descend, generator, hermite, smallest
from vaecourse.densities import bernoulli_nll, continuous_bernoulli_nll, gaussian_nll
from vaecourse.diagnosis import diagnose_loss
from vaecourse.divergences import kl_standard_normal
from vaecourse.evaluation import active_units, nats_to_bits_per_dim
from vaecourse.likelihoods import GaussianLikelihood
from vaecourse.linear_vae import LinearVAE

PATHS = {int(path.name[:2]): path for path in (ROOT / "book").glob("0[1-9]_*.ipynb")}
CHAPTERS = pytest.mark.parametrize("chapter", sorted(PATHS))

CELL = re.compile(
    r"""::::\{admonition\}\ Question\ (?P<number>\d+)\n:class:\ quiz\n\n.+?\n\n
    (?P<choices>1\.\ [^\n]+(?:\n\d\.\ [^\n]+)*)\n\n
    :::\{admonition\}\ Answer\n:class:\ dropdown\n\n
    \*\*(?P<right>\d)\.\*\*\ (?P<answer>.+)\n:::\n::::""",
    re.VERBOSE | re.DOTALL,
)


class Question(NamedTuple):
    number: int
    choices: list[str]
    right: int
    answer: str

    @property
    def right_choice(self) -> str:
        return self.choices[self.right - 1]


@cache
def cells(chapter: int) -> dict[str, str]:
    """Return the Markdown cells of a chapter, by their ids and in their order."""
    return {cell.id: cell.source for cell in read(PATHS[chapter]).cells if cell.cell_type == "markdown"}


@cache
def quiz(chapter: int) -> list[Question]:
    """Return the questions of a chapter, as far as their cells have the agreed form."""
    found = []
    for name, source in cells(chapter).items():
        if re.fullmatch(r"check-yourself-\d+", name):
            cell = CELL.fullmatch(source)
            assert cell, f"chapter {chapter}: the cell {name} has not the form of a question"
            marks, choices = zip(*(row.split(". ", 1) for row in cell["choices"].splitlines()), strict=True)
            assert marks == tuple("1234"[: len(marks)])
            found.append(Question(int(cell["number"]), list(choices), int(cell["right"]), cell["answer"]))
    return found


def printed(text: str) -> tuple[float, float]:
    """Return the first number of a text, and half a unit of its last digit."""
    match = re.search(r"-?\d[\d{},]*(?:\.\d+)?", text)
    assert match, f"no number in {text!r}"
    digits = re.sub(r"[{},]", "", match[0])
    return float(digits), 0.5 * 10.0 ** -len(digits.partition(".")[2])


def check_choices(chapter, number, values: list[float | None], *, right: float, exact: bool = False) -> None:
    """Hold the numbers of all choices against values, which must be as many; None stands for a text.

    Every value must round to what is printed, the place that the answer names must hold the right one,
    and where `exact` is set, the right one must be what is printed to nine digits.
    """
    question = quiz(chapter)[number - 1]
    for choice, value in zip(question.choices, values, strict=True):
        if value is None:
            assert not re.search(r"\d", choice)
        else:
            shown, half_unit = printed(choice)
            assert abs(value - shown) <= half_unit * (1 + 1e-9), f"{choice!r}, computed {value}"
    assert values[question.right - 1] == right
    if exact:
        assert right == pytest.approx(printed(question.right_choice)[0], rel=1e-9)


def residuals(mse: float, count: int) -> Tensor:
    """So many different numbers with this mean square."""
    numbers = torch.linspace(-1, 1, count, dtype=F64)[:, None]
    return numbers * (mse / numbers.square().mean()).sqrt()


def nll_of(residuals: Tensor, scale: float) -> float:
    return gaussian_nll(residuals, torch.zeros_like(residuals), scale).sum().item()


def data_with(eigenvalues: list[float]) -> Tensor:
    """A centred data set whose covariance is diagonal and has these eigenvalues, exactly."""
    roots = (len(eigenvalues) * torch.tensor(eigenvalues, dtype=F64)).sqrt().diag()
    return torch.cat([roots, -roots])


# ---- the form ----


@CHAPTERS
def test_quiz_stands_between_summary_and_outlook_and_says_what_is_wrong_with_each_other_choice(chapter):
    names = list(cells(chapter))
    start = names.index("check-yourself")
    expected = ["summary", "check-yourself", *(f"check-yourself-{i}" for i in range(1, 5)), "what-comes-next"]
    assert names[start - 1 : start + 6] == expected
    assert cells(chapter)["check-yourself"].startswith("## Check yourself\n\n")
    assert [question.number for question in quiz(chapter)] == [1, 2, 3, 4]
    for question in quiz(chapter):
        assert len(question.choices) in (3, 4)
        assert len(set(question.choices)) == len(question.choices)
        assert 1 <= question.right <= len(question.choices)
        named = [int(digit) for digit in re.findall(r"^Choice (\d) ", question.answer, re.MULTILINE)]
        assert named == [i for i in range(1, len(question.choices) + 1) if i != question.right]


def test_right_choice_is_recognised_neither_by_its_place_nor_by_its_length():
    assert sorted(PATHS) == [1, 2, 3, 4, 5, 6]
    assert [chapter for chapter in PATHS if len({question.right for question in quiz(chapter)}) < 3] == []
    questions = [question for chapter in PATHS for question in quiz(chapter)]
    places = Counter(question.right for question in questions)
    assert max(places.values()) <= 0.45 * places.total()
    lengths = [(len(q.right_choice), [len(c) for c in q.choices if c != q.right_choice]) for q in questions]
    assert sum(right > max(others) for right, others in lengths) <= len(questions) / 4


# ---- chapter 1 ----


def test_gaussian_regression_question_1_difference_of_nlls():
    difference = nll_of(residuals(0.04, 50), 0.1) - nll_of(residuals(0.02, 50), 0.1)
    refitted = 25 * (math.log(0.04) - math.log(0.02))
    check_choices(1, 1, [difference / 50, refitted, difference, 2 * difference], right=difference, exact=True)


def test_gaussian_regression_question_2_best_scale():
    errors = residuals(0.4**2, 10)
    data_term = errors.square().sum().item() / (2 * 0.2**2)
    assert data_term == pytest.approx(20, rel=1e-12)
    best = smallest(lambda scale: nll_of(errors, scale), 0.01, 3).x
    assert best == pytest.approx(0.4, abs=1e-6)
    by_ratio, by_half = data_term / 5, math.sqrt(data_term / 0.5)
    check_choices(1, 2, [0.2 / math.sqrt(by_ratio), best, by_ratio * 0.2, by_half * 0.2], right=best)


def test_gaussian_regression_question_3_error_of_draws():
    nodes, weights = (torch.from_numpy(a) for a in hermite(20))  # exact for polynomials
    error = ((residuals(0.03, 9) + math.sqrt(0.03) * nodes).square().mean(0) @ weights).item()
    root = math.sqrt(0.03)
    check_choices(1, 3, [0.03, error, (2 * root) ** 2, 0.03 + root], right=error, exact=True)
    assert r"\approx 0.17$" in quiz(1)[2].answer and round(root, 2) == 0.17


def test_gaussian_regression_question_4_only_one_minimum_moves():
    rng = np.random.default_rng(0)
    design, targets = rng.normal(size=(30, 2)), rng.normal(size=30)

    def sse(w):
        return ((targets - design @ w) ** 2).sum()

    losses = [
        lambda w, s: sse(w) / (2 * s**2) + 15 * math.log(2 * math.pi * s**2),
        lambda w, s: sse(w) / (2 * s**2) + 3 * (w @ w) / s**2,
        lambda w, s: math.log(sse(w) / s**2),
        lambda w, s: sse(w) / (2 * s**2) + 3 * (w @ w),
    ]
    for number, loss in enumerate(losses, 1):
        low, high = (optimize.minimize(loss, np.zeros(2), args=(s,), tol=1e-9).x for s in (0.5, 2.0))
        way = np.abs(low - high).max()
        assert way > 1e-2 if number == quiz(1)[3].right else way < 1e-5


# ---- chapter 2 ----


def test_vae_elbo_question_1_draws_for_two_copies():
    likelihood = torch.tensor([1.0, 0.0, 0.0], dtype=F64)  # a third of the codes explains x: kappa is 3

    def relative_variance(values: Tensor) -> float:
        return (values.var(correction=0) / values.mean() ** 2).item()

    one = relative_variance(likelihood) / 0.1**2
    assert one == pytest.approx(200, rel=1e-12)
    both = relative_variance(torch.outer(likelihood, likelihood)) / 0.1**2
    product_error = math.sqrt((1 + relative_variance(likelihood) / 400) ** 2 - 1)  # 400 draws for each copy
    assert product_error == pytest.approx(0.1, rel=2e-3)
    check_choices(2, 1, [one, 2 * one, both, one**2], right=both, exact=True)


@torch.no_grad()
def test_vae_elbo_question_2_gap_of_two_encoders():
    x = data_with([2.0, 1.0, 0.3, 0.1])
    model, x = LinearVAE.from_ppca(x, 2, scale=0.5), x[:1]
    gaps, log_p, terms = [], [], []
    for change in (0.5, 0.1):
        model.encoder.log_scale += change
        terms.append(model.exact_elbo_terms(x))
        log_p.append(model.log_likelihood(x))
        q = model.posterior(x)
        wide = MultivariateNormal(q.mean, torch.diag_embed(q.variance))
        gaps.append(kl_divergence(wide, model.exact_posterior(x)))
    difference = terms[0].elbo() - terms[1].elbo()
    torch.testing.assert_close(difference, gaps[1] - gaps[0])
    assert log_p[0] == log_p[1]
    for first, second in zip(*terms, strict=True):  # neither term differs by as much as their sum
        assert abs((first - second).abs() - difference.abs()) > 0.05
    assert {printed(choice.rpartition("by ")[2])[0] for choice in quiz(2)[1].choices} == {-101.5 - -104.0}
    assert quiz(2)[1].right_choice.count(r"p(z \mid x)") == 2


def test_vae_elbo_question_3_rate_of_a_linear_vae():
    eigenvalues = [2.0, 0.5, 0.2, 0.01, 0.01]
    x = data_with(eigenvalues)
    model = LinearVAE.from_ppca(x, 3, scale=math.sqrt(0.1), beta=4)
    terms = model.exact_elbo_terms(x)
    (-terms.elbo(4).mean()).backward()
    slopes = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(slopes) >= 4 and max(slope.abs().max().item() for slope in slopes) < 1e-9
    found = terms.kl.mean().item()
    assert found == pytest.approx(0.5 * math.log(6.25), rel=1e-9)
    all_three, no_beta = (0.5 * sum(math.log(v / noise) for v in eigenvalues[:3]) for noise in (0.4, 0.1))
    check_choices(2, 3, [all_three, found, 2 * found, no_beta], right=found)


def test_vae_elbo_question_4_variance_of_the_means():
    beta, noise = 2.0, 0.18
    x = data_with([1.0, 0.1, 0.1])
    model = LinearVAE.from_ppca(x, 1, scale=math.sqrt(noise), beta=beta)
    scale = model.posterior(x).stddev
    torch.testing.assert_close(scale, torch.full_like(scale, 0.6))
    found = active_units(model, x).variances.item()
    check_choices(2, 4, [1 - beta * 0.6**2, 0.6**2, found, 1], right=found, exact=True)


# ---- chapter 3 ----


def test_gaussian_to_mse_question_1_mean_code():
    x = data_with([1.0, 1.0, 0.2, 0.1, 0.01, 0.01])
    model = LinearVAE.from_ppca(x, 4, scale=math.sqrt(0.1))
    loc, log_scale = model.encode(x)
    variances = (2 * log_scale[0]).exp()
    torch.testing.assert_close(variances.sort().values, torch.tensor([0.1, 0.1, 0.5, 1.0], dtype=F64))
    claimed = -model.likelihood.nll(x, model.decode(loc)) - kl_standard_normal(loc, log_scale)
    above = (claimed - model.log_likelihood(x)).mean().item()
    check_choices(3, 1, [0.5 * 4, 0.5 * variances.sum().item(), above, above], right=above, exact=True)
    assert quiz(3)[0].right_choice.endswith("above it") and above > 0


def test_gaussian_to_mse_question_2_implied_variance():
    data_dim, latent_dim = 3 * 32 * 32, 128

    def loss(recon: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        return 100 * F.mse_loss(recon, x) + 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean()

    variance = diagnose_loss(loss, data_dim=data_dim, latent_dim=latent_dim).scale ** 2
    assert variance == pytest.approx(0.12, rel=1e-4)
    check_choices(3, 2, [variance, 2 * variance, 100 * variance, latent_dim * variance], right=variance)
    torch.testing.assert_close([data_dim / (2 * latent_dim), data_dim / 200], [100 * 0.12, 128 * 0.12])


def test_gaussian_to_mse_question_3_rate_and_decay():
    dim, eta, decay = 16, 0.01, 0.3

    def walk(divisor: float, rate: float, weight_decay: float) -> Tensor:
        theta = torch.linspace(-1, 1, 5, dtype=F64, requires_grad=True)
        optimizer = torch.optim.SGD([theta], lr=rate, weight_decay=weight_decay)
        descend(optimizer, lambda _: ((theta - 1) ** 4).sum() / divisor, 5)
        return theta.detach()

    settings = {
        r"$\eta D$ and $cD$": (eta * dim, decay * dim),
        r"$\eta D$ and $c$": (eta * dim, decay),
        r"$\eta D$ and $c/D$": (eta * dim, decay / dim),
        r"$\eta$ and $c/D$": (eta, decay / dim),
    }
    plain = walk(1, eta, decay)
    agree = [name for name, pair in settings.items() if torch.allclose(walk(dim, *pair), plain, rtol=1e-12)]
    assert list(settings) == quiz(3)[2].choices
    assert agree == [quiz(3)[2].right_choice]


def test_gaussian_to_mse_question_4_bits_of_a_quarter():
    errors = torch.linspace(0.01, 0.02, 12, dtype=F64)[None]

    def bits(factor: float) -> float:
        nats = GaussianLikelihood("optimal").nll(factor * errors, torch.zeros_like(errors)).item()
        return nats_to_bits_per_dim(nats, 12)

    fall = bits(1.0) - bits(0.5)  # half of each error is a quarter of the MSE
    check_choices(3, 4, [fall * math.log(2), fall, math.log2(4), None], right=fall, exact=True)


# ---- chapter 4 ----


def test_bernoulli_to_bce_question_1_best_probability():
    x = column(0.2, 0.2, 0.2, 1.0)
    best = smallest(lambda p: bernoulli_nll(x, torch.full_like(x, p).logit()).mean().item(), 0.01, 0.99).x
    assert best == pytest.approx(0.4, abs=1e-6)
    share, middle = (x > 0.5).double().mean().item(), (x.min() + x.max()).item() / 2
    check_choices(4, 1, [x.median().item(), share, best, middle], right=best)


def test_bernoulli_to_bce_question_2_ratio_of_derivatives():
    a = column(3.0).requires_grad_()
    losses = [bernoulli_nll(column(0.0), a).sum(), 0.5 * torch.sigmoid(a).square().sum()]
    slopes = [torch.autograd.grad(loss, a, retain_graph=True)[0].item() for loss in losses]
    ratio, of_values = slopes[0] / slopes[1], (losses[0] / losses[1]).item()
    check_choices(4, 2, [1.0, 1 / 0.25, of_values, ratio], right=ratio)
    for shown in (f"{ratio:.1f}", f"{torch.sigmoid(a).item():.3f}", f"{losses[0]:.2f}", f"{losses[1]:.3f}"):
        assert re.search(rf"(\$|\\approx ){re.escape(shown)}\$", quiz(4)[1].answer)


def test_bernoulli_to_bce_question_3_continuous_bound():
    lowest = -102 + 784 * math.log(2)
    check_choices(4, 3, [lowest, lowest, lowest, -102], right=lowest)
    x = torch.rand(5, 784, dtype=F64, generator=generator())
    for spread in (0.0, 0.5, 5.0):
        logits = spread * torch.linspace(-1, 1, 784, dtype=F64).expand(5, 784)
        gain = bernoulli_nll(x, logits) - continuous_bernoulli_nll(x, logits) - 784 * math.log(2)
        assert (gain > 1).all() if spread else gain.abs().max() < 1e-9
    assert quiz(4)[2].right_choice.startswith("It is at least")


def test_bernoulli_to_bce_question_4_leaving_collapse():
    bits = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]], dtype=F64)
    correlation = 0.3
    probs = torch.tensor([1 + correlation, 1 - correlation, 1 - correlation, 1 + correlation], dtype=F64) / 4
    nodes, prior = (torch.from_numpy(a) for a in hermite(40))

    def objective(direction: Tensor, beta: float) -> float:
        """The average over images of the largest E_q[log P] - beta KL, which is beta log E_p[P^(1/beta)]."""
        logits = nodes[:, None] * direction  # the mean of each pixel is one half, so its logit is 0
        log_lik = -bernoulli_nll(bits.repeat_interleave(40, dim=0), logits.repeat(4, 1)).view(4, 40)
        return (probs @ (beta * torch.logsumexp(log_lik / beta + prior.log(), dim=1))).item()

    def rises(angle: float, beta: float) -> bool:
        direction = 0.01 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=F64)
        return objective(direction, beta) > objective(torch.zeros(2, dtype=F64), beta)

    together, apart = math.pi / 4, -math.pi / 4
    assert rises(together, 1.295) and not rises(together, 1.305)
    assert rises(apart, 0.695) and not rises(apart, 0.705)
    assert not any(rises(angle, 1.305) for angle in np.linspace(-math.pi / 2, math.pi / 2, 25))
    covariance = torch.tensor([[1, correlation], [correlation, 1]], dtype=F64) / 4
    lower, upper = torch.linalg.eigvalsh(covariance).tolist()
    check_choices(4, 4, [upper, 4 * lower, 1, 4 * upper], right=4 * upper, exact=True)


# ---- chapter 5 ----


def test_gpu_training_question_1_reading_every_tenth_step():
    def mean_step(every: int, num_steps: int = 100) -> float:
        python = queue = 0.0  # when Python, and when the device, will be free
        for step in range(1, num_steps + 1):
            python += 3
            queue = max(queue, python) + 5
            if step % every == 0:
                python = queue
        return queue / num_steps

    never = mean_step(every=10**9, num_steps=10**6)
    values = [never, *map(mean_step, (10, 2, 1))]
    check_choices(5, 1, values, right=values[1], exact=True)
    assert never == pytest.approx(5, rel=1e-5)


def test_gpu_training_question_2_neighbours_of_a_hundred():
    bits = torch.tensor([100.0], dtype=torch.bfloat16).view(torch.int16)
    above, below = ((bits + step).view(torch.bfloat16).double().item() for step in (1, -1))
    assert above - 100 == 100 - below
    check_choices(5, 2, [2**-8, 0.01, above - 100, 2.0 ** (6 - 6)], right=above - 100, exact=True)


def test_gpu_training_question_3_last_batch():
    losses = torch.cat([torch.full((900,), 100.0), torch.full((100,), 108.0)]).double()
    of_batches = torch.stack([batch.mean() for batch in losses.split(300)]).mean().item()
    of_images = losses.mean().item()
    assert "= 102$" in quiz(5)[2].answer and of_batches == pytest.approx(102, rel=1e-12)
    assert "= 100.8$" in quiz(5)[2].answer and of_images == pytest.approx(100.8, rel=1e-12)
    right = of_batches - of_images
    check_choices(5, 3, [0, of_images - 100, right, of_batches - 100], right=right, exact=True)


def test_gpu_training_question_4_sums_of_unequal_shares():
    theta = torch.tensor([0.7, -0.2], dtype=F64, requires_grad=True)
    losses = (torch.arange(16, dtype=F64).view(8, 2).cos() @ theta).exp()

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, theta, retain_graph=True)[0]

    def ratio(reduce) -> Tensor:
        return (gradient(reduce(losses[:6])) + gradient(reduce(losses[6:]))) / 2 / gradient(losses.mean())

    torch.testing.assert_close(ratio(torch.sum), torch.full((2,), 4.0, dtype=F64), rtol=1e-12, atol=0)
    assert quiz(5)[3].right_choice == r"$\eta/4$"
    assert ratio(torch.mean).diff().abs() > 1e-3  # choice 4 is true of means


# ---- chapter 6 ----


def test_bound_to_likelihood_question_1_doubled_samples():
    shape, truth = 1 / 120, 92.3  # gamma weights have the relative variance v = 1 / shape = 120

    def reported(num_samples: int) -> float:
        """A sum of gamma weights is gamma; the mean of its logarithm is a digamma function."""
        total = torch.tensor(shape * num_samples, dtype=F64)
        return truth + math.log(shape) - (digamma(total).item() - math.log(num_samples))

    assert (round(reported(1000), 2), round(reported(2000), 2)) == (92.36, 92.33)
    gain = 92.36 - 92.33
    by_root = 92.33 - gain / (math.sqrt(2) - 1)
    check_choices(6, 1, [by_root, truth, 92.33, 92.36 + gain], right=truth)
    assert reported(10**7) == pytest.approx(truth, abs=1e-4)


def test_bound_to_likelihood_question_2_paired_error():
    angles = 2 * math.pi * torch.arange(10_000, dtype=F64) / 10_000
    first = 30 * math.sqrt(2) * angles.cos()
    second = 0.995 * first + math.sqrt(1 - 0.995**2) * 30 * math.sqrt(2) * angles.sin()
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].item() == pytest.approx(0.995, rel=1e-9)
    assert second.std(correction=0).item() == pytest.approx(30, rel=1e-9)
    spread = (first - second).std(correction=0).item()
    values = [spread / 100, spread**2 / 100, 30 / 100, math.hypot(30, 30) / 100]
    check_choices(6, 2, values, right=values[0], exact=True)


def test_bound_to_likelihood_question_3_effective_samples():
    weights = torch.tensor([999.0] + [1.0] * 999, dtype=F64)
    share = weights / weights.sum()
    effective = 1 / share.square().sum().item()
    assert effective == pytest.approx(4 * 999 / 1000, rel=1e-12)
    of_two, of_rest = 1 / (0.5**2 + 0.5**2), 1000 * share[1:].sum().item()
    check_choices(6, 3, [1, of_two, effective, of_rest], right=effective)


def test_bound_to_likelihood_question_4_units():
    x = torch.linspace(0, 256, 784, dtype=F64)[None]  # k + u
    in_levels, in_unit = (gaussian_nll(x / unit, (x + 3) / unit, 20 / unit).item() for unit in (1, 256))
    shift = in_levels - in_unit
    in_unit_of_a = 3300 - shift
    difference = -1000 - in_unit_of_a
    check_choices(6, 4, [None, 3300 + 1000, abs(difference), difference], right=difference)
    question = quiz(6)[3]
    assert question.right_choice.startswith("Model $B$") and difference > 0
    assert f"{shift:.1f}" in question.answer and f"= {in_unit_of_a:.1f}$" in question.answer
