# Wrong answers to problem set 2, from mistakes that are made: every one must lose its task's points.
# ruff: noqa: B018, F706, F821, F841

# %% kl_standard_normal
def kl_standard_normal(loc, log_scale):
    q = Normal(loc, log_scale.exp())
    return (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)


# %% kl_standard_normal: log scale is taken for a log variance
-0.5 * (1 + log_scale - loc**2 - log_scale.exp()).sum(1)

# %% kl_standard_normal: exp of the log scale where the variance belongs
0.5 * (loc**2 + log_scale.exp() - 1 - 2 * log_scale).sum(1)

# %% kl_standard_normal: log of the scale where that of the variance belongs
0.5 * (loc**2 + (2 * log_scale).exp() - 1 - log_scale).sum(1)

# %% kl_standard_normal: log scale is taken for a scale
0.5 * (loc**2 + log_scale**2 - 1 - (log_scale**2).log()).sum(1)

# %% kl_standard_normal: the sign is turned
0.5 * (1 + 2 * log_scale - loc**2 - (2 * log_scale).exp()).sum(1)

# %% kl_standard_normal: the half is missing
(loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1)

# %% kl_standard_normal: the 1 is missing
0.5 * (loc**2 + (2 * log_scale).exp() - 2 * log_scale).sum(1)

# %% kl_standard_normal: the location is not squared
0.5 * (loc.abs() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1)

# %% kl_standard_normal: mean over the latents
0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).mean(1)

# %% kl_standard_normal: mean over the batch, a scalar
0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1).mean()

# %% kl_standard_normal: summed over the batch instead of the latents
0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(0)

# %% kl_standard_normal: not summed
0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale)

# %% kl_standard_normal: the sum is kept as a column
0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1, keepdim=True)

# %% kl_standard_normal: the other direction, of the prior from q
prior = Normal(torch.zeros_like(loc), torch.ones_like(loc))
kl_divergence(prior, q).sum(1)

# %% kl_standard_normal: estimated from one draw
z = q.rsample()
(q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1)

# %% kl_standard_normal: estimated from the location alone
(q.log_prob(loc) - Normal(0.0, 1.0).log_prob(loc)).sum(1)

# %% kl_standard_normal: float32 inside, near the prior nothing is left
loc, log_scale = loc.float(), log_scale.float()
(0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1).double()

# %% kl_standard_normal: free bits, at least a tenth of a nat per latent
per_latent = 0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale
per_latent.clamp(min=0.1).sum(1)

# %% kl_standard_normal: log scales below -3 are cut off
log_scale = log_scale.clamp(-3, 3)

