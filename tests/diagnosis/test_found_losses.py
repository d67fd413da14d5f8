"""Losses of public code are read as they were derived by hand."""

import pytest

from tests.diagnosis.found_losses import FOUND, Found, with_numpy
from tests.diagnosis.public_losses import PUBLIC
from vaecourse.diagnosis import diagnose_loss


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [*FOUND.values(), *PUBLIC.values()], ids=[*FOUND, *PUBLIC])
def test_loss_is_read_as_derived(case: Found, seed):
    diagnosis = diagnose_loss(case.loss_fn, data_dim=case.data_dim, latent_dim=case.latent_dim, seed=seed)
    for name, value in case.fields.items():
        expected = pytest.approx(value, rel=2e-4) if isinstance(value, float) else value
        assert (name, getattr(diagnosis, name)) == (name, expected)
    for words in case.words:
        assert words in diagnosis.explain()


def test_loss_in_numpy_is_told_how_to_become_one_of_torch():
    with pytest.raises(
        ValueError, match=r"^PyTorch losses only: this one computes with NumPy\. Write its formula"
    ):
        diagnose_loss(with_numpy, data_dim=784, latent_dim=20)
