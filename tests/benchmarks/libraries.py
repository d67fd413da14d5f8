"""The same network, data and optimiser in the hands of pythae and Pyro, each used as its examples use it.

Both are imported only where they are called: they are optional.
"""

import contextlib
import io
import logging
import tempfile
import time
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.measuring import timed
from tests.benchmarks.task import BATCH_SIZE, DATA_DIM, LATENT_DIM, LEARNING_RATE, Epochs, new_vae
from vaecourse.models import VAE


def pythae_vae(vae: VAE) -> Any:
    """A pythae model around the encoder and decoder of a Bernoulli VAE, which it shares."""
    from pythae.models import VAE as PythaeVAE  # noqa: N811  # the name is ours as well
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def forward(self, x: Tensor) -> ModelOutput:
            loc, log_scale = self.network(x)
            return ModelOutput(embedding=loc, log_covariance=2 * log_scale)

    class Decoder(BaseDecoder):
        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))

    encoder, decoder = Encoder(), Decoder()
    encoder.network, decoder.network = vae.encoder, vae.decoder
    config = VAEConfig(input_dim=(DATA_DIM,), latent_dim=LATENT_DIM, reconstruction_loss="bce")
    return PythaeVAE(config, encoder=encoder, decoder=decoder)


def pythae_contender(x: Tensor, epochs: int) -> Epochs:
    """pythae's trainer, ready to run; its model is kept from run to run."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Stopwatch(TrainingCallback):
        def __init__(self) -> None:
            self.start, self.seconds = 0.0, []

        def on_epoch_begin(self, training_config: BaseTrainerConfig, **kwargs: object) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, training_config: BaseTrainerConfig, **kwargs: object) -> None:
            self.seconds.append(time.perf_counter() - self.start)

    model, data = pythae_vae(new_vae()), BaseDataset(x, torch.ones(len(x)))
    options = {
        "num_epochs": epochs,
        "per_device_train_batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
    }
    logging.disable(logging.INFO)  # messages and progress bars would slow the trainer down

    def run() -> list[float]:
        stopwatch = Stopwatch()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            config = BaseTrainerConfig(output_dir=folder, no_cuda=True, **options)
            BaseTrainer(model, data, training_config=config, callbacks=[stopwatch]).train()
        return stopwatch.seconds

    return run


def pyro_svi(vae: VAE) -> Any:
    """Pyro's stochastic variational inference for a Bernoulli VAE, whose networks it trains.

    The mean-field objective takes the KL term in closed form, as ours does.  Values are not
    checked to be bits, as in Pyro's VAE example: grey pixels are none.
    """
    import pyro
    import pyro.distributions as dist
    from pyro.infer import SVI, TraceMeanField_ELBO
    from pyro.optim import Adam

    def model(x: Tensor) -> None:
        pyro.module("decoder", vae.decoder)
        with pyro.plate("data", len(x)):
            zeros = x.new_zeros(len(x), LATENT_DIM)
            z = pyro.sample("latent", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            pixels = dist.Bernoulli(logits=vae.decoder(z), validate_args=False)
            pyro.sample("obs", pixels.to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", vae.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = vae.encoder(x)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))

    pyro.clear_param_store()
    return SVI(model, guide, Adam({"lr": LEARNING_RATE}), loss=TraceMeanField_ELBO())


def pyro_contender(x: Tensor, epochs: int) -> Epochs:
    """Pyro's SVI, ready to run on batches indexed from memory; its model is kept from run to run."""
    svi = pyro_svi(new_vae())

    def epoch() -> None:
        for indices in torch.randperm(len(x)).split(BATCH_SIZE):
            svi.step(x[indices])

    return lambda: [timed(epoch)[0] for _ in range(epochs)]
