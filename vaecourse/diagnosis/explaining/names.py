"""What families, parameters and posteriors are called in a sentence."""

FAMILY_NAMES = {
    "gaussian": "a Gaussian likelihood",
    "laplace": "a Laplace likelihood",
    "bernoulli": "a Bernoulli likelihood",
    "continuous_bernoulli": "a continuous Bernoulli likelihood",
    "poisson": "a Poisson likelihood",
    "multinomial": "a multinomial likelihood",
    "categorical": "a categorical likelihood",
    "negative_binomial": "a negative binomial likelihood",
    "discretized_logistic": "a discretised logistic likelihood",
    "hyperbolic_secant": "a hyperbolic-secant likelihood (log-cosh)",
    "student_t": "a Student-t likelihood",
    "gaussian_predicted_scale": "a Gaussian likelihood with predicted mean and scale",
    "laplace_predicted_scale": "a Laplace likelihood with predicted mean and scale",
    "gaussian_optimal_scale": "a Gaussian likelihood at its best standard deviation",
    "gaussian_correlated": "a Gaussian likelihood with correlated noise",
    "mixed": "a likelihood of several parts",
    "huber": "the Huber loss",
    "weighted_bernoulli": "a weighted cross-entropy",
    "smoothed_bernoulli": "a cross-entropy with smoothed labels",
}
PLACES = {
    "loc": "its location",
    "probabilities": "its probabilities",
    "logits": "its logits",
    "rate": "its rate",
    "log_rate": "the logarithm of its rate",
    "mean": "its mean",
    "log_mean": "the logarithm of its mean",
    "tanh": "the value whose tanh is its location",
    "loc_and_scale": "its mean (first half) and scale (second half)",
}
POSTERIOR_NAMES = {
    "logvar": "the log-variance",
    "log_scale": "log σ",
    "scale": "σ",
    "variance": "the variance σ²",
    "log_precision": "the log-precision (minus the log-variance)",
    "sigmoid_scale": "a raw output whose sigmoid is σ",
    "softplus_scale": "a raw output whose softplus is σ",
    "softplus_variance": "a raw output whose softplus is the variance σ²",
    "negative_abs_logvar": "a raw output v with log-variance -|v|",
}


_WEIGHTED = {
    "_per_element": " (with fixed weights per number)",
    "_per_example": " (with fixed weights per example)",
}


def name_family(family: str) -> str:
    """Name of a family within a sentence."""
    for suffix, words in _WEIGHTED.items():
        if family.endswith(suffix):
            return FAMILY_NAMES[family.removesuffix(suffix)] + words
    return FAMILY_NAMES.get(family, family)
