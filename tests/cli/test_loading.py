"""A loss is found by its place, and only what it needs of a file is executed."""

import json

import pytest
import torch

from vaecourse.cli import main
from vaecourse.cli.loading import load_function
from vaecourse.diagnosis import diagnose_loss

SCRIPT = """
import argparse
import sys

import a_library_that_is_not_installed
import torch
from torch import nn

print("training starts")
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", required=True)
arguments = parser.parse_args()
BETA = 2.0
D = 8 * 8
SIZE = D * 1.0


def kl_of(mu, logvar):
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1).mean()


def loss_fn(recon_x, x, mu, logvar):
    return (recon_x - x).square().mean() * SIZE + BETA * kl_of(mu, logvar)


class VAE(nn.Module):
    beta = 3.0

    def forward(self, x):
        return x

    def loss(self, recon_x, x, mu, logvar):
        return (recon_x - x).square().sum(1).mean() + self.beta * kl_of(mu, logvar)

    @staticmethod
    def criterion(recon_x, x, mu, logvar):
        return (recon_x - x).square().sum(1).mean() + kl_of(mu, logvar)


class Criterion(nn.Module):
    def __init__(self, beta=4.0):
        super().__init__()
        self.beta = beta

    def forward(self, recon_x, x, mu, logvar):
        return (recon_x - x).square().sum(1).mean() + self.beta * kl_of(mu, logvar)


class Sized(nn.Module):
    def __init__(self, latent_dim):
        super().__init__()

    def loss(self, recon_x, x, mu, logvar):
        return kl_of(mu, logvar)


def needs_arguments(recon_x, x, mu, logvar):
    return loss_fn(recon_x, x, mu, logvar) * arguments.beta


def needs_the_library(recon_x, x, mu, logvar):
    return a_library_that_is_not_installed.loss(recon_x, x, mu, logvar)


for epoch in range(3):
    loss_fn_of_epoch = loss_fn
    loss = loss_fn(*(torch.ones(2, 2) for _ in range(4)))
    raise RuntimeError("this trains")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(SCRIPT, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return tmp_path


def beta_of(place: str) -> float:
    return diagnose_loss(load_function(place), data_dim=64, latent_dim=5).beta


@pytest.mark.parametrize(
    ("name", "beta"),
    [("loss_fn", 2), ("VAE.loss", 3), ("VAE.criterion", 1), ("Criterion", 4), ("Criterion.forward", 4)],
)
def test_loss_of_a_script_is_found_without_running_the_script(folder, capsys, name, beta):
    assert beta_of(f"train.py:{name}") == pytest.approx(beta / 2)
    assert capsys.readouterr().out == ""


def test_loss_of_a_notebook_is_found_without_running_the_notebook(folder):
    cells = [
        {"cell_type": "markdown", "source": ["# VAE"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "!pip install nothing\n", "import torch"]},
        {"cell_type": "code", "source": ["%%bash\n", "echo $HOME && exit 1"]},
        {"cell_type": "code", "source": ["%%time\n", "weight = 5.0\n", "raise RuntimeError('this trains')"]},
        {"cell_type": "code", "source": [*SCRIPT[SCRIPT.index("def kl_of") : SCRIPT.index("def loss_fn")]]},
        {
            "cell_type": "code",
            "source": [
                "def loss_fn(recon_x, x, mu, logvar):\n",
                "    return (recon_x - x).square().sum(1).mean() + weight * kl_of(mu, logvar)",
            ],
        },
    ]
    (folder / "vae.ipynb").write_text(json.dumps({"cells": cells}), "utf-8")
    assert beta_of("vae.ipynb:loss_fn") == pytest.approx(2.5)


def test_file_of_a_package_may_import_its_neighbours(folder):
    package = folder / "project" / "models"
    package.mkdir(parents=True)
    for place in (package, package.parent):
        (place / "__init__.py").touch()
    (package / "terms.py").write_text(
        SCRIPT[SCRIPT.index("def kl_of") : SCRIPT.index("def loss_fn")], "utf-8"
    )
    (package / "loss.py").write_text(
        "import sys\nsys.path.append('elsewhere')\nfrom .terms import *\nfrom . import terms\n\n"
        "def loss_fn(r, x, m, v):\n    return (r - x).square().sum(1).mean() + terms.kl_of(m, v)\n",
        "utf-8",
    )
    assert beta_of("project/models/loss.py:loss_fn") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("train.py:Sized.loss", "train.py:Sized.loss needs a Sized, which cannot be made without arguments"),
        ("train.py:Sized", "def loss_fn(recon_x, x, mu, logvar): return instance(recon_x, x, mu, logvar)"),
        ("train.py:needs_arguments", "its command line wants something: copy the loss to a file of its own"),
        ("train.py:needs_the_library", "install it, or copy the loss to a file of its own"),
        ("train.py:VAE.los", "train.py has no function VAE.los; it has VAE, kl_of"),
        ("train.py:VAE.lambda x", "expected FILE.py:FUNCTION"),
        ("empty.ipynb:loss_fn", "empty.ipynb does not run"),
    ],
)
def test_loss_that_cannot_be_reached_is_told_the_way_out(folder, capsys, place, message):
    (folder / "empty.ipynb").write_text("{}", "utf-8")
    assert main(["diagnose", place, "--data-dim", "64", "--latent-dim", "5"]) == 2
    assert message in capsys.readouterr().err


def test_method_that_is_missing_is_named(folder):
    (folder / "small.py").write_text("class A:\n    def loss(self):\n        pass\n", "utf-8")
    with pytest.raises(ValueError, match=r"small.py has no function A.los; it has A"):
        load_function("small.py:A.los")


def test_command_states_posterior_and_output(folder, capsys):
    (folder / "pair.py").write_text(
        "def loss_fn(r, x, m, s):\n"
        "    kl = 0.5 * (m**2 + s**2 - 1 - 2 * s.log()).sum(1).mean()\n"
        "    error = (r - x).square().sum(1).mean()\n"
        "    return {'loss': kl + error, 'double': 2 * kl + error}\n",
        "utf-8",
    )
    command = ["diagnose", "pair.py:loss_fn", "--data-dim", "64", "--latent-dim", "5", "--output", "double"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "Your fourth argument is σ: read so" in printed and "standard deviation 1," in printed
    assert main([*command, "--posterior", "logvar"]) == 0
    assert "takes logvar for the scale" in capsys.readouterr().out
    assert torch.is_grad_enabled()