# %% kl_standard_normal: the aggregate over the batch in place of each example
centered = loc - loc.mean(0)
(0.5 * (centered**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)


# %% reparameterize
def reparameterize(loc, log_scale, eps):
    return loc + log_scale.exp() * eps


# %% reparameterize: noise drawn anew
loc + log_scale.exp() * torch.randn_like(eps)

# %% reparameterize: a draw of the library, the noise ignored
Normal(loc, log_scale.exp()).rsample(eps.shape[:-2])

# %% reparameterize: the location in place of a draw
loc.expand_as(eps)

# %% reparameterize: log scale is taken for a log variance
loc + (0.5 * log_scale).exp() * eps

# %% reparameterize: the variance in place of the scale
loc + (2 * log_scale).exp() * eps

# %% reparameterize: exp is missing
loc + log_scale * eps

# %% reparameterize: softplus in place of exp
loc + F.softplus(log_scale) * eps

# %% reparameterize: the noise is subtracted
loc - log_scale.exp() * eps

# %% reparameterize: standardises in place of un-standardising
(eps - loc) / log_scale.exp()

# %% reparameterize: the location is scaled as well
(loc + eps) * log_scale.exp()

# %% reparameterize: detached
(loc + log_scale.exp() * eps).detach()

# %% reparameterize: right values under no_grad
with torch.no_grad():
    return loc + log_scale.exp() * eps

# %% reparameterize: the scale is detached
loc + log_scale.exp().detach() * eps

# %% reparameterize: the location is detached
loc.detach() + log_scale.exp() * eps

# %% reparameterize: straight through, the gradient by the log scale lacks its noise
z = loc + log_scale.exp() * eps
z.detach() + (loc + log_scale) - (loc + log_scale).detach()

# %% reparameterize: only the first of several draws is used
loc + log_scale.exp() * eps.reshape(-1, *loc.shape)[0]

# %% reparameterize: averaged over the draws
loc + log_scale.exp() * eps.reshape(-1, *loc.shape).mean(0)

# %% reparameterize: right for one leading dimension only
num_samples, batch, latent_dim = eps.shape
loc.expand(num_samples, batch, latent_dim) + log_scale.exp() * eps

# %% reparameterize: one noise for the whole batch
loc + log_scale.exp() * eps[..., :1, :]

# %% reparameterize: log scales are cut off at -3 and 3
loc + log_scale.clamp(-3, 3).exp() * eps

# %% reparameterize: float16 inside
(loc.half() + log_scale.half().exp() * eps.half()).double()

# %% reparameterize: the noise is made to have mean 0 and variance 1 first
eps = (eps - eps.mean()) / eps.std()

# %% reparameterize: changes its arguments in place
loc.add_(log_scale.exp_() * eps)


# %% elbo
def elbo(x, z, decode_loc, scale, loc, log_scale):
    log_lik = Normal(decode_loc(z), scale).log_prob(x).sum(1)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    return log_lik - kl


# %% elbo: the loss, with the sign turned
-log_lik + kl

# %% elbo: the KL term is added
log_lik + kl

# %% elbo: the KL term is missing
Normal(decode_loc(z), scale).log_prob(x).sum(1)

# %% elbo: the constants are missing
log_lik = -((x - decode_loc(z)) ** 2).sum(1) / (2 * scale**2)

# %% elbo: log 2 pi is missing
log_lik = -((x - decode_loc(z)) ** 2).sum(1) / (2 * scale**2) - x.shape[1] * math.log(scale)

# %% elbo: the constant once, not per number of an example
log_lik = -((x - decode_loc(z)) ** 2).sum(1) / (2 * scale**2) - 0.5 * math.log(2 * math.pi * scale**2)

# %% elbo: the constant once per latent
constant = 0.5 * z.shape[1] * math.log(2 * math.pi * scale**2)
log_lik = -((x - decode_loc(z)) ** 2).sum(1) / (2 * scale**2) - constant

# %% elbo: the half before the squared error is missing
constant = 0.5 * x.shape[1] * math.log(2 * math.pi * scale**2)
log_lik = -((x - decode_loc(z)) ** 2).sum(1) / scale**2 - constant

# %% elbo: the variance is passed as the scale
log_lik = Normal(decode_loc(z), scale**2).log_prob(x).sum(1)

# %% elbo: the scale is taken for a variance
log_lik = Normal(decode_loc(z), math.sqrt(scale)).log_prob(x).sum(1)

# %% elbo: mean over the numbers of an example
log_lik = Normal(decode_loc(z), scale).log_prob(x).mean(1)

# %% elbo: mean over the latents
kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).mean(1)

# %% elbo: mean over the batch, a scalar
(log_lik - kl).mean()

# %% elbo: the KL term is averaged over the batch
kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1).mean()

# %% elbo: the location of q is decoded, not the draw
log_lik = Normal(decode_loc(loc), scale).log_prob(x).sum(1)

# %% elbo: a new draw is decoded, the given one ignored
z = loc + log_scale.exp() * torch.randn_like(loc)

# %% elbo: log p(x, z) - log q(z), no closed form of the KL term
log_prior = Normal(0.0, 1.0).log_prob(z).sum(1)
log_lik + log_prior - Normal(loc, log_scale.exp()).log_prob(z).sum(1)

# %% elbo: log scale is taken for a log variance in the KL term
kl = -0.5 * (1 + log_scale - loc**2 - log_scale.exp()).sum(1)

