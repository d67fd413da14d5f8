# Wrong answers to problem set 4, from mistakes that are made: every one must lose its task's points.
# ruff: noqa: B018, F706, F821, F841

# %% bernoulli_nll
def bernoulli_nll(x, logits):
    p = torch.sigmoid(logits)
    a = logits.clamp(-30, 30)
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


# %% bernoulli_nll: from probabilities, whose logarithm the library clamps at -100
F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="none").sum(1)

# %% bernoulli_nll: naive logarithms, infinite or NaN where the network is sure
-(x * p.log() + (1 - x) * (1 - p).log()).sum(1)

# %% bernoulli_nll: naive logarithms with 1e-8 inside
-(x * (p + 1e-8).log() + (1 - x) * (1 - p + 1e-8).log()).sum(1)

# %% bernoulli_nll: probabilities clamped to 1e-7
p = torch.sigmoid(logits).clamp(1e-7, 1 - 1e-7)
-(x * p.log() + (1 - x) * (1 - p).log()).sum(1)

# %% bernoulli_nll: the sigmoid is taken twice
F.binary_cross_entropy_with_logits(p, x, reduction="none").sum(1)

# %% bernoulli_nll: the mean over pixels
F.binary_cross_entropy_with_logits(logits, x, reduction="none").mean(1)

# %% bernoulli_nll: one sum over the whole batch
F.binary_cross_entropy_with_logits(logits, x, reduction="sum")

# %% bernoulli_nll: the mean over the batch, given to each image
nll = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
torch.zeros_like(nll) + nll.mean()

# %% bernoulli_nll: the log-probability and not its negative
(x * logits - F.softplus(logits)).sum(1)

# %% bernoulli_nll: prediction and target are swapped
F.binary_cross_entropy_with_logits(x, torch.sigmoid(logits), reduction="none").sum(1)

# %% bernoulli_nll: the sign of the logit is wrong
(F.softplus(logits) - (1 - x) * logits).sum(1)

# %% bernoulli_nll: half log 2 pi is added for each pixel
nll = (F.softplus(logits) - x * logits).sum(1)
nll + 0.5 * x.shape[1] * math.log(2 * math.pi)

# %% bernoulli_nll: the exponential overflows
(torch.log(1 + logits.exp()) - x * logits).sum(1)

# %% bernoulli_nll: log1p of the sigmoid, infinite from logit 37 on
-(x * F.logsigmoid(logits) + (1 - x) * torch.log1p(-torch.sigmoid(logits))).sum(1)

# %% bernoulli_nll: right values through where, but a NaN gradient for large logits
plus = torch.where(logits > 0, logits + torch.log1p((-logits).exp()), torch.log1p(logits.exp()))
(plus - x * logits).sum(1)

# %% bernoulli_nll: logits clamped to 30
(x * F.softplus(-a) + (1 - x) * F.softplus(a)).sum(1)

# %% bernoulli_nll: right values, but beyond 30 no gradient
rest = (logits - a).detach()
(F.softplus(a) + F.relu(rest) - x * (a + rest)).sum(1)

# %% bernoulli_nll: infinities replaced by numbers
torch.nan_to_num(-(x * p.log() + (1 - x) * (1 - p).log())).sum(1)

# %% bernoulli_nll: detached, no gradient
with torch.no_grad():
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)

# %% bernoulli_nll: float32 inside
nll = F.binary_cross_entropy_with_logits(logits.float(), x.float(), reduction="none")
nll.sum(1).double()

# %% bernoulli_nll: grey pixels are rounded to black and white
bits = (x > 0.5).to(x.dtype)
F.binary_cross_entropy_with_logits(logits, bits, reduction="none").sum(1)

# %% bernoulli_nll: grey pixels are drawn anew
F.binary_cross_entropy_with_logits(logits, torch.bernoulli(x), reduction="none").sum(1)

# %% bernoulli_nll: only the inked pixels count
-(x * F.logsigmoid(logits)).sum(1)

# %% bernoulli_nll: the entropy of the target is subtracted
(nll - torch.special.entr(x) - torch.special.entr(1 - x)).sum(1)

# %% bernoulli_nll: half a squared error of the probabilities
0.5 * (x - torch.sigmoid(logits)).square().sum(1)

