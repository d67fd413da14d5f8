# Wrong answers to problem set 4, each with a mistake of the field: every one must lose its task.
import math

import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, kl_divergence


# %% bernoulli_nll: from probabilities, whose logarithm the library clamps at -100
def bernoulli_nll(x, logits):
    return F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="none").sum(1)


# %% bernoulli_nll: naive logarithms, infinite or NaN where the network is sure
def bernoulli_nll(x, logits):
    p = torch.sigmoid(logits)
    return -(x * p.log() + (1 - x) * (1 - p).log()).sum(1)


# %% bernoulli_nll: naive logarithms with 1e-8 inside
def bernoulli_nll(x, logits):
    p = torch.sigmoid(logits)
    return -(x * (p + 1e-8).log() + (1 - x) * (1 - p + 1e-8).log()).sum(1)


# %% bernoulli_nll: probabilities clamped to 1e-7
def bernoulli_nll(x, logits):
    p = torch.sigmoid(logits).clamp(1e-7, 1 - 1e-7)
    return -(x * p.log() + (1 - x) * (1 - p).log()).sum(1)


# %% bernoulli_nll: the sigmoid is taken twice
def bernoulli_nll(x, logits):
    p = torch.sigmoid(logits)
    return F.binary_cross_entropy_with_logits(p, x, reduction="none").sum(1)


# %% bernoulli_nll: the mean over pixels
def bernoulli_nll(x, logits):
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").mean(1)


# %% bernoulli_nll: one sum over the whole batch
def bernoulli_nll(x, logits):
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum")


# %% bernoulli_nll: the mean over the batch, given to each image
def bernoulli_nll(x, logits):
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    return torch.zeros_like(nll) + nll.mean()


# %% bernoulli_nll: the log-probability and not its negative
def bernoulli_nll(x, logits):
    return (x * logits - F.softplus(logits)).sum(1)


# %% bernoulli_nll: prediction and target are swapped
def bernoulli_nll(x, logits):
    return F.binary_cross_entropy_with_logits(x, torch.sigmoid(logits), reduction="none").sum(1)


# %% bernoulli_nll: the sign of the logit is wrong
def bernoulli_nll(x, logits):
    return (F.softplus(logits) - (1 - x) * logits).sum(1)


# %% bernoulli_nll: half log 2 pi is added for each pixel
def bernoulli_nll(x, logits):
    nll = (F.softplus(logits) - x * logits).sum(1)
    return nll + 0.5 * x.shape[1] * math.log(2 * math.pi)


# %% bernoulli_nll: the exponential overflows
def bernoulli_nll(x, logits):
    return (torch.log(1 + logits.exp()) - x * logits).sum(1)


# %% bernoulli_nll: log1p of the sigmoid, infinite from logit 37 on
def bernoulli_nll(x, logits):
    return -(x * F.logsigmoid(logits) + (1 - x) * torch.log1p(-torch.sigmoid(logits))).sum(1)


# %% bernoulli_nll: right values through where, but a NaN gradient for large logits
def bernoulli_nll(x, logits):
    plus = torch.where(logits > 0, logits + torch.log1p((-logits).exp()), torch.log1p(logits.exp()))
    return (plus - x * logits).sum(1)


# %% bernoulli_nll: logits clamped to 30
def bernoulli_nll(x, logits):
    a = logits.clamp(-30, 30)
    return (x * F.softplus(-a) + (1 - x) * F.softplus(a)).sum(1)


# %% bernoulli_nll: right values, but beyond 30 no gradient
def bernoulli_nll(x, logits):
    a = logits.clamp(-30, 30)
    rest = (logits - a).detach()
    return (F.softplus(a) + F.relu(rest) - x * (a + rest)).sum(1)


# %% bernoulli_nll: infinities replaced by numbers
def bernoulli_nll(x, logits):
    p = torch.sigmoid(logits)
    return torch.nan_to_num(-(x * p.log() + (1 - x) * (1 - p).log())).sum(1)


# %% bernoulli_nll: detached, no gradient
def bernoulli_nll(x, logits):
    with torch.no_grad():
        return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


# %% bernoulli_nll: float32 inside
def bernoulli_nll(x, logits):
    nll = F.binary_cross_entropy_with_logits(logits.float(), x.float(), reduction="none")
    return nll.sum(1).double()


