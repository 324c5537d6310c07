// The groups of the plan on the network: which part of it is stored at which scale.

function planNow() {
  const plans = currentRun().plans;
  return plans.length ? plans[Math.min(state.plan ?? plans.length - 1, plans.length - 1)] : null;
}

// Each row's exponent under the plan; without one, what it was last stored at.
function exponentsNow() {
  const run = currentRun(), plan = planNow(), found = new Map();
  if (plan) plan.groups.forEach((group) => group.rows.forEach((row) => found.set(row, group.exponent)));
  else run.rows.forEach((row, id) => { if (row.last && row.kind !== "activation") found.set(id, row.last.exponent); });
  return found;
}

// Exponents in order get colors in order, from the same scale as magnitudes, its pale end left out.
function exponentColors(exponents) {
  const dark = document.documentElement.dataset.theme === "dark";
  const stops = dark ? ["#31688e", "#26a184", "#7ad151", "#fde725"] : ["#440154", "#31688e", "#1f9e89", "#7fb800"];
  const sorted = [...new Set(exponents)].sort((a, b) => a - b);
  return new Map(sorted.map((exponent, i) => [exponent, mixed(stops, sorted.length > 1 ? i / (sorted.length - 1) : 0.4)]));
}

function mixed(stops, at) {
  const place = at * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(place)), part = place - i;
  const rgb = (hex) => [1, 3, 5].map((j) => parseInt(hex.slice(j, j + 2), 16));
  const [a, b] = [rgb(stops[i]), rgb(stops[i + 1])];
  return `rgb(${a.map((v, j) => Math.round(v + (b[j] - v) * part)).join(",")})`;
}

function drawPlan() {
  const run = currentRun(), network = run.network, exponents = exponentsNow();
  fillPlanSteps(run);
  if (!network.names.length) return;
  const colors = exponentColors(exponents.values()), pale = palette().grid;
  const of = network.row.map((row) => exponents.get(row));
  const columns = Math.max(4, ...network.x) + 1.6, spacing = widthBetween("plan-plot", { l: 30, r: 30 }) / columns;
  const rowsHigh = Math.max(...network.y) + 1, names = planNames(network, spacing);
  byId("plan-lead").textContent = planLead(run);
  draw("plan-plot", [...edgeTraces(network, of), {
    type: "scatter", mode: "markers", x: network.x, y: network.y,
    marker: { size: Math.min(15, Math.max(4, 0.6 * spacing)), symbol: of.map((e) => (e === undefined ? "circle-open" : "square")), color: of.map((e) => (e === undefined ? palette().quiet : colors.get(e))), line: { width: network.row.map((row) => (row >= 0 && row === state.row ? 3 : 0.8)), color: palette().mark } },
    customdata: network.names.map((name, i) => [escaped(name), of[i] === undefined ? "not measured" : `stored at 2<sup>${trimmed(of[i])}</sup>`]),
    hovertemplate: "%{customdata[0]}<br>%{customdata[1]}<extra></extra>", cliponaxis: false,
  }], {
    height: Math.min(1400, 60 + (34 + names.room) * rowsHigh), margin: { l: 30, r: 30, t: 24, b: 14 + names.room },
    xaxis: { visible: false, range: [-0.8, Math.max(4, ...network.x) + 0.8], fixedrange: true }, yaxis: { visible: false, range: [rowsHigh, -0.9], fixedrange: true },
    annotations: [{ x: network.x[0], y: network.y[0], text: "loss", showarrow: false, yshift: 18, font: { size: 11, color: palette().quiet } }, ...names.labels],
  }, { plotly_click: (event) => onPlanClick(event) });
  tellGroups(exponents, colors, pale);
}

