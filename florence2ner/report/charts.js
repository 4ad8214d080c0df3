// Curves over the updates of a run: one cursor for all, smoothing, a logarithmic scale, and a table of the same numbers.
const niceTicks = (low, high, most) => {
  const raw = (high - low) / Math.max(1, most) || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999) * power;
  const ticks = [];
  // By whole numbers: adding a step to a far larger number may leave it as it is.
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9 && ticks.length < 100; at += 1) ticks.push(+(at * step).toPrecision(12));
  return ticks;
};
const logTicks = (low, high) => {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1)
    for (const factor of high / low > 100 ? [1] : [1, 2, 5]) {
      const tick = +(factor * 10 ** power).toPrecision(12);
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  return ticks.length > 1 ? ticks : niceTicks(low, high, 4).filter((tick) => tick > 0);
};

// An exponential mean, corrected for its start as in TensorBoard.
const smooth = (values, weight) => {
  let [mean, known] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    known += 1;
    return mean / (1 - weight ** known);
  });
};

const nearest = (steps, step) => {
  let [low, high] = [0, steps.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle;
    else high = middle;
  }
  return step - steps[low] < steps[high] - step ? low : high;
};

class Chart {
  constructor(spec, shared) {
    Object.assign(this, { spec, shared, isLog: false });
    this.lastStep = Math.max(...spec.series.flatMap((series) => series.steps));
    this.allSteps = [...new Set(spec.series.flatMap((series) => series.steps))].sort((a, b) => a - b);
    this.readout = make("output", { class: "readout" });
    this.plot = make("div", {
      class: "plot",
      tabindex: "0",
      role: "group",
      "aria-label": `${spec.title}: arrow keys read the curve`,
      onpointermove: (event) => shared.point(this.stepAt(event)),
      onpointerdown: (event) => shared.point(this.stepAt(event)),
      onpointerleave: () => shared.point(null),
      onblur: () => shared.point(null),
      onkeydown: (event) => this.onKey(event),
    });
    const unit = spec.unit ? make("small", {}, ` ${spec.unit}`) : null;
    this.element = make(
      "figure",
      { class: spec.wide ? "chart wide" : "chart" },
      make("figcaption", { title: spec.about }, make("span", {}, make("b", {}, spec.title), unit), this.readout),
      this.plot,
      spec.series.length > 1 || spec.series[0].kind === "noisy" ? this.legend() : null,
    );
  }

  legend() {
    const entries = this.spec.series.map((series, index) =>
      make("li", {}, make("span", { class: `key hue${index} ${series.kind}` }), series.label),
    );
    const log = this.spec.log
      ? make("label", {}, make("input", { type: "checkbox", onchange: (event) => ((this.isLog = event.target.checked), this.draw()) }), " log scale")
      : null;
    return make("div", { class: "legend" }, make("ul", {}, this.spec.series.length > 1 ? entries : []), log);
  }

  onKey(event) {
    const at = this.shared.step === null ? -1 : nearest(this.allSteps, this.shared.step);
    const last = this.allSteps.length - 1;
    const move = { ArrowRight: at + 1, ArrowLeft: at < 0 ? last : at - 1, Home: 0, End: last }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    this.shared.point(this.allSteps[Math.min(last, Math.max(0, move))]);
  }

  stepAt(event) {
    const { left, right, width } = this.frame;
    const x = event.clientX - this.plot.getBoundingClientRect().left;
    return Math.min(1, Math.max(0, (x - left) / (width - left - right))) * this.lastStep;
  }

  shownValues(series) {
    return series.kind === "noisy" ? smooth(series.values, this.shared.weight) : series.values;
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width) return;
    const [height, left, right, top, bottom] = [this.spec.wide ? 260 : 170, 52, 10, 8, 24];
    this.frame = { left, right, width };
    const values = this.spec.series.flatMap((series) => [...series.values, ...this.shownValues(series)]);
    const known = values.filter((value) => value !== null && (!this.isLog || value > 0));
    let [low, high] = [Math.min(...known), Math.max(...known)];
    if (!known.length) [low, high] = [0, 1];
    if (high - low <= Math.abs(high) * 1e-9) [low, high] = this.isLog ? [low / 2, high * 2] : [low - Math.abs(low || 1) / 10, high + Math.abs(high || 1) / 10];
    if (!this.isLog && ((low > 0 && low < high / 3) || (low < 0 && Math.min(...known) >= 0))) low = 0;
    const map = this.isLog ? Math.log10 : (value) => value;
    if (!this.isLog) high += (high - low) * 0.05;
    const x = (step) => left + (step / (this.lastStep || 1)) * (width - left - right);
    const y = (value) => height - bottom - ((map(value) - map(low)) / (map(high) - map(low))) * (height - top - bottom);
    Object.assign(this, { x, y, height, top, bottom });
    const ticks = this.isLog ? logTicks(low, high) : niceTicks(low, high, this.spec.wide ? 5 : 4);
    const grid = ticks.map((tick) => [
      make("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "grid" }),
      make("text", { x: left - 8, y: y(tick) + 4, class: "tick end" }, format(tick, this.spec.percent).replace(".0%", "%")),
    ]);
    const steps = niceTicks(0, this.lastStep, Math.max(2, Math.floor(width / 110))).map((tick) =>
      make("text", { x: x(tick), y: height - 6, class: tick > this.lastStep * 0.97 ? "tick end" : tick ? "tick middle" : "tick" }, tick.toLocaleString("en")),
    );
    this.cursor = make("g", {});
    const svg = make("svg", { width, height, "aria-hidden": "true" }, grid, steps, this.spec.series.map((series, index) => this.curve(series, index)), this.cursor);
    this.plot.replaceChildren(svg);
    this.read();
  }

