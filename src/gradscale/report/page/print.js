// On paper: light, as wide as the page, everything unfolded.

const PAPER_WIDTH = 700;

function startPrint(redraw) {
  addEventListener("beforeprint", () => {
    printing = true;
    applyTheme();
    for (const details of document.querySelectorAll("details")) details.open = true;
    document.documentElement.dataset.printing = "yes";
    redraw();
    for (const id of drawn.keys()) if (byId(id).data) Plotly.relayout(id, { width: paperWidth(id) });
  });
  addEventListener("afterprint", () => {
    printing = false;
    applyTheme();
    delete document.documentElement.dataset.printing;
    redraw();
    for (const id of drawn.keys()) if (byId(id).data) Plotly.relayout(id, { width: null, autosize: true });
  });
}

function paperWidth() {
  return PAPER_WIDTH;
}
