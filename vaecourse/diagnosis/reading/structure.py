"""Likelihoods of several numbers together: known weights, softmax groups, mixed columns, correlated noise."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vaecourse.diagnosis.probing import Experiment
from vaecourse.diagnosis.reading.fits import (
    TOLERANCE,
    Nll,
    Numbers,
    Reconstruction,
    fits,
    gradient_of,
)
from vaecourse.diagnosis.reading.likelihoods import (
    PLAIN,
    SCREEN,
)

# ---- weights that are known ----


def weighted(experiment: Experiment, screen: Numbers) -> Iterator[Reconstruction]:
    """Likelihoods whose numbers have weights of their own, the same at every call."""
    rows = experiment.prober.batch_size
    for (family, parameterization), nll in PLAIN.items():
        weights = _weights_by_place(screen.g, gradient_of(nll, screen.r, screen.x), rows)
        if weights is None:
            continue
        pairs = [(p.by_recon, gradient_of(nll, p.recon_x, p.x)) for p in experiment.probes]
        gradients, targets = zip(*pairs, strict=True)
        weights = _weights_by_place(torch.cat(gradients), torch.cat(targets), rows)
        if weights is None:
            continue
        size = weights.abs().max()
        relative = torch.where(weights.abs() < 1e-9 * size, 0.0, weights / size)
        if (relative < 0).any():
            continue
        if _is_constant(relative, 0):
            kind, relative = "per_element", relative[0]
        elif (relative == 0).all(1).any():  # examples without a reconstruction term
            continue
        elif _is_constant(relative, 1):
            kind, relative = "per_example", relative[:, :1]
        else:
            kind = "per_example"  # by both: for this batch only
        yield Reconstruction(
            f"{family}_{kind}",
            parameterization,
            _times(nll, relative),
            kind=kind,
            values={"family": family, "weights": relative},
        )


def _weights_by_place(g: Tensor, target: Tensor, rows: int) -> Tensor | None:
    """Weight of each number of a batch, if it is the same in all probes."""
    g, target = (t.view(-1, rows, t.shape[1]) for t in (g, target))  # (probes, batch, columns)
    weights = (g * target).sum(0) / target.square().sum(0)
    return weights if fits(float((g - weights * target).norm() / g.norm())) else None


def _is_constant(weights: Tensor, dim: int) -> bool:
    return bool((weights - weights.mean(dim, keepdim=True)).abs().max() <= 10 * TOLERANCE)


def _times(nll: Nll, weights: Tensor) -> Nll:
    return lambda r, x: weights * nll(r, x)


# ---- numbers that belong together ----


def coupled(experiment: Experiment, column: int) -> Tensor:
    """Columns whose gradient changes with this column of recon_x, of the examples one by one."""
    first = experiment.probes[0]
    moved = first.recon_x.clone()
    moved[:, column] += 0.1
    probe = experiment.prober.try_evaluate({**first.point, "recon_x": moved})
    if probe is None:
        return torch.zeros(0, dtype=torch.long)
    change = probe.by_recon - first.by_recon
    return (change.abs().amax(0) > 1e-6 * first.by_recon.abs().max()).nonzero().flatten()


def _softmax(columns: Tensor, is_argmax: bool) -> Nll:
    """Cross-entropy of groups of columns, (groups, categories)."""

    def nll(r: Tensor, x: Tensor) -> Tensor:
        log_p, target = r[:, columns].log_softmax(-1), x[:, columns]  # (batch, groups, categories)
        if is_argmax:
            target = F.one_hot(target.argmax(-1), columns.shape[1])
        return -(target * log_p).sum((-1, -2))

    return nll


def grouped(experiment: Experiment) -> Iterator[Reconstruction]:
    """Cross-entropies of a softmax over all numbers, or over groups of equal size that lie side by side."""
    dim = experiment.prober.data_dim
    group = coupled(experiment, 0)
    size = len(group)
    if size < 2 or dim % size or not torch.equal(group, torch.arange(size) * int(group[1])):
        return
    every = torch.arange(dim)
    columns = every.view(-1, size) if group[1] == 1 else every.view(size, -1).T  # (groups, categories)
    for is_argmax in (False, True):
        family = "categorical" if is_argmax or size < dim else "multinomial"
        values = {"categories": size, "groups": dim // size}
        yield Reconstruction(family, "logits", _softmax(columns, is_argmax), kind=family, values=values)


def by_columns(experiment: Experiment, screen: Numbers) -> Iterator[Reconstruction]:
    """Each column with a likelihood and a weight of its own; those that have none are counted."""
    dim = experiment.prober.data_dim
    seen = Numbers.of(experiment.probes, slice(None)) if dim <= 16 * SCREEN else screen
    forms = [form for form, nll in PLAIN.items() if fits(float(_column_fits(seen, nll)[1].min()))]
    left = torch.ones(dim, dtype=torch.bool)
    numbers = Numbers.of(experiment.probes, slice(None)) if forms else screen
    parts: list[_Part] = []
    for family, parameterization in forms:
        nll = PLAIN[family, parameterization]
        weights, misfits = _column_fits(numbers, nll)
        columns = (left & (misfits <= TOLERANCE) & (weights > 0)).nonzero().flatten()
        left[columns] = False
        if len(columns):
            parts.append(_Part(family, parameterization, columns, weights[columns], nll))
    parts.extend(_softmax_blocks(experiment, left) if int(left.sum()) <= SCREEN else [])
    counts = Counter[tuple[str, str]]()
    for part in parts:
        counts[part.family, part.parameterization] += len(part.columns)
    shares = [(*form, count) for form, count in counts.items()]
    if left.any():
        if shares:
            yield Reconstruction(kind="partly", values={"shares": shares, "left": int(left.sum())})
        return
    values = {"shares": shares, "parts": parts}
    yield Reconstruction(
        "mixed",
        None,
        lambda r, x: torch.stack([part.nll_of(r, x) for part in parts]),
        values=values,
        kind="mixed",
    )


@dataclass(frozen=True)
class _Part:
    """Some columns, and the likelihood and the weights that they have."""

    family: str
    parameterization: str
    columns: Tensor
    weights: Tensor
    nll: Nll

    def nll_of(self, r: Tensor, x: Tensor) -> Tensor:
        """Its share of the negative log-likelihood, summed."""
        return (self.weights * self.nll(r[:, self.columns], x[:, self.columns])).sum()


def _column_fits(numbers: Numbers, nll: Nll) -> tuple[Tensor, Tensor]:
    target = gradient_of(nll, numbers.r, numbers.x)
    weights = (numbers.g * target).sum(0) / target.square().sum(0)
    misfits = (numbers.g - weights * target).norm(dim=0) / numbers.g.norm(dim=0)
    return weights, misfits.nan_to_num(1.0)


def _softmax_blocks(experiment: Experiment, left: Tensor) -> Iterator[_Part]:
    """Blocks of the columns that are left which are the logits of a category, as one-hot data have."""
    for _ in range(32):
        if not left.any():
            return
        block = coupled(experiment, int(left.nonzero()[0]))
        if len(block) < 2 or not left[block].all():
            return
        for is_argmax in (False, True):
            inner = _softmax(torch.arange(len(block))[None], is_argmax)
            factor, misfit = Numbers.of(experiment.probes, block).fit(inner)
            if fits(misfit) and factor > 0:
                left[block] = False
                yield _Part("categorical", "logits", block, torch.tensor([factor]), inner)
                break
        else:
            return


def correlated(experiment: Experiment) -> Iterator[Reconstruction]:
    """A quadratic form of the error: its matrix is measured, row by row."""
    prober, first = experiment.prober, experiment.probes[0]
    dim, rows = prober.data_dim, prober.batch_size
    if dim > SCREEN:
        return
    error = first.recon_x - first.x
    doubled = prober.try_evaluate({**first.point, "recon_x": first.x + 2 * error})
    if doubled is None or not (doubled.by_recon - 2 * first.by_recon).norm() <= 1e-6 * first.by_recon.norm():
        return
    units, matrix = torch.eye(dim, dtype=torch.float64), []
    for start in range(0, dim, rows):
        some = units[start : start + rows]
        step = torch.cat([some, torch.zeros(rows - len(some), dim, dtype=torch.float64)])
        moved = prober.try_evaluate({**first.point, "recon_x": first.x + 0.1 * step})
        if moved is None:
            return
        matrix.append(10 * moved.by_recon[: len(some)])
    precision = torch.cat(matrix)
    eigenvalues = torch.linalg.eigvalsh((precision + precision.T) / 2)
    is_symmetric = bool((precision - precision.T).norm() <= 1e-6 * precision.norm())
    if is_symmetric and eigenvalues[0] > 1e-8 * eigenvalues[-1]:
        yield Reconstruction(
            "gaussian_correlated",
            "loc",
            lambda r, x: 0.5 * ((r - x) @ precision * (r - x)).sum(1),
            kind="correlated",
        )