# %% bernoulli_nll: grey pixels are rounded to black and white
def bernoulli_nll(x, logits):
    bits = (x > 0.5).to(x.dtype)
    return F.binary_cross_entropy_with_logits(logits, bits, reduction="none").sum(1)


# %% bernoulli_nll: grey pixels are drawn anew
def bernoulli_nll(x, logits):
    return F.binary_cross_entropy_with_logits(logits, torch.bernoulli(x), reduction="none").sum(1)


# %% bernoulli_nll: only the inked pixels count
def bernoulli_nll(x, logits):
    return -(x * F.logsigmoid(logits)).sum(1)


# %% bernoulli_nll: the entropy of the target is subtracted
def bernoulli_nll(x, logits):
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    return (nll - torch.special.entr(x) - torch.special.entr(1 - x)).sum(1)


# %% bernoulli_nll: half a squared error of the probabilities
def bernoulli_nll(x, logits):
    return 0.5 * (x - torch.sigmoid(logits)).square().sum(1)


# %% bernoulli_nll: the image is binarised in place
def bernoulli_nll(x, logits):
    x.round_()
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


# %% bce_floor: 0 log 0 is NaN
def bce_floor(x):
    return -(x * x.log() + (1 - x) * (1 - x).log()).sum(1)


# %% bce_floor: clamped to 1e-4, so black and white pixels cost something
def bce_floor(x):
    p = x.clamp(1e-4, 1 - 1e-4)
    return -(p * p.log() + (1 - p) * (1 - p).log()).sum(1)


# %% bce_floor: 1e-6 inside the logarithms (seen at black and white pixels)
def bce_floor(x):
    return -(x * (x + 1e-6).log() + (1 - x) * (1 - x + 1e-6).log()).sum(1)


# %% bce_floor: in bits
def bce_floor(x):
    return (torch.special.entr(x) + torch.special.entr(1 - x)).sum(1) / math.log(2)


# %% bce_floor: the mean over pixels
def bce_floor(x):
    return (torch.special.entr(x) + torch.special.entr(1 - x)).mean(1)


# %% bce_floor: the sign is wrong
def bce_floor(x):
    return (torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).sum(1)


# %% bce_floor: zero, as for black-and-white images
def bce_floor(x):
    return torch.zeros_like(x[:, 0])


# %% bce_floor: half of the entropy, 1 - x is forgotten
def bce_floor(x):
    return torch.special.entr(x).sum(1)


# %% bce_floor: twice the half that was remembered
def bce_floor(x):
    return 2 * torch.special.entr(x).sum(1)


# %% bce_floor: summed over the batch too
def bce_floor(x):
    return (torch.special.entr(x) + torch.special.entr(1 - x)).sum()


# %% bce_floor: averaged over the batch
def bce_floor(x):
    entropy = (torch.special.entr(x) + torch.special.entr(1 - x)).sum(1)
    return entropy.mean().expand(len(x))


# %% bce_floor: the cross-entropy of the mean image, which every image gets
def bce_floor(x):
    mean = x.mean(0, keepdim=True).clamp(1e-12, 1 - 1e-12)
    return -(x * mean.log() + (1 - x) * (1 - mean).log()).sum(1)


# %% bce_floor: the cross-entropy of the rounded image, clamped by the library
def bce_floor(x):
    return F.binary_cross_entropy(x.round(), x, reduction="none").sum(1)


# %% bce_floor: the variance of the coins in place of their entropy
def bce_floor(x):
    return (x * (1 - x)).sum(1)


# %% bce_floor: the entropy of the image as one distribution over pixels
def bce_floor(x):
    shares = x / x.sum(1, keepdim=True).clamp(min=1e-300)
    return torch.special.entr(shares).sum(1)


# %% bce_floor: grey levels are taken for logits
def bce_floor(x):
    p = torch.sigmoid(x)
    return F.binary_cross_entropy(p, p, reduction="none").sum(1)


# %% bce_floor: the target of the library's logits function is predicted by itself
def bce_floor(x):
    return F.binary_cross_entropy_with_logits(x, x, reduction="none").sum(1)


