"use strict";
// <drag-sigma>: what the scale of a Gaussian decoder decides, with beta = 1.
(() => {
  const { make, format, slider, reading, Plot, decode, normal, paint, define } = vaecourse.live;
  const { spectrum: { eigenvalues }, ladder } = vaecourse;
  const D = 784, K = 20, SIDE = 28, SHOWN = 60, GAP = 2;

  /** What the best linear VAE saves along a direction of variance `lambda` by a gain w, in nats. */
  const cost = (w, lambda, variance) => {
    const total = w * w + variance;
    return 0.5 * (Math.log(total / variance) + lambda / total - lambda / variance);
  };

  define("drag-sigma", "What the scale of a Gaussian decoder decides", (host) => {
    let direction = 3, isDraw = false;
    const { elements, say } = reading();
    const spectrum = new Plot({
      title: "", x: { min: 0, max: SHOWN, label: "direction j of MNIST's images" },
      y: { min: 0.01, max: 10, log: true, label: "variance λ along it" },
    });
    const landscape = new Plot({
      title: "", x: { min: -3, max: 3, label: "gain w of one latent" }, y: { min: -1, max: 1, label: "nats per image" },
    });
    const rungs = ladder.rungs.map((rung) => ({ ...rung, pixels: decode(rung.means, Uint8Array) }));
    const originals = decode(ladder.images, Uint8Array);
    const caption = make("p", { class: "live-title" });
    const canvas = make("canvas", { width: 10 * SIDE, height: 2 * SIDE + GAP, role: "img", class: "live-pixels live-wide" });
    const code = make("code");

    /** The trained model whose variance is nearest on a logarithmic scale. */
    const nearest = (variance) =>
      rungs.reduce((best, rung) =>
        Math.abs(Math.log(rung.variance / variance)) < Math.abs(Math.log(best.variance / variance)) ? rung : best);

    function drawSpectrum(variance, active) {
      spectrum.clear();
      const width = spectrum.x(1) - spectrum.x(0), floor = spectrum.y(spectrum.axes.y.min);
      eigenvalues.slice(0, SHOWN).forEach((value, j) => {
        const top = spectrum.y(value), kind = value > variance ? "live-blue" : "live-faint";
        spectrum.add("rect", { x: spectrum.x(j) + 0.5, width: width - 1, y: top, height: floor - top, class: kind });
      });
      const level = Math.min(10, Math.max(0.01, variance));
      spectrum.line([[0, level], [SHOWN, level]], { class: "live-stroke-orange" });
      spectrum.line([[K, 0.01], [K, 10]], { class: "live-stroke-dashed" });
      spectrum.add("text", { x: spectrum.x(K) + 4, y: spectrum.box.top + 10 }, `${K} latents`);
      const { right } = spectrum.box;
      spectrum.add("text", { x: right, y: spectrum.y(level) - 6, "text-anchor": "end", class: "live-orange" },
        `σ² = ${format(variance, 3)}${variance > 10 ? " (above the plot)" : ""}`);
      spectrum.title = `${active} ${active === 1 ? "direction has" : "directions have"} more variance than σ²`;
    }

    function drawLandscape(variance) {
      const lambda = eigenvalues[direction - 1], gain = Math.sqrt(Math.max(lambda - variance, 0));
      const reach = 1.6 * Math.sqrt(lambda);
      const points = Array.from({ length: 161 }, (_, i) => -reach + (2 * reach * i) / 160).map((w) => [w, cost(w, lambda, variance)]);
      const values = points.map(([, y]) => y), low = Math.min(...values, 0), high = Math.max(...values, 0);
      const margin = 0.1 * (high - low);
      Object.assign(landscape.axes.x, { min: -reach, max: reach });
      Object.assign(landscape.axes.y, { min: low - margin, max: high + margin });
      landscape.drawFrame();
      landscape.clear();
      landscape.line(points, { class: "live-stroke-blue" });
      for (const w of new Set([-gain, gain])) {
        landscape.add("circle", { cx: landscape.x(w), cy: landscape.y(cost(w, lambda, variance)), r: 6, class: "live-orange" });
      }
      landscape.title = gain > 0
        ? `Latent ${direction} pays: it saves ${format(-cost(gain, lambda, variance), 3)} nats`
        : `Latent ${direction} does not pay: its best gain is 0`;
      return gain;
    }

    function drawImages(variance) {
      const rung = nearest(variance), noise = normal(1), scale = Math.sqrt(rung.variance);
      const width = 10 * SIDE, values = new Float32Array(width * (2 * SIDE + GAP)).fill(1);
      for (let i = 0; i < 10 * SIDE * SIDE; i++) {
        const image = Math.floor(i / (SIDE * SIDE)), row = Math.floor(i / SIDE) % SIDE, column = image * SIDE + (i % SIDE);
        values[row * width + column] = originals[i] / 255;
        values[(SIDE + GAP + row) * width + column] = rung.pixels[i] / 255 + (isDraw ? scale * noise() : 0);
      }
      paint(canvas, values);
      const pays = `KL ${format(rung.kl, 3)} nats, ${rung.activeUnits} of ${K} latents active, squared error ${format(rung.sse / D, 3)} per pixel`;
      caption.textContent = `A VAE trained with σ² = ${format(rung.variance)}: ${pays}`;
      canvas.setAttribute("aria-label", `Ten test digits, and below them ${isDraw ? "draws" : "means"} of the VAE trained with variance ${rung.variance}`);
      return rung;
    }

    function update() {
      const sigma = 10 ** control.value, variance = sigma ** 2;
      const active = eigenvalues.filter((value) => value > variance).length;
      drawSpectrum(variance, active);
      const gain = drawLandscape(variance);
      const rung = drawImages(variance);
      const weight = 1 / (2 * variance), share = (2 * variance) / D;
      code.textContent = `square(y - t).sum() * ${format(weight)} + kl      # the same minimum: square(y - t).mean() + ${format(share)} * kl`;
      say(
        `σ = ${format(sigma)}: the summed squared error weighs ${format(weight)}, the KL 1. ` +
        `Of ${K} latents, the best linear VAE uses ${Math.min(active, K)}.`,
      );
      host.state = { sigma, variance, active, weight, share, gain, rung: rung.variance, direction };
    }

    const control = slider({
      label: "scale σ", min: -1, max: 1.3, step: 0.005, value: Math.log10(0.5), text: (value) => format(10 ** value, 3), onInput: () => update(),
    });
    const chosen = slider({
      label: "latent", min: 1, max: K, step: 1, value: direction, text: (value) => `${value}, λ = ${format(eigenvalues[value - 1], 3)}`,
      onInput: (value) => { direction = value; update(); },
    });
    const box = make("input", { type: "checkbox", change: () => { isDraw = box.checked; update(); } });
    host.append(
      control.element, ...elements, make("pre", { tabindex: 0, "aria-label": "The loss in code" }, code),
      make("div", { class: "live-grid" },
        spectrum.element, make("div", {}, landscape.element, chosen.element)),
      make("div", { class: "live-plot" }, caption, canvas,
        make("label", { class: "live-toggle" }, box, "show draws: what the loss claims that images look like")),
    );
    host.cost = cost;
    update();
  });
})();
