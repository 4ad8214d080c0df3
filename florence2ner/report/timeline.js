// What was written about the same images after each evaluation: a slider goes through them.
const timelineBlock = (block) => {
  const last = block.steps.length - 1;
  const bodies = block.images.map(() => make("dl", {}));
  const out = make("output", { class: "total" });
  const slider = make("input", { type: "range", min: "0", max: String(last), step: "1", value: String(last), "aria-label": "Evaluation" });
  const go = (place) => {
    const at = Math.min(last, Math.max(0, place));
    slider.value = String(at);
    const step = block.steps[at].toLocaleString("en");
    out.textContent = `after ${block.steps[at] ? `step ${step}` : "nothing yet: the base model"} (${at + 1} of ${last + 1})`;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    block.images.forEach((image, index) => {
      const texts = image.steps[at];
      bodies[index].replaceChildren(...(texts ? texts.map(said) : [said({ who: "truth", parts: [image.references[0]], flags: [] }), said({ who: "prediction", parts: [""], flags: [] })]));
    });
  };
  slider.addEventListener("input", () => go(Number(slider.value)));
  const step = (move, name, sign) => make("button", { type: "button", "aria-label": name, onclick: () => go(Number(slider.value) + move) }, sign);
  const cards = block.images.map((image, index) => {
    const all = make("ol", { class: "steps" });
    const details = make("details", {
      ontoggle: () => {
        if (all.children.length) return;
        all.append(...block.steps.map((number, at) => {
          const prediction = image.steps[at]?.[1];
          return make("li", {}, make("span", {}, number.toLocaleString("en")), make("div", {}, prediction ? marked(prediction.parts, prediction.kind) : make("i", {}, "nothing")));
        }));
      },
    }, make("summary", {}, `all ${block.steps.length}`), all);
    return make("li", { class: "card" }, framed(image), make("div", { class: "body" }, make("p", { class: "name" }, make("span", { title: image.image }, nameOf(image.image))), bodies[index], last ? details : null));
  });
  const controls = last ? make("div", { class: "controls steps" }, step(-1, "Earlier", "←"), slider, step(1, "Later", "→"), out) : null;
  go(last);
  return section(block.title, make("p", { class: "aside" }, make("mark", { class: "lack" }, "underlined"), ": the answer lacks it. ", make("mark", { class: "odd" }, "wavy"), ": the truth lacks it."), controls, make("ol", { class: "cards" }, cards));
};
