// What all figures have in common.

const CONFIG = {
  displayModeBar: false, // its buttons cannot be reached by keyboard; ours can
  responsive: true,
  showTips: false,
  doubleClick: "reset",
};

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
const drawn = new Map();

function axis(extra = {}) {
  const colors = palette();
  return {
    gridcolor: colors.grid, linecolor: colors.line, zeroline: false, ticks: "outside", ticklen: 4,
    tickcolor: colors.line, tickfont: { size: 11, color: colors.quiet },
    ...extra,
    title: { text: extra.title || "", font: { size: 12, color: colors.quiet }, standoff: 6 },
  };
}

function layoutOf(extra) {
  const colors = palette();
  return {
    paper_bgcolor: colors.paper, plot_bgcolor: colors.paper,
    font: { family: FONT, size: 12, color: colors.ink },
    margin: { l: 60, r: 12, t: 10, b: 40 },
    showlegend: false, hovermode: "closest", dragmode: "zoom", bargap: 0,
    hoverlabel: { bgcolor: colors.paper, bordercolor: colors.line, font: { color: colors.ink, size: 12, family: FONT }, align: "left" },
    ...extra,
  };
}

// Draws into an element; the element keeps its listeners from the first time.
function draw(id, traces, layout, events = {}) {
  const element = byId(id);
  const first = !element.data;
  if (first) fill(element);
  element.style.height = layout.height ? layout.height + "px" : "";
  const done = Plotly.react(element, traces, layoutOf(layout), CONFIG);
  if (first) {
    for (const [name, react] of Object.entries(events)) element.on(name, react);
  }
  drawn.set(id, true);
  return done;
}

// Tick labels for `names` at places 0, 1, …: all, or as many as fit.
function nameTicks(names, height, length, weights = names.map(() => 0)) {
  const gap = Math.max(1, Math.ceil(names.length / Math.max(1, Math.floor(height / 12)))), places = [];
  const taken = new Uint8Array(names.length + gap);
  // Where there is no room for every name, those that a reader looks for come first.
  for (const i of names.map((_, i) => i).sort((a, b) => weights[b] - weights[a] || a - b)) {
    if (taken.subarray(Math.max(0, i - gap + 1), i + gap).some((one) => one)) continue;
    taken[i] = 1;
    places.push(i);
  }
  places.sort((a, b) => a - b);
  return { tickvals: places, ticktext: places.map((i) => escaped(shortened(names[i], length))) };
}

function labelLength() {
  return innerWidth < 620 ? 20 : 34;
}

// Pictures of rows grow with them, up to a point.
function rowsHeight(number) {
  return Math.min(1000, Math.max(150, number * (number > 60 ? 12 : 16)));
}

// Enough room at the left for the longest label, in a font about 6 pixels wide.
function labelRoom(texts) {
  return Math.min(240, 18 + 6.1 * Math.max(4, ...texts.map((text) => text.length)));
}

function startSaving() {
  for (const button of document.querySelectorAll("[data-save]")) {
    button.addEventListener("click", () => {
      const id = button.dataset.save;
      if (byId(id).data) Plotly.downloadImage(id, { format: "svg", filename: `gradscale-${id.replace("-plot", "")}` });
    });
  }
}

// How wide the axes of a figure will be.
function widthBetween(id, margin) {
  return Math.max(80, (printing ? PAPER_WIDTH : byId(id).clientWidth) - margin.l - margin.r);
}

function showTip(event, html) {
  const tip = byId("tip");
  if (!html) { tip.hidden = true; return; }
  tip.innerHTML = html;
  tip.hidden = false;
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const top = event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, top) + "px";
}
