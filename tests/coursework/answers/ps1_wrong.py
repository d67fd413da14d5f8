# Wrong answers to problem set 1, from mistakes that are made: every one must lose its task's points.
# ruff: noqa: B018, F821, F841

# %% normal_log_density
def normal_log_density(y, loc, scale):
    log_scale = torch.as_tensor(scale, dtype=y.dtype).log()
    variance = torch.as_tensor(scale**2, dtype=y.dtype) + torch.zeros_like(y - loc)
    density = torch.exp(-0.5 * ((y - loc) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    return -0.5 * ((y - loc) / scale) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)


# %% normal_log_density: half of log 2 pi is missing
Normal(loc, scale).log_prob(y) + 0.5 * math.log(2 * math.pi)

# %% normal_log_density: log 2 pi without its half
Normal(loc, scale).log_prob(y) - 0.5 * math.log(2 * math.pi)

# %% normal_log_density: the half before the square is missing
-(((y - loc) / scale) ** 2) - log_scale - 0.5 * math.log(2 * math.pi)

# %% normal_log_density: log of the scale is missing
-0.5 * ((y - loc) / scale) ** 2 - 0.5 * math.log(2 * math.pi)

# %% normal_log_density: log of the variance without its half
log_variance = torch.as_tensor(scale**2, dtype=y.dtype).log()
-0.5 * ((y - loc) / scale) ** 2 - log_variance - 0.5 * math.log(2 * math.pi)

# %% normal_log_density: the variance is passed as the scale
Normal(loc, scale**2).log_prob(y)

# %% normal_log_density: the scale is taken for a variance
Normal(loc, scale**0.5).log_prob(y)

# %% normal_log_density: the scale is taken for a log scale
scale = torch.as_tensor(scale, dtype=y.dtype)
-0.5 * ((y - loc) / scale.exp()) ** 2 - scale - 0.5 * math.log(2 * math.pi)

# %% normal_log_density: the negative of it
-Normal(loc, scale).log_prob(y)

# %% normal_log_density: the density itself
Normal(loc, scale).log_prob(y).exp()

# %% normal_log_density: the square stands around the scale only
-0.5 * (y - loc) / scale**2 - log_scale - 0.5 * math.log(2 * math.pi)

# %% normal_log_density: absolute value in place of the square
-0.5 * ((y - loc) / scale).abs() - log_scale - 0.5 * math.log(2 * math.pi)

# %% normal_log_density: naive log of the density, minus infinity far away
torch.log(density)

# %% normal_log_density: a small number inside the logarithm
torch.log(density + 1e-12)

# %% normal_log_density: summed to a scalar
Normal(loc, scale).log_prob(y).sum()

# %% normal_log_density: summed over the last dimension
Independent(Normal(loc, torch.as_tensor(scale, dtype=y.dtype).expand_as(loc)), 1).log_prob(y)

# %% normal_log_density: a scale that is a tensor is not expected
-0.5 * ((y - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)

# %% normal_log_density: a scale that is a number is not expected
-0.5 * ((y - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)

# %% normal_log_density: only the mean of the scales is used
Normal(loc, float(torch.as_tensor(scale, dtype=y.dtype).mean())).log_prob(y)

# %% normal_log_density: the answer is forced into the shape of y
Normal(loc, scale).log_prob(y).expand_as(y)

# %% normal_log_density: y is changed in place, and must have the largest shape
y -= loc
y /= scale
-0.5 * y**2 - log_scale - 0.5 * math.log(2 * math.pi)

# %% normal_log_density: float32 inside, digits of a large y are lost
scale = torch.as_tensor(scale).float()
Normal(loc.float(), scale).log_prob(y.float()).double()

# %% normal_log_density: the library's loss without its constant
y, loc, variance = torch.broadcast_tensors(y, loc, variance)
-F.gaussian_nll_loss(loc, y, variance, reduction="none")

# %% normal_log_density: the library's loss, whose variance has a floor of 1e-6
y, loc, variance = torch.broadcast_tensors(y, loc, variance)
-F.gaussian_nll_loss(loc, y, variance, full=True, reduction="none")

# %% normal_log_density: a small number is added to the scale
Normal(loc, scale + 1e-6).log_prob(y)

# %% normal_log_density: Laplace in place of Gaussian
scale = torch.as_tensor(scale, dtype=y.dtype)
-(y - loc).abs() / scale - (2 * scale).log()


# %% regression_nll
def regression_nll(y, loc, scale):
    variance = torch.full_like(y, scale**2)
    return -Normal(loc, scale).log_prob(y).sum()


# %% regression_nll: mean in place of sum
-Normal(loc, scale).log_prob(y).mean()

# %% regression_nll: sum over the dimensions, mean over the examples
-Normal(loc, scale).log_prob(y).sum() / len(y)

# %% regression_nll: mean over the dimensions, sum over the examples
-Normal(loc, scale).log_prob(y).flatten(1).mean(1).sum()

# %% regression_nll: one number per example
-Normal(loc, scale).log_prob(y).flatten(1).sum(1)

# %% regression_nll: the constant once, not per element
((y - loc) ** 2).sum() / (2 * scale**2) + 0.5 * math.log(2 * math.pi * scale**2)

# %% regression_nll: the constant once per example, not per element
constant = 0.5 * len(y) * math.log(2 * math.pi * scale**2)
((y - loc) ** 2).sum() / (2 * scale**2) + constant

# %% regression_nll: the sum of the squared errors alone
((y - loc) ** 2).sum() / (2 * scale**2)

# %% regression_nll: log 2 pi is missing
((y - loc) ** 2).sum() / (2 * scale**2) + y.numel() * math.log(scale)

# %% regression_nll: log of the scale is missing
((y - loc) ** 2).sum() / (2 * scale**2) + 0.5 * y.numel() * math.log(2 * math.pi)

# %% regression_nll: the half before the squares is missing
((y - loc) ** 2).sum() / scale**2 + 0.5 * y.numel() * math.log(2 * math.pi * scale**2)

# %% regression_nll: the variance is passed as the scale
-Normal(loc, scale**2).log_prob(y).sum()

# %% regression_nll: the scale is taken for a variance
-Normal(loc, math.sqrt(scale)).log_prob(y).sum()

# %% regression_nll: the sign is missing
Normal(loc, scale).log_prob(y).sum()

# %% regression_nll: the logarithm of a product of densities
-torch.log(Normal(loc, scale).log_prob(y).exp().prod())

# %% regression_nll: the library's loss, summed, without its constant
F.gaussian_nll_loss(loc, y, variance, reduction="sum")

# %% regression_nll: the library's loss, averaged as it is by default
F.gaussian_nll_loss(loc, y, variance, full=True)

# %% regression_nll: the library's loss, whose variance has a floor of 1e-6
F.gaussian_nll_loss(loc, y, variance, full=True, reduction="sum")

# %% regression_nll: the scale is estimated anew and the given one ignored
fitted = (y - loc).square().mean().sqrt()
-Normal(loc, fitted).log_prob(y).sum()

# %% regression_nll: right for two dimensions only
num_examples, data_dim = y.shape
constant = 0.5 * num_examples * data_dim * math.log(2 * math.pi * scale**2)
((y - loc) ** 2).sum() / (2 * scale**2) + constant

# %% regression_nll: float32 inside, digits of a large y are lost
-Normal(loc.float(), scale).log_prob(y.float()).sum().double()


# %% best_scale
def best_scale(y, loc):
    return (y - loc).square().mean().sqrt()


# %% best_scale: the variance
(y - loc).square().mean()

# %% best_scale: the mean absolute error
(y - loc).abs().mean()

# %% best_scale: the root of half the mean square
((y - loc).square().mean() / 2).sqrt()

# %% best_scale: the spread around the mean error, with N - 1
(y - loc).std()

# %% best_scale: the spread around the mean error
(y - loc).std(correction=0)

# %% best_scale: N - 1 in place of N
((y - loc).square().sum() / (y.numel() - 1)).sqrt()

# %% best_scale: the count of examples in place of the count of numbers
((y - loc).square().sum() / len(y)).sqrt()

# %% best_scale: not divided by a count
(y - loc).square().sum().sqrt()

# %% best_scale: divided by the count after the root
(y - loc).square().sum().sqrt() / y.numel()

# %% best_scale: the mean of the examples' own scales
(y - loc).square().flatten(1).mean(1).sqrt().mean()

# %% best_scale: one scale per column
(y - loc).square().mean(0).sqrt()

# %% best_scale: the median of the errors, times the factor for a Gaussian
1.4826 * (y - loc).abs().median()

# %% best_scale: the log of it
0.5 * (y - loc).square().mean().log()

# %% best_scale: a small number under the root
((y - loc).square().mean() + 1e-8).sqrt()

# %% best_scale: a floor that suits pixels
(y - loc).square().mean().sqrt().clamp(min=1e-3)

# %% best_scale: a search on a grid from 0.01 to 10
grid = torch.logspace(-2, 1, 20_001, dtype=torch.float64)
mse = (y - loc).square().mean()
grid[(mse / (2 * grid**2) + grid.log()).argmin()]

# %% best_scale: the spread of the targets, not of the errors
(y - y.mean()).square().mean().sqrt()

# %% best_scale: float32 inside, digits of a large y are lost
(y.float() - loc.float()).square().mean().sqrt().double()


# %% learning_rate_for_sse
def learning_rate_for_sse(learning_rate, scale):
    return learning_rate / (2 * scale**2)


# %% learning_rate_for_sse: unchanged
learning_rate

# %% learning_rate_for_sse: multiplied where it must be divided
learning_rate * 2 * scale**2

# %% learning_rate_for_sse: the half is missing
learning_rate / scale**2

# %% learning_rate_for_sse: the scale is not squared
learning_rate / (2 * scale)

# %% learning_rate_for_sse: the 2 is in the numerator
2 * learning_rate / scale**2

# %% learning_rate_for_sse: the parentheses are missing
learning_rate / 2 * scale**2

# %% learning_rate_for_sse: the 2 is squared as well
learning_rate / (2 * scale) ** 2

# %% learning_rate_for_sse: the scale is taken for a log scale
learning_rate / (2 * math.exp(2 * scale))

# %% learning_rate_for_sse: the variance is squared once more
variance = scale**2
learning_rate / (2 * variance**2)

# %% learning_rate_for_sse: the constant of the density as a factor
learning_rate / (2 * math.pi * scale**2)

# %% learning_rate_for_sse: never larger than the old rate
min(learning_rate, learning_rate / (2 * scale**2))

# %% learning_rate_for_sse: the factor alone
1 / (2 * scale**2)

# %% learning_rate_for_sse: rounded to three digits
float(f"{learning_rate / (2 * scale**2):.3g}")

# %% learning_rate_for_sse: division without a remainder
learning_rate // (2 * scale**2)


# %% ridge_penalty
def ridge_penalty(noise_scale, prior_scale):
    return noise_scale**2 / prior_scale**2


# %% ridge_penalty: the ratio of the scales, not of the variances
noise_scale / prior_scale

# %% ridge_penalty: upside down
prior_scale**2 / noise_scale**2

# %% ridge_penalty: a half remains
noise_scale**2 / (2 * prior_scale**2)

# %% ridge_penalty: torch's weight decay, twice the penalty
2 * noise_scale**2 / prior_scale**2

# %% ridge_penalty: the penalty beside the NLL, not beside the SSE
1 / (2 * prior_scale**2)

# %% ridge_penalty: the precision of the prior, the noise ignored
1 / prior_scale**2

# %% ridge_penalty: the scale of the prior is not squared
noise_scale**2 / prior_scale

# %% ridge_penalty: the scale of the noise is not squared
noise_scale / prior_scale**2

# %% ridge_penalty: a product in place of the quotient
noise_scale**2 * prior_scale**2

# %% ridge_penalty: the noise divides where it must multiply
1 / (noise_scale**2 * prior_scale**2)

# %% ridge_penalty: the fraction by which one weight shrinks
noise_scale**2 / (noise_scale**2 + prior_scale**2)

# %% ridge_penalty: variances in place of scales, squared once more
noise_scale**4 / prior_scale**4

# %% ridge_penalty: the normalising constants are kept
penalty = noise_scale**2 / prior_scale**2
penalty + 2 * noise_scale**2 * math.log(prior_scale)

# %% ridge_penalty: at most 1
min(1.0, noise_scale**2 / prior_scale**2)
