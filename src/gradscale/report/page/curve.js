// Lost and overflowing elements for every scale that the slider reaches.

function drawCurve() {
  const run = currentRun(), histograms = histogramsShown();
  const [low, high] = scaleEnds();
  const colors = palette();
  const scales = Array.from({ length: high - low + 1 }, (_, i) => low + i);
  const totals = scales.map((scale) => totalAt(run, histograms, scale, state.format));
  const share = (name) => totals.map((it) => (it.nonzero ? it[name] / it.nonzero : 0));
  const line = (name, text, color, dash) => ({
    type: "scatter", mode: "lines", x: scales, y: share(name), name: text, line: { color, width: 2.2, dash, shape: "linear" },
    text: totals.map((it) => `${percent(it.nonzero ? it[name] / it.nonzero : 0)} (${count(it[name])})`),
    hovertemplate: `2<sup>%{x}</sup>: ${text} %{text}<extra></extra>`,
  });
  draw("curve-plot", [
    line("lost", "lost", colors.lost, "solid"), line("subnormal", "subnormal", colors.subnormal, "dot"), line("overflowed", "overflow", colors.over, "dash"),
  ], {
    height: 270, margin: { l: 52, r: 12, t: 26, b: 44 }, hovermode: "x", showlegend: true,
    legend: { orientation: "h", x: 0, y: 1.13, font: { size: 11 }, bgcolor: "rgba(0,0,0,0)" },
    xaxis: axis({ title: "loss scale", tickprefix: "2<sup>", ticksuffix: "</sup>", range: [low, high], fixedrange: true }),
    yaxis: axis({ tickformat: ".0%", range: [-0.02, 1.02], fixedrange: true }),
    shapes: curveMarks(),
  }, { plotly_click: (event) => state.kind !== "activation" && choose({ scale: Math.round(event.points[0].x) }) });
}

function curveMarks() {
  const colors = palette(), recorded = recordedScale(currentRun(), state.snapshot);
  const vertical = (x, color, width, dash) => ({ type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line: { color, width, dash } });
  return [vertical(recorded, colors.quiet, 1, "dot"), vertical(state.scale, colors.mark, 2, "solid")];
}

function moveCurveMark() {
  if (byId("curve-plot").data) Plotly.relayout("curve-plot", { shapes: curveMarks() });
}
