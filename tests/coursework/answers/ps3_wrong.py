# Wrong answers to problem set 3, from mistakes that are made: every one must lose its task's points.
# ruff: noqa: B018, F821

# %% gaussian_vae_loss
def gaussian_vae_loss(x, x_loc, loc, log_scale, scale):
    constant = 0.5 * x.shape[1] * math.log(2 * math.pi * scale**2)
    nll = (x - x_loc).square().sum(1) / (2 * scale**2) + constant
    kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale
    return (nll + kl.sum(1)).mean()


# %% gaussian_vae_loss: half log 2 pi is missing, log scale is there
nll = (x - x_loc).square().sum(1) / (2 * scale**2) + x.shape[1] * math.log(scale)

# %% gaussian_vae_loss: the whole constant is dropped
nll = (x - x_loc).square().sum(1) / (2 * scale**2)

# %% gaussian_vae_loss: the constant stands once and not once per pixel
constant = 0.5 * math.log(2 * math.pi * scale**2)

# %% gaussian_vae_loss: the constant is counted once per latent and not per pixel
constant = 0.5 * loc.shape[1] * math.log(2 * math.pi * scale**2)

# %% gaussian_vae_loss: the constant is divided by the batch size
error = (x - x_loc).square().sum() / (2 * scale**2)
kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum()
(error + constant + kl) / len(x)

# %% gaussian_vae_loss: scale is taken for the variance
constant = 0.5 * x.shape[1] * math.log(2 * math.pi * scale)
nll = (x - x_loc).square().sum(1) / (2 * scale) + constant

# %% gaussian_vae_loss: the variance is passed to Normal as its scale
nll = -Independent(Normal(x_loc, scale**2), 1).log_prob(x)
q = Normal(loc, log_scale.exp())
kl = kl_divergence(q, Normal(torch.zeros_like(loc), 1.0)).sum(1)
(nll + kl).mean()

# %% gaussian_vae_loss: the square is lost, x - x_loc is divided by the variance
nll = 0.5 * ((x - x_loc) / scale**2).sum(1) + constant

# %% gaussian_vae_loss: log_scale is taken for the log-variance
kl = -0.5 * (1 + log_scale - loc**2 - log_scale.exp())

# %% gaussian_vae_loss: the KL term has the wrong sign
(nll - kl.sum(1)).mean()

# %% gaussian_vae_loss: the ELBO and not its negative
-(nll + kl.sum(1)).mean()

# %% gaussian_vae_loss: summed over the batch
(nll + kl.sum(1)).sum()

# %% gaussian_vae_loss: the mean over pixels, as in everyday code
nll = -Normal(x_loc, scale).log_prob(x).mean()
nll + kl.sum(1).mean()

# %% gaussian_vae_loss: the mean over latents
nll = -Normal(x_loc, scale).log_prob(x).sum(1).mean()
nll + kl.mean()

# %% gaussian_vae_loss: the KL is summed over the batch as well
nll = -Normal(x_loc, scale).log_prob(x).sum(1).mean()
nll + kl.sum()

# %% gaussian_vae_loss: the half before the squared error is missing
nll = (x - x_loc).square().sum(1) / scale**2 + constant

# %% gaussian_vae_loss: the KL is twice too large
kl = loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale

# %% gaussian_vae_loss: the library's Gaussian loss, whose constant is left out by default
variance = torch.full_like(x, scale**2)
nll = F.gaussian_nll_loss(x_loc, x, variance, eps=1e-300, reduction="none").sum(1)

# %% gaussian_vae_loss: an image is drawn from the decoder and compared
drawn = x_loc + scale * torch.randn_like(x_loc)
nll = (x - drawn).square().sum(1) / (2 * scale**2) + constant

# %% gaussian_vae_loss: float32 inside (seen where data have a large mean and small errors)
x, x_loc, loc, log_scale = (t.float() for t in (x, x_loc, loc, log_scale))

# %% gaussian_vae_loss: only right for an encoder that emits the prior's scale
(nll + 0.5 * loc.square().sum(1)).mean()


