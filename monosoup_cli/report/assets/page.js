"use strict";

const { report, sentences, labels, columns, rows: entries } = JSON.parse(byId("data").textContent);
const rows = entries.map((values, order) => ({
  order, ...Object.fromEntries(columns.map((name, at) => [name, values[at]])),
}));
/* Fields of a row that are not measures. */
const FACTS = [
  "order", "name", "shape", "dtype", "action", "reason", "index", "kind", "stack", "block", "part",
];
/* Measures that the table shows first. */
const FIRST = ["k_ratio", "rho", "cos_alpha", "lambda_high", "lambda_low"];
const measures = [...new Set([...FIRST, ...Object.keys(labels), ...columns])].filter(
  (name) => !FACTS.includes(name) && rows.some((row) => ["number", "boolean"].includes(typeof row[name])));
const ROLES = { base: "base", finetuned: "fine-tuned" };
const TITLES = { arguments: "Options", output: "Output", only_in_base: "Only in the base" };
const MAX_PARTS = 24;
const SPARK = { width: 72, height: 18, points: 36, decades: 4 };
/* Smaller ratios of a spectrum count as 0, which a logarithmic scale cannot show. */
const LEAST = 1e-18;
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

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/* Words and numbers */

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
    element("dt", {}, name), element("dd", {}, value),
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

/* Head: the command, its inputs, and the summary */

function drawHead() {
  const head = byId("head");
  document.title = `${report.tool.name} ${report.command}`;
  head.append(element("h1", {}, document.title, element("small", {}, `version ${report.tool.version}`)));
  if (sentences.length) {
    const items = sentences.map((text) => element("li", {}, text));
    head.append(element("ul", { className: "sentences" }, ...items));
  }
  const facts = report.inputs.map((input) => [ROLES[input.role] ?? input.role, input.source]);
  const written = report.outputs ?? (report.output ? [report.output] : []);
  if (!report.outputs) facts.push(...written.map((output) => ["output", output.path]));
  if (report.summary) facts.push(...counted(report.summary));
  const boxes = element("div", { className: "facts" }, pairs(facts));
  if (report.summary) boxes.append(...averages(report.summary));
  if (report.outputs) boxes.append(outputs(report.outputs));
  head.append(boxes);
}

function counted(summary) {
  const kept = Object.entries(summary.kept).map(([reason, times]) => `${reason} ${grouped(times)}`);
  const edited = `${count(summary.edited, "tensor")} of ${grouped(summary.tensors)}`;
  return [
    [report.command === "inspect-spectrum" ? "layers" : "edited", `${edited}, ${count(summary.parameters_edited, "parameter")}`],
    [report.command === "inspect-spectrum" ? "others" : "kept", kept.join(", ") || "none"],
    ...(summary.clamped === undefined ? [] : [["clamped", `${count(summary.clamped, "ratio")} below 0`]]),
  ];
}

function averages(summary) {
  const known = Object.entries(summary.ranges).filter(([, range]) => range);
  if (!known.length) return [];
  return [table(
    [heading(""), ...["mean", "min", "max"].map((text) => heading(text, "number"))],
    known.map(([name, range]) => [
      element("th", { scope: "row" }, label(name)), number(summary.means[name]), ...range.map(number),
    ]),
  )];
}

function outputs(written) {
  const names = Object.keys(written[0].summary.means);
  return element("div", { className: "scroll" }, table(
    [
      heading("output"), heading("edited", "number"),
      ...names.map((name) => heading(`mean ${label(name)}`, "number")),
    ],
    written.map(({ path, summary }) => [
      element("th", { scope: "row" }, path), number(summary.edited),
      ...names.map((name) => number(summary.means[name])),
    ]),
  ));
}

/* The table of layers */

/* Columns: the text of a cell, the key to sort by, and the width in characters. */

function numeric(name, title = label(name)) {
  return {
    name, title, isNumber: true, width: Math.max(title.length, 7), text: (row) => short(row[name], 3),
    key: (row) => row[name],
  };
}

