// Draws the curves of a figure again from their numbers, so that they can be zoomed: by dragging, and
// with the chart in focus by + and -, moved by the arrow keys; a double click or 0 shows all again.
const BINS = 200;
const MARGIN = { left: 62, right: 14, top: 10, bottom: 38 };

class Chart {
  constructor(panel) {
    this.data = JSON.parse(panel.querySelector("script").textContent);
    this.logX = false;
    this.logY = this.data.log;
    const svg = panel.querySelector("svg");
    this.name = panel.firstElementChild.getAttribute("aria-label");
    this.namespace = svg.namespaceURI;
    this.width = Math.min(Math.max(280, panel.closest("section").clientWidth), 440);
    this.height = Math.round(this.width * 0.62);
    this.element("div", panel, "title").textContent = this.data.title;
    this.svg = this.shape("svg", panel, { viewBox: `0 0 ${this.width} ${this.height}`, tabindex: 0,
      role: "img", "aria-label": `${this.name} ${this.data.title}, zoomable`, width: this.width });
    this.legend(panel);
    const bar = this.element("div", panel, "controls");
    this.buttons = {
      logX: this.button(bar, "log x", () => this.toggle("logX")),
      logY: this.button(bar, "log y", () => this.toggle("logY")),
      reset: this.button(bar, "show all", () => this.reset()),
    };
    this.output = this.element("output", panel);
    this.output.textContent = "Drag over the curves to zoom in.";
    panel.firstElementChild.remove();
    this.listen();
    this.reset();
  }

  element(tag, parent, name = "") {
    const made = document.createElement(tag);
    made.className = name;
    return parent.appendChild(made);
  }