  curve(series, index) {
    const points = (values) => {
      let path = "";
      let pen = "M";
      values.forEach((value, at) => {
        if (value === null || (this.isLog && value <= 0)) return void (pen = "M");
        path += `${pen}${this.x(series.steps[at]).toFixed(1)} ${this.y(value).toFixed(1)}`;
        pen = "L";
      });
      return path;
    };
    const drawn = [];
    if (series.kind === "noisy") drawn.push(make("path", { d: points(series.values), class: `curve raw hue${index}` }));
    drawn.push(make("path", { d: points(this.shownValues(series)), class: `curve hue${index} ${series.kind}` }));
    if (series.kind === "points" || series.steps.length === 1) {
      const best = this.bestOf(series);
      series.values.forEach((value, at) => {
        if (value === null || (this.isLog && value <= 0)) return;
        const is = at === best ? " best" : "";
        drawn.push(make("circle", { cx: this.x(series.steps[at]), cy: this.y(value), r: is ? 4.5 : 3, class: `dot hue${index}${is}` }));
      });
    }
    return drawn;
  }

  bestOf(series) {
    if (!this.spec.goal || series.kind !== "points") return -1;
    let best = -1;
    series.values.forEach((value, at) => {
      if (value !== null && (best < 0 || badness(this.spec, value) < badness(this.spec, series.values[best]))) best = at;
    });
    return best;
  }

  // What stands beside the title: the values at the cursor, else the best or the last one.
  read() {
    const { percent, series: all } = this.spec;
    this.cursor?.replaceChildren();
    if (this.shared.step === null) {
      const points = all.find((series) => series.kind === "points");
      const best = points ? this.bestOf(points) : -1;
      const last = all[0].values.length - 1;
      this.readout.textContent =
        best >= 0
          ? `best ${format(points.values[best], percent)} at step ${points.steps[best].toLocaleString("en")}`
          : `last ${format(this.shownValues(all[0])[last], percent)}`;
      return;
    }
    const step = this.allSteps[nearest(this.allSteps, this.shared.step)];
    const told = all.flatMap((series, index) => {
      const at = nearest(series.steps, step);
      const value = this.shownValues(series)[at];
      if (value === null || (series.kind === "points" && series.steps[at] !== step && all.length > 1)) return [];
      if (!(this.isLog && value <= 0))
        this.cursor?.append(make("circle", { cx: this.x(series.steps[at]), cy: this.y(value), r: 4, class: `dot best hue${index}` }));
      return [all.length > 1 ? `${series.label} ${format(value, percent)}` : format(value, percent)];
    });
    this.cursor?.prepend(make("line", { x1: this.x(step), x2: this.x(step), y1: this.top, y2: this.height - this.bottom, class: "cursor" }));
    this.readout.textContent = `step ${step.toLocaleString("en")} · ${told.join(" · ")}`;
  }
}

const chartsTable = (charts) => {
  const columns = charts.flatMap(({ spec }) => spec.series.map((series) => ({ series, spec })));
  const steps = [...new Set(columns.flatMap(({ series }) => series.steps))].sort((a, b) => a - b);
  const every = Math.ceil(steps.length / 200);
  const points = new Set(columns.filter(({ series }) => series.kind === "points").flatMap(({ series }) => series.steps));
  const shown = steps.filter((step, at) => at % every === 0 || points.has(step));
  const at = columns.map(({ series }) => new Map(series.steps.map((step, index) => [step, series.values[index]])));
  const head = columns.map(({ series, spec }) => make("th", { scope: "col" }, spec.title === series.label ? spec.title : `${spec.title}: ${series.label}`));
  const rows = shown.map((step) =>
    make("tr", {}, make("th", { scope: "row" }, step.toLocaleString("en")), at.map((found, index) => make("td", {}, found.has(step) ? format(found.get(step), columns[index].spec.percent) : ""))),
  );
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "All numbers" }, make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "step"), head)), make("tbody", {}, rows)));
};

const chartsBlock = (block) => {
  const shared = { step: null, weight: 0.6, point: null };
  const charts = block.charts.map((spec) => new Chart(spec, shared));
  shared.point = (step) => {
    shared.step = step;
    charts.forEach((chart) => chart.read());
  };
  const smoothing = make("input", {
    type: "range", min: "0", max: "0.98", step: "0.02", value: String(shared.weight),
    oninput: (event) => {
      shared.weight = Number(event.target.value);
      charts.forEach((chart) => chart.draw());
    },
  });
  const details = make("details", { ontoggle: () => details.children.length < 2 && details.append(chartsTable(charts)) }, make("summary", {}, "The numbers as a table"));
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (entry.contentRect.width === width) return;
    width = entry.contentRect.width;
    charts.forEach((chart) => chart.draw());
  }).observe(document.getElementById("main"));
  const root = section(
    block.title,
    make("div", { class: "tools" }, make("label", {}, "smoothing ", smoothing)),
    make("div", { class: "charts" }, charts.map((chart) => chart.element)),
    details,
  );
  return root;
};
