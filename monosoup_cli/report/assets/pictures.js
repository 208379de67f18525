/* Charts */

/* Nothing where the pointer is elsewhere, which is not a missing value. */
const shown = (plot, value, _, at) => (at === null || plot.cursor.idx === null ? "" : short(value) || "–");
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
  const caption = element("figcaption", {}, element("h3", {}, ...prose(title)));
  if (note) caption.append(element("p", { className: "note" }, ...prose(note)));
  const host = element("div");
  drawings.push(() => {
    host.replaceChildren();
    draw(host);
  });
  return element("figure", {}, caption, host);
}

/* Plot measures over depth, with the space between two of them filled. */
function overDepth(title, names, y, range, note) {
  const measured = rows.filter((row) => typeof row[names[0]] === "number");
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
      : across("layers, by depth", { incrs: integers });
    new uPlot({
      width: host.clientWidth,
      height: 260,
      scales: { x: { time: false, range: (_, min, max) => [min - 0.5, max + 0.5] }, y: { range } },
      axes: [x, axis(y, { size: 52 })],
      series: [
        { label: "layer", value: (_, x) => (x === null ? "" : named(x).name) },
        ...names.map((name, which) => {
          const stroke = colour(which ? "--second" : "--first");
          const points = { show: true, size: measured.length > 300 ? 3 : 5, fill: stroke };
          return { label: label(name), stroke, points, width: 1.2, value: shown };
        }),
      ],
      bands: names.length > 1 ? [{ series: [1, 2], fill: colour("--band") }] : [],
    }, [at, ...valuesOf], host);
  };
  return [figure(title, draw, note)];
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
      { label: "cosine", value: (_, edge) => (edge === null ? "" : `${edge} to ${next(edge)}`) },
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

/* Markers whose sizes differ: where points are the same, all show. */
const hollow = (which) => ({ show: true, size: 5 + 2 * (which % 7), width: 1.5, fill: "transparent" });

/* Draw the line from a point to a name that is further off. */
function lead(ctx, point, place) {
  ctx.save();
  ctx.strokeStyle = colour("--muted");
  ctx.lineWidth = devicePixelRatio;
  ctx.beginPath();
  ctx.moveTo(...point);
  ctx.lineTo(...place);
  ctx.stroke();
  ctx.restore();
}

/* Write the names of points on their sides. No line strikes them through: they have an edge of paper. */
function nameAll({ ctx, valToPos }, points) {
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.font = `${12 * ratio}px system-ui, sans-serif`;
  ctx.fillStyle = colour("--ink");
  ctx.strokeStyle = colour("--paper");
  ctx.lineWidth = 4 * ratio;
  ctx.lineJoin = "round";
  for (const { at, value, name, side: [right, up] } of points.filter((point) => point.name)) {
    const gap = (right && up ? 6 : 9) * ratio;
    const point = [valToPos(at, "x", true), valToPos(value, "y", true)];
    const place = [point[0] + gap * right, point[1] - gap * up];
    if (Math.max(Math.abs(right), Math.abs(up)) > 1) lead(ctx, point, place);
    ctx.textAlign = ["right", "center", "left"][Math.sign(right) + 1];
    ctx.textBaseline = ["top", "middle", "bottom"][Math.sign(up) + 1];
    ctx.strokeText(name, ...place);
    ctx.fillText(name, ...place);
  }
  ctx.restore();
}

/* Points, joined by lines or not; every point has a place of its own on the x axis. */
function chart({ title, x, y, curves, note, limits }) {
  const points = curves.flatMap((curve, which) => curve.points.map(([at, value], order) => ({ at, value, which, name: curve.names[order], side: curve.sides[order] })))
    .sort((a, b) => a.at - b.at);
  const at = points.map((point) => point.at);
  const margin = 0.04 * (at[at.length - 1] - at[0]) || 0.5;
  const draw = (host) => new uPlot({
    width: host.clientWidth,
    height: 300,
    scales: {
      x: { time: false, range: limits?.[0] ?? ((_, min, max) => [min - margin, max + margin]) },
      y: limits ? { range: limits[1] } : {},
    },
    axes: [across(x, x === "candidate" ? { incrs: integers } : {}), axis(y, { size: 62 })],
    hooks: { draw: [(plot) => nameAll(plot, points)] },
    series: [
      { label: x, value: shown },
      ...curves.map((curve, which) => {
        const stroke = `hsl(${(215 + which * 137) % 360} 65% 50%)`;
        const line = { width: curve.is_line ? 1.2 : 0, spanGaps: true };
        return { label: curve.label || y, stroke, points: hollow(which), value: shown, ...line };
      }),
    ],
  }, [at, ...curves.map((_, which) => points.map((point) => (point.which === which ? point.value : null)))], host);
  const made = figure(title, draw, note);
  made.classList.toggle("single", curves.length === 1);
  return made;
}

function drawPictures() {
  const charts = [
    ...scores.map(chart),
    ...overDepth("λ_high and λ_low over depth", ["lambda_high", "lambda_low"], "coefficient", [0, 1], before && `${before}.`),
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