# %% log_normalizer: 0/0 at a = 0
def log_normalizer(logits):
    return torch.log(logits / torch.tanh(logits / 2))


# %% log_normalizer: in terms of the probability, digits of 1 - rho are lost
def log_normalizer(logits):
    p = torch.sigmoid(logits)
    p = torch.where(logits == 0, 0.25, p)
    value = torch.log(2 * torch.atanh(1 - 2 * p) / (1 - 2 * p))
    return torch.where(logits == 0, math.log(2), value)


# %% log_normalizer: by the library's density, which goes through probabilities
def log_normalizer(logits):
    x = torch.zeros_like(logits)
    density = torch.distributions.ContinuousBernoulli(logits=logits)
    return density.log_prob(x) + F.softplus(logits)


# %% log_normalizer: C and not its logarithm
def log_normalizer(logits):
    safe = torch.where(logits == 0, 1.0, logits)
    return torch.where(logits == 0, 2.0, safe / torch.tanh(safe / 2))


# %% log_normalizer: the factor 2 is missing
def log_normalizer(logits):
    safe = torch.where(logits == 0, 1.0, logits / 2)
    return torch.where(logits == 0, 0.0, torch.log(safe / torch.tanh(safe)))


# %% log_normalizer: the logarithm of the area, with the wrong sign
def log_normalizer(logits):
    safe = torch.where(logits == 0, 1.0, logits)
    return torch.where(logits == 0, -math.log(2), torch.log(torch.tanh(safe / 2) / safe))


# %% log_normalizer: tanh of a and not of a / 2
def log_normalizer(logits):
    safe = torch.where(logits == 0, 1.0, logits)
    return torch.where(logits == 0, math.log(2), torch.log(2 * safe / torch.tanh(safe)))


# %% log_normalizer: only right for positive logits
def log_normalizer(logits):
    safe = torch.where(logits == 0, 1.0, logits)
    value = safe.log() - torch.tanh(safe / 2).log()
    return torch.where(logits == 0, math.log(2), value)


# %% log_normalizer: Taylor series in rho where rho - 1/2 belongs, near one half
def log_normalizer(logits):
    p = torch.sigmoid(logits)
    near = (p - 0.5).abs() < 0.01
    safe = torch.where(near, 1.0, logits)
    series = math.log(2) + 4 / 3 * p**2 + 104 / 45 * p**4
    return torch.where(near, series, torch.log(safe / torch.tanh(safe / 2)))


# %% log_normalizer: the Taylor series everywhere
def log_normalizer(logits):
    p = torch.sigmoid(logits)
    return math.log(2) + 4 / 3 * (p - 0.5) ** 2 + 104 / 45 * (p - 0.5) ** 4


# %% log_normalizer: two terms of the series up to |a| = 1
def log_normalizer(logits):
    near = logits.abs() < 1
    safe = torch.where(near, 1.0, logits)
    series = math.log(2) + logits**2 / 12
    return torch.where(near, series, torch.log(safe / torch.tanh(safe / 2)))


# %% log_normalizer: 1e-6 is added against 0/0
def log_normalizer(logits):
    a = logits + 1e-6
    return torch.log(a / torch.tanh(a / 2))


# %% log_normalizer: |a| is kept above 1e-3 (seen next to 0)
def log_normalizer(logits):
    a = logits.abs().clamp(min=1e-3)
    return torch.log(a / torch.tanh(a / 2))


# %% log_normalizer: exp(a) - 1 loses its digits next to 0 (seen at |a| below 1e-7)
def log_normalizer(logits):
    safe = torch.where(logits == 0, 1.0, logits)
    value = torch.log(safe * (1 + safe.exp()) / (safe.exp() - 1))
    return torch.where(logits == 0, math.log(2), value)


# %% log_normalizer: 1e-6 below the line against 0/0
def log_normalizer(logits):
    a = logits.abs()
    return torch.log((a + 2e-6) / (torch.tanh(a / 2) + 1e-6))


# %% log_normalizer: log 2 everywhere, the bound in place of the value
def log_normalizer(logits):
    return torch.full_like(logits, math.log(2))


# %% log_normalizer: the asymptote log |a| from 10 on
def log_normalizer(logits):
    size = logits.abs()
    safe = torch.where(size == 0, 1.0, size)
    value = torch.where(size > 10, safe.log(), torch.log(safe / torch.tanh(safe / 2)))
    return torch.where(size == 0, math.log(2), value)


