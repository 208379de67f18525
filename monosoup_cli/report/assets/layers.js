"use strict";

const {
  report, title, opening, sentences, labels, meanings, words, reach: [reachLabel, reachMeasure, reaches], floor, kept, moved, before, columns, rows: entries,
  roles, charts: scores,
} = JSON.parse(byId("data").textContent);
const rows = entries.map((values, order) => ({
  order, ...Object.fromEntries(columns.map((name, at) => [name, values[at]])),
}));
/* Fields of a row that are not measures. */
const FACTS = [
  "order", "name", "parts", "shape", "dtype", "action", "reason", "index", "kind", "stack", "block", "part",
];
/* Measures that the table shows first. The first columns are in sight on any screen: names give way. */
const FIRST = [
  "lambda_high", "lambda_low", "alpha", "scale", "ratio", "cosine", "factor_rank", "factor_error", "k_ratio",
  "equivalent_alpha", "relative_update", "rho", "cos_alpha",
];
const measures = [...new Set([...FIRST, ...Object.keys(labels), ...columns])].filter(
  (name) => !FACTS.includes(name) && rows.some((row) => ["number", "boolean"].includes(typeof row[name])));
const ROLES = { base: "base", finetuned: "fine-tuned" };
const TITLES = { arguments: "Options", output: "Output", only_in_base: "Only in the base" };
const MAX_PARTS = 24;
/* How many candidates of a search are in sight at once. */
const MAX_OPEN = 12;
const SPARK = { width: 72, height: 18, points: 36 };
/* How many columns beside the name are in sight where the screen has room for the shortest names. */
const IN_SIGHT = 6;
/* Smaller ratios of a spectrum are rounding, which would squeeze the curve, or 0. */
const LEAST = 1e-6;
const isPlaced = reaches.some((reach) => reach !== null);
const collator = new Intl.Collator("en", { numeric: true });

function byId(id) {
  return document.getElementById(id);
}

/* Make an element. Strings among the children become text, never markup. */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/* The content of a paragraph or a cell: an element, or text, whose options are not broken. */
function prose(content) {
  if (typeof content !== "string") return [content];
  return content.split(/((?<![\w-])--[a-z][\w-]*)/).map(
    (part, at) => (at % 2 ? element("span", { className: "option" }, part) : part));
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/* Words and numbers */

/* What stands beside every figure that is from before the step of --wise. */
function beforeStep() {
  return before ? [element("p", { className: "note before" }, ...prose(`${before}.`))] : [];
}

function label(name) {
  return labels[name] ?? name.replaceAll("_", " ");
}

/* Format a value with a number of significant digits. */
function short(value, digits = 4) {
  if (value === null || value === undefined) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  if (size < 1e-4) return value.toExponential(digits - 1);
  return size < 1e4 ? value.toPrecision(digits) : value.toFixed(0);
}

function dimensions(shape) {
  return shape.join(" × ") || "scalar";
}

function grouped(number) {
  return number.toLocaleString("en-GB");
}

function count(number, noun) {
  return `${grouped(number)} ${noun}${number === 1 ? "" : "s"}`;
}

function pairs(entries) {
  return element("dl", {}, ...entries.flatMap(([name, value]) => [
    element("dt", {}, ...prose(name)), element("dd", {}, ...prose(value)),
  ]));
}

function table(head, body, properties = {}) {
  return element("table", properties,
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...body.map((cells) => element("tr", {}, ...cells))));
}

function heading(content, className = "") {
  return element("th", { scope: "col", className }, content);
}

function number(value) {
  return element("td", { className: "number" }, short(value));
}

/* The table of layers */

/* Columns: the text of a cell, the key to sort by, and the width in characters. */

function numeric(name, title = label(name)) {
  return {
    name, title, isNumber: true, width: Math.max(...title.split(" ").map((word) => word.length), 7),
    text: (row) => short(row[name], 3), key: (row) => row[name],
  };
}

function worded(name, title = name, text = (row) => row[name] ?? "") {
  const longest = rows.reduce((most, row) => Math.max(most, text(row).length), title.length);
  return { name, title, text, width: Math.min(longest, 48), key: (row) => row[name] };
}

