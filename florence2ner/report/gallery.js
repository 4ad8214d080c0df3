// Images with their texts: filtered by words, flags, task and score, sorted by any metric, a page at a time, one enlarged.
const AT_ONCE = 30;

const binsOf = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const distinct = [...new Set(sorted)];
  if (distinct.length <= 2) return distinct.map((value) => ({ from: value, to: value, count: values.filter((other) => other === value).length }));
  const [low, high] = [sorted[Math.floor(sorted.length * 0.005)], sorted[Math.ceil(sorted.length * 0.995) - 1]];
  const edges = niceTicks(low, high === low ? low + 1 : high, 18);
  const step = edges.length > 1 ? edges[1] - edges[0] : 1;
  if (edges[0] > low) edges.unshift(+(edges[0] - step).toPrecision(12));
  const bins = edges.map((from) => ({ from, to: +(from + step).toPrecision(12), count: 0 }));
  if (bins.length > 1 && bins.at(-1).from >= high && !(step > sorted.at(-1) - bins.at(-1).from && bins.at(-1).from < high)) bins.pop();
  bins[0].from = Math.min(bins[0].from, sorted[0]);
  bins.at(-1).to = Math.max(bins.at(-1).to, sorted.at(-1));
  let at = 0;
  for (const value of sorted) {
    while (at < bins.length - 1 && value >= bins[at].to) at += 1;
    bins[at].count += 1;
  }
  return bins;
};