# %% log_normalizer: summed over pixels
def log_normalizer(logits):
    safe = torch.where(logits == 0, 1.0, logits)
    value = torch.log(safe / torch.tanh(safe / 2))
    return torch.where(logits == 0, math.log(2), value).sum(-1)


# %% log_normalizer: float32 inside
def log_normalizer(logits):
    a = logits.float()
    safe = torch.where(a == 0, 1.0, a)
    value = torch.log(safe / torch.tanh(safe / 2))
    return torch.where(a == 0, math.log(2), value).double()


# %% log_normalizer: logits of 0 are changed in place
def log_normalizer(logits):
    logits[logits == 0] = 1e-9
    return torch.log(logits / torch.tanh(logits / 2))


# %% log_normalizer: logits are taken for probabilities
def log_normalizer(logits):
    p = logits.clamp(1e-4, 1 - 1e-4)
    u = torch.where(p == 0.5, 0.1, 1 - 2 * p)
    return torch.log(2 * torch.atanh(u) / u)


# %% bernoulli_vae_loss: beta is ignored
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = (x * F.softplus(-logits) + (1 - x) * F.softplus(logits)).sum(1)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return (nll + kl).mean()


# %% bernoulli_vae_loss: beta weighs the wrong term
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = (x * F.softplus(-logits) + (1 - x) * F.softplus(logits)).sum(1)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return (beta * nll + kl).mean()


# %% bernoulli_vae_loss: beta weighs both terms
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = (x * F.softplus(-logits) + (1 - x) * F.softplus(logits)).sum(1)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return beta * (nll + kl).mean()


# %% bernoulli_vae_loss: the mean over pixels
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = F.binary_cross_entropy_with_logits(logits, x)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return nll + beta * kl.mean()


# %% bernoulli_vae_loss: the mean over latents
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = (x * F.softplus(-logits) + (1 - x) * F.softplus(logits)).sum(1)
    kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale
    return nll.mean() + beta * kl.mean()


# %% bernoulli_vae_loss: both means
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = F.binary_cross_entropy_with_logits(logits, x)
    kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale
    return nll + beta * kl.mean()


# %% bernoulli_vae_loss: both sums, also over the batch
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale
    return nll + beta * kl.sum()


# %% bernoulli_vae_loss: the KL is summed over the batch
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = (x * F.softplus(-logits) + (1 - x) * F.softplus(logits)).sum(1)
    kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale
    return nll.mean() + beta * kl.sum()


# %% bernoulli_vae_loss: divided by pixels and latents, each by its own number
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum()
    return nll / x.numel() + beta * kl / loc.numel()


# %% bernoulli_vae_loss: log_scale is taken for the log-variance
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = (x * F.softplus(-logits) + (1 - x) * F.softplus(logits)).sum(1)
    kl = -0.5 * (1 + log_scale - loc**2 - log_scale.exp()).sum(1)
    return (nll + beta * kl).mean()


# %% bernoulli_vae_loss: the KL term has the wrong sign
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = (x * F.softplus(-logits) + (1 - x) * F.softplus(logits)).sum(1)
    kl = (0.5 * (1 + 2 * log_scale - loc**2 - (2 * log_scale).exp())).sum(1)
    return (nll + beta * kl).mean()


# %% bernoulli_vae_loss: the half of the KL is missing
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = (x * F.softplus(-logits) + (1 - x) * F.softplus(logits)).sum(1)
    kl = (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1)
    return (nll + beta * kl).mean()


# %% bernoulli_vae_loss: the KL in the other direction
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = (x * F.softplus(-logits) + (1 - x) * F.softplus(logits)).sum(1)
    q, prior = Normal(loc, log_scale.exp()), Normal(torch.zeros_like(loc), 1.0)
    return (nll + beta * kl_divergence(prior, q).sum(1)).mean()


# %% bernoulli_vae_loss: the ELBO and not its negative
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    log_prob = (x * logits - F.softplus(logits)).sum(1)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return (log_prob - beta * kl).mean()


