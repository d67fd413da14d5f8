"""The reconstruction term as a whole: the first likelihood that fits it everywhere."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from vaecourse.diagnosis.probing import Experiment, LossError, Probe
from vaecourse.diagnosis.reading.fits import (
    TOLERANCE,
    Nll,
    Numbers,
    Reconstruction,
    fit_nll,
    fits,
)
from vaecourse.diagnosis.reading.likelihoods import (
    PLAIN,
    SCREEN,
    huber_candidates,
    linear_candidates,
    predicted_scales,
    shapes_of_the_error,
)
from vaecourse.diagnosis.reading.misfits import describe_misfit
from vaecourse.diagnosis.reading.structure import by_columns, correlated, grouped, weighted

_BEYOND = {"loc": "loc", "logits": "logits", "log_rate": "logits", "log_mean": "logits"}
_BEYOND |= {"rate": "rate", "mean": "rate", "tanh": "logits", "symmetric": "symmetric"}


def read_reconstruction(experiment: Experiment) -> Reconstruction:
    """Read the reconstruction term: the first reading that fits every probe, or the kind of misfit."""
    columns = torch.arange(experiment.prober.data_dim)
    screen = Numbers.of(experiment.probes, columns[:: max(1, len(columns) // SCREEN)])
    partial = None
    for candidate in _candidates(experiment, screen):
        if candidate.nll is None:
            partial = candidate
            continue
        factor, misfit = fit_nll(experiment.probes, candidate.nll)
        if fits(misfit):
            return _judge(experiment, replace(candidate, factor=factor))
    found = describe_misfit(experiment, screen, partial)
    return _judge(experiment, found) if found.kind == "optimal_scale" else found


def _candidates(experiment: Experiment, screen: Numbers) -> Iterator[Reconstruction]:
    if experiment.prober.recon_dim > experiment.prober.data_dim:
        yield from predicted_scales(experiment.probes[0])
        return
    for (family, parameterization), nll in PLAIN.items():
        if fits(screen.fit(nll)[1]):
            yield Reconstruction(family, parameterization, nll)
    yield from linear_candidates(screen)
    yield from predicted_scales(experiment.probes[0])
    yield from shapes_of_the_error(experiment, screen)
    yield from grouped(experiment)
    yield from weighted(experiment, screen)
    yield from by_columns(experiment, screen)
    yield from correlated(experiment)


def _judge(experiment: Experiment, found: Reconstruction) -> Reconstruction:
    """Refuse a reading of the wrong sign, one that mixes examples, and one that holds near x only."""
    nll, factor = found.nll, found.factor
    if nll is None or factor is None:
        return found
    unknown = Reconstruction(values={"family": found.family, "parameterization": found.parameterization})
    if factor < 0:
        return replace(unknown, kind="sign")
    is_for_one_size = found.family.endswith("per_example")
    if experiment.larger is not None and not is_for_one_size:
        doubled, misfit = fit_nll([experiment.larger], nll)
        if not fits(misfit):
            return replace(unknown, kind="mixes")
        found = replace(found, ratio=doubled / fit_nll(experiment.probes[:1], nll)[0])
    if not _follows(experiment, nll, factor):
        return replace(unknown, kind="detached")
    near = experiment.prober.draw("near", experiment.prober.batch_size)
    probes = [_probe_beyond(experiment, found)]
    if found.parameterization == "loc" and found.kind != "huber":
        probes.append(experiment.prober.try_evaluate(near))
    for probe in probes:
        if probe is None:
            continue
        if not probe.is_finite:
            found = replace(found, values={**found.values, "overflows": True})
            continue
        elsewhere, misfit = fit_nll([probe], nll)
        if fits(misfit) and math.isclose(elsewhere, factor, rel_tol=10 * TOLERANCE):
            continue
        if probe is probes[0] and (found.family, found.parameterization) == ("gaussian", "loc"):
            huber = next(huber_candidates(experiment, probe), replace(unknown, kind="clips"))
            return replace(huber, ratio=found.ratio)
        return replace(unknown, kind="clips" if probe is probes[0] else "tolerates")
    return found


def _follows(experiment: Experiment, nll: Nll, factor: float) -> bool:
    """Whether the value of the loss changes with recon_x as its gradient says."""
    first, other = experiment.probes[0], experiment.probes[-1]
    moved = experiment.prober.try_evaluate({**first.point, "recon_x": other.recon_x})
    if moved is None:
        return True
    sizes = [float(factor * nll(r, first.x).sum()) for r in (first.recon_x, other.recon_x)]
    change = float(moved.value - first.value)
    allowed = 1e-3 * max(map(abs, sizes)) + 1e-5 * abs(float(first.value))
    return abs(change - (sizes[1] - sizes[0])) <= allowed


def _probe_beyond(experiment: Experiment, found: Reconstruction) -> Probe | None:
    """Probe with recon_x far from (0, 1), column by column as far as it may go there."""
    if found.parameterization == "loc_and_scale":
        return _probe_scales_beyond(experiment, found)
    parts = found.values.get("parts")
    places = [(found.parameterization or "", slice(None))]
    if parts is not None:
        places = [(part.parameterization, part.columns) for part in parts]
    regions = [(_BEYOND[place], columns) for place, columns in places if place in _BEYOND]
    if not regions or found.kind == "huber":
        return None
    prober = experiment.prober
    point = prober.draw("narrow", prober.batch_size)
    for region, columns in regions:
        point["recon_x"][:, columns] = prober.draw(region, prober.batch_size)["recon_x"][:, columns]
    try:
        return prober.evaluate(point)
    except LossError:  # it refuses such recon_x, so there is nothing more to read
        return None


def _probe_scales_beyond(experiment: Experiment, found: Reconstruction) -> Probe | None:
    """Probe with means and spreads far from what they were."""
    prober = experiment.prober
    point = prober.draw("narrow", prober.batch_size)
    half = point["recon_x"].shape[1] // 2
    point["recon_x"][:, :half] = prober.draw("loc", prober.batch_size)["recon_x"][:, :half]
    spread = point["recon_x"][:, half:]  # between 0.05 and 0.95
    point["recon_x"][:, half:] = (
        4 * spread if found.values["link"] in ("scale", "variance") else 6 * spread - 3
    )
    return prober.try_evaluate(point)
