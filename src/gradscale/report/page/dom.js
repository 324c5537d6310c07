// Small ways to build and find elements.

const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "html") element.innerHTML = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function fill(element, ...children) {
  element.replaceChildren(...children);
}

function options(select, entries, chosen) {
  fill(select, ...entries.map(([value, text]) => make("option", { value, selected: String(value) === String(chosen) }, text)));
}

function tile(name, html, small) {
  return make("div", {}, make("dt", {}, name), make("dd", { html: html + (small ? `<small>${small}</small>` : "") }));
}

// Where a figure has nothing to show, it says why.
function nothing(id, text) {
  const element = byId(id);
  if (element.data) Plotly.purge(element);
  element.style.height = "";
  element.removeAttribute("role");
  element.removeAttribute("tabindex");
  fill(element, make("p", { class: "empty" }, text));
}

const nextFrame = () => new Promise((resolve) => setTimeout(resolve));

// Runs `work` once a frame however often it is asked for; at once while the paper waits.
function onceAFrame(work) {
  let asked = false;
  return () => {
    if (printing) { work(); return; }
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; work(); });
  };
}
