// Elements made of text alone, figures as people read them, pictures read when they are shown.
const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "polygon", "polyline", "title"]);

const make = (tag, attributes = {}, ...children) => {
  const element = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== undefined && child !== null));
  return element;
};

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const DATA = read("data");

const chunks = new Map();
const pictureOf = (index) => {
  if (!(index < DATA.pictures)) return "";
  const number = Math.floor(index / DATA.at_once);
  if (!chunks.has(number)) chunks.set(number, read(`pictures-${number}`));
  return chunks.get(number)[index % DATA.at_once];
};

const shorten = (value) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return value.toPrecision(size >= 100 ? 4 : 3).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
};
const format = (value, percent) => {
  if (value === null || value === undefined) return "–";
  return percent ? `${(100 * value).toFixed(1)}%` : shorten(value);
};
const fixed = (value, percent) => (percent ? `${(100 * value).toFixed(1)}%` : value.toFixed(3));
const signed = (value, percent) => {
  const text = percent ? (100 * value).toFixed(1) : value.toFixed(3);
  return value > 0 ? `+${text}` : text.replace("-", "\u2212");
};
const count = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

const badness = (metric, value) =>
  metric.goal === "one" ? Math.abs(value - 1) : metric.goal === "higher" ? -value : value;
const GOALS = { higher: "higher is better", lower: "lower is better", one: "nearer to 1 is better" };

// A text in pieces, of which every second is marked.
const marked = (parts, kind) =>
  parts.map((part, index) => (!part ? null : index % 2 ? make("mark", { class: kind }, part) : part));

const said = (text) =>
  make(
    "div",
    { class: "said" },
    make("dt", {}, text.who),
    make(
      "dd",
      { class: text.json ? "json" : null },
      text.parts.join("") ? marked(text.parts, text.kind) : make("i", {}, "nothing"),
      text.flags.map((flag) => [" ", make("span", { class: "flag" }, flag.replaceAll("_", " "))]),
    ),
  );

// A picture, with the outlines that an answer gives.
const framed = (row, shapes = []) => {
  const source = pictureOf(row.picture);
  if (!source) return make("div", { class: "frame none" }, "no picture");
  const outlines = shapes.map(([label, ...points], index) => {
    const pairs = [];
    for (let at = 0; at < points.length; at += 2) pairs.push(`${points[at] * 100},${points[at + 1] * 100}`);
    return make("polygon", { points: pairs.join(" "), class: `hue${index % 6}` }, make("title", {}, String(label)));
  });
  const group = make("g", {}, outlines);
  const over = shapes.length ? make("svg", { class: "shapes", "aria-hidden": "true" }, group) : null;
  const onload = ({ target: { naturalWidth: width, naturalHeight: height } }) => {
    over?.setAttribute("viewBox", `0 0 ${width} ${height}`); // it is fitted into the frame as the picture is
    group.setAttribute("transform", `scale(${width / 100} ${height / 100})`);
  };
  return make("div", { class: "frame" }, make("span", { class: "fit" }, make("img", { src: source, alt: row.image, onload }), over));
};

const section = (title, ...children) => {
  const id = `s-${title.replace(/\W+/g, "-").toLowerCase()}`;
  return make("section", { "aria-labelledby": id }, make("h2", { id }, title), ...children);
};
const nameOf = (path) => path.split("/").pop();
