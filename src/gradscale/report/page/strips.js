// All rows as strips: how their stored values spread over the octaves, and the range of the format.

function drawStrips() {
  const run = currentRun();
  if (state.snapshot === null) return;
  const histograms = histogramsShown();
  const sight = octavesInSight(histograms, run);
  if (!sight) return nothing("strips-plot", histograms.length ? "All values were zero." : "None of the rows that are shown has a histogram at this step.");
  byId("strips-plot").setAttribute("role", "img");
  const [low, high] = sight.map(Math.round);
  const width = high - low;
  const z = histograms.map((histogram) => stripOf(run, histogram, low, width));
  const names = histograms.map((it) => run.rows[it.row].name);
  const height = rowsHeight(names.length), ticks = nameTicks(names, height, labelLength());
  const margin = { l: labelRoom(ticks.ticktext), r: 10, t: 26, b: 44 };
  const range = commonRange(run, histograms);
  byId("strips-caption").textContent = `All rows: where their values lie${range ? `, over the range of ${range.name}` : ""}`;
  const place = histograms.findIndex((it) => it.row === state.row);
  draw("strips-plot", [{
    type: "heatmap", z, x0: low + 0.5, dx: 1, zmin: -4, zmax: 0, colorscale: ramp(palette().many), hoverinfo: "none",
    colorbar: { thickness: 12, outlinewidth: 0, tickvals: [-4, -3, -2, -1, 0], ticktext: ["0.01 %", "0.1 %", "1 %", "10 %", "all"], tickfont: { size: 11, color: palette().quiet } },
  }], {
    height: height + 72, margin,
    xaxis: axis({ title: "stored magnitude", tickprefix: "2<sup>", ticksuffix: "</sup>", range: [low, high], showgrid: false, fixedrange: true }),
    yaxis: axis({ showgrid: false, range: [names.length - 0.5, -0.5], ...ticks }),
    shapes: [...(range ? stripEdges(range, low, high) : []), ...stripMark(place)],
    annotations: range ? bandLabels(range, low, high, widthBetween("strips-plot", margin) - 70) : [],
  }, { plotly_hover: onStripHover, plotly_unhover: () => showTip(null), plotly_click: (event) => choose({ row: histogramsShown()[Math.round(event.points[0].y)].row }) });
}

// The range that most rows are stored in: float32 stands apart, it holds everything here.
function commonRange(run, histograms) {
  const numbers = new Map();
  for (const { row } of histograms) {
    const range = rangeFor(run.rows[row], state.format);
    if (range && (range.name !== "fp32" || state.format)) numbers.set(range, (numbers.get(range) || 0) + 1);
  }
  return [...numbers].sort((a, b) => b[1] - a[1])[0]?.[0] ?? null;
}

function stripOf(run, histogram, low, width) {
  const strip = new Float32Array(width).fill(NaN);
  const total = histogram.sums[histogram.counts.length] + histogram.unseen;
  const start = histogram.lowest + exponentAt(run.rows[histogram.row], histogram, state.scale) - low;
  // What lies out of sight is counted at the edge, so that nothing leaves unseen.
  const sums = new Float64Array(width);
  histogram.counts.forEach((number, i) => { sums[Math.min(width - 1, Math.max(0, start + i))] += number; });
  sums.forEach((number, i) => { if (number) strip[i] = Math.max(-4, Math.log10(number / total)); });
  return strip;
}

function stripEdges(range, low, high) {
  const color = palette().mark;
  const edge = (x, dash, width) => ({ type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line: { color, width, dash } });
  return [...bandShapes(range, low, high).slice(0, 3), edge(range.flush, "solid", 1.6), edge(range.normal, "dot", 1), edge(range.top + 1, "solid", 1.6)];
}

function stripMark(place) {
  return place < 0 ? [] : [{ type: "rect", xref: "paper", x0: 0, x1: 1, y0: place - 0.5, y1: place + 0.5, line: { color: palette().mark, width: 1.4 } }];
}

function onStripHover(event) {
  const run = currentRun(), point = event.points[0];
  const histogram = histogramsShown()[Math.round(point.y)];
  if (!histogram) return;
  const octave = Math.floor(point.x), row = run.rows[histogram.row];
  const exponent = exponentAt(row, histogram, state.scale);
  const place = octave - exponent - histogram.lowest, number = histogram.counts[place] || 0;
  const how = number && place < histogram.guessed ? " (estimated)" : "";
  showTip(event.event, `<b>${escaped(row.name)}</b>${count(number)} elements${how} from ${powerHtml(octave)} to ${powerHtml(octave + 1)} as stored, ${powerHtml(octave - exponent)} in truth`);
}

function startStrips() {
  byId("strips-plot").addEventListener("mouseleave", () => showTip(null));
  drawStrips();
  listen(["run", "kind", "search", "row", "snapshot", "scale", "format", "theme"], onceAFrame(drawStrips));
}
