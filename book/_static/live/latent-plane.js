"use strict";
// <latent-plane>: drag in the plane of two latents and see what the decoder of chapter 2 makes of it.
(() => {
  const { make, format, slider, reading, decode, normal, paint, onTheme, define } = vaecourse.live;
  const { plane } = vaecourse;
  const LIMIT = 4, SIZE = 320, SIDE = 28;
  const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"];

  const a = (digit) => `${digit === "8" ? "an" : "a"} ${digit}`;

  /** Layers with their rounded weights spelled out, row by row. */
  function unpack(layers) {
    return layers.map(({ inputs, outputs, weights, scales, biases }) => {
      const integers = decode(weights, Int8Array), scale = decode(scales, Float32Array);
      return {
        inputs, outputs,
        weights: Float32Array.from(integers, (value, i) => value * scale[Math.floor(i / inputs)]),
        biases: decode(biases, Float32Array),
      };
    });
  }

  /** Mean image of a code: linear layers with a ReLU between them, as in torch. */
  function forward(layers, z) {
    let activations = Float32Array.from(z);
    layers.forEach(({ inputs, outputs, weights, biases }, k) => {
      const next = new Float32Array(outputs);
      for (let i = 0, p = 0; i < outputs; i++) {
        let sum = biases[i];
        for (let j = 0; j < inputs; j++) sum += weights[p++] * activations[j];
        next[i] = k < layers.length - 1 ? Math.max(0, sum) : sum;
      }
      activations = next;
    });
    return activations;
  }

  define("latent-plane", "Latent plane of a VAE trained on MNIST", (host) => {
    const layers = unpack(plane.layers), noise = normal(1);
    const codes = Float32Array.from(decode(plane.codes, Int16Array), (value) => value * plane.codeUnit);
    const map = make("canvas", {
      width: 2 * SIZE, height: 2 * SIZE, tabindex: 0, role: "application", class: "live-drag",
      "aria-label": "Plane of the two latents. Arrow keys move the point, with Shift in larger steps.",
    });
    const image = make("canvas", { width: SIDE, height: SIDE, role: "img", class: "live-pixels" });
    const { elements, say } = reading();
    let z = [0, 0], isDraw = false, showCodes = true;

    const place = (value, sign) => SIZE * (1 + (sign * value) / LIMIT);
    function drawMap() {
      const context = map.getContext("2d"), style = getComputedStyle(host);
      const ink = style.getPropertyValue("--course-ink"), line = style.getPropertyValue("--course-muted");
      context.clearRect(0, 0, 2 * SIZE, 2 * SIZE);
      context.font = "bold 18px sans-serif";
      context.textAlign = "center";
      context.textBaseline = "middle";
      if (showCodes) {
        for (let i = 0; i < plane.labels.length; i++) {
          context.fillStyle = COLORS[plane.labels[i] % COLORS.length];
          context.fillText(plane.labels[i], place(codes[2 * i], 1), place(codes[2 * i + 1], -1));
        }
      }
      context.strokeStyle = line;
      context.lineWidth = 2;
      for (const radius of [1, 2]) {  // the prior: 39 % and 86 % of its mass lie inside
        context.beginPath();
        context.arc(SIZE, SIZE, (radius * SIZE) / LIMIT, 0, 2 * Math.PI);
        context.stroke();
      }
      context.beginPath();
      context.arc(place(z[0], 1), place(z[1], -1), 13, 0, 2 * Math.PI);
      context.fillStyle = style.getPropertyValue("--course-ground");
      context.strokeStyle = ink;
      context.lineWidth = 6;
      context.fill();
      context.stroke();
    }

    function nearest() {
      let best = { distance: Infinity };
      for (let i = 0; i < plane.labels.length; i++) {
        const distance = Math.hypot(codes[2 * i] - z[0], codes[2 * i + 1] - z[1]);
        if (distance < best.distance) best = { distance, label: plane.labels[i] };
      }
      return best;
    }

    function update() {
      host.values = forward(layers, z);
      if (isDraw) host.values = host.values.map((mean) => mean + plane.scale * noise());
      paint(image, host.values);
      drawMap();
      const { distance, label } = nearest(), fixed = (value) => value.toFixed(2).replace("-", "−");
      say(
        `z = (${fixed(z[0])}, ${fixed(z[1])}), ${format(Math.hypot(...z), 3)} from the middle of the prior. ` +
        `Shown: ${isDraw ? `a draw, the mean plus noise of scale ${format(plane.scale, 3)}` : "the decoded mean"}. ` +
        `The nearest of ${plane.labels.length} test images is ${a(label)}, ${format(distance, 2)} away.`,
      );
      image.setAttribute("aria-label", `Image decoded at this point; the nearest test image is ${a(label)}`);
    }

    const clip = (value) => Math.min(LIMIT, Math.max(-LIMIT, value));
    function move(first, second) {
      z = [clip(first), clip(second)];
      sliders.forEach((one, i) => { one.value = z[i]; });
      update();
    }
    const follow = (event) => {
      const box = map.getBoundingClientRect();
      move(((event.clientX - box.x) / box.width) * 2 * LIMIT - LIMIT, LIMIT - ((event.clientY - box.y) / box.height) * 2 * LIMIT);
    };
    map.addEventListener("pointerdown", (event) => { map.setPointerCapture(event.pointerId); follow(event); });
    map.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
    map.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 0.5 : 0.1;
      const [right, up] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? [0, 0];
      if (right || up) {
        event.preventDefault();
        move(z[0] + right * step, z[1] + up * step);
      }
    });
    const sliders = ["z₁", "z₂"].map((label, i) => slider({
      label, min: -LIMIT, max: LIMIT, step: 0.01, value: 0, text: (value) => value.toFixed(2).replace("-", "−"),
      onInput: (value) => { z[i] = value; update(); },
    }));
    const toggle = (text, checked, change) => {
      const box = make("input", { type: "checkbox", change: () => { change(box.checked); update(); } });
      box.checked = checked;
      return make("label", { class: "live-toggle" }, box, text);
    };
    host.append(
      make("div", { class: "live-grid" },
        make("div", { class: "live-plot" }, make("p", { class: "live-title" }, "Drag the ring; circles are 1 and 2 scales of the prior"), map),
        make("div", { class: "live-plot" },
          make("p", { class: "live-title" }, "What the decoder makes of it"), image,
          ...sliders.map((one) => one.element),
          toggle("show a draw instead of the mean", false, (value) => { isDraw = value; }),
          toggle("show where test images lie", true, (value) => { showCodes = value; }))),
      ...elements,
    );
    host.decode = (first, second) => forward(layers, [first, second]);
    onTheme(drawMap);
    update();
  });
})();
