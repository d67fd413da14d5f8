"use strict";
// <loss-calculator>: from the reductions and weights of a loss to the likelihood it assumes, as `diagnose_loss`.
(() => {
  const { make, format, select, reading, define } = vaecourse.live;
  const { eigenvalues } = vaecourse.spectrum;
  const LOSSES = {
    squared: { name: "squared error", call: "mse_loss", family: "gaussian" },
    absolute: { name: "absolute error", call: "l1_loss", family: "laplace" },
    logits: { name: "cross-entropy on logits", call: "binary_cross_entropy_with_logits", family: "bernoulli" },
    probabilities: { name: "cross-entropy on probabilities", call: "binary_cross_entropy", family: "bernoulli" },
  };
  const START = {
    loss: "squared", pixels: "mean", reconBatch: "mean", latents: "sum", klBatch: "mean",
    reconWeight: 1, klWeight: 1, dataDim: 784, latentDim: 20, batchSize: 128,
  };

  /** What `diagnose_loss` finds: weights of one example's sums, and the scale or beta that they imply. */
  function diagnose(options) {
    const { loss, pixels, reconBatch, latents, klBatch, reconWeight, klWeight, dataDim, latentDim, batchSize } = options;
    const { family } = LOSSES[loss];
    const perExample = { recon: reconWeight / (pixels === "mean" ? dataDim : 1), kl: klWeight / (latents === "mean" ? latentDim : 1) };
    const share = (rule) => (rule === "mean" ? 1 / batchSize : 1);
    const ratio = (perExample.kl * share(klBatch)) / (perExample.recon * share(reconBatch));
    const beta = family === "gaussian" ? ratio / 2 : ratio;  // half of it: a squared error has the weight 1/2 at scale 1
    const sameBatch = klBatch === reconBatch, found = { family, reconWeight: perExample.recon, klWeight: perExample.kl };
    if (klWeight === 0) return { ...found, klWeight: null, beta: null, scale: null, isElbo: false, numActive: null };
    return {
      ...found,
      beta,
      scale: { gaussian: Math.sqrt(beta), laplace: beta }[family] ?? null,
      isElbo: family !== "bernoulli" || (sameBatch && Math.abs(beta - 1) < 1e-3),
      numActive: dataDim === eigenvalues.length && family === "gaussian"
        ? Math.min(eigenvalues.filter((value) => value > beta).length, latentDim) : null,
    };
  }

  const number = (value) => (Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(12))));

  /** The loss as a function that can be run and given to `diagnose_loss`. */
  function write({ loss, pixels, reconBatch, latents, klBatch, reconWeight, klWeight }) {
    const call = `F.${LOSSES[loss].call}(recon_x, x`;
    const reduce = (inner, batch) => (inner === batch ? `.${inner}()` : `.${inner}(1).${batch}()`);
    const recon = pixels === reconBatch
      ? call + (pixels === "sum" ? ', reduction="sum")' : ")")
      : `${call}, reduction="none")${reduce(pixels, reconBatch)}`;
    const times = (weight, term) => (weight === 1 ? term : `${number(weight)} * ${term}`);
    return [
      "def loss_fn(recon_x, x, mu, logvar):",
      `    recon = ${recon}`,
      "    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar)",
      klWeight === 0
        ? `    return ${times(reconWeight, "recon")}`
        : `    return ${times(reconWeight, "recon")} + ${times(klWeight, `kl${reduce(latents, klBatch)}`)}`,
    ].join("\n");
  }

  function explain(options, { family, scale, beta, isElbo, numActive }) {
    if (beta === null) return "Without a KL term this is an autoencoder's loss; no scale and no β can be read from it.";
    const sentences = [];
    if (family === "gaussian") {
      sentences.push(
        `A Gaussian likelihood with σ = ${format(scale)} (σ² = ${format(beta)}) makes this the negative ELBO, up to a factor and a constant; seen from σ = 1, β is ${format(beta)}.`,
      );
    } else if (family === "laplace") {
      sentences.push(`A Laplace likelihood with b = ${format(scale)} makes this the negative ELBO, up to a factor and a constant; seen from b = 1, β is ${format(beta)}.`);
    } else {
      sentences.push(isElbo
        ? "With a Bernoulli likelihood this is the negative ELBO, up to a factor and a constant."
        : `A Bernoulli likelihood has no scale that could absorb the weights: this is a β-VAE objective with β = ${format(beta)}, and no negative ELBO.`);
      if (options.dataDim === eigenvalues.length) {
        const least = eigenvalues.filter((value) => value > beta / 4).length;
        if (least) sentences.push(`On MNIST at least ${Math.min(least, options.latentDim)} of ${options.latentDim} latents leave the point of collapse: ${least} directions vary by more than β/4.`);
      }
    }
    if (numActive !== null) sentences.push(`On MNIST a linear VAE would use ${numActive} of its ${options.latentDim} latents.`);
    if (options.reconBatch !== options.klBatch) {
      sentences.push(`One term is summed over the batch and the other averaged, so β changes with the batch size; the values are for ${options.batchSize} examples.`);
    }
    return sentences.join(" ");
  }

  define("loss-calculator", "Loss calculator", (host) => {
    const options = { ...START };
    const { elements, say } = reading();
    const code = make("code"), table = make("tbody");
    const choose = (name, label, choices) =>
      select({ label, options: choices, value: options[name], onChange: (value) => { options[name] = value; update(); } });
    const reductions = [["sum", "sum"], ["mean", "mean"]];
    function enter(name, label, { min, isInteger }) {
      const input = make("input", { type: "number", min, step: isInteger ? 1 : "any", value: options[name], "aria-label": label });
      const problem = make("span", { class: "live-problem", role: "alert" });
      input.addEventListener("input", () => {
        const value = input.valueAsNumber, isGood = Number.isFinite(value) && value >= min && (!isInteger || Number.isInteger(value)) && (name !== "reconWeight" || value > 0);
        input.setAttribute("aria-invalid", String(!isGood));
        problem.textContent = isGood ? "" : isInteger ? `a whole number from ${min}` : name === "reconWeight" ? "a positive number" : "a number from 0";
        if (isGood) { options[name] = value; update(); }
      });
      return make("label", { class: "live-field" }, make("span", {}, label), input, problem);
    }

    function update() {
      const found = diagnose(options);
      const rows = {
        likelihood: found.family,
        "scale": found.scale === null ? "none" : `${found.family === "gaussian" ? "σ" : "b"} = ${format(found.scale)}`,
        "β": found.beta === null ? "none" : format(found.beta),
        "weight of the summed error": format(found.reconWeight),
        "weight of the summed KL": found.klWeight === null ? "none" : format(found.klWeight),
        "negative ELBO": found.isElbo ? "yes" : "no",
        "active latents of a linear VAE on MNIST": found.numActive === null ? "not defined here" : String(found.numActive),
      };
      table.replaceChildren(...Object.entries(rows).map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value))));
      code.textContent = write(options);
      say(explain(options, found));
      host.state = { options: { ...options }, found, code: code.textContent };
    }

    host.append(
      make("div", { class: "live-grid" },
        make("div", { class: "live-form" },
          choose("loss", "reconstruction", Object.entries(LOSSES).map(([key, { name }]) => [key, name])),
          choose("pixels", "over the D numbers", reductions), choose("reconBatch", "over the batch", reductions),
          enter("reconWeight", "weight", { min: 0 }),
          choose("latents", "KL over the K latents", reductions), choose("klBatch", "KL over the batch", reductions),
          enter("klWeight", "KL weight", { min: 0 }),
          enter("dataDim", "D", { min: 1, isInteger: true }), enter("latentDim", "K", { min: 1, isInteger: true }),
          enter("batchSize", "batch size", { min: 1, isInteger: true })),
        make("table", { class: "live-table" }, make("caption", {}, "What it assumes"), table)),
      ...elements, make("pre", { tabindex: 0, "aria-label": "The loss in code" }, code),
    );
    host.evaluate = (changes) => {
      const all = { ...START, ...changes };
      return { found: diagnose(all), code: write(all), text: explain(all, diagnose(all)) };
    };
    update();
  });
})();
