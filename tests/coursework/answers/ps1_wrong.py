# Wrong answers to problem set 1, from mistakes that are made: every one must lose its task's points.
import math

import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal


# %% normal_log_density: half of log 2 pi is missing
def normal_log_density(y, loc, scale):
    return Normal(loc, scale).log_prob(y) + 0.5 * math.log(2 * math.pi)


# %% normal_log_density: log 2 pi without its half
def normal_log_density(y, loc, scale):
    return Normal(loc, scale).log_prob(y) - 0.5 * math.log(2 * math.pi)


# %% normal_log_density: the half before the square is missing
def normal_log_density(y, loc, scale):
    log_scale = torch.as_tensor(scale, dtype=y.dtype).log()
    return -(((y - loc) / scale) ** 2) - log_scale - 0.5 * math.log(2 * math.pi)


# %% normal_log_density: log of the scale is missing
def normal_log_density(y, loc, scale):
    return -0.5 * ((y - loc) / scale) ** 2 - 0.5 * math.log(2 * math.pi)


# %% normal_log_density: log of the variance without its half
def normal_log_density(y, loc, scale):
    log_variance = torch.as_tensor(scale**2, dtype=y.dtype).log()
    return -0.5 * ((y - loc) / scale) ** 2 - log_variance - 0.5 * math.log(2 * math.pi)


# %% normal_log_density: the variance is passed as the scale
def normal_log_density(y, loc, scale):
    return Normal(loc, scale**2).log_prob(y)


# %% normal_log_density: the scale is taken for a variance
def normal_log_density(y, loc, scale):
    return Normal(loc, scale**0.5).log_prob(y)


# %% normal_log_density: the scale is taken for a log scale
def normal_log_density(y, loc, scale):
    scale = torch.as_tensor(scale, dtype=y.dtype)
    return -0.5 * ((y - loc) / scale.exp()) ** 2 - scale - 0.5 * math.log(2 * math.pi)


# %% normal_log_density: the negative of it
def normal_log_density(y, loc, scale):
    return -Normal(loc, scale).log_prob(y)


# %% normal_log_density: the density itself
def normal_log_density(y, loc, scale):
    return Normal(loc, scale).log_prob(y).exp()


# %% normal_log_density: the square stands around the scale only
def normal_log_density(y, loc, scale):
    log_scale = torch.as_tensor(scale, dtype=y.dtype).log()
    return -0.5 * (y - loc) / scale**2 - log_scale - 0.5 * math.log(2 * math.pi)


# %% normal_log_density: absolute value in place of the square
def normal_log_density(y, loc, scale):
    log_scale = torch.as_tensor(scale, dtype=y.dtype).log()
    return -0.5 * ((y - loc) / scale).abs() - log_scale - 0.5 * math.log(2 * math.pi)


