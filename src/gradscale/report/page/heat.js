// The heat map: rows in the order of the backward pass against measured steps.

const TINY = -6; // shares below a millionth look alike

function logShare(code) {
  if (code === 0) return NaN;
  if (code === 1) return TINY - 0.4;
  return Math.max(TINY, Math.log10(decodeShare(code)));
}

const SHARE_TICKS = { tickvals: [TINY - 0.4, -6, -4, -3, -2, -1, 0], ticktext: ["none", "0.0001 %", "0.01 %", "0.1 %", "1 %", "10 %", "all"] };
const PLANES = {
  mean: { text: "lost share, mean", value: logShare, low: TINY - 0.4, high: 0, colors: "share", ticks: SHARE_TICKS,
    lead: "Lost elements as a share of the non-zero ones. Rows run from the loss at the top to the input." },
  worst: { text: "lost share, worst step", value: logShare, low: TINY - 0.4, high: 0, colors: "share", ticks: SHARE_TICKS,
    lead: "The largest lost share of a single step in each cell. Rows run from the loss at the top to the input." },
  off: { text: "octaves off its window", value: (v) => (v === -32768 ? NaN : v), low: -12, high: 12, colors: "off",
    ticks: { tickvals: [-12, -6, 0, 6, 12], ticktext: ["12 too high", "6", "in it", "6", "12 too low"] },
    lead: "By how many octaves a row is stored too low (too much is lost) or too high (overflow is near)." },
  amax: { text: "largest magnitude", value: (v) => (v === -32768 ? NaN : v / 16), colors: "many", ticks: { tickprefix: "2<sup>", ticksuffix: "</sup>", nticks: 6 },
    lead: "The largest unscaled magnitude of each row." },
  zero: { text: "exact zeros", value: (code) => decodeShare(code), low: 0, high: 1, colors: "many", ticks: { tickformat: ".0%", nticks: 5 },
    lead: "Elements that are truly zero, as behind a ReLU. They are not lost." },
};

function heatSize(run) {
  return [run.order.length, run.heat.first.n];
}

// One plane as rows of numbers, made once.
function planeOf(run, name) {
  run.planes ??= {};
  if (!run.planes[name]) {
    const codes = run.view(run.heat[name]), [rows, columns] = heatSize(run), value = PLANES[name].value;
    const values = Float32Array.from(codes, value);
    run.planes[name] = Array.from({ length: rows }, (_, i) => values.subarray(i * columns, (i + 1) * columns));
  }
  return run.planes[name];
}

function drawHeat() {
  const run = currentRun();
  if (!run.heat) return;
  const rows = shownRows();
  if (!rows.length) { byId("heat-cell").textContent = ""; return nothing("heat-plot", "No row has such a name."); }
  const place = new Map(run.order.map((id, i) => [id, i]));
  const plane = PLANES[state.plane], all = planeOf(run, state.plane);
  const names = rows.map((id) => run.rows[id].name);
  const height = rowsHeight(rows.length);
  const ticks = nameTicks(names, height, labelLength(), rows.map((id) => run.rows[id].share || 0));
  byId("heat-lead").textContent = plane.lead + (run.rows.some((row) => row.nonfinite) ? " Violet: infinite or NaN." : "");
  const element = byId("heat-plot");
  element.setAttribute("tabindex", "0");
  element.setAttribute("role", "application");
  draw("heat-plot", [{
    type: "heatmap", z: rows.map((id) => all[place.get(id)]), zmin: plane.low, zmax: plane.high,
    zauto: plane.low === undefined, colorscale: ramp(palette()[plane.colors]), hoverinfo: "none", hoverongaps: true,
    colorbar: { thickness: 12, len: 1, outlinewidth: 0, tickfont: { size: 11, color: palette().quiet }, ...plane.ticks },
  }, ...nonfiniteTrace(run, rows, place)], {
    height: height + 52, margin: { l: labelRoom(ticks.ticktext), r: 10, t: 8, b: 44 },
    xaxis: axis({ title: "step", showgrid: false, ...columnTicks(run), range: [-0.5, run.heat.first.n - 0.5] }),
    yaxis: axis({ showgrid: false, range: [rows.length - 0.5, -0.5], ...ticks }),
    shapes: cellMark(run, rows),
  }, { plotly_hover: onHeatHover, plotly_unhover: () => showTip(null), plotly_click: onHeatClick });
  tellCell();
}

// Cells in which something was infinite or NaN, over everything else.
function nonfiniteTrace(run, rows, place) {
  if (!rows.some((id) => run.rows[id].nonfinite)) return [];
  const flags = run.view(run.heat.nonfinite), columns = heatSize(run)[1];
  const z = rows.map((id) => Float32Array.from(flags.subarray(place.get(id) * columns, (place.get(id) + 1) * columns), (v) => (v ? 1 : NaN)));
  const color = palette().over;
  return [{ type: "heatmap", z, zmin: 0, zmax: 1, colorscale: [[0, color], [1, color]], showscale: false, hoverinfo: "none" }];
}

