// The table of rows: sorted by any column, found by name, walked through with the arrow keys.

const AT_FIRST = 600;
let rowLimit = AT_FIRST;
const APART = { apart: " (set apart)" };

const lastOf = (row, name) => (row.last ? row.last[name] : null);
const ROW_COLUMNS = [
  { key: "name", head: "Row", text: true, value: (row) => row.name.toLowerCase(), html: true, show: (row) => breakable(row.name) + (row.negligible ? APART.apart : "") },
  { key: "kind", head: "Kind", text: true, value: (row) => row.kind, show: (row) => row.kind },
  { key: "numel", head: "Elements", value: (row) => row.numel, show: (row) => count(row.numel) },
  { key: "share", head: "Lost", hint: "over the run", value: (row) => row.share, show: (row) => percent(row.share), bar: (row) => row.share },
  { key: "worst", head: "Worst step", hint: "the largest lost share of a step", value: (row) => row.worst, show: (row) => (row.worst === null ? "–" : row.worst ? `${percent(row.worst)} at ${count(row.worst_step)}` : "0 %") },
  { key: "tried", head: () => `Lost at ${power(state.scale)}`, value: (row, id) => tried.get(id)?.share ?? null, show: (row, id) => percent(tried.get(id)?.share ?? NaN), live: true },
  { key: "over", head: () => `Overflow at ${power(state.scale)}`, value: (row, id) => overValue(tried.get(id)), show: (row, id) => overText(tried.get(id)), live: true },
  { key: "amax", head: "Largest", hint: "unscaled, when last measured", value: (row) => lastOf(row, "amax"), show: (row) => (row.last ? powerHtml(row.last.amax === null ? -Infinity : Math.round(10 * row.last.amax) / 10) : "–"), html: true },
  { key: "zero", head: "Exact zeros", hint: "not lost", value: zeroShare, show: (row) => percent(zeroShare(row) ?? NaN) },
  { key: "exponent", head: "Stored at", hint: "when last measured", value: (row) => lastOf(row, "exponent"), show: (row) => powerHtml(lastOf(row, "exponent")), html: true },
  { key: "window", head: "Window", hint: "exponents at which nothing overflows and little is lost", value: (row) => lastOf(row, "lo"), show: windowText, html: true },
  { key: "off", head: "Needs", hint: "the nearest exponent of its window", value: (row) => Math.abs(offWindow(row)), show: needsText, html: true },
  { key: "nonfinite", head: "Not finite", value: (row) => row.nonfinite, show: (row) => count(row.nonfinite) },
  { key: "method", head: "How known", text: true, value: (row) => row.method || "", show: (row) => row.method || "–" },
];
let tried = new Map();

function zeroShare(row) {
  const all = row.last && row.last.zero + row.last.nonzero;
  return all ? row.last.zero / all : null;
}

function offWindow(row) {
  if (!row.last || row.kind === "activation") return 0;
  return Math.min(row.last.hi, Math.max(row.last.lo, row.last.exponent)) - row.last.exponent;
}

function windowText(row) {
  if (!row.last) return "–";
  const { lo, hi } = row.last;
  if (lo <= -63 && hi >= 63) return "any";
  return `${lo <= -63 ? "" : powerHtml(lo)} … ${hi >= 63 ? "" : powerHtml(hi)}`;
}

function needsText(row) {
  const off = offWindow(row);
  return off ? `<span class="bad">${powerHtml(row.last.exponent + off)} (${off > 0 ? "+" : "−"}${Math.abs(off)})</span>` : row.last ? "in it" : "–";
}

function overValue(one) {
  return one ? one.overflowed + (one.touches ? 0.5 : 0) : null;
}

function overText(one) {
  if (!one) return "–";
  return one.touches && !one.overflowed ? "the largest" : count(one.overflowed);
}

function tryScale() {
  const run = currentRun();
  tried = new Map();
  if (state.snapshot === null) return;
  for (const [id, histogram] of histogramsAt(run, state.snapshot)) {
    const row = run.rows[id], range = rangeFor(row, state.format);
    if (!range) continue;
    const one = fate(histogram, range, exponentAt(row, histogram, state.scale));
    tried.set(id, { ...one, share: one.lost / Math.max(1, one.nonzero) });
  }
}

function sortedRows() {
  const run = currentRun(), { key, descending } = state.sort;
  const column = ROW_COLUMNS.find((one) => one.key === key);
  const keyed = shownRows().map((id) => [id, column.value(run.rows[id], id)]);
  const order = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  // What is not known comes last, whichever way; equals keep the order of the backward pass.
  keyed.sort(([, a], [, b]) => (a === null || b === null ? (a === null) - (b === null) : descending ? order(b, a) : order(a, b)));
  return keyed.map(([id]) => id);
}

