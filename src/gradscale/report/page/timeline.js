// Scale, skipped steps, loss, largest gradient and lost share over the steps, all runs that are drawn.

const PANELS = [
  { key: "scale", title: "scale", axis: { tickprefix: "2<sup>", ticksuffix: "</sup>" }, shape: "hv", text: (v) => power(v), weight: 3 },
  { key: "skips", title: "skipped", weight: 1 },
  { key: "lost", title: "lost", axis: { type: "log" }, text: (v) => percent(v), weight: 2 },
  { key: "loss", title: "loss", axis: {}, text: (v) => plain(v, 4), weight: 2 },
  { key: "amax", title: "largest", axis: { tickprefix: "2<sup>", ticksuffix: "</sup>" }, text: (v) => power(v), weight: 2 },
];
let stretch = null; // the steps that are in sight; null for all

function wholeStretch() {
  const ends = shownRuns().filter(({ run }) => run.summary.steps).map(({ run }) => [run.summary.first_step, run.summary.last_step]);
  const low = Math.min(...ends.map((it) => it[0])), high = Math.max(...ends.map((it) => it[1]));
  const room = Math.max(0.5, (high - low) * 0.01);
  return [low - room, high + room];
}

function seriesOf(run, key) {
  const line = run.timeline;
  if (key === "lost") return [run.view(line.lost_step), run.view(line.lost)];
  return line[key] ? [run.view(line.step), run.view(line[key])] : [[], []];
}

function usedPanels() {
  return PANELS.filter(({ key }) => shownRuns().some(({ run }) =>
    key === "skips" ? run.summary.skipped : key === "lost" ? run.timeline.lost.n : run.timeline[key]));
}

function drawTimeline() {
  const runs = shownRuns();
  const panels = usedPanels();
  if (!runs.some(({ run }) => run.summary.steps)) return nothing("timeline-plot", "The recording holds no step yet.");
  const [from, to] = stretch || wholeStretch();
  const traces = [], layout = { height: 70 + panels.reduce((sum, it) => sum + (printing ? 30 : 38) * it.weight, 0), hovermode: "closest", margin: { l: 118, r: 12, t: 8, b: 42 } };
  const total = panels.reduce((sum, it) => sum + it.weight, 0);
  let top = 1;
  panels.forEach((panel, i) => {
    const name = i ? `y${i + 1}` : "y";
    const bottom = top - panel.weight / total;
    layout[`yaxis${i ? i + 1 : ""}`] = panelAxis(panel, [Math.max(0, bottom + 0.018), top], from, to);
    top = bottom;
    // The chosen run last, on top of the others, which are wider: where lines meet, both are seen.
    const below = [...runs].sort((a, b) => (a.index === state.run) - (b.index === state.run));
    for (const shown of below) traces.push(...panelTraces(panel, shown, name, from, to));
  });
  layout.xaxis = axis({ title: "step", range: [from, to], anchor: panels.length > 1 ? `y${panels.length}` : "y", tickformat: ",d", ...(to - from < 9 ? { dtick: 1 } : {}), showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "dot", spikecolor: palette().quiet });
  draw("timeline-plot", traces, layout, { plotly_relayout: onTimelineZoom });
  byId("timeline-words").innerHTML = raised(timelineWords(runs));
}

// Powers of two get whole exponents as ticks.
function powerTicks(panel, from, to) {
  let low = Infinity, high = -Infinity;
  for (const { run } of shownRuns()) {
    const { y } = thinned(...seriesOf(run, panel.key), from, to);
    for (const value of y) if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
  }
  const every = Math.max(1, Math.ceil((high - low) / 4));
  const pad = Math.max(0.6, (high - low) * 0.08);
  return low === Infinity ? {} : { dtick: every, tick0: Math.floor(low), range: [low - pad, high + pad] };
}

// Shares at decades, and zero below them; where shares hardly differ, between decades as well.
function shareTicks(from, to) {
  const [low, high] = shareEnds(from, to), decades = Math.log10(high / low);
  const every = Math.max(1, Math.round(decades / 3)), between = decades < 1 ? [1, 2, 5] : decades < 2 ? [1, 3] : [1];
  const zero = zeroPlace([low, high]), tickvals = [zero];
  for (let e = 0; e >= -12; e--) if (e % every === 0) tickvals.push(...between.map((m) => m * 10 ** e).filter((v) => v <= 1 && v >= low * 0.6));
  const room = [zero / 1.6, Math.min(1.5, high * 2)];
  return { tickvals, ticktext: tickvals.map((v, i) => (i ? percent(v) : "0 %")), range: room.map(Math.log10) };
}

// A logarithmic axis has no zero: it lies below all that is known, at a tick of its own.
function zeroPlace([low, high]) {
  return low / 10 ** Math.max(0.5, 0.25 * Math.log10(high / low));
}

// The smallest and the largest share above zero of all runs in sight.
function shareEnds(from, to) {
  let low = Infinity, high = 0;
  for (const { run } of shownRuns()) {
    for (const value of thinned(...seriesOf(run, "lost"), from, to).y) if (value > 0) { low = Math.min(low, value); high = Math.max(high, value); }
  }
  return low === Infinity ? [1e-3, 1e-2] : [low, high];
}

