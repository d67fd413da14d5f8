"use strict";
// What the live figures share: elements, plots in SVG, sliders, formats, noise and images.
// Plain scripts that assign to `vaecourse`, because a page opened as a file cannot load modules.
window.vaecourse ??= {};

vaecourse.live = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(name, value);
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  /** An HTML element; attributes that are functions become listeners. */
  const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  /** The same in SVG. */
  const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  /** A number with some significant digits, as Python's "g" format writes it, with a true minus sign. */
  function format(value, digits = 4) {
    if (value === 0) return "0";
    const rounded = Number(value.toPrecision(digits));
    const size = Math.abs(rounded);
    const text = size < 1e-4 || size >= 1e6 ? rounded.toExponential() : String(rounded);
    return text.replace(/-/g, "−");
  }

  /** A labelled range input that shows its value in words; `text` turns a value into them. */
  function slider({ label, min, max, step, value, text, onInput }) {
    const shown = make("output");
    const input = make("input", { type: "range", min, max, step, "aria-label": label });
    const show = () => {
      shown.textContent = text(input.valueAsNumber);
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    input.value = value;
    input.addEventListener("input", () => { show(); onInput(input.valueAsNumber); });
    show();
    return {
      element: make("label", { class: "live-slider" }, make("span", {}, label), input, shown),
      get value() { return input.valueAsNumber; },
      set value(number) { input.value = number; show(); },
    };
  }

  /** A labelled select; options are [value, text] pairs. */
  function select({ label, options, value, onChange }) {
    const input = make("select", { change: () => onChange(input.value) });
    input.append(...options.map(([key, text]) => make("option", { value: key }, text)));
    input.value = value;
    return make("label", { class: "live-field" }, make("span", {}, label), input);
  }

  /** A read-out that screen readers announce once it has settled. */
  function reading() {
    const element = make("p", { class: "live-reading" });
    const spoken = make("span", { class: "live-spoken", role: "status", "aria-live": "polite" });
    let timer = 0;
    return {
      elements: [element, spoken],
      say(text) {
        element.textContent = text;
        clearTimeout(timer);
        timer = setTimeout(() => { spoken.textContent = text; }, 500);
      },
    };
  }

  /** Positions of ticks on an axis: powers of ten on a logarithmic one, round steps on another. */
  function ticks({ min, max, log }) {
    if (log) {
      const first = Math.ceil(Math.log10(min) - 1e-9), last = Math.floor(Math.log10(max) + 1e-9);
      return Array.from({ length: last - first + 1 }, (_, i) => 10 ** (first + i));
    }
    const rough = (max - min) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((size) => size >= rough);
    const count = Math.floor(max / step + 1e-9) - Math.ceil(min / step - 1e-9);
    return Array.from({ length: count + 1 }, (_, i) => (Math.ceil(min / step - 1e-9) + i) * step);
  }

  /** Axes in SVG with a title that states what is seen; `layer` is cleared and filled by the figure. */
  class Plot {
    constructor({ title, x, y, width = 400, height = 260 }) {
      this.axes = { x, y };
      this.box = { left: 52, right: width - 12, top: 12, bottom: height - 42 };
      this.layer = draw("g");
      this.frame = draw("g", { class: "live-frame" });
      this.svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, this.frame, this.layer);
      this.heading = make("p", { class: "live-title" }, title);
      this.element = make("div", { class: "live-plot" }, this.heading, this.svg);
      this.drawFrame();
    }

    set title(text) {
      this.heading.textContent = text;
      this.svg.setAttribute("aria-label", text);
    }

    scale(axis, value) {
      const { min, max, log } = this.axes[axis];
      const share = log ? Math.log(value / min) / Math.log(max / min) : (value - min) / (max - min);
      const { left, right, top, bottom } = this.box;
      return axis === "x" ? left + share * (right - left) : bottom - share * (bottom - top);
    }

    x(value) { return this.scale("x", value); }
    y(value) { return this.scale("y", value); }

    /** Data coordinates of a pointer event. */
    locate(event) {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse());
      const { left, right, top, bottom } = this.box, { x, y } = this.axes;
      return {
        x: x.min + ((point.x - left) / (right - left)) * (x.max - x.min),
        y: y.min + ((bottom - point.y) / (bottom - top)) * (y.max - y.min),
      };
    }

    drawFrame() {
      const { left, right, top, bottom } = this.box;
      this.frame.replaceChildren(draw("path", { d: `M${left} ${top}V${bottom}H${right}` }));
      for (const value of ticks(this.axes.x)) {
        this.frame.append(
          draw("path", { d: `M${this.x(value)} ${bottom}v4` }),
          draw("text", { x: this.x(value), y: bottom + 17, "text-anchor": "middle" }, format(value)),
        );
      }
      for (const value of ticks(this.axes.y)) {
        this.frame.append(
          draw("path", { d: `M${left} ${this.y(value)}h-4` }),
          draw("text", { x: left - 7, y: this.y(value) + 4, "text-anchor": "end" }, format(value)),
        );
      }
      const middle = (top + bottom) / 2;
      this.frame.append(
        draw("text", { x: (left + right) / 2, y: bottom + 36, "text-anchor": "middle" }, this.axes.x.label),
        draw("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, this.axes.y.label),
      );
    }

    clear() { this.layer.replaceChildren(); }

    add(tag, attributes, ...children) {
      const element = draw(tag, attributes, ...children);
      this.layer.append(element);
      return element;
    }

    /** A curve through [x, y] pairs. */
    line(points, attributes) {
      const d = points.map(([x, y], i) => `${i ? "L" : "M"}${this.x(x).toFixed(2)} ${this.y(y).toFixed(2)}`).join("");
      return this.add("path", { d, fill: "none", ...attributes });
    }
  }

  /** Typed arrays from the base 64 of the data files. */
  const decode = (text, Type) => new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

  /** Standard normal draws from a seed (mulberry32, then Box and Muller). */
  function normal(seed) {
    let state = seed >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 2 ** 32;
    };
    return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  /** Put values from 0 to 1 on a canvas of their size as grey levels, white on black; others are clipped. */
  function paint(canvas, values) {
    const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
    values.forEach((value, i) => {
      image.data.fill(Math.round(255 * Math.min(1, Math.max(0, value))), 4 * i, 4 * i + 3);
      image.data[4 * i + 3] = 255;
    });
    context.putImageData(image, 0, 0);
  }

  /** Call a function when the reader changes between light and dark. */
  const onTheme = (redraw) =>
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });

  /** Register a figure: `build(host)` fills the element, whose text was what a page without scripts shows. */
  function define(name, label, build) {
    customElements.define(name, class extends HTMLElement {
      connectedCallback() {
        this.classList.add("live");
        this.setAttribute("role", "group");
        this.setAttribute("aria-label", label);
        this.replaceChildren();
        build(this);
      }
    });
  }

  return { make, draw, format, slider, select, reading, Plot, decode, normal, paint, onTheme, define };
})();
