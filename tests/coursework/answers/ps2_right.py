# Right answers to problem set 2, each written differently: every one must earn full marks.
# ruff: noqa: F706, F821

# %% kl_standard_normal: torch.distributions
q = Independent(Normal(loc, log_scale.exp()), 1)
prior = Independent(Normal(torch.zeros_like(loc), torch.ones_like(loc)), 1)
return kl_divergence(q, prior)

# %% kl_standard_normal: the log-variance form of most programs
log_var = 2 * log_scale
return -0.5 * torch.sum(1 + log_var - loc.pow(2) - log_var.exp(), dim=-1)

# %% kl_standard_normal: expm1, summed by einsum
halves = loc * loc + torch.expm1(2 * log_scale) - 2 * log_scale
return torch.einsum("bk->b", halves) / 2

# %% kl_standard_normal: a loop over Python numbers
rows = []
for means, logs in zip(loc.tolist(), log_scale.tolist(), strict=True):
    pairs = zip(means, logs, strict=True)
    rows.append(sum(0.5 * (m * m + math.exp(2 * s) - 1) - s for m, s in pairs))
return torch.tensor(rows, dtype=torch.float64)

# %% kl_standard_normal: cross-entropy minus entropy, scale computed and logged again
scale = log_scale.exp()
cross_entropy = 0.5 * (loc**2 + scale**2) + 0.5 * math.log(2 * math.pi)
entropy = torch.log(scale) + 0.5 * math.log(2 * math.pi * math.e)
return (cross_entropy - entropy).sum(dim=1)

# %% reparameterize: addcmul
torch.addcmul(loc, log_scale.exp(), eps)

# %% reparameterize: half of the log-variance
log_variance = 2 * log_scale
std = torch.exp(0.5 * log_variance)
return eps * std + loc

# %% reparameterize: expanded to the shape of the noise first
loc, log_scale, eps = torch.broadcast_tensors(loc, log_scale, eps)
return loc + torch.pow(math.e, log_scale) * eps

# %% reparameterize: an affine transform of the library
torch.distributions.AffineTransform(loc, log_scale.exp())(eps)

# %% reparameterize: draws stacked one by one
flat = eps.reshape(-1, *loc.shape)
scale = log_scale.exp()
return torch.stack([loc + scale * noise for noise in flat]).reshape(eps.shape)

# %% elbo: formulas by hand
data_dim = x.shape[1]
sse = ((x - decode_loc(z)) ** 2).sum(1)
log_lik = -sse / (2 * scale**2) - 0.5 * data_dim * math.log(2 * math.pi * scale**2)
kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1)

# %% elbo: torch.distributions for both terms
likelihood = Independent(Normal(decode_loc(z), scale), 1)
q = Independent(Normal(loc, log_scale.exp()), 1)
prior = Independent(Normal(torch.zeros_like(loc), torch.ones_like(loc)), 1)
return likelihood.log_prob(x) - kl_divergence(q, prior)


# %% elbo: one example after another
def elbo(x, z, decode_loc, scale, loc, log_scale):
    def kl(m, ls):
        return (0.5 * m**2 + 0.5 * torch.expm1(2 * ls) - ls).sum()

    values = []
    for i in range(len(x)):
        mean = decode_loc(z[i : i + 1])[0]
        log_lik = Normal(mean, scale).log_prob(x[i]).sum()
        values.append(log_lik - kl(loc[i], log_scale[i]))
    return torch.stack(values)


# %% elbo: the library's Gaussian loss and F.mse_loss are used, all constants put back
squares = F.mse_loss(decode_loc(z), x, reduction="none") / scale**2
per_number = squares + 2 * math.log(scale) + math.log(2 * math.pi)
per_latent = loc.square() + log_scale.mul(2).exp() - log_scale.mul(2) - 1
return -(per_number.sum(-1) + per_latent.sum(-1)) / 2