function panelAxis(panel, domain, from, to) {
  const ticks = panel.axis?.tickprefix ? powerTicks(panel, from, to) : panel.key === "lost" ? shareTicks(from, to) : {};
  const base = axis({ title: panel.title, domain, fixedrange: true, nticks: 4 + panel.weight, ...panel.axis, ...ticks });
  if (panel.key === "skips") {
    const reasons = [...new Set(shownRuns().flatMap(({ run }) => run.skips.reasons))];
    return { ...base, title: { text: "" }, showgrid: false, tickvals: reasons.map((_, i) => i), ticktext: reasons.map((r) => escaped(reasonText(r))), range: [reasons.length - 0.4, -0.6] };
  }
  return base;
}

function panelTraces(panel, { run, index }, yaxis, from, to) {
  const color = runColor(index), chosen = index === state.run;
  if (panel.key === "skips") return skipTraces({ run, index }, color, yaxis, from, to);
  const [steps, values] = seriesOf(run, panel.key);
  if (!steps.length) return [];
  const { x, y } = thinned(steps, values, from, to);
  const zero = panel.key === "lost" ? zeroPlace(shareEnds(from, to)) : 0;
  return [{
    type: "scatter", x, y: panel.key === "lost" ? y.map((v) => (v === 0 ? zero : v)) : y, yaxis,
    mode: panel.key === "lost" && x.length < 80 ? "lines+markers" : x.length === 1 ? "markers" : "lines",
    opacity: chosen ? 1 : 0.6, line: { color, width: chosen ? 1.5 : 3, shape: panel.shape || "linear", dash: runDash(index) }, marker: { size: 5, color },
    text: y.map((v) => panel.text(v)), name: escaped(run.name),
    hovertemplate: `step %{x:,d}: ${panel.title} %{text}<extra>${payload.runs.length > 1 ? escaped(run.name) : ""}</extra>`,
  }];
}

// Skipped steps closer than a pixel share a mark, which says how many it stands for.
function skipTraces({ run, index }, color, yaxis, from, to) {
  const runs = shownRuns(), place = runs.findIndex((it) => it.index === index);
  const aside = runs.length > 1 ? 0.5 * (place / (runs.length - 1) - 0.5) : 0;
  const reasons = [...new Set(shownRuns().flatMap((it) => it.run.skips.reasons))];
  const steps = run.view(run.skips.step), codes = run.view(run.skips.reason);
  const width = Math.max(1, (to - from) / POINTS);
  const marks = new Map();
  for (let i = firstAt(steps, from); i < steps.length && steps[i] <= to; i++) {
    const key = codes[i] + ":" + Math.floor((steps[i] - from) / width);
    const mark = marks.get(key);
    if (mark) { mark.last = steps[i]; mark.number += 1; }
    else marks.set(key, { first: steps[i], last: steps[i], number: 1, reason: run.skips.reasons[codes[i]] });
  }
  const found = [...marks.values()];
  return [{
    type: "scatter", mode: "markers", yaxis, x: found.map((it) => (it.first + it.last) / 2), y: found.map((it) => reasons.indexOf(it.reason) + aside),
    marker: { symbol: "line-ns-open", size: 11, color, line: { width: 1.6, color } }, name: escaped(run.name),
    text: found.map((it) => (it.number === 1 ? `step ${count(it.first)} skipped: ${reasonText(it.reason)}` : `${count(it.number)} steps skipped, ${count(it.first)} to ${count(it.last)}: ${reasonText(it.reason)}`)),
    hovertemplate: `%{text}<extra>${payload.runs.length > 1 ? escaped(run.name) : ""}</extra>`,
  }];
}

function onTimelineZoom(change) {
  if (change["xaxis.autorange"] || (change["xaxis.range[0]"] === undefined && !change["xaxis.range"])) {
    if (!change["xaxis.autorange"]) return;
    stretch = null;
  } else {
    stretch = change["xaxis.range"] || [change["xaxis.range[0]"], change["xaxis.range[1]"]];
  }
  drawTimeline();
}

function timelineWords(runs) {
  const sentences = runs.length > 6 ? [] : runs.filter(({ run }) => run.summary.steps).map(({ run }) => {
    const it = run.summary;
    const scale = it.log2_scale ? `the scale was ${scaleWords(it.log2_scale)}` : "no loss scale";
    return `${runs.length > 1 ? run.name + ": " : ""}${plural(it.steps, "step")}, ${count(it.skipped)} skipped, ${scale}.`;
  });
  if (runs.some(({ run }) => run.timeline.thinned)) sentences.push("Of so many steps the extremes of each stretch are kept; skipped steps all are.");
  return sentences.join(" ");
}

function startTimeline() {
  const redraw = onceAFrame(drawTimeline);
  drawTimeline();
  drawSkips();
  listen(["run", "shown", "theme"], redraw);
  listen(["run"], drawSkips);
}