/* Why a layer is not edited, and that --wise moves it nevertheless. */
function whyKept({ reason }) {
  return reason in moved ? `${reason} (${moved[reason]})` : reason ?? "";
}

function columnsOf() {
  const where = rows.some((row) => row.block !== null) ? [{ ...numeric("block"), width: 5 }] : [];
  const shape = worded("shape", "shape", (row) => dimensions(row.shape));
  const size = (row) => row.shape.reduce((product, length) => product * length, 1);
  const spectrum = { name: "spectrum", title: "spectrum", width: 8.2, draw: spark };
  return [
    worded("name"),
    ...(rows.some((row) => row.spectrum) ? [spectrum] : []),
    ...measures.map((name) => numeric(name)),
    worded("kind"),
    ...where,
    { ...shape, key: size },
    ...(rows.some((row) => row.reason) ? [worded("reason", "why kept", whyKept)] : []),
    { ...numeric("order", "#"), width: String(rows.length).length + 1, text: (row) => String(row.order + 1) },
  ];
}

let grid;
let shownColumns;
let lines = rows;
let current = null;

function drawLayers() {
  if (!rows.length) return;
  byId("layers").hidden = false;
  shownColumns = columnsOf();
  const head = element("tr", {}, ...shownColumns.map(headOf));
  grid = element("tbody");
  for (const row of rows) {
    row.line = element("tr", { tabIndex: -1, className: row.action },
      element("th", { scope: "row", title: row.name }, element("span", {}, row.name)));
    row.line.row = row;
    row.line.setAttribute("aria-selected", "false");
  }
  grid.append(...rows.map((row) => row.line));
  const made = element("table", {}, element("thead", {}, head), grid);
  const [name, ...widths] = shownColumns.map(({ width }) => width);
  // with room for the padding and the sort arrow
  const room = (...some) => `calc(${some.reduce((sum, width) => sum + width, 0)}ch + ${some.length} * var(--gap))`;
  made.style.setProperty("--longest", room(name));
  made.style.setProperty("--beside", room(...widths.slice(0, IN_SIGHT)));
  made.style.setProperty("--rest", room(...widths));
  made.style.setProperty("--columns", widths.map((width) => `minmax(${room(width)}, ${width + 2.5}fr)`).join(" "));
  made.setAttribute("role", "grid");
  made.setAttribute("aria-label", "Layers");
  byId("box").append(made);
  byId("beside").before(...beforeStep());
  fitNames();
  const kinds = [...new Set(rows.map((row) => row.kind))].sort();
  byId("kind").append(...kinds.map((kind) => element("option", {}, kind)));
  rows[0].line.tabIndex = 0;
  // fill rows only when they come near: thousands take a second, and the browser's search needs only names
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) fill(target.row);
    }
  }, { root: byId("box"), rootMargin: "600px" });
  for (const row of rows) near.observe(row.line);
  grid.addEventListener("pointermove", (event) => choose(event.target.closest("tr").row));
  grid.addEventListener("focusin", (event) => choose(event.target.closest("tr").row));
  grid.addEventListener("keydown", walk);
  byId("filters").addEventListener("input", filter);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  filter();
}

function headOf(column) {
  const made = element("th", { scope: "col", className: column.isNumber ? "number" : "" });
  if (column.name === "spectrum") {
    made.append(explained(element("span", { tabIndex: 0 }, column.title), "spectrum"));
    byId("scale").textContent = `Spectra: σ_i/σ_1 over i on a log scale, from 1 at the top down to ${floor}.`;
    return made;
  }
  const button = explained(element("button", { type: "button" }, column.title), column.name);
  button.addEventListener("click", () => sort(made, column));
  made.dataset.column = column.name;
  made.append(button);
  return made;
}

function fill(row) {
  if (row.line.children.length > 1) return;
  for (const { draw, isNumber, text } of shownColumns.slice(1)) {
    const className = isNumber ? "number" : "";
    row.line.append(element("td", { className }, ...(draw ? draw(row) : [text(row)])));
  }
}

/* Where a name is wider than its column, none has its .weight, and those that are still wider are shortened, with all
   that begin alike: their block and their end stay, as far as they fit. What is shown is drawn by the style sheet, so that searching, copying and reading aloud have the full name. */