# %% normal_log_density: naive log of the density, minus infinity far away
def normal_log_density(y, loc, scale):
    density = torch.exp(-0.5 * ((y - loc) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    return torch.log(density)


# %% normal_log_density: a small number inside the logarithm
def normal_log_density(y, loc, scale):
    density = torch.exp(-0.5 * ((y - loc) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    return torch.log(density + 1e-12)


# %% normal_log_density: summed to a scalar
def normal_log_density(y, loc, scale):
    return Normal(loc, scale).log_prob(y).sum()


# %% normal_log_density: summed over the last dimension
def normal_log_density(y, loc, scale):
    return Independent(Normal(loc, torch.as_tensor(scale, dtype=y.dtype).expand_as(loc)), 1).log_prob(y)


# %% normal_log_density: a scale that is a tensor is not expected
def normal_log_density(y, loc, scale):
    return -0.5 * ((y - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


# %% normal_log_density: a scale that is a number is not expected
def normal_log_density(y, loc, scale):
    return -0.5 * ((y - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


# %% normal_log_density: only the mean of the scales is used
def normal_log_density(y, loc, scale):
    return Normal(loc, float(torch.as_tensor(scale, dtype=y.dtype).mean())).log_prob(y)


# %% normal_log_density: the answer is forced into the shape of y
def normal_log_density(y, loc, scale):
    return Normal(loc, scale).log_prob(y).expand_as(y)


# %% normal_log_density: y is changed in place, and must have the largest shape
def normal_log_density(y, loc, scale):
    log_scale = torch.as_tensor(scale, dtype=y.dtype).log()
    y -= loc
    y /= scale
    return -0.5 * y**2 - log_scale - 0.5 * math.log(2 * math.pi)


# %% normal_log_density: float32 inside, digits of a large y are lost
def normal_log_density(y, loc, scale):
    scale = torch.as_tensor(scale).float()
    return Normal(loc.float(), scale).log_prob(y.float()).double()


# %% normal_log_density: the library's loss without its constant
def normal_log_density(y, loc, scale):
    variance = torch.as_tensor(scale**2, dtype=y.dtype) + torch.zeros_like(y - loc)
    y, loc, variance = torch.broadcast_tensors(y, loc, variance)
    return -F.gaussian_nll_loss(loc, y, variance, reduction="none")


# %% normal_log_density: the library's loss, whose variance has a floor of 1e-6
def normal_log_density(y, loc, scale):
    variance = torch.as_tensor(scale**2, dtype=y.dtype) + torch.zeros_like(y - loc)
    y, loc, variance = torch.broadcast_tensors(y, loc, variance)
    return -F.gaussian_nll_loss(loc, y, variance, full=True, reduction="none")


# %% normal_log_density: a small number is added to the scale
def normal_log_density(y, loc, scale):
    return Normal(loc, scale + 1e-6).log_prob(y)


# %% normal_log_density: Laplace in place of Gaussian
def normal_log_density(y, loc, scale):
    scale = torch.as_tensor(scale, dtype=y.dtype)
    return -(y - loc).abs() / scale - (2 * scale).log()


# %% regression_nll: mean in place of sum
def regression_nll(y, loc, scale):
    return -Normal(loc, scale).log_prob(y).mean()


# %% regression_nll: sum over the dimensions, mean over the examples
def regression_nll(y, loc, scale):
    return -Normal(loc, scale).log_prob(y).sum() / len(y)


# %% regression_nll: mean over the dimensions, sum over the examples
def regression_nll(y, loc, scale):
    return -Normal(loc, scale).log_prob(y).flatten(1).mean(1).sum()


# %% regression_nll: one number per example
def regression_nll(y, loc, scale):
    return -Normal(loc, scale).log_prob(y).flatten(1).sum(1)


# %% regression_nll: the constant once, not per element
def regression_nll(y, loc, scale):
    return ((y - loc) ** 2).sum() / (2 * scale**2) + 0.5 * math.log(2 * math.pi * scale**2)


# %% regression_nll: the constant once per example, not per element
def regression_nll(y, loc, scale):
    constant = 0.5 * len(y) * math.log(2 * math.pi * scale**2)
    return ((y - loc) ** 2).sum() / (2 * scale**2) + constant


# %% regression_nll: the sum of the squared errors alone
def regression_nll(y, loc, scale):
    return ((y - loc) ** 2).sum() / (2 * scale**2)


# %% regression_nll: log 2 pi is missing
def regression_nll(y, loc, scale):
    return ((y - loc) ** 2).sum() / (2 * scale**2) + y.numel() * math.log(scale)


# %% regression_nll: log of the scale is missing
def regression_nll(y, loc, scale):
    return ((y - loc) ** 2).sum() / (2 * scale**2) + 0.5 * y.numel() * math.log(2 * math.pi)


# %% regression_nll: the half before the squares is missing
def regression_nll(y, loc, scale):
    return ((y - loc) ** 2).sum() / scale**2 + 0.5 * y.numel() * math.log(2 * math.pi * scale**2)


# %% regression_nll: the variance is passed as the scale
def regression_nll(y, loc, scale):
    return -Normal(loc, scale**2).log_prob(y).sum()


# %% regression_nll: the scale is taken for a variance
def regression_nll(y, loc, scale):
    return -Normal(loc, math.sqrt(scale)).log_prob(y).sum()


# %% regression_nll: the sign is missing
def regression_nll(y, loc, scale):
    return Normal(loc, scale).log_prob(y).sum()


# %% regression_nll: the logarithm of a product of densities
def regression_nll(y, loc, scale):
    return -torch.log(Normal(loc, scale).log_prob(y).exp().prod())


# %% regression_nll: the library's loss, summed, without its constant
def regression_nll(y, loc, scale):
    variance = torch.full_like(y, scale**2)
    return F.gaussian_nll_loss(loc, y, variance, reduction="sum")


# %% regression_nll: the library's loss, averaged as it is by default
def regression_nll(y, loc, scale):
    variance = torch.full_like(y, scale**2)
    return F.gaussian_nll_loss(loc, y, variance, full=True)


# %% regression_nll: the library's loss, whose variance has a floor of 1e-6
def regression_nll(y, loc, scale):
    variance = torch.full_like(y, scale**2)
    return F.gaussian_nll_loss(loc, y, variance, full=True, reduction="sum")


# %% regression_nll: the scale is estimated anew and the given one ignored
def regression_nll(y, loc, scale):
    fitted = (y - loc).square().mean().sqrt()
    return -Normal(loc, fitted).log_prob(y).sum()


# %% regression_nll: right for two dimensions only
def regression_nll(y, loc, scale):
    num_examples, data_dim = y.shape
    constant = 0.5 * num_examples * data_dim * math.log(2 * math.pi * scale**2)
    return ((y - loc) ** 2).sum() / (2 * scale**2) + constant


# %% regression_nll: float32 inside, digits of a large y are lost
def regression_nll(y, loc, scale):
    return -Normal(loc.float(), scale).log_prob(y.float()).sum().double()


# %% best_scale: the variance
def best_scale(y, loc):
    return (y - loc).square().mean()


# %% best_scale: the mean absolute error
def best_scale(y, loc):
    return (y - loc).abs().mean()


# %% best_scale: the root of half the mean square
def best_scale(y, loc):
    return ((y - loc).square().mean() / 2).sqrt()


# %% best_scale: the spread around the mean error, with N - 1
def best_scale(y, loc):
    return (y - loc).std()


# %% best_scale: the spread around the mean error
def best_scale(y, loc):
    return (y - loc).std(correction=0)


# %% best_scale: N - 1 in place of N
def best_scale(y, loc):
    return ((y - loc).square().sum() / (y.numel() - 1)).sqrt()


# %% best_scale: the count of examples in place of the count of numbers
def best_scale(y, loc):
    return ((y - loc).square().sum() / len(y)).sqrt()


# %% best_scale: not divided by a count
def best_scale(y, loc):
    return (y - loc).square().sum().sqrt()


# %% best_scale: divided by the count after the root
def best_scale(y, loc):
    return (y - loc).square().sum().sqrt() / y.numel()


# %% best_scale: the mean of the examples' own scales
def best_scale(y, loc):
    return (y - loc).square().flatten(1).mean(1).sqrt().mean()


# %% best_scale: one scale per column
def best_scale(y, loc):
    return (y - loc).square().mean(0).sqrt()


# %% best_scale: the median of the errors, times the factor for a Gaussian
def best_scale(y, loc):
    return 1.4826 * (y - loc).abs().median()


# %% best_scale: the log of it
def best_scale(y, loc):
    return 0.5 * (y - loc).square().mean().log()


# %% best_scale: a small number under the root
def best_scale(y, loc):
    return ((y - loc).square().mean() + 1e-8).sqrt()


# %% best_scale: a floor that suits pixels
def best_scale(y, loc):
    return (y - loc).square().mean().sqrt().clamp(min=1e-3)


# %% best_scale: a search on a grid from 0.01 to 10
def best_scale(y, loc):
    grid = torch.logspace(-2, 1, 20_001, dtype=torch.float64)
    mse = (y - loc).square().mean()
    return grid[(mse / (2 * grid**2) + grid.log()).argmin()]


# %% best_scale: the spread of the targets, not of the errors
def best_scale(y, loc):
    return (y - y.mean()).square().mean().sqrt()


# %% best_scale: float32 inside, digits of a large y are lost
def best_scale(y, loc):
    return (y.float() - loc.float()).square().mean().sqrt().double()


# %% learning_rate_for_sse: unchanged
def learning_rate_for_sse(learning_rate, scale):
    return learning_rate


# %% learning_rate_for_sse: multiplied where it must be divided
def learning_rate_for_sse(learning_rate, scale):
    return learning_rate * 2 * scale**2


# %% learning_rate_for_sse: the half is missing
def learning_rate_for_sse(learning_rate, scale):
    return learning_rate / scale**2


# %% learning_rate_for_sse: the scale is not squared
def learning_rate_for_sse(learning_rate, scale):
    return learning_rate / (2 * scale)


# %% learning_rate_for_sse: the 2 is in the numerator
def learning_rate_for_sse(learning_rate, scale):
    return 2 * learning_rate / scale**2


# %% learning_rate_for_sse: the parentheses are missing
def learning_rate_for_sse(learning_rate, scale):
    return learning_rate / 2 * scale**2


# %% learning_rate_for_sse: the 2 is squared as well
def learning_rate_for_sse(learning_rate, scale):
    return learning_rate / (2 * scale) ** 2


# %% learning_rate_for_sse: the scale is taken for a log scale
def learning_rate_for_sse(learning_rate, scale):
    return learning_rate / (2 * math.exp(2 * scale))


# %% learning_rate_for_sse: the variance is squared once more
def learning_rate_for_sse(learning_rate, scale):
    variance = scale**2
    return learning_rate / (2 * variance**2)


# %% learning_rate_for_sse: the constant of the density as a factor
def learning_rate_for_sse(learning_rate, scale):
    return learning_rate / (2 * math.pi * scale**2)


# %% learning_rate_for_sse: never larger than the old rate
def learning_rate_for_sse(learning_rate, scale):
    return min(learning_rate, learning_rate / (2 * scale**2))


# %% learning_rate_for_sse: the factor alone
def learning_rate_for_sse(learning_rate, scale):
    return 1 / (2 * scale**2)


# %% learning_rate_for_sse: rounded to three digits
def learning_rate_for_sse(learning_rate, scale):
    return float(f"{learning_rate / (2 * scale**2):.3g}")


# %% learning_rate_for_sse: division without a remainder
def learning_rate_for_sse(learning_rate, scale):
    return learning_rate // (2 * scale**2)


# %% ridge_penalty: the ratio of the scales, not of the variances
def ridge_penalty(noise_scale, prior_scale):
    return noise_scale / prior_scale


# %% ridge_penalty: upside down
def ridge_penalty(noise_scale, prior_scale):
    return prior_scale**2 / noise_scale**2


# %% ridge_penalty: a half remains
def ridge_penalty(noise_scale, prior_scale):
    return noise_scale**2 / (2 * prior_scale**2)


# %% ridge_penalty: torch's weight decay, twice the penalty
def ridge_penalty(noise_scale, prior_scale):
    return 2 * noise_scale**2 / prior_scale**2


# %% ridge_penalty: the penalty beside the NLL, not beside the SSE
def ridge_penalty(noise_scale, prior_scale):
    return 1 / (2 * prior_scale**2)


# %% ridge_penalty: the precision of the prior, the noise ignored
def ridge_penalty(noise_scale, prior_scale):
    return 1 / prior_scale**2


# %% ridge_penalty: the scale of the prior is not squared
def ridge_penalty(noise_scale, prior_scale):
    return noise_scale**2 / prior_scale


# %% ridge_penalty: the scale of the noise is not squared
def ridge_penalty(noise_scale, prior_scale):
    return noise_scale / prior_scale**2


# %% ridge_penalty: a product in place of the quotient
def ridge_penalty(noise_scale, prior_scale):
    return noise_scale**2 * prior_scale**2


# %% ridge_penalty: the noise divides where it must multiply
def ridge_penalty(noise_scale, prior_scale):
    return 1 / (noise_scale**2 * prior_scale**2)


# %% ridge_penalty: the fraction by which one weight shrinks
def ridge_penalty(noise_scale, prior_scale):
    return noise_scale**2 / (noise_scale**2 + prior_scale**2)


# %% ridge_penalty: variances in place of scales, squared once more
def ridge_penalty(noise_scale, prior_scale):
    return noise_scale**4 / prior_scale**4


# %% ridge_penalty: the normalising constants are kept
def ridge_penalty(noise_scale, prior_scale):
    penalty = noise_scale**2 / prior_scale**2
    return penalty + 2 * noise_scale**2 * math.log(prior_scale)


# %% ridge_penalty: at most 1
def ridge_penalty(noise_scale, prior_scale):
    return min(1.0, noise_scale**2 / prior_scale**2)
