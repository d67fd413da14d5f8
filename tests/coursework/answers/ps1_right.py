# Right answers to problem set 1, each written differently: every one must earn full marks.
# ruff: noqa: F706, F821

# %% normal_log_density: torch.distributions
Normal(loc, scale).log_prob(y)

# %% normal_log_density: the variance, with a number and a tensor told apart
if isinstance(scale, torch.Tensor):
    constant = (2 * math.pi * scale**2).log()
else:
    constant = math.log(2 * math.pi * scale**2)
return -((y - loc) ** 2) / (2 * scale**2) - constant / 2

# %% normal_log_density: broadcast first, then a loop over Python numbers
scale = torch.as_tensor(scale, dtype=torch.float64)
y, loc, scale = torch.broadcast_tensors(y, loc, scale)
triples = zip(y.flatten().tolist(), loc.flatten().tolist(), scale.flatten().tolist(), strict=True)
values = [-0.5 * ((a - b) / c) ** 2 - math.log(c) - 0.5 * math.log(2 * math.pi) for a, b, c in triples]
return torch.tensor(values, dtype=torch.float64).reshape(y.shape)

# %% normal_log_density: the standard normal of the standardised error
scale = scale if torch.is_tensor(scale) else torch.full((), scale, dtype=y.dtype)
standard = Normal(torch.zeros((), dtype=y.dtype), torch.ones((), dtype=y.dtype))
return standard.log_prob((y - loc) / scale) - scale.log()

# %% normal_log_density: squares expanded by products, constant inside one logarithm
root = math.sqrt(2 * math.pi)
width = torch.zeros_like(y) + scale
standardised = torch.div(torch.sub(y, loc), width)
return torch.sub(torch.mul(standardised, standardised).mul(-0.5), (width * root).log())

# %% regression_nll: one formula for the sum
sse = ((y - loc) ** 2).sum()
return sse / (2 * scale**2) + 0.5 * y.numel() * math.log(2 * math.pi * scale**2)

# %% regression_nll: a loop over Python numbers, returns a float
total = 0.0
for target, prediction in zip(y.flatten().tolist(), loc.flatten().tolist(), strict=True):
    total += 0.5 * ((target - prediction) / scale) ** 2
    total += math.log(scale) + 0.5 * math.log(2 * math.pi)
return total

# %% regression_nll: torch.distributions, all dimensions as one event
-Independent(Normal(loc, torch.full_like(loc, scale)), y.dim()).log_prob(y)

# %% regression_nll: mean squared error and its factor
mse = F.mse_loss(loc, y)
count = y.numel()
return count * (mse / (2 * scale**2) + math.log(scale) + 0.5 * math.log(2 * math.pi))

# %% regression_nll: a dot product of the flat errors
errors = (y - loc).reshape(-1) / scale
return 0.5 * errors @ errors + errors.numel() * math.log(scale * math.sqrt(2 * math.pi))

# %% best_scale: the root of the library's mean squared error
F.mse_loss(loc, y).sqrt()

# %% best_scale: norm over the root of the count
torch.linalg.vector_norm(y - loc) / math.sqrt(y.numel())

# %% best_scale: Python numbers, a float is returned
errors = (y - loc).flatten().tolist()
return math.sqrt(math.fsum(error**2 for error in errors) / len(errors))

# %% best_scale: variance plus squared mean of the errors
errors = y - loc
return (errors.var(correction=0) + errors.mean() ** 2) ** 0.5

# %% best_scale: math.hypot, divided after the root
errors = (y - loc).reshape(-1)
return math.hypot(*errors.tolist()) / len(errors) ** 0.5

# %% learning_rate_for_sse: powers
0.5 * learning_rate * scale**-2

# %% learning_rate_for_sse: by the precision
precision = (1 / scale) ** 2
return precision * learning_rate / 2

# %% learning_rate_for_sse: the ratio of two gradients, by autograd
loc = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
nll = -Normal(loc, scale).log_prob(torch.zeros((), dtype=torch.float64))
(slope,) = torch.autograd.grad(nll, loc)
return learning_rate * slope.item() / (2 * loc.item())

# %% learning_rate_for_sse: a float64 tensor without dimensions
rate, sigma = torch.tensor([learning_rate, scale], dtype=torch.float64)
return rate / (sigma.square() + sigma.square())

# %% ridge_penalty: the square of the ratio
(noise_scale / prior_scale) ** 2

# %% ridge_penalty: the ratio of two precisions
noise_precision = 1 / noise_scale**2
prior_precision = 1 / prior_scale**2
return prior_precision / noise_precision

# %% ridge_penalty: the prior's factor times the factor that clears the SSE
penalty_beside_nll = 1 / (2 * prior_scale**2)
return 2 * noise_scale**2 * penalty_beside_nll

# %% ridge_penalty: logarithms
math.exp(2 * (math.log(noise_scale) - math.log(prior_scale)))
