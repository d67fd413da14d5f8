"""The loop of the tutorials, as people write it: a data set that transforms sample by sample, probabilities,
a summed binary cross-entropy, and `.item()` at every step.

After the VAE of PyTorch's own examples, https://github.com/pytorch/examples (BSD licence).
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.measuring import timed
from tests.benchmarks.task import BATCH_SIZE, DATA_DIM, HIDDEN_DIM, LATENT_DIM, LEARNING_RATE, Epochs


def to_tensor(image: np.ndarray) -> Tensor:
    """An image as torchvision's ToTensor gives it, (1, 28, 28) in [0, 1], without the way through PIL."""
    return torch.from_numpy(image[np.newaxis].copy()).to(torch.float32).div(255)


class Images(Dataset[tuple[Tensor, int]]):
    """Images and labels, transformed one by one when asked for."""

    def __init__(self, images: np.ndarray, transform: Callable[[np.ndarray], Tensor]) -> None:
        self.images, self.targets, self.transform = images, np.zeros(len(images), dtype=np.int64), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.targets[index])


class TextbookVAE(nn.Module):
    """The network of `task.new_vae`, with two heads for the two halves of the encoder's output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(DATA_DIM, HIDDEN_DIM)
        self.fc21 = nn.Linear(HIDDEN_DIM, LATENT_DIM)
        self.fc22 = nn.Linear(HIDDEN_DIM, LATENT_DIM)
        self.fc3 = nn.Linear(LATENT_DIM, HIDDEN_DIM)
        self.fc4 = nn.Linear(HIDDEN_DIM, DATA_DIM)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h1 = F.relu(self.fc1(x))
        return self.fc21(h1), self.fc22(h1)

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        std = torch.exp(0.5 * logvar)
        eps = torch.randn_like(std)
        return mu + eps * std

    def decode(self, z: Tensor) -> Tensor:
        h3 = F.relu(self.fc3(z))
        return torch.sigmoid(self.fc4(h3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x.view(-1, DATA_DIM))
        z = self.reparameterize(mu, logvar)
        return self.decode(z), mu, logvar


def textbook_loss(recon_x: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Nats, summed over the batch."""
    bce = F.binary_cross_entropy(recon_x, x.view(-1, DATA_DIM), reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return bce + kld


def textbook_contender(images: Tensor, epochs: int) -> Epochs:
    """The loop, ready to run; its model is kept from run to run."""
    torch.manual_seed(0)
    model = TextbookVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    loader = DataLoader(Images(images.numpy(), to_tensor), batch_size=BATCH_SIZE, shuffle=True)

    def epoch() -> None:
        model.train()
        train_loss = 0.0
        for data, _ in loader:
            optimizer.zero_grad()
            recon_batch, mu, logvar = model(data)
            loss = textbook_loss(recon_batch, data, mu, logvar)
            loss.backward()
            train_loss += loss.item()
            optimizer.step()

    return lambda: [timed(epoch)[0] for _ in range(epochs)]