// Names hang below their nodes: level where a column is wide enough for them, else turned. Where
// neither fits they are left out, and read by pointing at a node.
function planNames(network, spacing) {
  const longest = Math.min(26, Math.max(...network.names.map((name) => name.length)));
  const level = spacing > 6.2 * Math.min(18, longest), turned = spacing >= 11;
  if (!level && !turned) return { room: 0, labels: [] };
  const room = level ? 16 : 6 + Math.round(5.6 * longest);
  const labels = network.names.map((name, i) => ({
    x: network.x[i], y: network.y[i], text: escaped(shortened(name, level ? 18 : 26)), showarrow: false, textangle: level ? 0 : -90,
    yanchor: "top", yshift: -9, xanchor: "center", font: { size: 10, color: palette().quiet },
  }));
  return { room, labels };
}

// Edges within a group in gray; where ends differ, in ink: there a multiplication happens.
function edgeTraces(network, of) {
  const within = { x: [], y: [] }, across = { x: [], y: [] };
  for (const [u, v] of network.edges) {
    // What continues in the next band of the drawing is not drawn across it.
    if (Math.abs(network.y[u] - network.y[v]) > 1 && network.x[v] < network.x[u]) continue;
    const to = of[u] !== undefined && of[v] !== undefined && of[u] !== of[v] ? across : within;
    const { x, y } = wayBetween(network, u, v);
    to.x.push(...x, null);
    to.y.push(...y, null);
  }
  const trace = (part, color, width) => ({ type: "scatter", mode: "lines", ...part, line: { color, width }, hoverinfo: "skip" });
  return [trace(within, palette().line, 1), trace(across, palette().lost, 2.5)];
}

// A straight line to the next column; an arc over what lies between.
function wayBetween(network, u, v) {
  const [x0, y0, x1, y1] = [network.x[u], network.y[u], network.x[v], network.y[v]];
  const span = Math.abs(x1 - x0);
  if (span <= 1) return { x: [x0, x1], y: [y0, y1] };
  const height = Math.min(0.85, 0.3 + 0.06 * span), parts = 10;
  const at = Array.from({ length: parts + 1 }, (_, i) => i / parts);
  return { x: at.map((t) => x0 + (x1 - x0) * t), y: at.map((t) => y0 + (y1 - y0) * t - 4 * height * t * (1 - t)) };
}

function onPlanClick(event) {
  const row = currentRun().network.row[event.points[0].pointIndex];
  if (row >= 0) choose({ row });
}

function planLead(run) {
  const plan = planNow();
  const where = run.network.known ? "From the loss, as the backward pass runs." : "The recording has no network; its rows stand in the order of the backward pass, from the loss.";
  if (!plan) return `${where} No plan was recorded: colors show what each row was last stored at.`;
  const groups = plan.groups.length;
  return `${where} ${groups === 1 ? "One loss scale serves the whole network." : `${count(groups)} groups have a scale of their own; a multiplication happens on the thick edges between them.`}`;
}

function fillPlanSteps(run) {
  byId("plan-pick").hidden = run.plans.length < 2;
  options(byId("plan-step"), run.plans.map((plan, i) => [i, `${count(plan.step)} (${plural(plan.groups.length, "group")})`]), Math.min(state.plan ?? 1e9, run.plans.length - 1));
}

function tellGroups(exponents, colors) {
  const sizes = new Map();
  for (const exponent of exponents.values()) sizes.set(exponent, (sizes.get(exponent) || 0) + 1);
  const sorted = [...sizes].sort((a, b) => b[0] - a[0]);
  fill(byId("plan-words"), ...sorted.slice(0, 24).map(([exponent, rows]) => make("li", {},
    make("span", { class: "swatch", style: `background:${colors.get(exponent)}`, "aria-hidden": "true" }), make("span", { html: `${powerHtml(exponent)}: ${plural(rows, "row")}` }))),
    ...(sorted.length > 24 ? [make("li", {}, `and ${sorted.length - 24} more`)] : []));
}

function startPlan() {
  byId("plan-step").addEventListener("change", (event) => choose({ plan: Number(event.target.value) }));
  drawPlan();
  listen(["run", "theme", "row", "plan"], onceAFrame(drawPlan));
}