# %% evidence_gap: log p(x) minus the ELBO, the expected error in closed form
zero = torch.zeros(data_dim, dtype=W.dtype)
log_p = torch.distributions.MultivariateNormal(zero, cov).log_prob(x)
error = (x - loc @ W.T).square().sum(1)
error = error + (2 * log_scale).exp() @ W.square().sum(0)
constant = 0.5 * data_dim * math.log(2 * math.pi * scale**2)
kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
log_p + error / (2 * scale**2) + constant + kl

# %% evidence_gap: divergence of two multivariate normals, by the library
mean = torch.cholesky_solve(W.T @ x.T / scale**2, torch.linalg.cholesky(M)).T
kl_divergence(q, mvn(mean, precision_matrix=M.expand(len(x), -1, -1)))

# %% evidence_gap: in the coordinates of the singular vectors of W, never below zero
U, values, Vh = torch.linalg.svd(W, full_matrices=False)
latent_dim = W.shape[1]
precision = torch.ones(latent_dim, dtype=W.dtype)
precision[: len(values)] += (values / scale) ** 2
V = torch.linalg.svd(W, full_matrices=True)[2].T
rotated_mean = torch.zeros_like(loc)
signal = (x @ U) * (values / scale**2)
Vh_full = torch.cat([Vh, V.T[len(values) :]]) if len(values) < latent_dim else Vh
rotated_mean[:, : len(values)] = signal / precision[: len(values)]
off = loc @ Vh_full.T - rotated_mean
distance = (off**2 * precision).sum(1)
variances = (2 * log_scale).exp()
trace = (variances[:, None, :] * Vh_full**2).sum(2) @ precision
log_dets = 2 * log_scale.sum(1) + precision.log().sum()
return (0.5 * (trace + distance - latent_dim - log_dets)).clamp(min=0)

# %% evidence_gap: Bayes' rule at z = 0 for log p(x), slogdet, a loop over examples
D, K = W.shape
eye = torch.eye(K, dtype=W.dtype)
M = eye + W.T @ W / scale**2
log_det = torch.linalg.slogdet(M)[1]
gaps = []
for xi, m, ls in zip(x, loc, log_scale, strict=True):
    mean = torch.linalg.solve(M, W.T @ xi) / scale**2
    log_prior_at_0 = -0.5 * K * math.log(2 * math.pi)
    log_lik_at_0 = -0.5 * xi @ xi / scale**2 - 0.5 * D * math.log(2 * math.pi * scale**2)
    log_post_at_0 = -0.5 * mean @ M @ mean + 0.5 * log_det - 0.5 * K * math.log(2 * math.pi)
    log_p = log_prior_at_0 + log_lik_at_0 - log_post_at_0
    residual = xi - W @ m
    spread = torch.trace(W @ torch.diag(torch.exp(2 * ls)) @ W.T)
    recon = -0.5 * (residual @ residual + spread) / scale**2
    recon = recon - 0.5 * D * math.log(2 * math.pi * scale**2)
    kl = 0.5 * (m @ m + torch.exp(2 * ls).sum() - K) - ls.sum()
    gaps.append(log_p - (recon - kl))
return torch.stack(gaps)

# %% importance_weighted_bound: the largest weight of each example taken out
top = log_weights.max(dim=0).values
return top + (log_weights - top).exp().mean(dim=0).log()

# %% importance_weighted_bound: log S goes inside
num_samples = len(log_weights)
return torch.logsumexp(log_weights - math.log(num_samples), dim=0)

# %% importance_weighted_bound: logaddexp, one draw after another
total = log_weights[0]
for row in log_weights[1:]:
    total = torch.logaddexp(total, row)
return total - math.log(log_weights.size(0))

# %% importance_weighted_bound: Python numbers, column by column
bounds = []
for column in log_weights.T.tolist():
    top = max(column)
    bounds.append(top + math.log(math.fsum(math.exp(value - top) for value in column) / len(column)))
return torch.tensor(bounds, dtype=torch.float64)

# %% importance_weighted_bound: by log_softmax of the first draw
by_example = log_weights.transpose(0, 1)
top = by_example.argmax(dim=1, keepdim=True)
share = F.log_softmax(by_example, dim=1).gather(1, top)
return (by_example.gather(1, top) - share).squeeze(1) - math.log(by_example.shape[1])
