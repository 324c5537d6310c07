// The chosen row's histogram as it is stored, over what the format holds.

function bandShapes(range, low, high) {
  const colors = palette();
  const band = (x0, x1, color) => ({ type: "rect", layer: "below", yref: "paper", y0: 0, y1: 1, x0: Math.max(x0, low), x1: Math.min(x1, high), fillcolor: color, line: { width: 0 } });
  const edge = (x) => ({ type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line: { color: colors.quiet, width: 1 } });
  return [
    band(low, range.flush, colors.range.lost), band(range.flush, range.normal, colors.range.subnormal), band(range.top + 1, high, colors.range.over),
    edge(range.flush), edge(range.normal), edge(range.top + 1),
  ];
}

function bandLabels(range, low, high, width) {
  const label = (x0, x1, text) => {
    const [a, b] = [Math.max(x0, low), Math.min(x1, high)];
    return (b - a) / (high - low) * width < 7 * text.length ? null : { x: (a + b) / 2, y: 1, yref: "paper", yanchor: "bottom", showarrow: false, text, font: { size: 11, color: palette().quiet } };
  };
  const over = range.overflow === "saturate" ? "cut off" : "overflow";
  return [label(low, range.flush, "lost"), label(range.flush, range.normal, "subnormal"), label(range.normal, range.top + 1, "full precision"), label(range.top + 1, high, over)].filter(Boolean);
}

// The octaves in sight: those of the recorded scale and of the format, so that a shift is seen as one.
const FAR_BELOW = 22;

function octavesInSight(histograms, run) {
  let low = Infinity, high = -Infinity;
  for (const histogram of histograms) {
    if (!histogram.counts.length) continue;
    const exponent = exponentAt(run.rows[histogram.row], histogram, recordedScale(run, state.snapshot));
    let start = histogram.lowest + exponent, end = start + histogram.counts.length;
    const range = rangeFor(run.rows[histogram.row], state.format);
    if (range && range.top - range.flush < 100) {
      // What lies far below the format is lost wherever it lies.
      start = Math.min(Math.max(start, range.flush - FAR_BELOW), range.flush - 6);
      end = Math.max(end, range.top + 6);
    }
    low = Math.min(low, start);
    high = Math.max(high, end);
  }
  return low === Infinity ? null : [low - 1, high + 1];
}

// How many elements lie to the left of what is in sight, as stored.
function leftOf(histogram, low, exponent) {
  return between(histogram, -1e6, low - exponent);
}

function drawRow() {
  const run = currentRun();
  if (state.snapshot === null) return;
  const histogram = histogramsAt(run, state.snapshot).get(state.row);
  const row = run.rows[state.row];
  byId("row-caption").textContent = row ? row.name : "No row";
  if (!histogram || !histogram.counts.length) {
    byId("row-words").textContent = "";
    return nothing("row-plot", !row ? "This run has no rows." : !histogram ? "This row has no histogram at or before this step." : `Every element of this row was zero${histogram.unseen ? " or lost unseen" : ""}.`);
  }
  byId("row-plot").setAttribute("role", "img");
  const exponent = exponentAt(row, histogram, state.scale), range = rangeFor(row, state.format);
  const [low, high] = octavesInSight([histogram], run);
  const x = Array.from(histogram.counts, (_, i) => histogram.lowest + i + exponent + 0.5);
  const fates = x.map((at) => (!range ? "kept" : at < range.flush ? "lost" : at < range.normal ? "subnormal" : at > range.top + 1 ? "over" : "kept"));
  const colors = palette(), patterns = { lost: "/", subnormal: ".", kept: "", over: "x" };
  const words = { lost: "lost", subnormal: "subnormal", kept: "kept", over: "overflow" };
  const margin = { l: 58, r: 12, t: 26, b: 44 };
  draw("row-plot", [{
    type: "bar", x, y: Array.from(histogram.counts), width: 0.92,
    marker: {
      color: fates.map((it) => colors[it]), opacity: fates.map((_, i) => (i < histogram.guessed ? 0.45 : 1)),
      line: { width: fates.map((_, i) => (i < histogram.guessed ? 1.5 : 0)), color: fates.map((it) => colors[it]) }, pattern: { shape: fates.map((it) => patterns[it]), fgcolor: colors.paper, size: 5, solidity: 0.25 },
    },
    text: fates.map((it, i) => words[it] + (i < histogram.guessed ? ", estimated" : "")), textposition: "none", customdata: x.map((at) => at - 0.5),
    hovertemplate: "2<sup>%{customdata}</sup>: %{y:,d} elements, %{text}<extra></extra>",
  }], {
    height: 270, margin,
    xaxis: axis({ title: `stored magnitude: value × 2<sup>${trimmed(exponent)}</sup>`, tickprefix: "2<sup>", ticksuffix: "</sup>", range: [low, high], fixedrange: true, showgrid: false }),
    yaxis: axis({ title: "elements", fixedrange: true, exponentformat: "SI", rangemode: "tozero" }),
    shapes: range ? bandShapes(range, low, high) : [], annotations: range ? bandLabels(range, low, high, widthBetween("row-plot", margin)) : [],
  });
  const left = leftOf(histogram, low, exponent);
  byId("row-words").innerHTML = raised(rowWords(row, histogram, range, exponent) + (left ? ` ${count(left)} elements lie below 2^${trimmed(low)}, out of sight.` : ""));
}

function rowWords(row, histogram, range, exponent) {
  if (!range) return `The range of ${row.format} is not known here.`;
  const it = fate(histogram, range, exponent);
  const parts = [`Stored at 2^${trimmed(exponent)}, ${percent(it.lost / Math.max(1, it.nonzero))} lost (${count(it.lost)} of ${count(it.nonzero)}), ${count(it.overflowed)} overflow, ${percent(it.subnormal / Math.max(1, it.nonzero))} subnormal.`];
  if (it.touches && !it.overflowed) parts.push("The largest value overflows.");
  if (it.guessed) parts.push(`The pale bars are estimated: ${count(it.guessed)} elements were zero before anybody could count them.`);
  if (it.unseen) parts.push(`${count(it.unseen)} were lost unseen and are in none of the bars.`);
  if (histogram.step !== currentRun().snapshots[state.snapshot].step) parts.push(`Measured at step ${count(histogram.step)}.`);
  return parts.join(" ");
}

function startRow() {
  drawRow();
  listen(["run", "row", "snapshot", "scale", "format", "theme"], onceAFrame(drawRow));
}
