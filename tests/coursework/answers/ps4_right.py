# Right answers to problem set 4, each written differently: every one must earn full marks.
# ruff: noqa: F706, F821

# %% bernoulli_nll: the library's loss with logits
F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)

# %% bernoulli_nll: torch.logaddexp, the short form
softplus = torch.logaddexp(logits, torch.zeros_like(logits))
return (softplus - x * logits).sum(dim=1)

# %% bernoulli_nll: log-sigmoid of both signs, einsum
ones = torch.einsum("bd,bd->b", x, F.logsigmoid(logits))
zeros = torch.einsum("bd,bd->b", 1 - x, F.logsigmoid(-logits))
return -(ones + zeros)

# %% bernoulli_nll: torch.distributions, whose grey values are not validated
coins = torch.distributions.Bernoulli(logits=logits, validate_args=False)
return -Independent(coins, 1).log_prob(x)

# %% bernoulli_nll: one image at a time, stacked, logsumexp over the two faces of each coin
losses = []
for image, a in zip(x, logits, strict=True):
    faces = torch.stack([a, torch.zeros_like(a)])
    losses.append(faces.logsumexp(0).sum() - image @ a)
return torch.stack(losses)

# %% bce_floor: xlogy
-(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).sum(-1)

# %% bce_floor: the naive formula, with the NaN of 0 log 0 replaced
inked = torch.nan_to_num(x * x.log(), nan=0.0)
blank = torch.nan_to_num((1 - x) * (1 - x).log(), nan=0.0)
return -(inked + blank).sum(1)

# %% bce_floor: the library's loss of a prediction that equals its target
F.binary_cross_entropy(x, x, reduction="none").sum(dim=1)


# %% bce_floor: loops over Python numbers
def bce_floor(x):
    def entropy(p):
        return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)

    floors = [math.fsum(entropy(p) for p in image) for image in x.tolist()]
    return torch.tensor(floors, dtype=x.dtype)


# %% bce_floor: a mask of the grey pixels
grey = (x > 0) & (x < 1)
p = torch.where(grey, x, 0.5)
entropy = -p * p.log() - (1 - p) * torch.log1p(-p)
return torch.where(grey, entropy, 0.0).sum(1)

# %% log_normalizer: the absolute value, and only a = 0 apart
size = logits.abs()
size = torch.where(size > 0, size, 1.0)
value = size.log() - torch.tanh(size / 2).log()

# %% log_normalizer: expm1, with softplus taken into the formula
size = logits.abs().clamp(min=1e-30)
return torch.log(size) + torch.log1p(torch.exp(-size)) - torch.log(-torch.expm1(-size))


# %% log_normalizer: Python numbers, one element at a time
def log_normalizer(logits):
    def one(a):
        return math.log(a / math.tanh(a / 2)) if a != 0 else math.log(2)

    values = [one(a) for a in logits.flatten().tolist()]
    return torch.tensor(values, dtype=logits.dtype).reshape(logits.shape)


# %% log_normalizer: series in a / 2 below 0.05, the quotient elsewhere
y = logits / 2
near = y.abs() < 0.05
y2 = torch.where(near, y, 0.0).square()
series = y2 * (1 / 3 - y2 * (7 / 90 - y2 * (62 / 2835 - y2 * 127 / 18900)))
far = torch.where(near, 1.0, y)
return math.log(2) + torch.where(near, series, (far / torch.tanh(far)).log())

# %% log_normalizer: sinh and cosh
tiny = logits.abs() < 1e-150
y = torch.where(tiny, torch.full_like(logits, 1e-150), logits) / 2
return torch.log(2 * y * torch.cosh(y) / torch.sinh(y))

# %% bernoulli_vae_loss: library's loss with logits, log-variance
log_var = 2 * log_scale
bce = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
kld = -0.5 * torch.sum(1 + log_var - loc.pow(2) - log_var.exp())
return (bce + beta * kld) / len(x)

# %% bernoulli_vae_loss: torch.distributions for both terms
coins = torch.distributions.Bernoulli(logits=logits, validate_args=False)
nll = -coins.log_prob(x).sum(-1)
q = Independent(Normal(loc, log_scale.exp()), 1)
prior = Independent(Normal(torch.zeros_like(loc), torch.ones_like(loc)), 1)
return torch.mean(nll + beta * kl_divergence(q, prior))

# %% bernoulli_vae_loss: means times dimensions
pixels = x * F.softplus(-logits) + (1 - x) * F.softplus(logits)
latents = (loc * loc + torch.exp(log_scale) ** 2 - 1) / 2 - log_scale
return x.shape[1] * pixels.mean() + beta * loc.shape[1] * latents.mean()

# %% bernoulli_vae_loss: loops over Python numbers, a float is returned
total = 0.0
for image, outputs in zip(x.tolist(), logits.tolist(), strict=True):
    for p, a in zip(image, outputs, strict=True):
        total += max(a, 0.0) - p * a + math.log1p(math.exp(-abs(a)))
for means, log_scales in zip(loc.tolist(), log_scale.tolist(), strict=True):
    for mean, log_s in zip(means, log_scales, strict=True):
        total += beta * (0.5 * (mean**2 + math.exp(2 * log_s) - 1) - log_s)
return total / x.shape[0]

# %% effective_beta: a table of the four cases
{
    ("mean", "mean"): data_dim / latent_dim,
    ("mean", "sum"): data_dim,
    ("sum", "mean"): 1 / latent_dim,
    ("sum", "sum"): 1,
}[recon, kl]

# %% effective_beta: factors collected step by step, a float64 tensor is returned
beta = torch.ones((), dtype=torch.float64)
if recon == "mean":
    beta *= data_dim
if kl == "mean":
    beta /= latent_dim
return beta

# %% effective_beta: differentiates the loss that was described
bce = torch.ones(3, data_dim, dtype=torch.float64, requires_grad=True)
kld = torch.ones(3, latent_dim, dtype=torch.float64, requires_grad=True)
first = bce.mean() if recon == "mean" else bce.sum(1).mean()
second = kld.mean() if kl == "mean" else kld.sum(1).mean()
(first + second).backward()
return (kld.grad[0, 0] / bce.grad[0, 0]).item()

# %% effective_beta: exponents
float(data_dim ** (recon == "mean")) / latent_dim ** (kl == "mean")