function columnTicks(run) {
  const first = run.view(run.heat.first), number = Math.min(printing || innerWidth > 700 ? 8 : 3, first.length);
  // The first columns that were not finite have a tick in any case; even ones near them give way.
  const bad = badColumns(run).slice(0, number), near = first.length / (2 * number);
  const even = Array.from({ length: number }, (_, i) => Math.round(i * (first.length - 1) / Math.max(1, number - 1)));
  const places = [...new Set([...even.filter((i) => bad.every((at) => Math.abs(at - i) > near)), ...bad])].sort((a, b) => a - b);
  return { tickvals: places, ticktext: places.map((i) => count(first[i])) };
}

// Where a stretch of columns with something infinite or NaN begins.
function badColumns(run) {
  if (!run.rows.some((row) => row.nonfinite)) return [];
  const flags = run.view(run.heat.nonfinite), [lines, columns] = heatSize(run);
  const is = Array.from({ length: columns }, (_, i) => Array.from({ length: lines }, (_, line) => flags[line * columns + i]).some((one) => one));
  return is.map((_, i) => i).filter((i) => is[i] && !is[i - 1]);
}

// A frame around the chosen cell, and lines that lead the eye to it.
function cellMark(run, rows) {
  const y = rows.indexOf(state.row);
  if (y < 0 || state.column === null) return [];
  const color = palette().mark, x = state.column;
  // Where cells are tiny the frame is larger than one.
  const room = Math.max(0.5, run.heat.first.n / 200), tall = Math.max(0.5, rows.length / 100);
  return [
    { type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color, width: 0.6, dash: "dot" } },
    { type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line: { color, width: 0.6, dash: "dot" } },
    { type: "rect", x0: x - room, x1: x + room, y0: y - tall, y1: y + tall, line: { color, width: 2 } },
  ];
}

function moveMark() {
  const run = currentRun();
  if (!run.heat || !byId("heat-plot").data) return;
  Plotly.relayout("heat-plot", { shapes: cellMark(run, shownRows()) });
  tellCell();
}

function cellWords(run, id, column) {
  const place = run.order.indexOf(id) * heatSize(run)[1] + column;
  const at = (name) => run.view(run.heat[name])[place];
  const [first, last] = [run.view(run.heat.first)[column], run.view(run.heat.last)[column]];
  const when = first === last ? `step ${count(first)}` : `steps ${count(first)} to ${count(last)}`;
  if (at("mean") === 0) return `${when}: not measured`;
  const [mean, worst] = [decodeShare(at("mean")), decodeShare(at("worst"))];
  const parts = at("amax") === -32768 && at("nonfinite") ? [] : [`${percent(mean)} lost`];
  if (worst > mean * 1.01) parts.push(`${percent(worst)} at its worst step`);
  const off = at("off"), amax = at("amax"), bad = at("nonfinite");
  if (off) parts.push(`stored ${plural(Math.abs(off), "octave")} too ${off > 0 ? "low" : "high"}`);
  if (amax !== -32768) parts.push(`largest ${power(amax / 16)}`, `${percent(decodeShare(at("zero")))} exact zeros`);
  else parts.push(bad ? "nothing finite but zeros" : "all zero");
  if (bad) parts.push(`${bad === 255 ? "255 or more" : bad} not finite`);
  return `${when}: ${parts.join(", ")}`;
}

function tellCell() {
  const run = currentRun();
  if (!run.heat || state.row === null || state.column === null) return;
  byId("heat-cell").innerHTML = `<b>${escaped(run.rows[state.row].name)}</b> · ${raised(cellWords(run, state.row, state.column))}`;
}

function onHeatHover(event) {
  const run = currentRun(), point = event.points[0];
  const id = shownRows()[Math.round(point.y)];
  if (id !== undefined) showTip(event.event, `<b>${escaped(run.rows[id].name)}</b>${raised(cellWords(run, id, Math.round(point.x)))}`);
}

function onHeatClick(event) {
  const point = event.points[0];
  choose({ row: shownRows()[Math.round(point.y)], column: Math.round(point.x) });
}

const HEAT_KEYS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -1e9], End: [0, 1e9] };

function onHeatKey(event) {
  const move = HEAT_KEYS[event.key], run = currentRun();
  if (!move || !run.heat) return;
  event.preventDefault();
  const rows = shownRows();
  const clamp = (value, last) => Math.max(0, Math.min(last, value));
  const y = clamp(Math.max(0, rows.indexOf(state.row)) + move[0], rows.length - 1);
  choose({ row: rows[y], column: clamp(state.column + move[1], run.heat.first.n - 1) });
}

function startHeat() {
  const select = byId("plane");
  options(select, Object.entries(PLANES).map(([key, plane]) => [key, plane.text]), state.plane);
  select.addEventListener("change", () => choose({ plane: select.value }));
  byId("heat-plot").addEventListener("keydown", onHeatKey);
  byId("heat-plot").addEventListener("mouseleave", () => showTip(null));
  drawHeat();
  listen(["run", "kind", "search", "plane", "theme"], onceAFrame(drawHeat));
  listen(["row", "column"], onceAFrame(moveMark));
}
