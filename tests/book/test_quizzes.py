"""The quizzes "Check yourself": their form, and the numbers of their choices and answers.

A right number is computed by something that does not contain the chapter's formula, where there is such a
thing; the numbers of the wrong choices are computed by the mistakes to which the answers attribute them.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nbformat import v4
from scipy import optimize
from torch import Tensor
from torch.special import digamma

from tests.book.notebook_rules import ROOT
from vaecourse.densities import bernoulli_nll, continuous_bernoulli_nll, gaussian_nll
from vaecourse.diagnosis import diagnose_loss
from vaecourse.divergences import kl_standard_normal
from vaecourse.evaluation import active_units, nats_to_bits_per_dim
from vaecourse.likelihoods import GaussianLikelihood
from vaecourse.linear_vae import LinearVAE

F64 = torch.float64
CHAPTERS = {int(path.name[:2]): path for path in (ROOT / "book").glob("0[1-9]_*.ipynb")}
NUM_QUESTIONS = 4

CELL = re.compile(
    r"""::::\{admonition\}\ Question\ (?P<number>\d+)\n
    :class:\ quiz\n\n
    (?P<question>.+?)\n\n
    (?P<choices>1\.\ [^\n]+(?:\n\d\.\ [^\n]+)*)\n\n
    :::\{admonition\}\ Answer\n
    :class:\ dropdown\n\n
    \*\*(?P<right>\d)\.\*\*\ (?P<answer>.+)\n
    :::\n::::""",
    re.VERBOSE | re.DOTALL,
)


class Question(NamedTuple):
    number: int
    choices: list[str]
    right: int
    answer: str


def cells(chapter: int) -> dict[str, str]:
    """Return the Markdown cells of a chapter, by their ids and in their order."""
    notebook = v4.reads(CHAPTERS[chapter].read_text("utf-8"))
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "markdown"}


def quiz(chapter: int) -> list[Question]:
    """Return the questions of a chapter, as far as their cells have the agreed form."""
    found = []
    for name, source in cells(chapter).items():
        if re.fullmatch(r"check-yourself-\d+", name):
            cell = CELL.fullmatch(source)
            assert cell, f"chapter {chapter}: the cell {name} has not the form of a question"
            lines = [line.split(". ", 1) for line in cell["choices"].splitlines()]
            assert [label for label, _ in lines] == [str(i + 1) for i in range(len(lines))]
            choices = [choice for _, choice in lines]
            found.append(Question(int(cell["number"]), choices, int(cell["right"]), cell["answer"]))
    return found


def printed(text: str) -> tuple[float, float]:
    """Return the first number of a text, and half a unit of its last digit."""
    match = re.search(r"-?\d[\d{},]*(?:\.\d+)?", text)
    assert match, f"no number in {text!r}"
    digits = re.sub(r"[{},]", "", match[0])
    return float(digits), 0.5 * 10.0 ** -len(digits.partition(".")[2])


def check_choices(
    chapter: int, number: int, values: list[float | None], *, right: float, exact: bool = False
) -> None:
    """Hold the numbers of all choices against values, which must be as many; None stands for a text.

    Every value must round to what is printed, the place that the answer names must hold the right one,
    and where `exact` is set, the right one must be what is printed to nine digits.
    """
    question = quiz(chapter)[number - 1]
    for choice, value in zip(question.choices, values, strict=True):
        if value is None:
            assert not re.search(r"\d", choice)
            continue
        shown, half_unit = printed(choice)
        assert abs(value - shown) <= half_unit * (1 + 1e-9), f"{choice!r}, computed {value}"
    assert values[question.right - 1] == right
    if exact:
        assert right == pytest.approx(printed(question.choices[question.right - 1])[0], rel=1e-9)


def right_choice(chapter: int, number: int) -> str:
    question = quiz(chapter)[number - 1]
    return question.choices[question.right - 1]


def data_with(eigenvalues: list[float]) -> Tensor:
    """A centred data set whose covariance is diagonal and has these eigenvalues, exactly."""
    roots = (len(eigenvalues) * torch.tensor(eigenvalues, dtype=F64)).sqrt().diag()
    return torch.cat([roots, -roots])


# ---- the form ----


def test_there_are_six_chapters():
    assert sorted(CHAPTERS) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_quiz_stands_between_summary_and_outlook(chapter):
    names = list(cells(chapter))
    start = names.index("check-yourself")
    expected = ["summary", "check-yourself", *(f"check-yourself-{i}" for i in range(1, NUM_QUESTIONS + 1))]
    assert names[start - 1 : start + NUM_QUESTIONS + 2] == [*expected, "what-comes-next"]
    assert cells(chapter)["check-yourself"].startswith("## Check yourself\n\n")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_has_four_numbered_questions(chapter):
    assert [question.number for question in quiz(chapter)] == list(range(1, NUM_QUESTIONS + 1))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_each_question_has_three_or_four_choices_and_one_answer(chapter):
    for question in quiz(chapter):
        assert len(question.choices) in (3, 4)
        assert len(set(question.choices)) == len(question.choices)
        assert 1 <= question.right <= len(question.choices)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_answer_says_what_is_wrong_with_each_other_choice(chapter):
    for question in quiz(chapter):
        named = [int(digit) for digit in re.findall(r"^Choice (\d) ", question.answer, re.MULTILINE)]
        assert named == [i for i in range(1, len(question.choices) + 1) if i != question.right]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_right_answers_stand_at_three_different_places(chapter):
    assert len({question.right for question in quiz(chapter)}) >= 3


def test_no_place_is_right_too_often():
    places = Counter(question.right for chapter in CHAPTERS for question in quiz(chapter))
    assert max(places.values()) <= 0.45 * places.total()


def test_right_choice_is_not_recognised_by_its_length():
    longest = []
    for question in (question for chapter in CHAPTERS for question in quiz(chapter)):
        lengths = [len(choice) for choice in question.choices]
        right = lengths.pop(question.right - 1)
        longest.append(right > max(lengths))
    assert sum(longest) <= len(longest) / 4


# ---- chapter 1 ----


def test_gaussian_regression_question_1_difference_of_nlls():
    def nll(mse: float) -> float:
        residuals = torch.linspace(-1, 1, 50, dtype=F64)[:, None]
        residuals *= (mse / residuals.square().mean()).sqrt()
        return gaussian_nll(residuals, torch.zeros_like(residuals), 0.1).sum().item()

    difference = nll(0.04) - nll(0.02)
    refitted = 25 * (math.log(0.04) - math.log(0.02))
    check_choices(1, 1, [difference / 50, refitted, difference, 2 * difference], right=difference, exact=True)


def test_gaussian_regression_question_2_best_scale():
    residuals = torch.ones(1, 10, dtype=F64) * 0.4
    data_term = residuals.square().sum().item() / (2 * 0.2**2)
    assert data_term == pytest.approx(20, rel=1e-12)

    def nll(scale: float) -> float:
        return gaussian_nll(residuals, torch.zeros_like(residuals), scale).sum().item()

    best = optimize.minimize_scalar(nll, bounds=(0.01, 3), method="bounded", options={"xatol": 1e-9}).x
    ratio = data_term / 5
    assert best == pytest.approx(0.4, abs=1e-6)
    check_choices(
        1, 2, [0.2 / math.sqrt(ratio), best, ratio * 0.2, math.sqrt(data_term / 0.5) * 0.2], right=best
    )


def test_gaussian_regression_question_3_error_of_draws():
    residuals = torch.linspace(-1, 1, 9, dtype=F64)
    residuals *= (0.03 / residuals.square().mean()).sqrt()
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)  # exact for polynomials
    draws = residuals[:, None] + math.sqrt(0.03) * torch.from_numpy(nodes)
    error = (draws.square().mean(0) @ torch.from_numpy(weights / weights.sum())).item()
    check_choices(
        1, 3, [0.03, error, (2 * math.sqrt(0.03)) ** 2, 0.03 + math.sqrt(0.03)], right=error, exact=True
    )
    assert r"\approx 0.17$" in quiz(1)[2].answer and round(math.sqrt(0.03), 2) == 0.17


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
    moves = []
    for loss in losses:
        best = [optimize.minimize(loss, np.zeros(2), args=(s,), tol=1e-9).x for s in (0.5, 2.0)]
        moves.append(bool(np.abs(best[0] - best[1]).max() > 1e-2))
        assert moves[-1] or np.abs(best[0] - best[1]).max() < 1e-5
    assert [i for i, moved in enumerate(moves, start=1) if moved] == [quiz(1)[3].right]


# ---- chapter 2 ----


def test_vae_elbo_question_1_draws_for_two_copies():
    likelihood = torch.tensor([1.0, 0.0, 0.0], dtype=F64)  # a third of the codes explains x: kappa is 3

    def draws(values: Tensor) -> float:
        return (values.var(correction=0) / values.mean() ** 2 / 0.1**2).item()

    one = draws(likelihood)
    assert one == pytest.approx(200, rel=1e-12)
    both = draws(torch.outer(likelihood, likelihood).ravel())
    of_one_average = likelihood.var(correction=0) / likelihood.mean() ** 2 / 400
    product_error = ((1 + of_one_average) ** 2 - 1).sqrt().item()  # with 400 draws for each copy
    assert product_error == pytest.approx(0.1, rel=2e-3)
    check_choices(2, 1, [one, 2 * one, both, one**2], right=both, exact=True)


def test_vae_elbo_question_2_gap_of_two_encoders():
    x = data_with([2.0, 1.0, 0.3, 0.1])[:1]
    model = LinearVAE.from_ppca(data_with([2.0, 1.0, 0.3, 0.1]), 2, scale=0.5)
    exact = model.exact_posterior(x)
    elbos, gaps, log_p, terms = [], [], [], []
    for change in (0.5, 0.1):
        with torch.no_grad():
            model.encoder.log_scale += change
            terms.append(model.exact_elbo_terms(x))
            log_p.append(model.log_likelihood(x))
            q = model.posterior(x)
            wide = torch.distributions.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
        elbos.append(terms[-1].elbo())
        gaps.append(torch.distributions.kl_divergence(wide, exact))
    torch.testing.assert_close(elbos[0] - elbos[1], gaps[1] - gaps[0])
    assert log_p[0] == log_p[1]
    difference = (elbos[0] - elbos[1]).abs().item()
    for term in ("kl", "nll"):  # neither term differs by as much as their sum
        change = (getattr(terms[0], term) - getattr(terms[1], term)).abs().item()
        assert abs(change - difference) > 0.05
    values = {printed(choice.rpartition("by ")[2])[0] for choice in quiz(2)[1].choices}
    assert values == {-101.5 - -104.0}
    assert right_choice(2, 2).count(r"p(z \mid x)") == 2


def test_vae_elbo_question_3_rate_of_a_linear_vae():
    eigenvalues = [2.0, 0.5, 0.2, 0.01, 0.01]
    x = data_with(eigenvalues)
    model = LinearVAE.from_ppca(x, 3, scale=math.sqrt(0.1), beta=4)
    terms = model.exact_elbo_terms(x)
    (-terms.elbo(4).mean()).backward()
    slopes = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(slopes) >= 4 and max(slope.abs().max().item() for slope in slopes) < 1e-9

    def nats(variances: list[float], noise: float) -> float:
        return 0.5 * sum(math.log(variance / noise) for variance in variances)

    found = terms.kl.mean().item()
    assert found == pytest.approx(0.5 * math.log(6.25), rel=1e-9)
    check_choices(
        2, 3, [nats(eigenvalues[:3], 0.4), found, 2 * found, nats(eigenvalues[:3], 0.1)], right=found
    )


def test_vae_elbo_question_4_variance_of_the_means():
    beta, noise = 2.0, 0.18
    x = data_with([1.0, 0.1, 0.1])
    model = LinearVAE.from_ppca(x, 1, scale=math.sqrt(noise), beta=beta)
    scale = model.posterior(x).stddev
    torch.testing.assert_close(scale, torch.full_like(scale, 0.6))
    found = active_units(model, x).variances.item()
    variance = 0.6**2
    check_choices(2, 4, [1 - beta * variance, variance, found, 1], right=found, exact=True)


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
    assert right_choice(3, 1).endswith("above it") and above > 0


def test_gaussian_to_mse_question_2_implied_variance():
    data_dim, latent_dim = 3 * 32 * 32, 128

    def loss(recon: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar)
        return 100 * F.mse_loss(recon, x) + kl.mean()

    scale = diagnose_loss(loss, data_dim=data_dim, latent_dim=latent_dim).scale
    assert scale is not None
    variance = scale**2
    assert variance == pytest.approx(0.12, rel=1e-4)
    values = [variance, 2 * variance, 100 * variance, latent_dim * variance]
    check_choices(3, 2, values, right=variance)
    torch.testing.assert_close([data_dim / (2 * latent_dim), data_dim / 200], [100 * 0.12, 128 * 0.12])


def test_gaussian_to_mse_question_3_rate_and_decay():
    dim, eta, decay = 16, 0.01, 0.3
    start = torch.linspace(-1, 1, 5, dtype=F64)

    def walk(divisor: float, rate: float, weight_decay: float) -> Tensor:
        theta = start.clone().requires_grad_()
        optimizer = torch.optim.SGD([theta], lr=rate, weight_decay=weight_decay)
        for _ in range(5):
            optimizer.zero_grad()
            (((theta - 1) ** 4).sum() / divisor).backward()
            optimizer.step()
        return theta.detach()

    settings = {
        r"$\eta D$ and $cD$": (eta * dim, decay * dim),
        r"$\eta D$ and $c$": (eta * dim, decay),
        r"$\eta D$ and $c/D$": (eta * dim, decay / dim),
        r"$\eta$ and $c/D$": (eta, decay / dim),
    }
    plain = walk(1, eta, decay)
    agree = {name: torch.allclose(walk(dim, *pair), plain, rtol=1e-12) for name, pair in settings.items()}
    assert list(settings) == quiz(3)[2].choices
    assert [name for name, same in agree.items() if same] == [right_choice(3, 3)]


def test_gaussian_to_mse_question_4_bits_of_a_quarter():
    dim = 12
    residuals = torch.linspace(0.01, 0.02, dim, dtype=F64)[None]

    def bits(factor: float) -> float:
        shrunk = factor * residuals
        nats = GaussianLikelihood("optimal").nll(shrunk, torch.zeros_like(shrunk)).item()
        return nats_to_bits_per_dim(nats, dim)

    fall = bits(1.0) - bits(0.5)  # half of each error is a quarter of the MSE
    check_choices(3, 4, [fall * math.log(2), fall, math.log2(4), None], right=fall, exact=True)


# ---- chapter 4 ----


def test_bernoulli_to_bce_question_1_best_probability():
    levels = torch.tensor([0.2, 0.2, 0.2, 1.0], dtype=F64)

    def loss(prob: float) -> float:
        logits = torch.full((4, 1), prob, dtype=F64).logit()
        return bernoulli_nll(levels[:, None], logits).mean().item()

    best = optimize.minimize_scalar(loss, bounds=(0.01, 0.99), method="bounded", options={"xatol": 1e-9}).x
    assert best == pytest.approx(0.4, abs=1e-6)
    share = (levels > 0.5).double().mean().item()
    middle = (levels.min() + levels.max()).item() / 2
    check_choices(4, 1, [levels.median().item(), share, best, middle], right=best)


def test_bernoulli_to_bce_question_2_ratio_of_derivatives():
    a = torch.tensor([3.0], dtype=F64, requires_grad=True)
    losses = [bernoulli_nll(torch.zeros(1, dtype=F64), a), 0.5 * torch.sigmoid(a).square()]
    losses = [loss.sum() for loss in losses]
    slopes = [torch.autograd.grad(loss, a, retain_graph=True)[0].item() for loss in losses]
    ratio = slopes[0] / slopes[1]
    of_values = (losses[0] / losses[1]).item()
    check_choices(4, 2, [1.0, 1 / 0.25, of_values, ratio], right=ratio)
    answer = quiz(4)[1].answer
    for shown in (f"{ratio:.1f}", f"{torch.sigmoid(a).item():.3f}", f"{losses[0]:.2f}", f"{losses[1]:.3f}"):
        assert f"${shown}$" in answer or rf"\approx {shown}$" in answer


def test_bernoulli_to_bce_question_3_continuous_bound():
    lowest = -102 + 784 * math.log(2)
    check_choices(4, 3, [lowest, lowest, lowest, -102], right=lowest)
    x = torch.rand(5, 784, dtype=F64, generator=torch.Generator().manual_seed(0))
    for spread in (0.0, 0.5, 5.0):
        logits = spread * torch.linspace(-1, 1, 784, dtype=F64).expand(5, 784)
        gain = bernoulli_nll(x, logits) - continuous_bernoulli_nll(x, logits)
        equal = torch.allclose(gain, torch.full_like(gain, 784 * math.log(2)), rtol=1e-12)
        assert equal == (spread == 0)
        assert equal or (gain > 784 * math.log(2) + 1).all()
    assert right_choice(4, 3).startswith("It is at least")


def test_bernoulli_to_bce_question_4_leaving_collapse():
    bits = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]], dtype=F64)
    correlation = 0.3
    probs = torch.tensor([1 + correlation, 1 - correlation, 1 - correlation, 1 + correlation], dtype=F64) / 4
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z, prior = torch.from_numpy(nodes)[:, None], torch.from_numpy(weights / weights.sum())

    def objective(direction: Tensor, beta: float) -> float:
        """The average over images of the largest E_q[log P] - beta KL, which is beta log E_p[P^(1/beta)]."""
        logits = z * direction  # the mean of each pixel is one half, so its logit is 0
        pairs = bits.repeat_interleave(40, dim=0), logits.repeat(4, 1)
        log_lik = -bernoulli_nll(*pairs).view(4, 40)  # (images, codes)
        best = beta * torch.logsumexp(log_lik / beta + prior.log(), dim=1)
        return (probs @ best).item()

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
    def mean_step(host: float, device: float, every: int, num_steps: int = 100) -> float:
        python = queue = 0.0  # when Python, and when the device, will be free
        for step in range(1, num_steps + 1):
            python += host
            queue = max(queue, python) + device
            if step % every == 0:
                python = queue
        return queue / num_steps

    never = mean_step(3, 5, every=10**9, num_steps=10**6)
    values = [never, *(mean_step(3, 5, every) for every in (10, 2, 1))]
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
    check_choices(
        5,
        3,
        [0, of_images - 100, of_batches - of_images, of_batches - 100],
        right=of_batches - of_images,
        exact=True,
    )


def test_gpu_training_question_4_sums_of_unequal_shares():
    theta = torch.tensor([0.7, -0.2], dtype=F64, requires_grad=True)
    losses = (torch.arange(16, dtype=F64).view(8, 2).cos() @ theta).exp()

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, theta, retain_graph=True)[0]

    averaged = (gradient(losses[:6].sum()) + gradient(losses[6:].sum())) / 2
    factor = averaged / gradient(losses.mean())
    torch.testing.assert_close(factor, torch.full((2,), 4.0, dtype=F64), rtol=1e-12, atol=0)
    assert right_choice(5, 4) == r"$\eta/4$"
    of_means = (gradient(losses[:6].mean()) + gradient(losses[6:].mean())) / 2
    ratios = of_means / gradient(losses.mean())
    assert (ratios[0] - ratios[1]).abs() > 1e-3  # choice 4 is true of means


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
    weights = torch.ones(1000, dtype=F64)
    weights[0] = weights[1:].sum()
    share = weights / weights.sum()
    effective = 1 / share.square().sum().item()
    assert effective == pytest.approx(4 * 999 / 1000, rel=1e-12)
    values = [1, 1 / (0.5**2 + 0.5**2), effective, 1000 * share[1:].sum().item()]
    check_choices(6, 3, values, right=effective)


def test_bound_to_likelihood_question_4_units():
    k_plus_u = torch.linspace(0, 256, 784, dtype=F64)[None]
    in_levels = gaussian_nll(k_plus_u, k_plus_u + 3, 20.0).item()
    in_unit_interval = gaussian_nll(k_plus_u / 256, (k_plus_u + 3) / 256, 20 / 256).item()
    shift = in_levels - in_unit_interval
    in_unit_of_a = 3300 - shift
    difference = -1000 - in_unit_of_a
    check_choices(6, 4, [None, 3300 + 1000, abs(difference), difference], right=difference)
    assert right_choice(6, 4).startswith("Model $B$") and difference > 0
    answer = quiz(6)[3].answer
    assert f"{shift:.1f}" in answer and f"= {in_unit_of_a:.1f}$" in answer
