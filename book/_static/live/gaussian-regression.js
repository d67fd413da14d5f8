"use strict";
// <gaussian-regression>: fit a line by hand and read what a Gaussian likelihood makes of its errors.
(() => {
  const { make, format, slider, reading, Plot, define } = vaecourse.live;
  const START = [[0.3, 0.5], [0.9, 1.7], [1.5, 1.2], [2.1, 2.4], [2.8, 2.0], [3.4, 3.3], [4.1, 2.9], [4.7, 4.2]];
  const LINE = { intercept: 1.5, slope: 0.2, sigma: 1 };

  /** Squared error, negative log-likelihood in nats, and its gradient, for a line and a scale. */
  function measure(points, { intercept, slope, sigma }) {
    const residuals = points.map(([x, y]) => y - intercept - slope * x), variance = sigma ** 2;
    const sum = (values) => values.reduce((a, b) => a + b, 0);
    const sse = sum(residuals.map((r) => r * r));
    return {
      sse,
      nll: sse / (2 * variance) + (points.length / 2) * Math.log(2 * Math.PI * variance),
      gradient: {
        intercept: -sum(residuals) / variance,
        slope: -sum(residuals.map((r, n) => r * points[n][0])) / variance,
        logSigma: points.length - sse / variance,
      },
    };
  }

  function leastSquares(points) {
    const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
    const x = mean(points.map((p) => p[0])), y = mean(points.map((p) => p[1]));
    const slope = mean(points.map((p) => (p[0] - x) * (p[1] - y))) / mean(points.map((p) => (p[0] - x) ** 2));
    return { slope, intercept: y - slope * x };
  }

  define("gaussian-regression", "Gaussian regression by hand", (host) => {
    const points = START.map((point) => [...point]);
    const { elements, say } = reading();
    const plot = new Plot({
      title: "Drag the points; the band is one σ either way",
      x: { min: 0, max: 5, label: "x" }, y: { min: -1, max: 6, label: "y" },
    });
    const curve = new Plot({
      title: "", x: { min: 0.1, max: 3, log: true, label: "scale σ" }, y: { min: 0, max: 1, label: "NLL (nats)" },
    });
    plot.svg.setAttribute("role", "group");
    const back = plot.add("g", {}), lines = plot.add("g", {});
    const text = (value) => format(value, 3);
    const controls = {
      intercept: slider({ label: "intercept", min: -1, max: 3, step: 0.01, value: LINE.intercept, text, onInput: () => update() }),
      slope: slider({ label: "slope", min: -1, max: 2, step: 0.01, value: LINE.slope, text, onInput: () => update() }),
      sigma: slider({ label: "scale σ", min: -1, max: 0.477, step: 0.001, value: Math.log10(LINE.sigma), text: (v) => format(10 ** v, 3), onInput: () => update() }),
    };
    const exact = {};  // what a button has set, finer than a slider's steps
    const handles = points.map((_, n) => {
      const handle = plot.add("circle", { r: 8, class: "live-handle", tabindex: 0, role: "slider", "aria-orientation": "vertical", "aria-valuemin": -1, "aria-valuemax": 6 });
      const move = (y) => { points[n][1] = Math.min(6, Math.max(-1, y)); update(); };
      handle.addEventListener("pointerdown", (event) => handle.setPointerCapture(event.pointerId));
      handle.addEventListener("pointermove", (event) => { if (event.buttons) move(plot.locate(event).y); });
      handle.addEventListener("keydown", (event) => {
        const step = { ArrowUp: 0.1, ArrowRight: 0.1, ArrowDown: -0.1, ArrowLeft: -0.1, PageUp: 1, PageDown: -1 }[event.key];
        if (step) { event.preventDefault(); move(points[n][1] + step); }
      });
      return handle;
    });

    function values() {
      const read = { intercept: controls.intercept.value, slope: controls.slope.value, sigma: 10 ** controls.sigma.value };
      for (const [name, { shown, value }] of Object.entries(exact)) {
        if (controls[name].value === shown) read[name] = value;
      }
      return read;
    }

    function set(name, value) {
      controls[name].value = name === "sigma" ? Math.log10(value) : value;
      exact[name] = { shown: controls[name].value, value };
    }

    function update() {
      const now = values(), { intercept, slope, sigma } = now, found = measure(points, now);
      const at = (x) => intercept + slope * x;
      back.replaceChildren();
      lines.replaceChildren();
      const corners = [[0, at(0) + sigma], [5, at(5) + sigma], [5, at(5) - sigma], [0, at(0) - sigma]];
      const place = ([x, y]) => `${plot.x(x).toFixed(1)},${plot.y(y).toFixed(1)}`;
      back.append(vaecourse.live.draw("polygon", { points: corners.map(place).join(" "), class: "live-band" }));
      lines.append(vaecourse.live.draw("polyline", { points: [[0, at(0)], [5, at(5)]].map(place).join(" "), class: "live-stroke-blue", fill: "none" }));
      points.forEach(([x, y], n) => {
        lines.append(vaecourse.live.draw("path", { d: `M${place([x, y])}L${place([x, at(x)])}`, class: "live-stroke-orange" }));
        handles[n].setAttribute("cx", plot.x(x));
        handles[n].setAttribute("cy", plot.y(y));
        handles[n].setAttribute("aria-valuenow", y.toFixed(2));
        handles[n].setAttribute("aria-label", `y of point ${n + 1}, at x = ${format(x)}`);
      });

      const scales = Array.from({ length: 121 }, (_, i) => 0.1 * 30 ** (i / 120));
      const best = Math.sqrt(found.sse / points.length);
      const nll = (s) => measure(points, { ...now, sigma: s }).nll;
      const lowest = nll(Math.min(3, Math.max(0.1, best)));
      Object.assign(curve.axes.y, { min: lowest - 4, max: Math.max(lowest + 30, found.nll + 4) });
      curve.drawFrame();
      curve.clear();
      curve.line(scales.map((s) => [s, nll(s)]).filter(([, y]) => y < curve.axes.y.max), { class: "live-stroke-blue" });
      curve.add("circle", { cx: curve.x(sigma), cy: curve.y(found.nll), r: 7, class: "live-orange" });
      curve.title = `This line's best σ is √(SSE / N) = ${format(best, 3)}; you have ${format(sigma, 3)}`;
      const gradient = (name) => format(Math.abs(found.gradient[name]) < 1e-9 ? 0 : found.gradient[name], 3);
      say(
        `SSE = ${format(found.sse)}, NLL = ${format(found.nll)} nats. ` +
        `Gradient of the NLL: intercept ${gradient("intercept")}, slope ${gradient("slope")}, log σ ${gradient("logSigma")}. ` +
        `Halving σ multiplies the first two by four.`,
      );
      host.state = { points: points.map((p) => [...p]), ...now, ...found };
    }

    const button = (label, action) => make("button", { type: "button", click: () => { action(); update(); } }, label);
    host.append(
      make("div", { class: "live-grid" },
        plot.element,
        make("div", {}, curve.element, ...Object.values(controls).map((one) => one.element),
          make("div", { class: "live-buttons" },
            button("best line", () => Object.entries(leastSquares(points)).forEach(([name, value]) => set(name, value))),
            button("best σ", () => set("sigma", Math.min(3, Math.max(0.1, Math.sqrt(host.state.sse / points.length))))),
            button("start again", () => {
              START.forEach((point, n) => { points[n] = [...point]; });
              Object.entries(LINE).forEach(([name, value]) => set(name, value));
            })))),
      ...elements,
    );
    update();
  });
})();