# %% bernoulli_nll: the image is binarised in place
x.round_()
F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


# %% bce_floor
def bce_floor(x):
    return (torch.special.entr(x) + torch.special.entr(1 - x)).sum(1)


# %% bce_floor: 0 log 0 is NaN
-(x * x.log() + (1 - x) * (1 - x).log()).sum(1)

# %% bce_floor: clamped to 1e-4, so black and white pixels cost something
p = x.clamp(1e-4, 1 - 1e-4)
-(p * p.log() + (1 - p) * (1 - p).log()).sum(1)

# %% bce_floor: 1e-6 inside the logarithms (seen at black and white pixels)
-(x * (x + 1e-6).log() + (1 - x) * (1 - x + 1e-6).log()).sum(1)

# %% bce_floor: in bits
(torch.special.entr(x) + torch.special.entr(1 - x)).sum(1) / math.log(2)

# %% bce_floor: the mean over pixels
(torch.special.entr(x) + torch.special.entr(1 - x)).mean(1)

# %% bce_floor: the sign is wrong
(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).sum(1)

# %% bce_floor: zero, as for black-and-white images
torch.zeros_like(x[:, 0])

# %% bce_floor: half of the entropy, 1 - x is forgotten
torch.special.entr(x).sum(1)

# %% bce_floor: twice the half that was remembered
2 * torch.special.entr(x).sum(1)

# %% bce_floor: summed over the batch too
(torch.special.entr(x) + torch.special.entr(1 - x)).sum()

# %% bce_floor: averaged over the batch
entropy = (torch.special.entr(x) + torch.special.entr(1 - x)).sum(1)
entropy.mean().expand(len(x))

# %% bce_floor: the cross-entropy of the mean image, which every image gets
mean = x.mean(0, keepdim=True).clamp(1e-12, 1 - 1e-12)
-(x * mean.log() + (1 - x) * (1 - mean).log()).sum(1)

# %% bce_floor: the cross-entropy of the rounded image, clamped by the library
F.binary_cross_entropy(x.round(), x, reduction="none").sum(1)

# %% bce_floor: the variance of the coins in place of their entropy
(x * (1 - x)).sum(1)

# %% bce_floor: the entropy of the image as one distribution over pixels
shares = x / x.sum(1, keepdim=True).clamp(min=1e-300)
torch.special.entr(shares).sum(1)

# %% bce_floor: grey levels are taken for logits
p = torch.sigmoid(x)
F.binary_cross_entropy(p, p, reduction="none").sum(1)

# %% bce_floor: the target of the library's logits function is predicted by itself
F.binary_cross_entropy_with_logits(x, x, reduction="none").sum(1)


# %% log_normalizer
def log_normalizer(logits):
    p = torch.sigmoid(logits)
    safe = torch.where(logits == 0, 1.0, logits)
    value = torch.log(safe / torch.tanh(safe / 2))
    return torch.where(logits == 0, math.log(2), value)


# %% log_normalizer: 0/0 at a = 0
torch.log(logits / torch.tanh(logits / 2))

# %% log_normalizer: in terms of the probability, digits of 1 - rho are lost
p = torch.sigmoid(logits)
p = torch.where(logits == 0, 0.25, p)
value = torch.log(2 * torch.atanh(1 - 2 * p) / (1 - 2 * p))

# %% log_normalizer: by the library's density, which goes through probabilities
x = torch.zeros_like(logits)
density = torch.distributions.ContinuousBernoulli(logits=logits)
density.log_prob(x) + F.softplus(logits)

# %% log_normalizer: C and not its logarithm
torch.where(logits == 0, 2.0, safe / torch.tanh(safe / 2))

# %% log_normalizer: the factor 2 is missing
safe = torch.where(logits == 0, 1.0, logits / 2)
torch.where(logits == 0, 0.0, torch.log(safe / torch.tanh(safe)))

# %% log_normalizer: the logarithm of the area, with the wrong sign
torch.where(logits == 0, -math.log(2), torch.log(torch.tanh(safe / 2) / safe))

# %% log_normalizer: tanh of a and not of a / 2
torch.where(logits == 0, math.log(2), torch.log(2 * safe / torch.tanh(safe)))