  shape(tag, parent, attributes, text = "") {
    const made = document.createElementNS(this.namespace, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    return parent.appendChild(made);
  }

  button(bar, text, action) {
    const made = this.element("button", bar);
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", action);
    return made;
  }

  legend(panel) {
    const { lines, byLayer } = this.data;
    if (lines.length < 2) return;
    const layers = lines.filter((line) => !line.dashes);
    const shown = byLayer && layers.length > 12 ? [layers[0], layers[layers.length >> 1], layers.at(-1),
      ...lines.filter((line) => line.dashes)] : lines;
    const legend = this.element("div", panel, "legend");
    for (const line of shown) {
      const item = this.element("span", legend);
      const mark = this.shape("svg", item, { width: 20, height: 8, viewBox: "0 0 20 8", "aria-hidden": true });
      this.shape("path", mark, { d: "M0 4H20", stroke: line.color, "stroke-width": 2,
        "stroke-dasharray": line.dashes });
      item.append(line.label);
    }
  }

  // All steps, and the range that the static figure has; with x on a logarithm, from the first above 0.
  reset() {
    const steps = this.data.lines.flatMap((line) => line.x).filter((x) => !this.logX || x > 0);
    const [first, last] = [Math.min(...steps), Math.max(...steps)];
    this.x = first < last ? [first, last] : [first - 1, first + 1];
    const [low, high] = this.data.limits;
    this.y = this.logY === this.data.log && !(this.logY && low <= 0) ? [low, high] : null;
    this.draw();
  }

  toggle(axis) {
    this[axis] = !this[axis];
    if (axis === "logX" && !(this.logX && this.x[0] <= 0)) this.y = null;
    if (this.logX && this.x[0] <= 0) this.reset();
    if (axis === "logY") this.y = null;
    this.draw();
  }

  // A line's points within the shown steps and one beyond on either side, as means of equal bins.
  visible(line) {
    let first = line.x.findIndex((x) => x >= this.x[0]);
    let last = line.x.findLastIndex((x) => x <= this.x[1]);
    if (first < 0 || last < 0) return [];
    first = Math.max(0, first - 1);
    last = Math.min(line.x.length - 1, last + 1);
    const size = Math.ceil((last - first + 1) / BINS);
    const mean = (values, from) => {
      const part = values.slice(from, Math.min(from + size, last + 1));
      return part.includes(null) ? null : part.reduce((a, b) => a + b, 0) / part.length;
    };
    const points = [];
    for (let from = first; from <= last; from += size) {
      const point = { x: mean(line.x, from), y: mean(line.y, from) };
      if (line.low) Object.assign(point, { low: mean(line.low, from), high: mean(line.high, from) });
      points.push(point);
    }
    return points.filter((point) => !this.logX || point.x > 0);
  }

  fitted(all) {
    const points = all.flat();
    const inside = points.filter((p) => p.x >= this.x[0] && p.x <= this.x[1]);
    const values = (inside.length ? inside : points)
      .flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y])
      .filter((y) => y !== null && (!this.logY || y > 0));
    if (!values.length) return this.logY ? [0.5, 2] : [0, 1];
    const [low, high] = [Math.min(...values), Math.max(...values)];
    if (this.logY) return [low / 1.1, high * 1.1];
    const margin = 0.05 * (high - low || Math.abs(high) || 1);
    return [low - margin, high + margin];
  }

  scale(range, log, from, to) {
    const f = log ? Math.log : (v) => v;
    const [a, b] = range.map(f);
    const place = (v) => from + ((f(v) - a) / (b - a)) * (to - from);
    const value = (p) => {
      const v = a + ((p - from) / (to - from)) * (b - a);
      return log ? Math.exp(v) : v;
    };
    return { place, value };
  }

  ticks([low, high], log, most) {
    const marks = [];
    if (log && high / low > 3) {
      const every = high / low < 100 ? [1, 2, 5] : [1];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
        marks.push(...every.map((m) => m * 10 ** power));
      }
      const inside = marks.filter((m) => m >= low && m <= high);
      return inside.filter((_, i) => i % Math.ceil(inside.length / most) === 0);
    }
    const rough = (high - low) / most;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = unit * [1, 2, 5, 10].find((m) => m * unit >= rough);
    for (let m = Math.ceil(low / step); m * step <= high; m += 1) marks.push(m * step);
    return marks;
  }

  draw() {
    const { svg, width, height } = this;
    svg.replaceChildren();
    const all = this.data.lines.map((line) => this.visible(line));
    const [right, bottom] = [width - MARGIN.right, height - MARGIN.bottom];
    const y = this.y ?? this.fitted(all);
    this.across = this.scale(this.x, this.logX, MARGIN.left, right);
    this.up = this.scale(y, this.logY, bottom, MARGIN.top);
    const clip = `clip-${this.name.replaceAll(" ", "-")}-${Chart.all.indexOf(this)}`;
    this.shape("rect", this.shape("clipPath", svg, { id: clip }), { x: MARGIN.left, y: MARGIN.top,
      width: right - MARGIN.left, height: bottom - MARGIN.top });
    for (const m of this.ticks(this.x, this.logX, 6)) {
      this.shape("text", svg, { x: this.across.place(m), y: bottom + 15, "text-anchor": "middle" }, number(m));
    }
    for (const m of this.ticks(y, this.logY, 6)) {
      this.shape("path", svg, { class: "rule", d: `M${MARGIN.left} ${this.up.place(m)}H${right}` });
      this.shape("text", svg, { x: MARGIN.left - 6, y: this.up.place(m) + 4, "text-anchor": "end" }, number(m));
    }
    this.shape("text", svg, { x: (MARGIN.left + right) / 2, y: height - 6, "text-anchor": "middle" }, "step");
    this.shape("text", svg, { "text-anchor": "middle",
      transform: `translate(12 ${(MARGIN.top + bottom) / 2}) rotate(-90)` }, this.data.ylabel);
    const plot = this.shape("g", svg, { "clip-path": `url(#${clip})` });
    for (const step of this.data.marks.filter((step) => !this.logX || step > 0)) {
      this.shape("path", plot, { class: "rule", "stroke-dasharray": "1 2", "data-mark": step,
        d: `M${this.across.place(step).toFixed(1)} ${MARGIN.top}V${bottom}` });
    }
    this.data.lines.forEach((line, i) => this.line(plot, line, all[i], bottom));
    this.drawn = all;
    for (const [name, button] of Object.entries(this.buttons)) {
      if (name !== "reset") button.setAttribute("aria-pressed", this[name]);
    }
  }

  line(plot, line, points, bottom) {
    const at = (x, y) => `${this.across.place(x).toFixed(1)} ${this.up.place(y).toFixed(1)}`;
    const is = (v) => v !== null && v !== undefined && (!this.logY || v > 0);
    const band = points.filter((p) => is(p.low) && is(p.high));
    if (band.length) {
      const edge = [...band.map((p) => at(p.x, p.high)), ...band.reverse().map((p) => at(p.x, p.low))];
      this.shape("path", plot, { d: `M${edge.join("L")}Z`, fill: line.color, "fill-opacity": 0.2 });
    }
    let path = "";
    points.forEach((p, i) => {
      if (is(p.y)) path += `${i && is(points[i - 1].y) ? "L" : "M"}${at(p.x, p.y)}`;
    });
    this.shape("path", plot, { class: "curve", d: path, stroke: line.color, "stroke-dasharray": line.dashes,
      "data-points": points.length });
    if (points.length === 1 && path) {
      const [cx, cy] = at(points[0].x, points[0].y).split(" ");
      this.shape("circle", plot, { cx, cy, r: 3, fill: line.color });
    }
    if (line.bad !== null && line.bad >= this.x[0]) {
      this.shape("text", plot, { x: this.across.place(line.bad), y: bottom - 2, "text-anchor": "middle",
        style: `fill:${line.color}` }, "×");
    }
  }

  zoom(x, y) {
    this.x = x;
    this.y = y;
    this.draw();
  }

  // Steps about the middle by a factor, or along by a share of what is shown.
  change(factor, along = 0) {
    const middle = (MARGIN.left + this.width - MARGIN.right) / 2;
    const half = (middle - MARGIN.left) * factor;
    const shift = along * 2 * half;
    this.zoom([middle - half + shift, middle + half + shift].map(this.across.value), null);
  }

  position(event) {
    const box = this.svg.getBoundingClientRect();
    const size = this.width / box.width;
    return { x: (event.clientX - box.left) * size, y: (event.clientY - box.top) * size };
  }

  listen() {
    const { svg } = this;
    let start = null;
    let frame = null;
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      start = this.position(event);
      try { svg.setPointerCapture(event.pointerId); } catch { /* an event made by a script */ }
    });
    svg.addEventListener("pointermove", (event) => {
      const now = this.position(event);
      if (!start) return this.tell(now);
      frame?.remove();
      frame = this.shape("rect", svg, { class: "frame", x: Math.min(start.x, now.x),
        y: Math.min(start.y, now.y), width: Math.abs(now.x - start.x), height: Math.abs(now.y - start.y) });
    });
    svg.addEventListener("pointerup", (event) => {
      const now = this.position(event);
      const [wide, high] = [Math.abs(now.x - (start?.x ?? now.x)), Math.abs(now.y - (start?.y ?? now.y))];
      frame?.remove();
      if (start && wide > 8) {
        const x = [start.x, now.x].sort((a, b) => a - b).map(this.across.value);
        // A flat drag takes the steps alone, and all values there.
        this.zoom(x, high > 16 ? [start.y, now.y].sort((a, b) => b - a).map(this.up.value) : null);
      }
      start = frame = null;
    });
    svg.addEventListener("pointercancel", () => { frame?.remove(); start = frame = null; });
    svg.addEventListener("dblclick", () => this.reset());
    svg.addEventListener("keydown", (event) => {
      const action = { "+": () => this.change(0.7), "=": () => this.change(0.7), "-": () => this.change(1 / 0.7),
        ArrowLeft: () => this.change(1, -0.2), ArrowRight: () => this.change(1, 0.2),
        0: () => this.reset(), Escape: () => this.reset() }[event.key];
      if (!action || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      action();
    });
  }

  // The point nearest to the pointer, in words.
  tell(at) {
    let nearest = null;
    this.drawn.forEach((points, i) => points.forEach((p) => {
      if (p.y === null || (this.logY && p.y <= 0)) return;
      const distance = Math.hypot(this.across.place(p.x) - at.x, this.up.place(p.y) - at.y);
      if (!nearest || distance < nearest.distance) nearest = { distance, p, label: this.data.lines[i].label };
    }));
    if (nearest) {
      this.output.textContent = `${nearest.label}, step ${number(Math.round(nearest.p.x))}: ${number(nearest.p.y)}`;
    }
  }
}

function number(value) {
  return String(+value.toPrecision(5)).replace("-", "\u2212");
}

Chart.all = [];
for (const panel of document.querySelectorAll(".chart")) Chart.all.push(new Chart(panel));