function fitNames() {
  const first = rows[0].line.firstChild, ruler = element("span", {}, "0".repeat(50));
  delete first.dataset.short;
  first.append(ruler);
  const { paddingLeft, paddingRight } = getComputedStyle(first);
  const wide = first.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight);
  const room = Math.floor((wide * 50) / ruler.offsetWidth);
  ruler.remove();
  const isWhole = rows.every(({ name }) => name.length <= room);
  const cut = new Set(rows.filter(({ parts }) => parts.slice(0, 4).join("").length > room).map(({ parts }) => parts[0]));
  for (const { name, parts, line } of rows) {
    const text = isWhole ? name : shortened(parts, room, cut.has(parts[0]));
    if (text === name) delete line.firstChild.dataset.short;
    else line.firstChild.dataset.short = text;
  }
}

function shortened([before, block, middle, last], room, isCut) {
  const start = before && block ? `…${block}` : block, own = middle + last;
  const whole = [...(isCut && block ? [] : [before + block + own]), start + own].find((text) => text.length <= room);
  if (whole) return whole;
  const left = room - start.length - 1;
  // blocks have names that begin alike and names that end alike
  const first = Math.floor(left / 3);
  return block && left > room / 3 ? `${start}${own.slice(0, first)}…${own.slice(first - left)}` : `…${(before + own).slice(1 - room)}`;
}

