// Scores and differences as tables, with their intervals as bars, and tables of facts.
const track = (low, high, value, interval, css = "", zero = null) => {
  const place = (number) => `${(100 * Math.min(1, Math.max(0, (number - low) / (high - low || 1)))).toFixed(2)}%`;
  const bar = (from, to) => `${(100 * Math.max(0.006, (to - from) / (high - low || 1))).toFixed(2)}%`;
  return make(
    "svg",
    { class: `track ${css}`, "aria-hidden": "true" },
    make("line", { x1: "0", x2: "100%", y1: "50%", y2: "50%", class: "rail" }),
    zero === null ? null : make("line", { x1: place(zero), x2: place(zero), y1: "10%", y2: "90%", class: "zero" }),
    interval ? make("rect", { x: place(interval[0]), width: bar(...interval), y: "30%", height: "40%", rx: "3", class: "whisker" }) : null,
    make("circle", { cx: place(value), cy: "50%", r: "4.5", class: "value" }),
  );
};

const scaleOf = (metric, value, interval) => {
  const high = interval ? interval[1] : value;
  if (metric.percent || (high <= 1 && metric.goal === "higher")) return [0, 1];
  if (metric.goal === "one") return [0, Math.max(2, high * 1.1)];
  return [0, high * 1.25 || 1];
};

const nameCell = (metric) =>
  make("th", { scope: "row" }, make("b", {}, metric.label), make("small", {}, `${metric.meaning}; ${GOALS[metric.goal]}`));

const scoresBlock = (block) => {
  const rows = block.rows.map(({ metric: name, value, interval }) => {
    const metric = block.metrics[name];
    const limits = interval ? `${fixed(interval[0], metric.percent)} – ${fixed(interval[1], metric.percent)}` : "";
    return make(
      "tr",
      {},
      nameCell(metric),
      make("td", { class: "number big" }, fixed(value, metric.percent)),
      make("td", { class: "number soft" }, limits),
      make("td", { class: "bar" }, track(...scaleOf(metric, value, interval), value, interval)),
    );
  });
  return section(
    block.title,
    make("p", { class: "aside" }, block.about),
    make("table", { class: "scores" }, head("metric", "score", "interval", ""), make("tbody", {}, rows)),
  );
};

const head = (...names) =>
  make("thead", {}, make("tr", {}, names.map((name) => make("th", { scope: "col" }, name || make("span", { class: "hidden" }, "bar")))));

const VERDICTS = { better: "B is better", worse: "B is worse", unsure: "can't tell", same: "the same", none: "no interval" };

const differencesBlock = (block) => {
  const rows = block.rows.map(({ metric: name, before, after, interval, counts, verdict }) => {
    const metric = block.metrics[name];
    const change = after - before;
    const reach = 1.1 * Math.max(...[change, ...(interval || [])].map(Math.abs)) || 1;
    const limits = interval ? `${signed(interval[0], metric.percent)} to ${signed(interval[1], metric.percent)}` : "";
    const total = counts[0] + counts[1] + counts[2];
    const [wins, ties, losses] = counts;
    const shares = total
      ? make(
          "svg",
          { class: "shares", "aria-hidden": "true" },
          make("rect", { x: "0", width: `${(100 * wins) / total}%`, height: "100%", class: "wins" }),
          make("rect", { x: `${(100 * wins) / total}%`, width: `${(100 * ties) / total}%`, height: "100%", class: "ties" }),
          make("rect", { x: `${(100 * (wins + ties)) / total}%`, width: `${(100 * losses) / total}%`, height: "100%", class: "losses" }),
        )
      : null;
    return make(
      "tr",
      {},
      nameCell(metric),
      make("td", { class: "number" }, `${fixed(before, metric.percent)} → `, make("b", {}, fixed(after, metric.percent))),
      make("td", { class: "number" }, make("b", {}, signed(change, metric.percent)), make("small", {}, limits)),
      make("td", { class: "bar" }, track(-reach, reach, change, interval, verdict, 0)),
      make("td", { class: `verdict ${verdict}` }, VERDICTS[verdict]),
      make("td", { class: "counts" }, total ? [make("small", {}, `${count(wins, "win", "wins")} · ${count(ties, "tie", "ties")} · ${count(losses, "loss", "losses")}`), shares] : null),
    );
  });
  return section(
    block.title,
    make("p", { class: "aside" }, block.about),
    make("table", { class: "scores differences" }, head("metric", "A → B", "difference", "", "verdict", "images that B scores better on, or worse"), make("tbody", {}, rows)),
  );
};

const factsBlock = (block) => {
  const list = make("dl", { class: "facts" }, block.facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  if (!block.folded) return section(block.title, list);
  return make("section", {}, make("details", {}, make("summary", {}, `${block.title} (${block.facts.length})`), list));
};