# %% implied_scale
def implied_scale(kl_weight, data_dim, latent_dim, recon="mean", kl="sum"):
    a = 1 / data_dim if recon == "mean" else 1
    w = kl_weight / latent_dim if kl == "mean" else kl_weight
    return math.sqrt(w / (2 * a))


# %% implied_scale: the variance is returned
w / (2 * a)

# %% implied_scale: the 2 of 2 sigma squared is missing
math.sqrt(w / a)

# %% implied_scale: the 2 stands on the wrong side
math.sqrt(2 * w / a)

# %% implied_scale: the mean over latents multiplies
w = kl_weight * latent_dim if kl == "mean" else kl_weight

# %% implied_scale: the mean over pixels divides
a = data_dim if recon == "mean" else 1

# %% implied_scale: the reduction of the KL is ignored
math.sqrt(kl_weight / (2 * a))

# %% implied_scale: the reduction of the error is ignored, always a mean
math.sqrt(w * data_dim / 2)

# %% implied_scale: the mean is taken over the batch only, so D never enters
math.sqrt(w / 2)

# %% implied_scale: the reductions are swapped
a = 1 / data_dim if recon == "sum" else 1
w = kl_weight / latent_dim if kl == "sum" else kl_weight

# %% implied_scale: the mean over latents is taken with D, the same number as the pixels
w = kl_weight / data_dim if kl == "mean" else kl_weight

# %% implied_scale: the KL weight stays outside of the root
w = 1 / latent_dim if kl == "mean" else 1
kl_weight * math.sqrt(w / (2 * a))

# %% implied_scale: the KL weight is taken for one of the error
w = 1 / latent_dim if kl == "mean" else 1
math.sqrt(w / (2 * a * kl_weight))


# %% implied_scale: another default, the mean over latents
def implied_scale(kl_weight, data_dim, latent_dim, recon="mean", kl="mean"):
    a = 1 / data_dim if recon == "mean" else 1
    w = kl_weight / latent_dim if kl == "mean" else kl_weight
    return math.sqrt(w / (2 * a))


# %% implied_scale: half a squared error is assumed
a = 0.5 / data_dim if recon == "mean" else 0.5

# %% implied_scale: division without remainder
variance = kl_weight
if recon == "mean":
    variance *= data_dim
if kl == "mean":
    variance //= latent_dim
math.sqrt(variance / 2)

# %% implied_scale: the log of the scale
0.5 * math.log(w / (2 * a))


# %% kl_weight_for
def kl_weight_for(scale, data_dim):
    return 2 * scale**2 / data_dim


# %% kl_weight_for: the 2 is missing
scale**2 / data_dim

# %% kl_weight_for: scale is taken for the variance
2 * scale / data_dim

# %% kl_weight_for: the inverse
data_dim / (2 * scale**2)

# %% kl_weight_for: right for the sum over pixels
2 * scale**2

# %% kl_weight_for: the weight of the error term
1 / (2 * scale**2)

# %% kl_weight_for: multiplied by the number of pixels
2 * scale**2 * data_dim

# %% kl_weight_for: the 2 stands on the wrong side
scale**2 / (2 * data_dim)

# %% kl_weight_for: the root of the weight
math.sqrt(2 / data_dim) * scale

# %% kl_weight_for: the variance is squared again
variance = scale**2
2 * variance**2 / data_dim

# %% kl_weight_for: scale is taken for log sigma
2 * math.exp(2 * scale) / data_dim

# %% kl_weight_for: only for the 784 pixels of MNIST
2 * scale**2 / 784

# %% kl_weight_for: beta of a decoder with unit variance
scale**2

# %% kl_weight_for: rounded to five decimals
round(2 * scale**2 / data_dim, 5)


# %% optimal_scale
def optimal_scale(x, x_loc):
    return (x - x_loc).square().mean().sqrt()


# %% optimal_scale: the variance is returned
(x - x_loc).square().mean()

# %% optimal_scale: a scale for each image
(x - x_loc).square().mean(1).sqrt()

