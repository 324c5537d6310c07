// Light and dark: as the system says, until the button says otherwise.

const PALETTES = {
  light: {
    paper: "#ffffff", ink: "#1b2733", quiet: "#55636f", grid: "#e3e8ed", line: "#aab4be",
    // Okabe and Ito: told apart with any color vision.
    runs: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#56b4e9", "#5b3a8c", "#4d4d4d"],
    lost: "#d55e00", subnormal: "#e6a817", kept: "#2f78b7", over: "#5b2a86",
    range: { lost: "rgba(213,94,0,.13)", subnormal: "rgba(230,168,23,.17)", over: "rgba(91,42,134,.13)" },
    share: ["#f3f5f7", "#fde3c4", "#f8b46a", "#e25b2f", "#a12240", "#42092a"],
    many: ["#f3f5f7", "#c9dcec", "#8bb8d8", "#4a8fc0", "#1f5f96", "#0a2f57"],
    off: ["#7a3b00", "#d98a3a", "#f3f5f7", "#5a9bd0", "#0b3d73"],
    missing: "#ffffff", mark: "#1b2733",
  },
  dark: {
    paper: "#11161c", ink: "#e6ebf0", quiet: "#9fadba", grid: "#26303a", line: "#556270",
    runs: ["#56b4e9", "#f28e4b", "#2fc39a", "#e3a0c6", "#f0c242", "#8fb7ff", "#b79be8", "#c4c4c4"],
    lost: "#f0803c", subnormal: "#e9bd4e", kept: "#5aa5e0", over: "#b993e6",
    range: { lost: "rgba(240,128,60,.17)", subnormal: "rgba(233,189,78,.14)", over: "rgba(185,147,230,.19)" },
    share: ["#1c252e", "#4a2433", "#8a2a43", "#cf4a36", "#f49a4b", "#fdf0bf"],
    many: ["#1c252e", "#1e3d59", "#24608c", "#3f8cc4", "#83bce6", "#e3f2fd"],
    off: ["#fcb673", "#a5642a", "#1c252e", "#2f6ea6", "#9fd0fb"],
    missing: "#11161c", mark: "#ffffff",
  },
};

const THEMES = ["auto", "light", "dark"];
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";
let printing = false;

function palette() {
  return PALETTES[document.documentElement.dataset.theme === "dark" ? "dark" : "light"];
}

function applyTheme() {
  const dark = !printing && (theme === "dark" || (theme === "auto" && systemIsDark.matches));
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" }[theme];
}

function startTheme(redraw) {
  try { theme = localStorage.getItem("gradscale-theme") || "auto"; } catch { /* a file may have no storage */ }
  if (!THEMES.includes(theme)) theme = "auto";
  byId("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try { localStorage.setItem("gradscale-theme", theme); } catch { /* then it lasts as long as the page */ }
    applyTheme();
    redraw();
  });
  systemIsDark.addEventListener("change", () => { applyTheme(); redraw(); });
  applyTheme();
}

// A color scale over 0..1 for Plotly.
function ramp(colors) {
  return colors.map((color, i) => [i / (colors.length - 1), color]);
}