class Gallery {
  constructor(block) {
    this.block = block;
    this.rows = block.rows;
    this.names = Object.keys(block.metrics);
    this.metric = block.sort;
    this.order = block.of_two ? "change" : "worst";
    Object.assign(this, { words: [], flags: new Set(), task: "", bin: null, found: [], shown: 0 });
    this.hay = this.rows.map((row) =>
      [row.image, ...row.texts.map((text) => text.parts.join("")), ...(row.others || [])].join("\n").toLowerCase(),
    );
    this.tasks = [...new Set(this.rows.flatMap((row) => (row.task ? [row.task] : row.texts.map((text) => text.who))))];
    this.list = make("ol", { class: "cards" });
    this.more = make("button", { type: "button", class: "more", onclick: () => this.extend() }, "Show more");
    this.total = make("output", { class: "total", "aria-live": "polite" });
    this.histogram = make("div", { class: "histogram" });
    this.dialog = this.makeDialog();
    const legend = this.rows.some((row) => row.texts.some((text) => text.kind))
      ? make("p", { class: "aside" }, make("mark", { class: "lack" }, "underlined"), ": the answer lacks it. ", make("mark", { class: "odd" }, "wavy"), ": the truth lacks it.")
      : null;
    this.element = section(block.title, legend, this.names.length ? this.histogram : null, this.controls(), this.list, this.more, this.dialog);
    this.apply();
    if ("IntersectionObserver" in window)
      new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && this.extend(), { rootMargin: "600px" }).observe(this.more);
  }

  // The score that a row is sorted by; of two models, what the second has gained.
  scoreOf(row) {
    const score = row.scores[this.metric];
    if (score === undefined || score === null || !this.block.of_two) return score ?? null;
    const before = row.before[this.metric];
    const metric = this.block.metrics[this.metric];
    return before === undefined || before === null ? null : +(badness(metric, before) - badness(metric, score)).toFixed(6);
  }

  controls() {
    const select = (label, options, chosen, onchange) =>
      make("label", {}, make("span", {}, label), make("select", { onchange: (event) => onchange(event.target.value) }, options.map(([value, text]) => make("option", { value, selected: value === chosen }, text))));
    const search = make("input", {
      type: "search", placeholder: "words in captions and names", "aria-label": "Search",
      oninput: (event) => {
        this.words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
        this.apply();
      },
    });
    const orders = this.block.of_two
      ? [["change", "biggest change first"], ["worst", "B's losses first"], ["best", "B's wins first"]]
      : [["worst", "worst first"], ["best", "best first"]];
    const sorting = this.names.length
      ? [
          select("sort by", [...this.names.map((name) => [name, this.block.metrics[name].label]), ["", "the dataset's order"]], this.metric, (value) => {
            this.metric = value || null;
            this.bin = null;
            this.apply();
          }),
          select("order", orders, this.order, (value) => ((this.order = value), this.apply())),
        ]
      : [];
    const tasks = this.tasks.length > 1
      ? select("task", [["", "all"], ...this.tasks.map((task) => [task, task])], "", (value) => ((this.task = value), this.apply()))
      : null;
    return make("div", { class: "controls", role: "search" }, make("label", { class: "search" }, make("span", {}, "search"), search), sorting, tasks, this.flagButtons(), this.total);
  }

  flagButtons() {
    const counts = new Map();
    for (const row of this.rows) for (const flag of new Set(row.texts.flatMap((text) => text.flags))) counts.set(flag, (counts.get(flag) || 0) + 1);
    if (!counts.size) return null;
    const buttons = [...counts].sort((a, b) => b[1] - a[1]).map(([flag, number]) =>
      make("button", {
        type: "button", class: "chip", "aria-pressed": "false",
        onclick: (event) => {
          const pressed = !this.flags.delete(flag);
          if (pressed) this.flags.add(flag);
          event.currentTarget.setAttribute("aria-pressed", String(pressed));
          this.apply();
        },
      }, flag.replaceAll("_", " "), make("small", {}, ` ${number.toLocaleString("en")}`)),
    );
    return make("div", { class: "chips", role: "group", "aria-label": "Flags" }, buttons);
  }

  textsOf(row) {
    return this.task && !row.task ? row.texts.filter((text) => text.who === this.task) : row.texts;
  }

  matches(row, index) {
    if (this.words.some((word) => !this.hay[index].includes(word))) return false;
    if (this.task && (row.task ? row.task !== this.task : !this.textsOf(row).length)) return false;
    if (this.flags.size && !this.textsOf(row).some((text) => text.flags.some((flag) => this.flags.has(flag)))) return false;
    return true;
  }

  apply() {
    let found = this.rows.filter((row, index) => this.matches(row, index));
    this.drawHistogram(found);
    if (this.bin) {
      const { from, to, isLast } = this.bin;
      found = found.filter((row) => {
        const score = this.scoreOf(row);
        return score !== null && score >= from && (score < to || (isLast && score <= to) || from === to && score === from);
      });
    }
    if (this.metric) {
      const metric = this.block.metrics[this.metric];
      const key = (row) => {
        const score = this.scoreOf(row);
        if (score === null) return Infinity;
        if (this.order === "change") return -Math.abs(score);
        const bad = this.block.of_two ? -score : badness(metric, score);
        return this.order === "worst" ? -bad : bad;
      };
      found = found.map((row) => [key(row), row]).sort((a, b) => a[0] - b[0] || 0).map(([, row]) => row);
    }
    this.found = found;
    this.shown = 0;
    this.list.replaceChildren();
    this.extend();
    const all = count(this.rows.length, "image", "images");
    this.total.textContent = found.length === this.rows.length ? all : `${found.length.toLocaleString("en")} of ${all}`;
  }

  extend() {
    const next = this.found.slice(this.shown, this.shown + AT_ONCE);
    this.list.append(...next.map((row, index) => this.card(row, this.shown + index)));
    this.shown += next.length;
    this.more.hidden = this.shown >= this.found.length;
    if (!this.found.length) this.list.replaceChildren(make("li", { class: "nothing" }, "Nothing matches."));
  }

  card(row, place) {
    const texts = this.textsOf(row);
    const picture = make("button", { type: "button", class: "open", "aria-label": `Enlarge ${row.image}`, onclick: () => this.enlarge(place) }, framed(row, texts.flatMap((text) => text.shapes || [])));
    return make("li", { class: "card" }, picture, make("div", { class: "body" }, make("p", { class: "name" }, make("span", { title: row.image }, nameOf(row.image)), this.badge(row)), make("dl", {}, texts.map(said))));
  }

  badge(row) {
    if (!this.metric) return null;
    const metric = this.block.metrics[this.metric];
    const score = row.scores[this.metric];
    if (score === undefined || score === null) return null;
    if (!this.block.of_two) return make("span", { class: "score" }, `${metric.label} ${format(score, metric.percent)}`);
    const gain = this.scoreOf(row);
    const text = `${metric.label} ${format(row.before[this.metric], metric.percent)} → ${format(score, metric.percent)}`;
    return make("span", { class: `score ${gain > 1e-9 ? "better" : gain < -1e-9 ? "worse" : ""}` }, text);
  }

  drawHistogram(rows) {
    if (!this.metric) return this.histogram.replaceChildren();
    const metric = this.block.metrics[this.metric];
    const known = rows.map((row) => this.scoreOf(row)).filter((value) => value !== null);
    const values = this.block.of_two ? known.filter((value) => value !== 0) : known; // ties would tower over the rest
    const ties = known.length - values.length;
    if (!values.length) return this.histogram.replaceChildren();
    const bins = binsOf(values);
    const most = Math.max(...bins.map((bin) => bin.count));
    const show = (value) => (this.block.of_two && value > 0 ? "+" : "") + format(value, metric.percent).replace("-", "\u2212");
    const bars = bins.map((bin, index) => {
      const isOn = this.bin && this.bin.from === bin.from && this.bin.to === bin.to;
      const range = bin.from === bin.to ? show(bin.from) : `${show(bin.from)} to ${show(bin.to)}`;
      const fill = make("span", { class: this.block.of_two && (bin.from + bin.to) / 2 < 0 ? "fill worse" : "fill" });
      fill.style.height = `${bin.count ? Math.max(2, (100 * bin.count) / most) : 0}%`;
      return make("button", {
        type: "button", class: "bin", "aria-pressed": String(Boolean(isOn)), "aria-label": `${range}: ${count(bin.count, "image", "images")}`, title: `${range}: ${count(bin.count, "image", "images")}`,
        disabled: !bin.count,
        onclick: () => {
          this.bin = isOn ? null : { ...bin, isLast: index === bins.length - 1 };
          this.apply();
          this.histogram.querySelectorAll(".bin")[index]?.focus();
        },
      }, fill);
    });
    const what = this.block.of_two ? `What B gains in ${metric.label}` : metric.label;
    const about = this.block.of_two ? `to the right B is better${ties ? `; ${count(ties, "image is a tie", "images are ties")}, left out` : ""}` : `${metric.meaning}; ${GOALS[metric.goal]}`;
    const ends = bins.length > 2 ? [bins[0].from, bins.at(-1).to] : bins.map((bin) => bin.from);
    this.histogram.replaceChildren(
      make("p", {}, make("b", {}, what), make("small", {}, about), this.bin ? make("button", { type: "button", class: "chip", "aria-pressed": "true", onclick: () => ((this.bin = null), this.apply()) }, `only ${this.bin.from === this.bin.to ? show(this.bin.from) : `${show(this.bin.from)} to ${show(this.bin.to)}`} ×`) : null),
      make("div", { class: "bins", role: "group", "aria-label": `${what}: a bar shows only its images` }, bars),
      make("div", { class: "ends", "aria-hidden": "true" }, ends.map((value) => make("span", {}, show(value)))),
    );
  }

  makeDialog() {
    return make("dialog", {
      class: "large",
      onkeydown: (event) => {
        const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (move) this.enlarge(this.place + move);
      },
      onclick: (event) => event.target === this.dialog && this.dialog.close(),
    });
  }

  enlarge(place) {
    if (place < 0 || place >= this.found.length) return;
    this.place = place;
    const row = this.found[place];
    const texts = this.textsOf(row);
    const step = (move, name, sign) => make("button", { type: "button", "aria-label": name, disabled: place + move < 0 || place + move >= this.found.length, onclick: () => this.enlarge(place + move) }, sign);
    const scores = this.names.filter((name) => row.scores[name] !== undefined).map((name) => {
      const { label, percent } = this.block.metrics[name];
      const value = format(row.scores[name], percent);
      return make("div", {}, make("dt", {}, label), make("dd", {}, this.block.of_two ? `${format(row.before[name], percent)} → ${value}` : value));
    });
    const others = (row.others || []).map((text) => said({ who: "also true", parts: [text], flags: [] }));
    this.dialog.replaceChildren(
      make("header", {}, make("h3", {}, row.image), make("nav", {}, make("span", {}, `${(place + 1).toLocaleString("en")} of ${this.found.length.toLocaleString("en")}`), step(-1, "Previous", "←"), step(1, "Next", "→"), make("button", { type: "button", "aria-label": "Close", onclick: () => this.dialog.close() }, "✕"))),
      make("div", { class: "both" }, framed(row, texts.flatMap((text) => text.shapes || [])), make("div", {}, make("dl", { class: "texts" }, row.task ? said({ who: "task", parts: [row.task], flags: [] }) : null, texts.map(said), others), scores.length ? make("dl", { class: "all" }, scores) : null)),
    );
    if (!this.dialog.open) this.dialog.showModal();
  }
}

const galleryBlock = (block) => new Gallery(block).element;
