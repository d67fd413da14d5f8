# Right answers to problem set 3, each written differently: every one must earn full marks.
# ruff: noqa: F706, F821

# %% gaussian_vae_loss: torch.distributions for both terms
likelihood = Independent(Normal(x_loc, scale), 1)
q = Independent(Normal(loc, log_scale.exp()), 1)
prior = Independent(Normal(torch.zeros_like(loc), torch.ones_like(loc)), 1)
elbo = likelihood.log_prob(x) - kl_divergence(q, prior)
return -elbo.mean()

# %% gaussian_vae_loss: loops over Python numbers, a float is returned
total = 0.0
for image, mean in zip(x.tolist(), x_loc.tolist(), strict=True):
    for value, center in zip(image, mean, strict=True):
        total += 0.5 * ((value - center) / scale) ** 2
        total += math.log(scale) + 0.5 * math.log(2 * math.pi)
for means, log_scales in zip(loc.tolist(), log_scale.tolist(), strict=True):
    for mean, log_s in zip(means, log_scales, strict=True):
        total += 0.5 * (mean**2 + math.exp(2 * log_s) - 1) - log_s
return total / len(x)

# %% gaussian_vae_loss: log-variance, sums over everything divided by the batch size
num_examples, data_dim = x.shape
log_var = 2 * log_scale
kl = -0.5 * torch.sum(1 + log_var - loc.pow(2) - log_var.exp())
error = F.mse_loss(x_loc, x, reduction="sum") / (2 * scale * scale)
constant = data_dim * (math.log(scale) + math.log(math.sqrt(2 * math.pi)))
return (error + kl) / num_examples + constant

# %% gaussian_vae_loss: einsum, and the library's Gaussian loss with its constant
variance = torch.full_like(x, scale**2)
nll = F.gaussian_nll_loss(x_loc, x, variance, full=True, eps=1e-300, reduction="none")
s = torch.exp(log_scale)
kl = torch.einsum("bk,bk->b", loc, loc) + torch.einsum("bk,bk->b", s, s)
kl = (kl - loc.shape[1]) / 2 - log_scale.sum(dim=-1)
return nll.sum(-1).mean(0) + kl.mean(0)

# %% implied_scale: a table of the four variances
variances = {
    ("mean", "sum"): kl_weight * data_dim / 2,
    ("mean", "mean"): kl_weight * data_dim / (2 * latent_dim),
    ("sum", "sum"): kl_weight / 2,
    ("sum", "mean"): kl_weight / (2 * latent_dim),
}
return variances[recon, kl] ** 0.5

# %% implied_scale: factors collected step by step, a float64 tensor is returned
variance = torch.tensor(kl_weight / 2, dtype=torch.float64)
if recon == "mean":
    variance = variance * data_dim
if kl == "mean":
    variance = variance / latent_dim
return variance.sqrt()

# %% implied_scale: through logarithms
log_a = -math.log(data_dim) if recon == "mean" else 0.0
log_w = math.log(kl_weight)
if kl != "sum":
    log_w -= math.log(latent_dim)
return math.exp(0.5 * (log_w - log_a - math.log(2)))

# %% implied_scale: differentiates the loss that was described
squares = torch.ones(2, data_dim, dtype=torch.float64, requires_grad=True)
divergences = torch.ones(2, latent_dim, dtype=torch.float64, requires_grad=True)
error = squares.mean() if recon == "mean" else squares.sum(1).mean()
divergence = divergences.mean() if kl == "mean" else divergences.sum(1).mean()
(error + kl_weight * divergence).backward()
a, w = squares.grad[0, 0].item(), divergences.grad[0, 0].item()
return math.sqrt(w / a / 2)

# %% kl_weight_for: ratio of the two weights
recon_weight = 1 / data_dim
return recon_weight / (1 / (2 * scale**2))

# %% kl_weight_for: through logarithms
math.exp(math.log(2) + 2 * math.log(scale) - math.log(data_dim))

# %% kl_weight_for: a float64 tensor is returned
variance = torch.tensor(scale, dtype=torch.float64).square()
return variance.mul(2).div(data_dim)

# %% kl_weight_for: product of the scale with twice the scale of one pixel's share
share = scale / math.sqrt(data_dim)
return 2.0 * share * share

# %% optimal_scale: norm over the root of the number of elements
torch.linalg.vector_norm(x - x_loc) / math.sqrt(x.numel())

# %% optimal_scale: library's mean squared error
math.sqrt(F.mse_loss(x_loc, x).item())

# %% optimal_scale: sum over pixels, mean over the batch, divided by D
sse = ((x - x_loc) ** 2).sum(dim=-1)
return (sse.mean() / x.shape[-1]) ** 0.5

# %% optimal_scale: loops over Python numbers
pairs = zip(x.flatten().tolist(), x_loc.flatten().tolist(), strict=True)
errors = [a - b for a, b in pairs]
return math.hypot(*errors) / math.sqrt(len(errors))

# %% num_active_latents: sorted, then counted until the first that is not worth it
count = 0
for value in sorted(eigenvalues.tolist(), reverse=True)[:latent_dim]:
    if value <= beta * scale**2:
        break
    count += 1
return count

# %% num_active_latents: topk
largest = torch.topk(eigenvalues, min(latent_dim, eigenvalues.numel())).values
return int(torch.count_nonzero(largest > beta * scale * scale))

# %% num_active_latents: generator expression
active = sum(value / (beta * scale**2) > 1 for value in eigenvalues.tolist())
return min(latent_dim, active)

# %% num_active_latents: on standard deviations
deviations = eigenvalues.clamp(min=0).sqrt()
active = (deviations > math.sqrt(beta) * scale).long().sum().item()
return active if active < latent_dim else latent_dim
