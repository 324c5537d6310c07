// Numbers for people.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

function count(value) {
  return value === null || Number.isNaN(value) ? "–" : whole.format(value);
}

// A share in percent with two significant places.
function percent(share) {
  if (share === null || share === undefined || Number.isNaN(share)) return "–";
  if (share === 0) return "0 %";
  const value = 100 * share;
  if (value >= 99.5) return share === 1 ? "100 %" : "> 99 %";
  return decimal(value) + " %";
}

// Two significant places without an exponent: a table of shares is read from top to bottom.
function decimal(value) {
  const places = Math.max(0, 1 - Math.floor(Math.log10(value)));
  return places > 12 ? "under 0.00000000001" : String(value.toFixed(Math.min(places, 12))).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

function plain(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

// The power of two that a binary logarithm stands for, as text and as HTML.
function power(log2) {
  if (log2 === null || log2 === undefined || Number.isNaN(log2)) return "–";
  if (log2 === -Infinity) return "0";
  return "2^" + trimmed(log2);
}

// Raises exponents in a text that is shown. The sign ^ stays for those who hear it, and for the clipboard.
function raised(text) {
  return escaped(text).replace(/2\^(−?\d+(?:\.\d+)?)/g, '2<sup><span class="unseen">^</span>$1</sup>');
}

function powerHtml(log2) {
  return raised(power(log2));
}

function trimmed(log2) {
  return (Number.isInteger(log2) ? String(log2) : log2.toFixed(1)).replace("-", "−");
}

function plural(number, noun, several = `${noun}s`) {
  return `${count(number)} ${number === 1 ? noun : several}`;
}

// Names come from the user's network and are shown as they are, never as markup.
function escaped(text) {
  return String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
}

// The same, with places at which a long name may go on in the next line.
function breakable(text) {
  return escaped(text).replaceAll(".", ".<wbr>");
}

// Long names lose their middle: both ends of a module path say most.
function shortened(name, length = 34) {
  if (name.length <= length) return name;
  const tail = Math.floor(length * 0.6);
  return name.slice(0, length - tail - 1) + "…" + name.slice(-tail);
}

const REASONS = {
  overflow: "overflow",
  nonfinite_gradient: "left-over gradient not finite",
  nonfinite_loss: "loss not finite",
  nonfinite_parameter: "parameter not finite",
  nonfinite_input: "input not finite",
};

function reasonText(reason) {
  return REASONS[reason] || reason;
}