# %% log_normalizer: only right for positive logits
value = safe.log() - torch.tanh(safe / 2).log()

# %% log_normalizer: Taylor series in rho where rho - 1/2 belongs, near one half
near = (p - 0.5).abs() < 0.01
safe = torch.where(near, 1.0, logits)
series = math.log(2) + 4 / 3 * p**2 + 104 / 45 * p**4
torch.where(near, series, torch.log(safe / torch.tanh(safe / 2)))

# %% log_normalizer: the Taylor series everywhere
math.log(2) + 4 / 3 * (p - 0.5) ** 2 + 104 / 45 * (p - 0.5) ** 4

# %% log_normalizer: two terms of the series up to |a| = 1
near = logits.abs() < 1
safe = torch.where(near, 1.0, logits)
series = math.log(2) + logits**2 / 12
torch.where(near, series, torch.log(safe / torch.tanh(safe / 2)))

# %% log_normalizer: 1e-6 is added against 0/0
a = logits + 1e-6
torch.log(a / torch.tanh(a / 2))

# %% log_normalizer: |a| is kept above 1e-3 (seen next to 0)
a = logits.abs().clamp(min=1e-3)
torch.log(a / torch.tanh(a / 2))

# %% log_normalizer: exp(a) - 1 loses its digits next to 0 (seen at |a| below 1e-7)
value = torch.log(safe * (1 + safe.exp()) / (safe.exp() - 1))

# %% log_normalizer: 1e-6 below the line against 0/0
a = logits.abs()
torch.log((a + 2e-6) / (torch.tanh(a / 2) + 1e-6))

# %% log_normalizer: log 2 everywhere, the bound in place of the value
torch.full_like(logits, math.log(2))

# %% log_normalizer: the asymptote log |a| from 10 on
size = logits.abs()
safe = torch.where(size == 0, 1.0, size)
value = torch.where(size > 10, safe.log(), torch.log(safe / torch.tanh(safe / 2)))
torch.where(size == 0, math.log(2), value)

# %% log_normalizer: summed over pixels
torch.where(logits == 0, math.log(2), value).sum(-1)

# %% log_normalizer: float32 inside
a = logits.float()
safe = torch.where(a == 0, 1.0, a)
torch.where(a == 0, math.log(2), value).double()

# %% log_normalizer: logits of 0 are changed in place
logits[logits == 0] = 1e-9
torch.log(logits / torch.tanh(logits / 2))

# %% log_normalizer: logits are taken for probabilities
p = logits.clamp(1e-4, 1 - 1e-4)
u = torch.where(p == 0.5, 0.1, 1 - 2 * p)
torch.log(2 * torch.atanh(u) / u)


# %% bernoulli_vae_loss
def bernoulli_vae_loss(x, logits, loc, log_scale, beta=1.0):
    p = torch.sigmoid(logits)
    nll = (x * F.softplus(-logits) + (1 - x) * F.softplus(logits)).sum(1)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return (nll + beta * kl).mean()


# %% bernoulli_vae_loss: beta is ignored
(nll + kl).mean()

# %% bernoulli_vae_loss: beta weighs the wrong term
(beta * nll + kl).mean()

# %% bernoulli_vae_loss: beta weighs both terms
beta * (nll + kl).mean()

# %% bernoulli_vae_loss: the mean over pixels
nll = F.binary_cross_entropy_with_logits(logits, x)
nll + beta * kl.mean()

# %% bernoulli_vae_loss: the mean over latents
kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale
nll.mean() + beta * kl.mean()

# %% bernoulli_vae_loss: both means
nll = F.binary_cross_entropy_with_logits(logits, x)
kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale
nll + beta * kl.mean()

# %% bernoulli_vae_loss: both sums, also over the batch
nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale
nll + beta * kl.sum()

# %% bernoulli_vae_loss: the KL is summed over the batch
kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale
nll.mean() + beta * kl.sum()

# %% bernoulli_vae_loss: divided by pixels and latents, each by its own number
nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum()
nll / x.numel() + beta * kl / loc.numel()

# %% bernoulli_vae_loss: log_scale is taken for the log-variance
kl = -0.5 * (1 + log_scale - loc**2 - log_scale.exp()).sum(1)

