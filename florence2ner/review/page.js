// The review page. What comes from the dataset is only ever set as text, never as markup.
"use strict";

(() => {
  const ROW = 76; // pixels of a row of the list, as in page.css
  const BLOCK = 100; // rows that are asked for at once
  const BLOCKS_KEPT = 60;
  const $ = (id) => document.getElementById(id);
  const number = new Intl.NumberFormat("en");

  const view = { id: 0, total: 0, blocks: new Map(), asked: new Set() };
  const selected = new Set(); // ids of items
  let state = null; // what the server says of the whole
  let at = -1; // position in the list
  let item = null; // the item there, with its whole caption
  let anchor = -1; // position at which a selection of several begins
  let job = null; // the model's answers about this item
  let opening = 0; // numbers the items that are opened, as answers may come late
  let previewed = null; // what the preview has shown
  let previewing = 0;
  let saving = null; // a save that is under way

  // --- talking to the server ---------------------------------------------------------------------------------------

  class Refused extends Error {
    constructor(status, body) {
      super(body.error || `the review answers ${status}`);
      this.status = status;
      this.body = body;
    }
  }

  async function call(path, body) {
    const options = body === undefined ? {} : {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    };
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      $("lost").hidden = false;
      throw new Refused(0, { error: "the review can’t be reached" });
    }
    $("lost").hidden = response.status !== 403;
    const isJson = (response.headers.get("content-type") || "").startsWith("application/json");
    const answer = isJson ? await response.json() : { error: await response.text() };
    if (!response.ok) throw new Refused(response.status, answer);
    return answer;
  }

  let hiding = 0;
  function say(text, bad = false) {
    const box = $("message");
    box.textContent = text;
    box.className = bad ? "message shown bad" : "message shown";
    clearTimeout(hiding);
    hiding = setTimeout(() => box.classList.remove("shown"), bad ? 8000 : 3500);
  }

  /** Runs what the user asked for, and says why where it fails. */
  async function doing(work) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      say(error.message, true);
      return undefined;
    }
  }

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const counted = (count, one, many) => `${number.format(count)} ${count === 1 ? one : many}`;

  // --- the whole ---------------------------------------------------------------------------------------------------

  async function refreshState() {
    state = await call("/api/state");
    $("folder").textContent = state.folder;
    $("folder").title = state.folder;
    document.title = `${state.folder}: review`;
    for (const [id, what] of [["undo", state.undo], ["redo", state.redo]]) {
      $(id).disabled = what === null;
      $(id).title = what === null ? "" : `${id} ${what}`;
    }
    showFilters();
    const all = state.filters.find((filter) => filter.value === "all").count;
    const accepted = state.filters.find((filter) => filter.value === "accepted").count;
    $("meter").style.width = all ? `${(100 * accepted) / all}%` : "0";
    const read = state.read < state.files ? `; reading captions: ${Math.floor((100 * state.read) / state.files)}%` : "";
    $("share").textContent = `${number.format(accepted)} of ${number.format(all)} accepted${read}`;
    $("no-model").hidden = state.model !== null;
    $("model").hidden = state.model === null;
    if (!$("beams").value) {
      $("beams").value = state.beams;
      $("task").value = state.tasks[0];
      $("tasks").replaceChildren(...state.tasks.map((task) => Object.assign(element("option"), { value: task })));
    }
  }

  function showFilters() {
    const select = $("filter");
    const chosen = select.value || "all";
    const options = [];
    const groups = new Map();
    for (const filter of state.filters) {
      const option = element("option", "", `${filter.label} (${number.format(filter.count)})`);
      option.value = filter.value;
      if (!filter.group) options.push(option);
      else {
        if (!groups.has(filter.group)) {
          groups.set(filter.group, Object.assign(element("optgroup"), { label: filter.group }));
          options.push(groups.get(filter.group));
        }
        groups.get(filter.group).append(option);
      }
    }
    if (!state.filters.some((filter) => filter.value === chosen)) {
      const option = element("option", "", `${chosen.replace(/^\w+:/, "")} (0)`); // the last one was mended
      option.value = chosen;
      options.push(option);
    }
    select.replaceChildren(...options);
    select.value = chosen;
  }

  let later = 0;
  function refreshStateSoon() {
    clearTimeout(later);
    later = setTimeout(() => refreshState().catch(() => {}), 250);
  }

  async function watchReading() {
    const began = state.read < state.files;
    while (state.read < state.files) {
      await new Promise((done) => setTimeout(done, 700));
      await refreshState();
    }
    if (began && ($("words").value.trim() || $("filter").value.includes(":"))) await search({ stay: true });
  }

  // --- the list ----------------------------------------------------------------------------------------------------

  async function search({ stay = false } = {}) {
    const query = new URLSearchParams({ words: $("words").value, filter: $("filter").value || "all" });
    const found = await call(`/api/view?${query}`);
    const before = item;
    Object.assign(view, { id: found.view, total: found.total, blocks: new Map(), asked: new Set() });
    anchor = -1;
    $("spacer").style.height = `${view.total * ROW}px`;
    $("counted").textContent = counted(view.total, "image", "images");
    $("all").hidden = view.total === 0;
    if (stay && before) {
      const position = (await call(`/api/view/${view.id}/items`)).indexOf(before.id);
      if (position >= 0) {
        at = position;
        showPlace();
        bringIntoView();
        drawRows();
        return;
      }
    }
    $("scroll").scrollTop = 0;
    if (view.total) await open(0);
    else showNothing();
    drawRows();
  }

  function showNothing() {
    at = -1;
    item = null;
    $("here").hidden = true;
    $("nothing").hidden = false;
    $("picture").hidden = true;
    $("no-picture").hidden = true;
  }

  async function load(block) {
    if (view.asked.has(block)) return;
    view.asked.add(block);
    const { id, asked } = view;
    try {
      const rows = await call(`/api/view/${id}/rows?start=${block * BLOCK}&count=${BLOCK}`);
      if (id !== view.id || asked !== view.asked) return;
      view.blocks.set(block, rows);
      while (view.blocks.size > BLOCKS_KEPT) {
        const [oldest] = view.blocks.keys();
        view.blocks.delete(oldest);
        view.asked.delete(oldest);
      }
      drawRows();
    } catch (error) {
      view.asked.delete(block);
      if (error.status === 410) await search({ stay: true }); // other tabs have searched since
    }
  }

  const rowAt = (position) => (view.blocks.get(Math.floor(position / BLOCK)) || [])[position % BLOCK];

  async function idAt(position) {
    if (!rowAt(position)) {
      await load(Math.floor(position / BLOCK));
      for (let tries = 0; !rowAt(position) && tries < 100; tries++) await new Promise((done) => setTimeout(done, 20));
    }
    const row = rowAt(position);
    return row && row.id;
  }

  function forgetRows() {
    view.blocks = new Map();
    view.asked = new Set();
    drawRows();
  }

  const drawn = new Map(); // rows of the page by position

  function drawRows() {
    const box = $("scroll");
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 4);
    const last = Math.min(view.total, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + 4);
    for (let block = Math.floor(first / BLOCK); block * BLOCK < last; block++) {
      if (!view.blocks.has(block)) load(block);
    }
    for (const [position, row] of drawn) {
      if (position < first || position >= last) {
        row.remove();
        drawn.delete(position);
      }
    }
    for (let position = first; position < last; position++) {
      const data = rowAt(position);
      let row = drawn.get(position);
      if (!row) {
        row = newRow(position);
        drawn.set(position, row);
        $("rows").append(row);
      }
      if (data) fillRow(row, data, position);
    }
    box.setAttribute("aria-activedescendant", drawn.has(at) ? `row-${at}` : "");
    $("all").textContent = selected.size ? `Clear ${number.format(selected.size)} selected` : "Select all";
  }

  function newRow(position) {
    const row = element("div", "row");
    row.id = `row-${position}`;
    row.style.top = `${position * ROW}px`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-posinset", position + 1);
    const thumb = element("span", "thumb");
    const words = element("div");
    const marks = element("div", "marks");
    const box = element("input");
    box.type = "checkbox";
    box.tabIndex = -1;
    marks.append(box, element("span", "tick"));
    words.append(element("div", "text"), element("div", "name"));
    row.append(thumb, words, marks);
    row.addEventListener("click", (event) => {
      if (event.target === box || event.shiftKey || event.ctrlKey || event.metaKey) {
        if (event.shiftKey && event.target !== box) event.preventDefault();
        inTurn(() => toggle(position, event.shiftKey));
        return;
      }
      $("panel").classList.remove("shown");
      inTurn(() => open(position));
    });
    return row;
  }

  function fillRow(row, data, position) {
    row.classList.toggle("here", position === at);
    row.setAttribute("aria-selected", String(selected.has(data.id)));
    row.setAttribute("aria-setsize", view.total);
    const box = row.querySelector("input");
    box.checked = selected.has(data.id);
    box.setAttribute("aria-label", `Select ${data.name}`);
    const mark = `${data.id} ${data.caption} ${data.accepted} ${data.flags}`;
    if (row.dataset.mark === mark) return;
    const isOther = row.dataset.item !== String(data.id);
    row.dataset.mark = mark;
    row.dataset.item = data.id;
    if (isOther) {
      const picture = element("img");
      picture.alt = "";
      picture.loading = "lazy";
      picture.decoding = "async";
      picture.src = `/api/picture/${data.id}/small`;
      row.querySelector(".thumb").replaceChildren(picture);
    }
    const text = row.querySelector(".text");
    text.textContent = data.caption || "no caption";
    text.classList.toggle("none", !data.caption);
    row.querySelector(".name").textContent = data.name;
    const tick = row.querySelector(".tick");
    tick.textContent = data.accepted ? "✓" : data.flags.length && data.caption ? "!" : "";
    tick.classList.toggle("odd", !data.accepted);
    tick.title = data.accepted ? "accepted" : data.flags.join(", ");
  }

  function bringIntoView() {
    const box = $("scroll");
    const top = at * ROW;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW - box.clientHeight;
  }

  async function toggle(position, isRange) {
    const id = await idAt(position);
    if (isRange && anchor >= 0) {
      const ids = await call(`/api/view/${view.id}/items`);
      for (let n = Math.min(anchor, position); n <= Math.max(anchor, position); n++) selected.add(ids[n]);
    } else if (selected.has(id)) selected.delete(id);
    else selected.add(id);
    anchor = position;
    drawRows();
    say(`${number.format(selected.size)} selected`);
  }

  async function selectAll() {
    if (selected.size) selected.clear();
    else for (const id of await call(`/api/view/${view.id}/items`)) selected.add(id);
    drawRows();
    say(selected.size ? `${number.format(selected.size)} selected` : "nothing is selected");
  }

  // --- one image ---------------------------------------------------------------------------------------------------

  const isDirty = () => item !== null && !item.locked && $("caption").value.trim() !== item.text;

  async function go(position) {
    if (!view.total) return;
    const target = Math.min(view.total - 1, Math.max(0, position));
    if (target === at && position !== target) say(position < 0 ? "this is the first" : "this is the last of the list");
    if (target !== at) await open(target);
  }

  async function open(position) {
    const ticket = ++opening;
    if (isDirty() && !(await save())) return; // what was typed is never lost
    const id = await idAt(position);
    if (id === undefined || ticket !== opening) return;
    const found = await call(`/api/item/${id}`);
    if (ticket !== opening || (isDirty() && !(await save()))) return;
    at = position;
    item = found;
    job = null;
    showPlace();
    showItem(true);
    bringIntoView();
    drawRows();
    if (position + 1 < view.total && rowAt(position + 1)) new Image().src = `/api/picture/${rowAt(position + 1).id}/large`;
  }

  /** Reads the item here once more, as it was changed. What was typed since `sent` was sent to be saved stays. */
  async function reopen(sent) {
    if (!item) return;
    const found = await call(`/api/item/${item.id}`);
    if (!item || item.id !== found.id) return;
    const typed = $("caption").value;
    item = found;
    showItem(false);
    if (sent !== undefined && typed !== sent) {
      $("caption").value = typed;
      showCounts();
    }
  }

  function showPlace() {
    $("position").textContent = `${number.format(at + 1)} of ${number.format(view.total)}`;
  }

  function showItem(isOther) {
    $("here").hidden = false;
    $("nothing").hidden = true;
    $("name").textContent = item.name;
    $("state").textContent = item.accepted ? "accepted" : "not accepted";
    $("state").className = item.accepted ? "chip accepted" : "chip open";
    $("caption").value = item.text;
    $("caption").disabled = item.locked;
    $("conflict").hidden = true;
    const chips = item.flags.map((flag) => element("li", "chip", flag));
    if (item.changed) chips.push(element("li", "chip note", "changed in review"));
    if (item.reason) chips.push(element("li", "chip", item.reason));
    for (const other of item.shared_with) chips.push(element("li", "chip note", `also the caption of ${other}`));
    for (const finding of item.findings) {
      chips.push(element("li", "chip", finding.detail ? `${finding.title}: ${finding.detail}` : finding.title));
    }
    $("chips").replaceChildren(...chips);
    $("caption-label").textContent = `Caption, in ${item.file.slice(item.file.lastIndexOf("/") + 1)}`;
    $("accept").replaceChildren(item.accepted ? "Accepted, go on " : "Accept ", element("kbd", "", "a"));
    showCounts();
    showAnswers();
    if (!isOther) return;
    const picture = $("picture");
    $("no-picture").hidden = true;
    picture.hidden = false;
    picture.alt = item.name;
    picture.src = `/api/picture/${item.id}/large`;
    document.querySelector(".side").scrollTop = 0;
  }

  function showCounts() {
    const text = $("caption").value.trim();
    const words = text ? text.split(/\s+/).length : 0;
    const tags = text.includes(",") ? `, ${counted(text.split(",").filter((tag) => tag.trim()).length, "tag", "tags")}` : "";
    $("counts").textContent = `${counted(words, "word", "words")}${tags}`;
    $("dirty").hidden = !isDirty();
    $("save").disabled = !isDirty();
  }

  async function pictureLoaded() {
    const picture = $("picture");
    picture.classList.toggle("small", picture.naturalWidth > 1 && picture.naturalWidth <= 160);
    if (picture.naturalWidth !== 1 || !item) return;
    const { id } = item; // the stand-in for a picture that can't be shown has one pixel
    const { reason } = await call(`/api/why/${id}`);
    if (!reason || !item || item.id !== id) return;
    picture.hidden = true;
    $("no-picture").hidden = false;
    $("no-picture").textContent = `This image can’t be shown: ${reason}.`;
  }

  /** Saves what was typed. Returns whether nothing is left to save. */
  async function save({ accept = false } = {}) {
    if (saving) await saving.catch(() => {});
    if (!item || (!isDirty() && !accept)) return true;
    const target = item;
    const body = { item: target.id, text: $("caption").value, version: target.version, accept };
    saving = call("/api/edit", body);
    try {
      await changed(await saving, body.text);
      return true;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.status === 409) showConflict(error.body);
      else say(error.message, true);
      return false;
    } finally {
      saving = null;
    }
  }

  function showConflict(found) {
    $("conflict").hidden = false;
    $("theirs").textContent = found.text || "(no caption)";
    $("keep-mine").onclick = () => doing(async () => {
      item.version = found.version;
      $("conflict").hidden = true;
      await save();
    });
    $("take-theirs").onclick = () => doing(() => reopen());
    say("This caption was changed on the disk meanwhile.", true);
    $("conflict").scrollIntoView({ block: "nearest" });
  }

  async function changed(outcome, sent) {
    if (outcome.items.length) forgetRows();
    say(outcome.message);
    refreshStateSoon();
    await reopen(sent);
  }

  async function accept({ back = false } = {}) {
    if (!item) return;
    if (isDirty()) {
      if (!(await save({ accept: !back })) || back) return;
    } else {
      try {
        await changed(await call("/api/accept", { items: [item.id], accepted: !back, version: item.version }));
      } catch (error) {
        if (error.status !== 409) throw error;
        showConflict(error.body);
        return;
      }
    }
    if (!back) await go(at + 1);
  }

  async function again(what) {
    if (isDirty() && !(await save())) return;
    const outcome = await call(`/api/${what}`, {});
    forgetRows();
    say(outcome.message);
    refreshStateSoon();
    const [first] = outcome.items;
    if (first !== undefined && (!item || !outcome.items.includes(item.id))) {
      const position = (await call(`/api/view/${view.id}/items`)).indexOf(first);
      if (position >= 0) {
        await open(position);
        return;
      }
    }
    await reopen();
  }

  function edit() {
    const box = $("caption");
    if (box.disabled) return;
    box.focus();
    box.setSelectionRange(box.value.length, box.value.length);
  }

  // --- the model ---------------------------------------------------------------------------------------------------

  async function ask(questions) {
    if (!item || !state.model) return;
    const { id } = item;
    const before = job ? job.answers : [];
    let found = await call("/api/ask", { item: id, ...(questions && { questions }) });
    while (item && item.id === id) {
      job = { ...found, answers: [...before, ...found.answers] };
      showAnswers();
      if (found.state === "done" || found.state === "failed") return;
      await new Promise((done) => setTimeout(done, 300));
      found = await call(`/api/ask/${found.job}`);
    }
  }

  function different() {
    const texts = new Map();
    for (const answer of job ? job.answers : []) {
      const known = texts.get(answer.text);
      if (known) known.question += `; ${answer.question}`;
      else texts.set(answer.text, { ...answer });
    }
    return [...texts.values()];
  }

  function showAnswers() {
    const said = { waiting: "waiting …", loading: "loading the model …", answering: "the model is writing …" };
    $("asking").textContent = !job ? "" : job.state === "failed" ? `No answer: ${job.reason}` : said[job.state] || "";
    $("answers").replaceChildren(...different().map((answer, index) => {
      const line = element("li");
      const button = element("button");
      button.type = "button";
      const flags = answer.flags.length ? ` (${answer.flags.join(", ")})` : "";
      const text = element("span", answer.text ? "text" : "text none", answer.text || "nothing");
      button.append(element("kbd", "", String(index + 1)), text, element("span", "asked", answer.question + flags));
      button.disabled = !answer.text;
      button.addEventListener("click", () => doing(() => choose(index)));
      line.append(button);
      return line;
    }));
  }

  async function choose(index) {
    const answer = different()[index];
    if (!item || !answer || !answer.text || (isDirty() && !(await save()))) return;
    const body = { item: item.id, text: answer.text, version: item.version, is_answer: true };
    try {
      await changed(await call("/api/edit", body));
    } catch (error) {
      if (error.status !== 409) throw error;
      $("caption").value = answer.text;
      showConflict(error.body);
    }
  }

  // --- many captions -----------------------------------------------------------------------------------------------

  async function openBulk() {
    if (isDirty() && !(await save())) return;
    const scopes = [];
    if (selected.size) scopes.push(["selected", `the ${counted(selected.size, "selected image", "selected images")}`]);
    scopes.push(["view", `this list (${number.format(view.total)})`]);
    $("scope").replaceChildren(...scopes.map(([value, label]) => Object.assign(element("option", "", label), { value })));
    $("bulk-dialog").showModal();
    showAction();
    const field = [...$("bulk-dialog").querySelectorAll(".fields:not([hidden]) .wide input")][0];
    if (field) field.focus();
  }

  function showAction() {
    for (const fields of $("bulk-dialog").querySelectorAll("[data-for]")) {
      fields.hidden = !fields.dataset.for.split(" ").includes($("action").value);
    }
    preview();
  }

  async function chosenItems() {
    return $("scope").value === "selected" ? [...selected] : call(`/api/view/${view.id}/items`);
  }

  function wish() {
    const action = $("action").value;
    if (action === "replace") {
      if (!$("find").value) return null;
      return {
        do: "replace", find: $("find").value, replace: $("replace").value, regex: $("regex").checked,
        match_case: $("match-case").checked, whole_words: $("whole-words").checked,
      };
    }
    if (!$("tag").value.trim()) return null;
    return action === "add" ? { do: "add", tag: $("tag").value, first: $("first").checked } : { do: "remove", tag: $("tag").value };
  }

  const isAcceptance = () => ["accept", "take-back"].includes($("action").value);

  function readyToApply(count, label) {
    $("apply").textContent = label;
    $("apply").disabled = !count;
  }

  async function preview() {
    const ticket = ++previewing;
    previewed = null;
    $("preview").replaceChildren();
    $("preview-said").textContent = "";
    const verb = { replace: "Replace in", add: "Add to", remove: "Remove from", accept: "Accept", "take-back": "Take back" }[$("action").value];
    readyToApply(0, verb.split(" ")[0]);
    if (isAcceptance()) {
      const items = await chosenItems();
      if (ticket !== previewing) return;
      previewed = { items };
      readyToApply(items.length, `${verb} ${counted(items.length, "caption", "captions")}`);
      return;
    }
    const wanted = wish();
    if (!wanted) return;
    try {
      const items = await chosenItems();
      const found = await call("/api/preview", { items, wish: wanted });
      if (ticket !== previewing) return;
      previewed = { items, wish: wanted, digest: found.digest };
      const left = found.left_out ? ` ${counted(found.left_out, "caption", "captions")} can’t be read as UTF-8 and will be left out.` : "";
      const more = found.count > found.shown.length ? ` The first ${found.shown.length} of them:` : "";
      $("preview-said").textContent = `${counted(found.count, "caption", "captions")} would change.${more}${left}`;
      $("preview").replaceChildren(...found.shown.map((change) => {
        const line = element("li");
        line.append(...marked(change.before, change.after), element("div", "name", change.name));
        return line;
      }));
      readyToApply(found.count, `${verb} ${counted(found.count, "caption", "captions")}`);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (ticket === previewing) $("preview-said").textContent = error.message;
    }
  }

  let soon = 0;
  function previewSoon() {
    clearTimeout(soon);
    $("apply").disabled = true;
    soon = setTimeout(preview, 200);
  }

  /** Both texts as one, with what goes and what comes marked. */
  function marked(before, after) {
    const [a, b] = [before, after].map((text) => text.match(/\s+|[\p{L}\p{N}_]+|[^]/gu) || []);
    let start = 0;
    while (start < a.length && start < b.length && a[start] === b[start]) start++;
    let end = 0;
    while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
    const left = a.slice(start, a.length - end);
    const right = b.slice(start, b.length - end);
    const pieces = [["", a.slice(0, start)]];
    if (left.length * right.length > 40000) pieces.push(["del", left], ["ins", right]);
    else pieces.push(...difference(left, right));
    pieces.push(["", a.slice(a.length - end)]);
    return pieces.filter(([, words]) => words.length).map(([tag, words]) => {
      const text = words.join("");
      return tag ? element(tag, "", text) : document.createTextNode(text);
    });
  }

  /** The longest common subsequence of two lists of words, and what is left of each. */
  function difference(a, b) {
    const longest = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
      }
    }
    const pieces = [];
    const put = (tag, word) => {
      const last = pieces[pieces.length - 1];
      if (last && last[0] === tag) last[1].push(word);
      else pieces.push([tag, [word]]);
    };
    let [i, j] = [0, 0];
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) {
        put("", a[i++]);
        j++;
      } else if (i < a.length && (j === b.length || longest[i + 1][j] >= longest[i][j + 1])) put("del", a[i++]);
      else put("ins", b[j++]);
    }
    return pieces;
  }

  async function apply() {
    if (!previewed) return;
    const wanted = previewed;
    $("apply").disabled = true;
    $("preview-said").textContent = "writing …";
    try {
      const outcome = wanted.wish
        ? await call("/api/change", wanted)
        : await call("/api/accept", { items: wanted.items, accepted: $("action").value === "accept" });
      $("bulk-dialog").close();
      await changed(outcome);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      await preview();
      $("preview-said").textContent = error.message;
    }
  }

  // --- keys and buttons --------------------------------------------------------------------------------------------

  const keys = {
    j: () => go(at + 1), ArrowDown: () => go(at + 1), k: () => go(at - 1), ArrowUp: () => go(at - 1),
    PageDown: () => go(at + 10), PageUp: () => go(at - 10), Home: () => go(0), End: () => go(view.total - 1),
    a: () => accept(), A: () => accept({ back: true }), e: edit, u: () => again("undo"), r: () => again("redo"),
    x: () => at >= 0 && toggle(at, false), X: () => at >= 0 && toggle(at, true), b: openBulk, m: () => { doing(() => ask()); },
    "/": () => $("words").select(), f: () => $("filter").focus(), "?": () => $("help-dialog").showModal(),
    Escape: () => { selected.clear(); drawRows(); $("panel").classList.remove("shown"); },
  };
  const withControl = { z: () => again("undo"), Z: () => again("redo"), y: () => again("redo"), a: selectAll };

  let waiting = Promise.resolve(); // what the keys ask for is done one after the other
  let behind = 0; // keys that are not done yet
  let isOpening = false; // the key to edit is one of them: what follows may be text

  function inTurn(action) {
    behind++;
    isOpening ||= action === edit;
    waiting = waiting.then(() => doing(async () => action())).finally(() => {
      behind--;
      if (action === edit) isOpening = false;
    });
  }

  document.addEventListener("keydown", (event) => {
    const target = event.target;
    if (document.querySelector("dialog[open]")) return;
    const control = event.ctrlKey || event.metaKey;
    if (target === $("caption")) {
      if (event.key === "Enter" && control) {
        event.preventDefault();
        target.blur();
        const accept = event.shiftKey;
        inTurn(async () => {
          if (await save({ accept })) await go(at + 1);
        });
      } else if (event.key === "Escape") {
        target.value = item.text;
        showCounts();
        target.blur();
      }
      return;
    }
    if (target.matches("input:not([type=checkbox]), select, textarea")) {
      if (event.key === "Escape" || (event.key === "Enter" && target === $("words"))) target.blur();
      return;
    }
    if (event.altKey) return;
    let action = control ? withControl[event.key] : keys[event.key];
    if (!control && event.key === "Enter" && !target.matches("button, summary, a, input")) action = edit;
    if (!control && /^[1-9]$/.test(event.key)) action = () => choose(Number(event.key) - 1);
    if (!action) return;
    event.preventDefault();
    if (isOpening || (event.repeat && behind)) return;
    const isAboutText = action === keys["/"] || (action === edit && !behind);
    if (isAboutText) action(); // at once, as text follows
    else inTurn(action);
  });

  const press = (id, action) => $(id).addEventListener("click", () => inTurn(action));
  press("undo", () => again("undo"));
  press("redo", () => again("redo"));
  press("bulk", openBulk);
  press("help", () => $("help-dialog").showModal());
  press("accept", () => accept());
  press("save", () => save());
  press("previous", () => go(at - 1));
  press("next", () => go(at + 1));
  press("all", selectAll);
  press("open-list", () => { $("panel").classList.add("shown"); bringIntoView(); drawRows(); });
  press("close-list", () => $("panel").classList.remove("shown"));
  $("ask").addEventListener("click", () => doing(() => ask()));
  $("ask-so").addEventListener("click", () => doing(() => ask([{
    task: $("task").value.trim(), beams: Number($("beams").value) || 1, temperature: Number($("temperature").value) || null,
  }])));
  press("apply", apply);
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  for (const id of ["find", "replace", "tag"]) $(id).addEventListener("input", previewSoon);
  for (const id of ["regex", "match-case", "whole-words", "first"]) $(id).addEventListener("change", previewSoon);
  $("scope").addEventListener("change", previewSoon);
  $("action").addEventListener("change", () => doing(async () => showAction()));
  $("caption").addEventListener("input", showCounts);
  $("picture").addEventListener("load", () => doing(pictureLoaded));
  $("scroll").addEventListener("scroll", drawRows, { passive: true });
  new ResizeObserver(drawRows).observe($("scroll"));
  let typing = 0;
  $("words").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => doing(() => search()), 200);
  });
  $("words").addEventListener("search", () => { // Escape or its cross has emptied it, which is no input
    clearTimeout(typing);
    doing(() => search());
  });
  $("filter").addEventListener("change", () => { $("filter").blur(); doing(() => search()); });
  window.addEventListener("beforeunload", (event) => { if (isDirty()) event.preventDefault(); });

  doing(async () => {
    await refreshState();
    await search();
    document.body.dataset.ready = "yes";
    await watchReading();
  });
})();