function worded(name, title = name, text = (row) => row[name] ?? "") {
  const longest = rows.reduce((most, row) => Math.max(most, text(row).length), title.length);
  return { name, title, text, width: Math.min(longest, 48), key: (row) => row[name] };
}

function columnsOf() {
  const where = rows.some((row) => row.block !== null) ? [{ ...numeric("block"), width: 5 }] : [];
  const shape = worded("shape", "shape", (row) => dimensions(row.shape));
  const size = (row) => row.shape.reduce((product, length) => product * length, 1);
  const spectrum = { name: "spectrum", title: "spectrum", width: 9, draw: spark };
  return [
    worded("name"),
    ...(rows.some((row) => row.spectrum) ? [spectrum] : []),
    ...measures.map((name) => numeric(name)),
    worded("kind"),
    ...where,
    { ...shape, key: size },
    ...(rows.some((row) => row.reason) ? [worded("reason", "why kept")] : []),
    { ...numeric("order", "#"), width: 4, text: (row) => String(row.order + 1) },
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
      element("th", { scope: "row", title: row.name }, row.name));
    row.line.row = row;
    row.line.setAttribute("aria-selected", "false");
  }
  grid.append(...rows.map((row) => row.line));
  const made = element("table", {}, element("thead", {}, head), grid);
  // room for the padding and the sort arrow
  const widths = shownColumns.map(({ width }) => width + 2.5);
  made.style.setProperty("--columns", widths.map((width) => `minmax(${width}ch, ${width}fr)`).join(" "));
  made.style.setProperty("--width", `${widths.reduce((sum, width) => sum + width, 0)}ch`);
  made.setAttribute("role", "grid");
  made.setAttribute("aria-label", "Layers");
  byId("box").append(made);
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
  if (column.draw) {
    const title = `σ_i/σ_1 over i, from 1 down to 1e-${SPARK.decades}`;
    made.append(element("span", { title }, column.title));
    return made;
  }
  const button = element("button", { type: "button" }, column.title);
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

function spark(row) {
  if (!row.spectrum) return [];
  const { width, height, points, decades } = SPARK;
  const last = row.spectrum.length - 1;
  const steps = Math.max(Math.min(points - 1, last), 1);
  const line = Array.from({ length: steps + 1 }, (_, step) => {
    const ratio = row.spectrum[Math.round((step * last) / steps)];
    const depth = Math.min(-Math.log10(ratio) / decades, 1);
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
      current.kind, dimensions(current.shape), current.dtype, current.reason && `kept: ${current.reason}`,
    ].filter(Boolean).join(", ")),
  );
  if (current.spectrum) {
    const host = element("div");
    panel.append(host);
    drawSpectrum(host, current);
  }
  const known = measures.filter((name) => current[name] !== null && current[name] !== undefined);
  panel.append(pairs(known.map((name) => [label(name), short(current[name])])));
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
      { label: "i" },
      {
        label: "σ_i/σ_1", stroke: colour("--first"), width: 1.5, points: { show: last < 40 },
        value: known,
      },
    ],
    hooks: { draw: [marks] },
  }, [index, spectrum.map((value) => (value > LEAST ? value : null))], host);
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

/* Charts */

const known = (_, value) => short(value) || "–";
const FONT = "12px system-ui, sans-serif";
const integers = Array.from({ length: 9 }, (_, power) => [1, 2, 5].map((step) => step * 10 ** power)).flat();
const drawings = [];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function axis(text, more = {}) {
  const line = { stroke: colour("--line"), width: 1 };
  return {
    label: text, labelSize: 20, labelGap: 2, stroke: colour("--muted"), font: FONT, labelFont: FONT,
    grid: line, ticks: { ...line, size: 4 }, ...more,
  };
}

function across(text, more) {
  return axis(text, { size: 28, ...more });
}

