"""Likelihoods, objectives and their diagnosis for a course on variational autoencoders.

Import what you need from the submodule that holds it::

    from vaecourse.densities import gaussian_nll
    from vaecourse.objectives import negative_elbo

Three conventions hold everywhere.  Densities, negative log-likelihoods and
divergences are summed over event dimensions and returned per example, in
nats, with every constant; the batch mean is taken once, in `negative_elbo`.
Gaussians are written with ``loc`` and ``scale`` (the standard deviation), and
networks emit ``log_scale``; Bernoullis are written with ``logits``.
"""

__version__ = "0.1.0"
