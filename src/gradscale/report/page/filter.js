// Which rows are shown: by kind, and by a part of their name.

const FILTERS = {
  gradients: ["All gradients", (row) => row.kind !== "activation" && !row.negligible],
  parameter: ["Parameters", (row) => row.kind === "parameter" && !row.negligible],
  module: ["Modules", (row) => row.kind === "module" && !row.negligible],
  cast: ["Casts", (row) => row.kind === "cast" && !row.negligible],
  activation: ["Activations", (row) => row.kind === "activation"],
  apart: ["Set apart", (row) => row.negligible],
  all: ["Everything", () => true],
};

function currentRun() {
  return payload.runs[state.run];
}

// Ids of the rows that are shown, in the order of the backward pass.
function shownRows(run = currentRun()) {
  const keeps = FILTERS[state.kind][1];
  const needle = state.search.trim().toLowerCase();
  return run.order.filter((id) => keeps(run.rows[id]) && (!needle || run.rows[id].name.toLowerCase().includes(needle)));
}

function fillKinds() {
  const rows = currentRun().rows;
  const entries = Object.entries(FILTERS)
    .map(([key, [text, keeps]]) => [key, text, rows.filter(keeps).length])
    .filter(([key, , number]) => number || key === "gradients")
    .map(([key, text, number]) => [key, `${text} (${number})`]);
  if (!entries.some(([key]) => key === state.kind)) state.kind = "gradients";
  options(byId("kind"), entries, state.kind);
}

// Parts of the page for which the run has nothing are left out; the notes say what is missing.
function showParts() {
  const run = currentRun();
  byId("heat").hidden = !run.heat;
  byId("scale").hidden = !run.snapshots.length;
  byId("plan").hidden = !run.network.names.length;
  for (const id of ["rows", "words", "kind-label", "search-label"]) byId(id).hidden = !run.rows.length;
  byId("controls").hidden = !run.rows.length && payload.runs.length < 2;
}

function startFilter() {
  byId("kind").addEventListener("change", (event) => choose({ kind: event.target.value }));
  let waiting;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => choose({ search: event.target.value }), 120);
  });
  const select = byId("run");
  options(select, payload.runs.map((run, i) => [i, run.name]), state.run);
  select.addEventListener("change", () => chooseRun(Number(select.value)));
  byId("run-label").hidden = payload.runs.length < 2;
  listen(["run"], () => { select.value = String(state.run); showParts(); fillKinds(); });
  showParts();
  fillKinds();
}

// Another run: the same row, if it has one of that name.
function chooseRun(index) {
  const before = state.row === null ? null : placeOf(currentRun().rows[state.row]);
  const run = payload.runs[index];
  const row = run.rows.findIndex((one) => placeOf(one) === before);
  choose({ run: index, ...startingPoint(run), ...(row < 0 ? {} : { row }) });
}

function startingPoint(run) {
  const last = run.snapshots.length - 1;
  const worst = run.order.filter((id) => FILTERS.gradients[1](run.rows[id]))
    .sort((a, b) => (run.rows[b].share || 0) - (run.rows[a].share || 0))[0];
  return {
    row: worst ?? run.order[0] ?? null,
    column: run.heat ? run.heat.first.n - 1 : null,
    snapshot: last < 0 ? null : last,
    scale: last < 0 ? null : recordedScale(run, last),
    format: "",
  };
}

function recordedScale(run, snapshot) {
  return roundedUp(run.snapshots[snapshot].log2_scale ?? NaN);
}