function logarithmic(text) {
  const isPower = (value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-6;
  const made = axis(text, {
    size: 58,
    values: (_, splits) => splits.map(
      (value) => (value === null ? "" : value >= 0.01 ? String(value) : value.toExponential(0))),
  });
  made.grid = { ...made.grid, filter: (_, splits) => splits.map((value) => (isPower(value) ? value : null)) };
  return made;
}

/* Make a figure that is redrawn when the width or the colours change. */
function figure(title, draw, note = "") {
  const caption = element("figcaption", {}, element("h3", {}, title));
  if (note) caption.append(element("p", { className: "note" }, note));
  const host = element("div");
  drawings.push(() => {
    host.replaceChildren();
    draw(host);
  });
  return element("figure", {}, caption, host);
}

/* Sort by depth: embeddings before the blocks, other layers outside blocks after them. */
function inDepth(measured) {
  const stacks = [...new Set(measured.map((row) => row.stack))].filter((stack) => stack !== null);
  const outside = (row) => (row.kind === "embedding" ? -1 : stacks.length);
  const group = (row) => (row.stack === null ? outside(row) : stacks.indexOf(row.stack));
  return [...measured].sort((a, b) => group(a) - group(b) || a.block - b.block || a.order - b.order);
}

/* Plot measures over depth, with the space between two of them filled. */
function overDepth(title, names, y, range) {
  const measured = inDepth(rows.filter((row) => typeof row[names[0]] === "number"));
  if (measured.length < 2) return [];
  const isStart = measured.map((row, x) => x === 0 || row.block === null
    || row.block !== measured[x - 1].block || row.stack !== measured[x - 1].stack);
  // with one layer per block, the line runs from block to block
  const isOneEach = !isStart.includes(false);
  const isBreak = (row, x) => x > 0 && isStart[x]
    && !(isOneEach && row.block !== null && row.stack === measured[x - 1].stack);
  const at = [], valuesOf = names.map(() => []);
  measured.forEach((row, x) => {
    if (isBreak(row, x)) {
      at.push(x - 0.5);
      valuesOf.forEach((values) => values.push(null));
    }
    at.push(x);
    names.forEach((name, which) => valuesOf[which].push(row[name]));
  });
  const stacks = [...new Set(measured.map((row) => row.stack))].filter((stack) => stack !== null);
  const starts = measured.map((row, x) => x).filter((x) => isStart[x] && measured[x].block !== null);
  const named = (x) => measured[Math.round(x)];
  const draw = (host) => {
    const step = Math.max(1, Math.ceil((starts.length * 30) / Math.max(host.clientWidth - 70, 1)));
    const ticks = starts.filter((x) => named(x).block % step === 0);
    const x = stacks.length
      ? across(`block${stacks.some(Boolean) ? ` of ${stacks.filter(Boolean).join(", then ")}` : ""}`, {
        splits: (_, __, min, max) => ticks.filter((x) => x >= min && x <= max),
        values: (_, splits) => splits.map((x) => named(x).block),
      })
      : across("layers, in the order of the report", { incrs: integers });
    new uPlot({
      width: host.clientWidth,
      height: 260,
      scales: { x: { time: false, range: (_, min, max) => [min - 0.5, max + 0.5] }, y: { range } },
      axes: [x, axis(y, { size: 52 })],
      series: [
        { label: "layer", value: (_, x) => (x === null ? "–" : named(x).name) },
        ...names.map((name, which) => {
          const stroke = colour(which ? "--second" : "--first");
          const points = { show: true, size: measured.length > 300 ? 3 : 5, fill: stroke };
          return { label: label(name), stroke, points, width: 1.2, value: known };
        }),
      ],
      bands: names.length > 1 ? [{ series: [1, 2], fill: colour("--band") }] : [],
    }, [at, ...valuesOf], host);
  };
  return [figure(title, draw)];
}

function histogram() {
  const pairwise = rows.some((row) => row.cosines);
  const cosines = rows.flatMap((row) => (pairwise ? row.cosines : row.cosine) ?? []).filter((value) => value !== null);
  if (cosines.length < 2) return [];
  // count in twentieths, because 0.05 has no exact double
  const counts = Array(40).fill(0);
  for (const value of cosines) counts[Math.min(Math.floor(value * 20 + 20 + 1e-9), 39)] += 1;
  const isFilled = (times) => times > 0;
  const first = counts.findIndex(isFilled) - 20, last = counts.findLastIndex(isFilled) - 20;
  const times = counts.slice(first + 20, last + 21);
  const edges = times.map((_, at) => (first + at) / 20);
  const next = (edge) => Math.round(edge * 20 + 1) / 20;
  const draw = (host) => new uPlot({
    width: host.clientWidth,
    height: 260,
    cursor: { drag: { x: false, y: false } },
    scales: {
      x: { time: false, range: [(first - 0.5) / 20, (last + 1.5) / 20] },
      y: { range: (_, min, max) => [0, max * 1.05] },
    },
    axes: [
      across("cosine, in steps of 0.05"),
      axis(pairwise ? "layers × pairs" : "layers", { incrs: integers, size: 52 }),
    ],
    series: [
      { label: "cosine", value: (_, edge) => (edge === null ? "–" : `${edge} to ${next(edge)}`) },
      {
        label: "count", stroke: colour("--first"), fill: colour("--band"), points: { show: false },
        paths: uPlot.paths.bars({ size: [1], align: 1, gap: 1 }),
      },
    ],
  }, [edges, times], host);
  return [figure("Cosines of the updates of two checkpoints", draw)];
}

/* Maps: tables whose cells are darker (lighter in dark mode) for larger values */

/* Return a function from 0…1 to the colours of a cell; its text is black or white, whichever is more legible. */
function ramp() {
  const parse = (name) => colour(name).match(/\w\w/g).map((part) => parseInt(part, 16));
  const pale = parse("--pale"), deep = parse("--deep");
  return (share) => {
    const mixed = pale.map((from, at) => Math.round(from + share * (deep[at] - from)));
    const [red, green, blue] = mixed.map((part) => (
      part <= 10 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    const luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    return { background: `rgb(${mixed.join()})`, color: luminance > 0.179 ? "#000" : "#fff" };
  };
}

function cell(text, title, style) {
  const made = element("td", { title }, text);
  Object.assign(made.style, style);
  return made;
}

function key(colours, low, high) {
  const steps = [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const step = element("i");
    step.style.background = colours(share).background;
    return step;
  });
  const bar = element("span", { className: "ramp" }, ...steps);
  return element("p", { className: "note" }, short(low), bar, short(high));
}

function map(head, body, more = "") {
  return element("div", { className: "scroll" }, table(head, body, { className: `map ${more}` }));
}

function rankMaps() {
  const measured = rows.filter((row) => row.k_ratio !== null && row.stack !== null);
  const stacks = [...new Set(measured.map((row) => row.stack))];
  return stacks.map((stack) => {
    const inside = measured.filter((row) => row.stack === stack);
    const by = new Set(inside.map((row) => row.part)).size > MAX_PARTS ? "kind" : "part";
    return figure(`k/r in ${stack || "the blocks"}`, (host) => host.append(...rankMap(inside, by)),
      `The share of directions on the high side, by block (down) and ${by} (across).`);
  });
}

function rankMap(inside, by) {
  const columns = [...new Set(inside.map((row) => row[by]))];
  const blocks = [...new Set(inside.map((row) => row.block))].sort((a, b) => a - b);
  const groups = new Map();
  for (const row of inside) {
    const place = `${row.block} ${row[by]}`;
    if (!groups.has(place)) groups.set(place, []);
    groups.get(place).push(row.k_ratio);
  }
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const means = new Map([...groups].map(([place, values]) => [place, mean(values)]));
  const colours = ramp();
  const body = blocks.map((block) => [
    element("th", { scope: "row" }, String(block)),
    ...columns.map((name) => {
      const place = `${block} ${name}`;
      if (!groups.has(place)) return element("td");
      const value = means.get(place), times = groups.get(place).length;
      const title = `block ${block}, ${name}: k/r ${short(value)}${times > 1 ? `, mean of ${times}` : ""}`;
      return cell(value.toFixed(2), title, colours(value));
    }),
  ]);
  const head = [heading("block"), ...columns.map((name) => heading(element("span", {}, name)))];
  return [key(colours, 0, 1), map(head, body)];
}

function similarityMap() {
  const choice = report.similarity ?? report.selection;
  if (!choice?.similarity) return [];
  const { candidates, similarity, layers } = choice;
  const draw = (host) => {
    const colours = ramp();
    const body = similarity.map((line, row) => [
      element("th", { scope: "row" }, `${row + 1}  ${candidates[row]}`),
      ...line.map((value, column) => cell(
        value.toFixed(3), `${candidates[row]}, ${candidates[column]}: ${short(value)}`,
        colours(Math.min(Math.max(value, 0), 1)))),
    ]);
    const head = [heading(""), ...candidates.map((_, at) => heading(String(at + 1)))];
    host.append(key(colours, 0, 1), map(head, body, "listed"));
  };
  const note = `Cosine, mean of ${count(layers, "layer")}; values up to 0 have one colour.`;
  return [figure("How alike the updates of the checkpoints are", draw, note)];
}

function drawPictures() {
  const charts = [
    ...overDepth("λ_high and λ_low over depth", ["lambda_high", "lambda_low"], "coefficient", [0, 1]),
    ...overDepth("Ratio over depth", ["ratio"], "ratio, from base (0) to mean (1)"),
    ...overDepth("Scale over depth", ["scale"], "factor of the update"),
    ...histogram(),
  ];
  const maps = [...rankMaps(), ...similarityMap()];
  if (!charts.length && !maps.length) return;
  const section = byId("pictures");
  section.hidden = false;
  section.append(
    element("div", { className: "charts" }, ...charts), element("div", { className: "maps" }, ...maps));
  for (const each of drawings) each();
}

/* Details: the rest of the report */

function isObject(value) {
  return value !== null && typeof value === "object";
}

function described(value, name = "") {
  if (Array.isArray(value)) {
    return value.some(isObject) ? listed(value) : value.map((each) => plain(each, name)).join(", ") || "none";
  }
  if (!isObject(value)) return plain(value, name);
  return pairs(Object.entries(value).map(
    ([inner, each]) => [inner.replaceAll("_", " "), described(each, inner)]));
}

function plain(value, name) {
  if (value === null) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return value;
  if (/bytes/.test(name)) return grouped(value);
  return name === "seconds" ? `${value.toFixed(2)} s` : String(value);
}

function listed(values) {
  const names = [...new Set(values.flatMap((value) => Object.keys(value)))];
  return element("div", { className: "scroll" }, table(
    names.map((name) => heading(name.replaceAll("_", " "))),
    values.map((value) => names.map((name) => element("td", {}, described(value[name] ?? null, name)))),
  ));
}

function drawDetails() {
  const { schema_version, tool, command, summary, similarity, selection, verdict, ...rest } = report;
  if (selection) {
    const { similarity: matrix, ...choices } = selection;
    rest.selection = choices;
  }
  if (rest.outputs) rest.outputs = rest.outputs.map(({ path, files }) => ({ path, files }));
  if (similarity) Object.assign(rest, { stock: similarity.stock, thresholds: similarity.thresholds });
  for (const [name, value] of Object.entries(rest)) {
    if (!isObject(value) || !Object.keys(value).length) continue;
    const title = TITLES[name] ?? name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");
    byId("details").append(
      element("details", {}, element("summary", {}, title), element("div", {}, described(value))));
  }
}

function redraw() {
  drawPanel();
  for (const each of drawings) each();
}

drawHead();
drawLayers();
drawDetails();
if (rows.some((row) => row.spectrum)) choose(rows.find((row) => row.spectrum));
else for (const id of ["panel", "keys"]) byId(id).hidden = true;
// show the table before the pictures are drawn
setTimeout(drawPictures);
addEventListener("resize", () => requestAnimationFrame(redraw));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
matchMedia("print").addEventListener("change", () => {
  rows.forEach(fill);
  redraw();
});