# %% bernoulli_vae_loss: the sigmoid is taken twice
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    p = torch.sigmoid(logits)
    nll = F.binary_cross_entropy_with_logits(p, x, reduction="none").sum(1)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return (nll + beta * kl).mean()


# %% bernoulli_vae_loss: from clamped probabilities (seen at large logits)
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    p = torch.sigmoid(logits)
    nll = F.binary_cross_entropy(p, x, reduction="none").sum(1)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return (nll + beta * kl).mean()


# %% bernoulli_vae_loss: the constant of a Gaussian is added
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = (x * F.softplus(-logits) + (1 - x) * F.softplus(logits)).sum(1)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return (nll + beta * kl).mean() + 0.5 * x.shape[1] * math.log(2 * math.pi)


# %% bernoulli_vae_loss: the normaliser of the continuous Bernoulli is subtracted
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = (x * F.softplus(-logits) + (1 - x) * F.softplus(logits)).sum(1)
    safe = torch.where(logits.abs() < 1e-6, 1e-6, logits)
    log_c = torch.log(safe / torch.tanh(safe / 2)).sum(1)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return (nll - log_c + beta * kl).mean()


# %% bernoulli_vae_loss: the floor is subtracted
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = (x * F.softplus(-logits) + (1 - x) * F.softplus(logits)).sum(1)
    floor = (torch.special.entr(x) + torch.special.entr(1 - x)).sum(1)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return (nll - floor + beta * kl).mean()


# %% bernoulli_vae_loss: a squared error under the name of BCE
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    bce = (x - torch.sigmoid(logits)).square().sum(1)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return (bce + beta * kl).mean()


# %% bernoulli_vae_loss: one loss per image
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    nll = -Independent(torch.distributions.Bernoulli(logits=logits, validate_args=False), 1).log_prob(x)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return nll + beta * kl


# %% effective_beta: the inverse
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    recon_weight = 1 / data_dim if recon == "mean" else 1
    kl_weight = 1 / latent_dim if kl == "mean" else 1
    return recon_weight / kl_weight


# %% effective_beta: always 1, since no weight is written
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    return 1.0


# %% effective_beta: 1 whenever both terms are reduced in the same way
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    if recon == kl:
        return 1.0
    return data_dim if recon == "mean" else 1 / latent_dim


# %% effective_beta: the reductions are swapped
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    recon_weight = 1 / data_dim if recon == "sum" else 1
    kl_weight = 1 / latent_dim if kl == "sum" else 1
    return kl_weight / recon_weight


# %% effective_beta: the reduction of the KL is ignored, always a mean
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    return (data_dim if recon == "mean" else 1) / latent_dim


# %% effective_beta: the reduction of the KL is ignored, always a sum
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    return data_dim if recon == "mean" else 1


# %% effective_beta: the reduction of the BCE is ignored
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    return data_dim / latent_dim if kl == "mean" else data_dim


# %% effective_beta: the variance that a squared error would have
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    recon_weight = 1 / data_dim if recon == "mean" else 1
    kl_weight = 1 / latent_dim if kl == "mean" else 1
    return kl_weight / (2 * recon_weight)


# %% effective_beta: the root, as if it were a scale
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    recon_weight = 1 / data_dim if recon == "mean" else 1
    kl_weight = 1 / latent_dim if kl == "mean" else 1
    return math.sqrt(kl_weight / recon_weight)


# %% effective_beta: the mean over latents multiplies
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    beta = data_dim if recon == "mean" else 1
    return beta * latent_dim if kl == "mean" else beta


# %% effective_beta: division without remainder
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    beta = data_dim if recon == "mean" else 1
    return beta // latent_dim if kl == "mean" else beta


# %% effective_beta: the dimensions are swapped
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    beta = latent_dim if recon == "mean" else 1
    return beta / data_dim if kl == "mean" else beta


# %% effective_beta: another default, the sum over latents
def effective_beta(data_dim, latent_dim, recon="mean", kl="sum"):
    recon_weight = 1 / data_dim if recon == "mean" else 1
    kl_weight = 1 / latent_dim if kl == "mean" else 1
    return kl_weight / recon_weight


# %% effective_beta: only for the 784 pixels of MNIST
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    beta = 784 if recon == "mean" else 1
    return beta / latent_dim if kl == "mean" else beta