function spark(row) {
  if (!row.spectrum) return [];
  const { width, height, points } = SPARK;
  const last = row.spectrum.length - 1;
  const steps = Math.max(Math.min(points - 1, last), 1);
  const line = Array.from({ length: steps + 1 }, (_, step) => {
    const ratio = row.spectrum[Math.round((step * last) / steps)];
    const depth = Math.min(Math.log(ratio) / Math.log(floor), 1);
    return `${((step * width) / steps).toFixed(1)},${(1 + depth * (height - 2)).toFixed(1)}`;
  });
  return [svg("svg", { class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    svg("polyline", { points: line.join(" ") }))];
}

function sort(head, column) {
  const descends = head.ariaSort === "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descends ? "descending" : "ascending");
  const compare = (a, b) => (typeof a === "string" ? collator.compare(a, b) : a - b);
  const isKnown = (row) => column.key(row) !== null && column.key(row) !== undefined;
  const known = rows.filter(isKnown).sort(
    (a, b) => compare(column.key(a), column.key(b)) * (descends ? -1 : 1));
  lines = [...known, ...rows.filter((row) => !isKnown(row))];
  grid.replaceChildren(...lines.map((row) => row.line));
}

/* Text with * or ? is a glob over the whole name, as in --include; other text matches any part. */
function matcher(text) {
  if (!/[*?]/.test(text)) {
    return (row) => row.name.toLowerCase().includes(text.toLowerCase()) || row.kind === text.toLowerCase();
  }
  const pattern = text.replace(/[.+^${}()|[\]\\]/g, "\\$&").replaceAll("*", ".*").replaceAll("?", ".");
  const regex = new RegExp(`^${pattern}$`, "isu");
  return (row) => regex.test(row.name);
}

function filter() {
  const matches = matcher(byId("search").value.trim());
  const kind = byId("kind").value;
  const hidesKept = byId("hide-kept").checked;
  let left = 0;
  for (const row of rows) {
    row.line.hidden = !(matches(row) && (!kind || row.kind === kind) && !(hidesKept && row.reason));
    left += !row.line.hidden;
  }
  byId("count").textContent = `showing ${grouped(left)} of ${grouped(rows.length)}`;
  const entry = grid.querySelector("tr[tabindex='0']");
  if (entry.hidden) enter(lines.find((row) => !row.line.hidden) ?? rows[0]);
}

/* Make this row the only one that the Tab key reaches. */
function enter(row) {
  grid.querySelector("tr[tabindex='0']").tabIndex = -1;
  row.line.tabIndex = 0;
}

function walk(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const open = lines.filter((row) => !row.line.hidden);
  const at = open.indexOf(event.target.closest("tr").row);
  const to = {
    ArrowDown: at + 1, j: at + 1, ArrowUp: at - 1, k: at - 1, Home: 0, End: open.length - 1,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  open[Math.min(Math.max(to, 0), open.length - 1)].line.focus();
}

/* The selected layer */

function choose(row) {
  if (row === current) return;
  current?.line.setAttribute("aria-selected", "false");
  row.line.setAttribute("aria-selected", "true");
  enter(row);
  current = row;
  drawPanel();
}

function drawPanel() {
  const panel = byId("panel");
  if (!current) return;
  panel.dataset.layer = current.name;
  panel.dataset.spectrum = (current.spectrum ?? []).join(" ");
  panel.replaceChildren(
    element("h3", {}, current.name),
    element("p", {}, [
      current.kind, dimensions(current.shape), current.dtype, current.reason && `kept: ${whyKept(current)}`,
    ].filter(Boolean).join(", ")),
  );
  if (current.spectrum) {
    const host = element("div");
    panel.append(host);
    drawSpectrum(host, current);
  }
  const known = measures.filter((name) => current[name] !== null && current[name] !== undefined);
  if (known.includes("equivalent_alpha")) panel.append(...beforeStep());
  panel.append(pairs(known.map((name) => [explained(element("span", {}, label(name)), name), short(current[name])])));
}

function drawSpectrum(host, row) {
  const { spectrum } = row;
  const rank = row.rank ?? spectrum.length;
  const last = spectrum.length - 1;
  const index = spectrum.map((_, point) => 1 + Math.round((point * (rank - 1)) / Math.max(last, 1)));
  const rounding = row.rounding_sigma && row.sigma_max ? row.rounding_sigma / row.sigma_max : null;
  const visible = spectrum.filter((value) => value > LEAST);
  // a value far below the spectrum would squeeze the curve
  const positive = rounding > Math.min(...visible) / 100 ? [...visible, rounding] : visible;
  const range = [10 ** Math.floor(Math.log10(Math.min(...positive) * 0.9)), Math.max(...positive) * 1.4];
  const margin = Math.max(rank * 0.02, 0.5);
  const marks = (plot) => {
    if (row.k) mark(plot, { x: row.k, text: `k = ${row.k}` });
    if (rounding) mark(plot, { y: rounding, text: "rounding" });
  };
  new uPlot({
    width: host.clientWidth,
    height: 260,
    cursor: { drag: { x: false, y: false } },
    scales: { x: { time: false, range: [1 - margin, rank + margin] }, y: { distr: 3, range } },
    axes: [across("i, index of the singular value", { incrs: integers }), logarithmic("σ_i / σ_1")],
    series: [
      { label: "i", value: shown },
      {
        label: "σ_i/σ_1", stroke: colour("--first"), width: 1.5, points: { show: last < 40 },
        value: shown,
      },
    ],
    hooks: { draw: [marks] },
  }, [index, spectrum.map((value) => (value > LEAST ? value : null))], host);
  if (visible.length < spectrum.length) {
    const text = `Values below ${LEAST.toExponential(0)} of the largest are left out: they are noise of the arithmetic.`;
    host.append(element("p", { className: "note" }, text));
  }
}

/* Draw a labelled dashed line across the plot, at x or at y. */
function mark(plot, { x, y, text }) {
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour("--second");
  ctx.lineWidth = ratio;
  ctx.setLineDash([5 * ratio, 4 * ratio]);
  ctx.font = `${12 * ratio}px system-ui, sans-serif`;
  ctx.beginPath();
  if (y === undefined) {
    const left = plot.valToPos(x, "x", true);
    const isRight = left > bbox.left + 0.7 * bbox.width;
    ctx.moveTo(left, bbox.top);
    ctx.lineTo(left, bbox.top + bbox.height);
    ctx.textAlign = isRight ? "right" : "left";
    ctx.fillText(text, left + (isRight ? -5 : 5) * ratio, bbox.top + 12 * ratio);
  } else {
    const top = plot.valToPos(y, "y", true);
    ctx.moveTo(bbox.left, top);
    ctx.lineTo(bbox.left + bbox.width, top);
    ctx.textAlign = "right";
    ctx.fillText(text, bbox.left + bbox.width - 5 * ratio, top - 5 * ratio);
  }
  ctx.stroke();
  ctx.restore();
}

