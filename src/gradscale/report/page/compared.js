// Several runs with rows: the lost share of each row in each run.

function drawCompared() {
  const runs = shownRuns().filter(({ run }) => run.rows.some((row) => row.share !== null));
  byId("compared").hidden = runs.length < 2;
  if (runs.length < 2) return;
  const shares = runs.map(({ run }) => new Map(shownRows(run).map((id) => [placeOf(run.rows[id]), run.rows[id].share])));
  const places = [...new Set(shares.flatMap((one) => [...one.keys()]))];
  const names = places.map((place) => place.slice(place.indexOf(" ") + 1));
  if (!places.length) return nothing("compared-plot", "No row has such a name.");
  const shown = (share) => (share === undefined || share === null ? NaN : share === 0 ? TINY - 0.4 : Math.max(TINY, Math.log10(share)));
  const height = rowsHeight(names.length), ticks = nameTicks(names, height, labelLength());
  draw("compared-plot", [{
    type: "heatmap", z: places.map((place) => runs.map((_, i) => shown(shares[i].get(place)))), zmin: TINY - 0.4, zmax: 0, xgap: 2,
    colorscale: ramp(palette().share), hoverongaps: false,
    text: places.map((place, line) => runs.map(({ run }, i) => `${escaped(run.name)}<br>${escaped(names[line])}: ${percent(shares[i].get(place) ?? NaN)} lost`)),
    hovertemplate: "%{text}<extra></extra>", colorbar: { thickness: 12, outlinewidth: 0, ...SHARE_TICKS, tickfont: { size: 11, color: palette().quiet } },
  }], {
    height: height + 70, margin: { l: labelRoom(ticks.ticktext), r: 10, t: 8, b: 60 },
    xaxis: axis({ showgrid: false, fixedrange: true, tickvals: runs.map((_, i) => i), ticktext: runs.map(({ run }) => escaped(shortened(run.name, 24))) }),
    yaxis: axis({ showgrid: false, range: [names.length - 0.5, -0.5], ...ticks }),
  });
}

// A module, its parameter and its cast may share a name.
function placeOf(row) {
  return `${row.kind} ${row.name}`;
}

function startCompared() {
  drawCompared();
  listen(["run", "shown", "kind", "search", "theme"], onceAFrame(drawCompared));
}
