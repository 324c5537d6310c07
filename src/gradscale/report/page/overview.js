// Several runs side by side: one line a run, and which of them are drawn.

const DRAWN_AT_FIRST = 8;
const DASHES = ["solid", "dash", "dot", "dashdot"];

function runColor(index) {
  const colors = palette().runs;
  return colors[index % colors.length];
}

function runDash(index) {
  return DASHES[Math.floor(index / palette().runs.length) % DASHES.length];
}

function startOverview() {
  payload.runs.forEach((_, i) => { if (i < DRAWN_AT_FIRST) state.shown.add(i); });
  if (payload.runs.length < 2) return;
  byId("runs").hidden = false;
  drawOverview();
  listen(["run", "theme"], drawOverview);
}

const RUN_COLUMNS = [
  ["Policy", (it) => it.policy || "–", "text"],
  ["Format", (it) => it.format, "text"],
  ["Steps", (it) => count(it.steps)],
  ["Skipped", (it) => (it.skipped ? `${count(it.skipped)} (${percent(it.skipped / it.steps)})` : "0")],
  ["Why", (it) => Object.entries(it.reasons).map(([name, n]) => `${reasonText(name)} ${count(n)}`).join(", ") || "–", "text"],
  ["Scale", (it) => scaleWords(it.log2_scale)],
  ["Lost", (it) => (it.lost ? percent(it.lost.share) : "–")],
  ["Most lost in", (it) => (it.worst.length ? rowWordsOf(it.worst[0]) : "–"), "text"],
  ["Scales in use", (it) => count(it.groups)],
  ["Last loss", (it) => plain(it.loss)],
];

function scaleWords(scale) {
  if (!scale) return "–";
  const [low, high] = [power(scale.lowest), power(scale.highest)];
  return low === high ? low : `${low} … ${high}, last ${power(scale.last)}`;
}

function drawOverview() {
  const used = RUN_COLUMNS.filter(([, text]) => payload.runs.some((run) => !["–"].includes(text(run.summary))));
  const head = make("tr", {}, make("th", { scope: "col" }, "Draw"), make("th", { scope: "col", class: "text" }, "Run"),
    ...used.map(([name, , kind]) => make("th", { scope: "col", class: kind }, name)));
  const lines = payload.runs.map((run, i) => {
    const box = make("input", { type: "checkbox", "aria-label": `Draw ${run.name}`, checked: state.shown.has(i) });
    box.addEventListener("change", () => showRun(i, box.checked));
    const name = make("button", { type: "button", "aria-pressed": String(i === state.run), onclick: () => chooseRun(i) }, run.name);
    const swatch = make("span", { class: "swatch", style: `background:${runColor(i)}`, "aria-hidden": "true" });
    return make("tr", { class: i === state.run ? "chosen" : null }, make("td", {}, box), make("td", { class: `text${run.name.length < 30 ? " name" : ""}` }, swatch, name),
      ...used.map(([, text, kind]) => make("td", { class: kind, html: raised(text(run.summary)) })));
  });
  const focused = document.activeElement?.closest?.("#run-table") ? document.activeElement : null;
  const place = focused ? [...byId("run-table").querySelectorAll("button, input")].indexOf(focused) : -1;
  fill(byId("run-table"), make("thead", {}, head), make("tbody", {}, ...lines));
  if (place >= 0) byId("run-table").querySelectorAll("button, input")[place]?.focus();
}

function showRun(index, shown) {
  const next = new Set(state.shown);
  if (shown) next.add(index); else next.delete(index);
  choose({ shown: next });
}

// The runs that are drawn; the one whose details are shown always is.
function shownRuns() {
  return payload.runs.map((run, index) => ({ run, index })).filter(({ index }) => state.shown.has(index) || index === state.run);
}