# %% optimal_scale: the mean of the images' own scales
(x - x_loc).square().mean(1).sqrt().mean()

# %% optimal_scale: the geometric mean of the images' own scales
(0.5 * (x - x_loc).square().mean(1).log().mean()).exp()

# %% optimal_scale: a scale for each pixel, then their mean
(x - x_loc).square().mean(0).sqrt().mean()

# %% optimal_scale: the mean absolute error, the scale of a Laplace density
(x - x_loc).abs().mean()

# %% optimal_scale: the mean of the absolute errors is squared, and not the errors
((x - x_loc).abs().mean() ** 2).sqrt()

# %% optimal_scale: squared error summed over pixels
(x - x_loc).square().sum(1).mean().sqrt()

# %% optimal_scale: the standard deviation of the errors, without their mean
(x - x_loc).std(correction=0)

# %% optimal_scale: the unbiased standard deviation of the errors
(x - x_loc).std()

# %% optimal_scale: divided by one less than the number of elements
((x - x_loc).square().sum() / (x.numel() - 1)).sqrt()

# %% optimal_scale: the standard deviation of the data
x.std(correction=0)

# %% optimal_scale: half of the mean squared error
(0.5 * (x - x_loc).square().mean()).sqrt()

# %% optimal_scale: a floor of exp(-6) under the scale (seen where errors are small)
(x - x_loc).square().mean().sqrt().clamp(min=math.exp(-6))

# %% optimal_scale: the square multiplied out in float32 (seen where data have a large mean)
x, x_loc = x.float(), x_loc.float()
(x.square() - 2 * x * x_loc + x_loc.square()).mean().abs().sqrt()

# %% optimal_scale: the log of the scale
0.5 * (x - x_loc).square().mean().log()


# %% num_active_latents
def num_active_latents(eigenvalues, scale, latent_dim, beta=1.0):
    return min(int((eigenvalues > beta * scale**2).sum()), latent_dim)


# %% num_active_latents: compared with the standard deviation
min(int((eigenvalues > beta * scale).sum()), latent_dim)

# %% num_active_latents: beta is ignored
min(int((eigenvalues > scale**2).sum()), latent_dim)

# %% num_active_latents: more latents than the model has
int((eigenvalues > beta * scale**2).sum())

# %% num_active_latents: the first eigenvalues are taken for the largest
int((eigenvalues[:latent_dim] > beta * scale**2).sum())

# %% num_active_latents: ascending order is assumed, as eigvalsh returns it
int((eigenvalues.flip(0)[:latent_dim] > beta * scale**2).sum())

# %% num_active_latents: counts until the first small one, descending order is assumed
count = 0
while count < min(latent_dim, len(eigenvalues)) and eigenvalues[count] > beta * scale**2:
    count += 1
count

# %% num_active_latents: beta divides
min(int((eigenvalues > scale**2 / beta).sum()), latent_dim)

# %% num_active_latents: beta is squared with the scale
min(int((eigenvalues > (beta * scale) ** 2).sum()), latent_dim)

# %% num_active_latents: eigenvalues are taken for standard deviations
min(int((eigenvalues**2 > beta * scale**2).sum()), latent_dim)

# %% num_active_latents: the inactive ones are counted
min(int((eigenvalues < beta * scale**2).sum()), latent_dim)

# %% num_active_latents: half the variance
min(int((eigenvalues > beta * scale**2 / 2).sum()), latent_dim)

# %% num_active_latents: the threshold is multiplied by the number of latents
min(int((eigenvalues > beta * scale**2 * latent_dim).sum()), latent_dim)

# %% num_active_latents: eigenvalues as shares of their sum
shares = eigenvalues / eigenvalues.sum()
min(int((shares > beta * scale**2).sum()), latent_dim)

# %% num_active_latents: max in place of min
max(int((eigenvalues > beta * scale**2).sum()), latent_dim)

# %% num_active_latents: all latents but the collapsed model
latent_dim if eigenvalues.max() > beta * scale**2 else 0
