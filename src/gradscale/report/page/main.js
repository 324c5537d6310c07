// Unpacks what the page carries, then draws one part after the other.

let payload = null;

function redrawAll() {
  choose({ theme: {} });
}

async function loadPlotly() {
  const source = new TextDecoder().decode(await inflated("plotly"));
  document.head.append(make("script", {}, source));
  byId("plotly").remove();
}

async function start() {
  startTheme(redrawAll);
  if (typeof DecompressionStream === "undefined") throw new Error("This report needs a browser of 2023 or later.");
  payload = JSON.parse(byId("payload").textContent);
  const view = viewer(await inflated("arrays"));
  byId("arrays").remove();
  for (const run of payload.runs) run.view = view;
  performance.mark("unpacked");
  await loadPlotly();
  performance.mark("plotly");
  byId("title").textContent = payload.title;
  byId("made").textContent = `Made by gradscale ${payload.gradscale}. Drawn with plotly.js ${Plotly.version} (MIT license), which is inside this file; nothing is loaded from anywhere.`;
  Object.assign(state, startingPoint(currentRun()));
  byId("loading").remove();
  byId("report").hidden = false;
  for (const part of [startOverview, startFilter, startVerdict, startTimeline, startHeat, startScale, startRow, startStrips, startPlan, startCompared, startRows]) {
    part();
    performance.mark(part.name);
    await nextFrame();
  }
  startSaving();
  startPrint(redrawAll);
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  console.error(error);
  const place = byId("loading") || byId("report");
  place.textContent = `This report could not be shown: ${error.message}`;
});