# %% elbo: the KL term is computed for the draw in place of the location
kl = (0.5 * (z**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)

# %% elbo: a Bernoulli decoder with a sigmoid
log_lik = -F.binary_cross_entropy_with_logits(decode_loc(z), x, reduction="none").sum(1)

# %% elbo: the decoded image is squashed to the interval from 0 to 1
log_lik = Normal(torch.sigmoid(decode_loc(z)), scale).log_prob(x).sum(1)

# %% elbo: the error weighted by the scale of q
scale = log_scale.exp().mean(1, keepdim=True)


# %% evidence_gap
def evidence_gap(W, scale, x, loc, log_scale):
    data_dim = W.shape[0]
    cov = W @ W.T + scale**2 * torch.eye(data_dim, dtype=W.dtype)
    distance = (torch.linalg.solve(cov, x.T).T * x).sum(1)
    mvn = torch.distributions.MultivariateNormal
    log_p = torch.distributions.MultivariateNormal(torch.zeros_like(cov[0]), cov).log_prob(x)
    error = (x - loc @ W.T).square().sum(1) + (2 * log_scale).exp() @ W.square().sum(0)
    log_lik = -error / (2 * scale**2) - 0.5 * data_dim * math.log(2 * math.pi * scale**2)
    kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
    M = torch.eye(W.shape[1], dtype=W.dtype) + W.T @ W / scale**2
    mean = torch.linalg.solve(M, W.T @ x.T / scale**2).T
    q = mvn(loc, scale_tril=torch.diag_embed(log_scale.exp()))
    off = loc - torch.linalg.solve(M, W.T @ x.T / scale**2).T
    trace = (2 * log_scale).exp() @ M.diagonal()
    log_det = 2 * log_scale.sum(1) + torch.logdet(M)
    return 0.5 * (trace + (off @ M * off).sum(1) - len(M) - log_det)


# %% evidence_gap: log p(x) minus the ELBO at the mean code, the spread of q forgotten
log_lik = Normal(loc @ W.T, scale).log_prob(x).sum(1)
log_p - (log_lik - kl)

# %% evidence_gap: the ELBO from one draw
z = loc + log_scale.exp() * torch.randn_like(loc)
log_lik = Normal(z @ W.T, scale).log_prob(x).sum(1)
log_p - (log_lik - kl)

# %% evidence_gap: log p(x) itself
cov = W @ W.T + scale**2 * torch.eye(W.shape[0], dtype=W.dtype)
torch.distributions.MultivariateNormal(torch.zeros_like(cov[0]), cov).log_prob(x)

# %% evidence_gap: the divergence from the prior
(0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)

# %% evidence_gap: the sign is turned
-0.5 * (trace + (off @ M * off).sum(1) - len(M) - log_det)

# %% evidence_gap: the other direction, of the posterior from q
kl_divergence(mvn(mean, precision_matrix=M.expand(len(x), -1, -1)), q)

# %% evidence_gap: precision and covariance of the posterior mixed up
kl_divergence(q, mvn(mean, covariance_matrix=M.expand(len(x), -1, -1)))

# %% evidence_gap: the correlations of the posterior are dropped
posterior = Normal(mean, torch.linalg.inv(M).diagonal().sqrt())
kl_divergence(Normal(loc, log_scale.exp()), posterior).sum(1)

# %% evidence_gap: only the diagonal of the precision is used
precision = 1 + W.square().sum(0) / scale**2
mean = x @ W / scale**2 / precision
posterior = Normal(mean, precision.rsqrt().expand_as(mean))
kl_divergence(Normal(loc, log_scale.exp()), posterior).sum(1)

# %% evidence_gap: the prior's share of the precision is forgotten
M = W.T @ W / scale**2 + 1e-9 * torch.eye(W.shape[1], dtype=W.dtype)

# %% evidence_gap: the scale is taken for a variance
M = torch.eye(W.shape[1], dtype=W.dtype) + W.T @ W / scale
off = loc - torch.linalg.solve(M, W.T @ x.T / scale).T

# %% evidence_gap: the scale of q in place of its variance
trace = log_scale.exp() @ M.diagonal()
log_det = log_scale.sum(1) + torch.logdet(M)

# %% evidence_gap: the number of latents is not subtracted
0.5 * (trace + (off @ M * off).sum(1) - log_det)

# %% evidence_gap: the half is missing
trace + (off @ M * off).sum(1) - len(M) - log_det

# %% evidence_gap: the determinants are missing
0.5 * (trace + (off @ M * off).sum(1) - len(M))

# %% evidence_gap: the posterior mean without the variance of the noise
off = loc - torch.linalg.solve(M, W.T @ x.T).T

# %% evidence_gap: the naive log of a determinant of D dimensions
data_dim = W.shape[0]
cov = W @ W.T + scale**2 * torch.eye(data_dim, dtype=W.dtype)
log_det = torch.log(torch.det(cov))
distance = (torch.linalg.solve(cov, x.T).T * x).sum(1)
log_p = -0.5 * (distance + log_det + data_dim * math.log(2 * math.pi))
error = (x - loc @ W.T).square().sum(1) + (2 * log_scale).exp() @ W.square().sum(0)
log_lik = -error / (2 * scale**2) - 0.5 * data_dim * math.log(2 * math.pi * scale**2)
kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(1)
return log_p - (log_lik - kl)

# %% evidence_gap: the constant of the evidence is missing
log_p = -0.5 * (distance + torch.logdet(cov))
log_p - (log_lik - kl)

# %% evidence_gap: the data are centred by the mean of the batch
x = x - x.mean(0)

# %% evidence_gap: the posterior with W W^T, which fits only a square W
M = torch.eye(W.shape[1], dtype=W.dtype) + W @ W.T / scale**2

# %% evidence_gap: mean over the batch, a scalar
(0.5 * (trace + (off @ M * off).sum(1) - len(M) - log_det)).mean()

# %% evidence_gap: a small number added to the covariance for stability
cov = W @ W.T + (scale**2 + 1e-4) * torch.eye(data_dim, dtype=W.dtype)
log_p - (log_lik - kl)

# %% evidence_gap: float32 inside
W, x, loc, log_scale = W.float(), x.float(), loc.float(), log_scale.float()
M = torch.eye(W.shape[1]) + W.T @ W / scale**2
(0.5 * (trace + (off @ M * off).sum(1) - len(M) - log_det)).double()


# %% importance_weighted_bound
def importance_weighted_bound(log_weights):
    return log_weights.logsumexp(0) - math.log(len(log_weights))


# %% importance_weighted_bound: naive, overflows and underflows
log_weights.exp().mean(0).log()

# %% importance_weighted_bound: logsumexp without log S
log_weights.logsumexp(0)

# %% importance_weighted_bound: log S is added
log_weights.logsumexp(0) + math.log(len(log_weights))

# %% importance_weighted_bound: divided by S after the logarithm
log_weights.logsumexp(0) / len(log_weights)

# %% importance_weighted_bound: the mean of the logarithms, which is the ELBO
log_weights.mean(0)

# %% importance_weighted_bound: the wrong dimension
log_weights.logsumexp(1) - math.log(log_weights.shape[1])

# %% importance_weighted_bound: log of the batch size in place of log S
log_weights.logsumexp(0) - math.log(log_weights.shape[1])

# %% importance_weighted_bound: log of all numbers in place of log S
log_weights.logsumexp(0) - math.log(log_weights.numel())

# %% importance_weighted_bound: mean over the batch, a scalar
(log_weights.logsumexp(0) - math.log(len(log_weights))).mean()

# %% importance_weighted_bound: the dimension of the samples is kept
log_weights.logsumexp(0, keepdim=True) - math.log(len(log_weights))

# %% importance_weighted_bound: the largest weight alone
log_weights.max(0).values

# %% importance_weighted_bound: the largest weight alone, less log S
log_weights.max(0).values - math.log(len(log_weights))

# %% importance_weighted_bound: the largest weight of the whole batch is taken out
top = log_weights.max()
top + (log_weights - top).exp().mean(0).log()

# %% importance_weighted_bound: the largest weight is taken out and not put back
top = log_weights.max(0).values
(log_weights - top).exp().mean(0).log()

# %% importance_weighted_bound: the mean weight of each example is taken out
center = log_weights.mean(0)
center + (log_weights - center).exp().mean(0).log()

# %% importance_weighted_bound: normalised weights times their logarithms
(F.softmax(log_weights, 0) * log_weights).sum(0)

# %% importance_weighted_bound: clamped so that exp stays finite
log_weights.clamp(-700, 700).exp().mean(0).log()

# %% importance_weighted_bound: a small number inside the logarithm
(log_weights.exp().mean(0) + 1e-300).log()

# %% importance_weighted_bound: the sign is turned
-(log_weights.logsumexp(0) - math.log(len(log_weights)))

# %% importance_weighted_bound: float16 inside
(log_weights.half().float().logsumexp(0) - math.log(len(log_weights))).double()

# %% importance_weighted_bound: the median of the log-weights
log_weights.median(0).values