# %% bernoulli_vae_loss: the KL term has the wrong sign
kl = (0.5 * (1 + 2 * log_scale - loc**2 - (2 * log_scale).exp())).sum(1)

# %% bernoulli_vae_loss: the half of the KL is missing
kl = (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1)

# %% bernoulli_vae_loss: the KL in the other direction
q, prior = Normal(loc, log_scale.exp()), Normal(torch.zeros_like(loc), 1.0)
(nll + beta * kl_divergence(prior, q).sum(1)).mean()

# %% bernoulli_vae_loss: the ELBO and not its negative
log_prob = (x * logits - F.softplus(logits)).sum(1)
(log_prob - beta * kl).mean()

# %% bernoulli_vae_loss: the sigmoid is taken twice
nll = F.binary_cross_entropy_with_logits(p, x, reduction="none").sum(1)

# %% bernoulli_vae_loss: from clamped probabilities (seen at large logits)
nll = F.binary_cross_entropy(p, x, reduction="none").sum(1)

# %% bernoulli_vae_loss: the constant of a Gaussian is added
(nll + beta * kl).mean() + 0.5 * x.shape[1] * math.log(2 * math.pi)

# %% bernoulli_vae_loss: the normaliser of the continuous Bernoulli is subtracted
safe = torch.where(logits.abs() < 1e-6, 1e-6, logits)
log_c = torch.log(safe / torch.tanh(safe / 2)).sum(1)
(nll - log_c + beta * kl).mean()

# %% bernoulli_vae_loss: the floor is subtracted
floor = (torch.special.entr(x) + torch.special.entr(1 - x)).sum(1)
(nll - floor + beta * kl).mean()

# %% bernoulli_vae_loss: a squared error under the name of BCE
bce = (x - torch.sigmoid(logits)).square().sum(1)
(bce + beta * kl).mean()

# %% bernoulli_vae_loss: one loss per image
nll = -Independent(torch.distributions.Bernoulli(logits=logits, validate_args=False), 1).log_prob(x)
nll + beta * kl


# %% effective_beta
def effective_beta(data_dim, latent_dim, recon="mean", kl="mean"):
    beta = data_dim if recon == "mean" else 1
    recon_weight = 1 / data_dim if recon == "mean" else 1
    kl_weight = 1 / latent_dim if kl == "mean" else 1
    return kl_weight / recon_weight


# %% effective_beta: the inverse
recon_weight / kl_weight

# %% effective_beta: always 1, since no weight is written
1.0

# %% effective_beta: 1 whenever both terms are reduced in the same way
if recon == kl:
    return 1.0
data_dim if recon == "mean" else 1 / latent_dim

# %% effective_beta: the reductions are swapped
recon_weight = 1 / data_dim if recon == "sum" else 1
kl_weight = 1 / latent_dim if kl == "sum" else 1

# %% effective_beta: the reduction of the KL is ignored, always a mean
(data_dim if recon == "mean" else 1) / latent_dim

# %% effective_beta: the reduction of the KL is ignored, always a sum
data_dim if recon == "mean" else 1

# %% effective_beta: the reduction of the BCE is ignored
data_dim / latent_dim if kl == "mean" else data_dim

# %% effective_beta: the variance that a squared error would have
kl_weight / (2 * recon_weight)

# %% effective_beta: the root, as if it were a scale
math.sqrt(kl_weight / recon_weight)

# %% effective_beta: the mean over latents multiplies
beta * latent_dim if kl == "mean" else beta

# %% effective_beta: division without remainder
beta // latent_dim if kl == "mean" else beta

# %% effective_beta: the dimensions are swapped
beta = latent_dim if recon == "mean" else 1
beta / data_dim if kl == "mean" else beta


# %% effective_beta: another default, the sum over latents
def effective_beta(data_dim, latent_dim, recon="mean", kl="sum"):
    recon_weight = 1 / data_dim if recon == "mean" else 1
    kl_weight = 1 / latent_dim if kl == "mean" else 1
    return kl_weight / recon_weight


# %% effective_beta: only for the 784 pixels of MNIST
beta = 784 if recon == "mean" else 1
beta / latent_dim if kl == "mean" else beta