function drawRows() {
  const run = currentRun();
  tryScale();
  const sorted = sortedRows(), columns = ROW_COLUMNS.filter((it) => it.key !== "nonfinite" || run.rows.some((row) => row.nonfinite)).filter((it) => !it.live || state.snapshot !== null);
  if (!run.rows.length) return;
  byId("rows-lead").textContent = `${plural(sorted.length, "row")} of ${count(run.rows.length)}. “Largest”, “Exact zeros”, “Stored at” and “Window” are as last measured.`;
  const focused = byId("row-table").contains(document.activeElement) ? document.activeElement : null;
  fill(byId("row-table"), rowHead(columns), make("tbody", {}, ...sorted.slice(0, rowLimit).map((id) => rowLine(run, id, columns))));
  byId("more-rows").hidden = sorted.length <= rowLimit;
  byId("more-rows").textContent = `Show all ${count(sorted.length)} rows`;
  markRow(focused?.matches("tr"));
  if (focused?.dataset.sort) byId("row-table").querySelector(`[data-sort="${focused.dataset.sort}"]`)?.focus();
}

function rowHead(columns) {
  return make("thead", {}, make("tr", {}, ...columns.map((column) => {
    const sort = state.sort.key !== column.key ? "none" : state.sort.descending ? "descending" : "ascending";
    return make("th", { scope: "col", class: column.text ? "text" : null, "aria-sort": sort },
      make("button", { type: "button", title: column.hint, "data-sort": column.key, onclick: () => sortBy(column), html: headOf(column) }));
  })));
}

function headOf(column) {
  return raised(typeof column.head === "string" ? column.head : column.head());
}

function rowLine(run, id, columns) {
  const row = run.rows[id];
  const cells = columns.map((column) => {
    const shown = column.show(row, id);
    const share = column.bar && column.bar(row);
    const style = share ? `--share:${(100 * share).toFixed(2)}%` : null;
    return make("td", { class: [column.text && "text", share && "bar"].filter(Boolean).join(" ") || null, style, "data-live": column.live ? column.key : null, ...(column.html ? { html: shown } : {}) }, ...(column.html ? [] : [shown]));
  });
  return make("tr", { "data-row": id, tabindex: -1, class: row.negligible ? "apart" : null }, ...cells);
}

function sortBy(column) {
  const same = state.sort.key === column.key;
  choose({ sort: { key: column.key, descending: same ? !state.sort.descending : !column.text } });
}

// While the slider moves only the two columns that depend on it are written.
function updateTried() {
  if (["tried", "over"].includes(state.sort.key)) return drawRows();
  tryScale();
  const run = currentRun();
  for (const column of ROW_COLUMNS.filter((it) => it.live)) byId("row-table").querySelector(`[data-sort="${column.key}"]`).innerHTML = headOf(column);
  for (const line of byId("row-table").querySelectorAll("tbody tr")) {
    const id = Number(line.dataset.row);
    for (const cell of line.querySelectorAll("[data-live]")) {
      cell.textContent = ROW_COLUMNS.find((one) => one.key === cell.dataset.live).show(run.rows[id], id);
    }
  }
}

function markRow(focus) {
  const lines = [...byId("row-table").querySelectorAll("tbody tr")];
  const chosen = lines.find((line) => Number(line.dataset.row) === state.row);
  for (const line of lines) {
    line.removeAttribute("aria-selected");
    line.tabIndex = line === (chosen || lines[0]) ? 0 : -1;
  }
  if (!chosen) return;
  chosen.setAttribute("aria-selected", "true");
  if (focus) { chosen.focus({ preventScroll: true }); chosen.scrollIntoView({ block: "nearest" }); }
}

function onRowKey(event) {
  const line = event.target.closest("tbody tr");
  if (!line) return;
  const lines = [...line.parentElement.children], at = lines.indexOf(line);
  const to = { ArrowUp: at - 1, ArrowDown: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: lines.length - 1, Enter: at, " ": at }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const target = lines[Math.max(0, Math.min(lines.length - 1, to))];
  choose({ row: Number(target.dataset.row) });
  markRow(true);
}

function startRows() {
  byId("row-table").addEventListener("keydown", onRowKey);
  byId("row-table").addEventListener("click", (event) => {
    const line = event.target.closest("tbody tr[data-row]");
    if (line) choose({ row: Number(line.dataset.row) });
  });
  byId("more-rows").addEventListener("click", () => { rowLimit = Infinity; drawRows(); });
  drawRows();
  listen(["run", "kind", "search", "sort", "snapshot", "format"], onceAFrame(drawRows));
  listen(["scale"], onceAFrame(updateTried));
  listen(["row"], () => markRow(false));
}
