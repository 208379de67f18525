/* Details: the rest of the report */

function isObject(value) {
  return value !== null && typeof value === "object";
}

function described(value, name = "") {
  if (Array.isArray(value)) {
    return value.some(isObject) ? listed(value) : value.map((each) => plain(each, name)).join(", ") || "none";
  }
  if (!isObject(value)) return plain(value, name);
  const isTyped = ["layers", "scores"].includes(name); // its names are the user's: globs, names of scores
  return pairs(Object.entries(value).map(
    ([inner, each]) => [isTyped ? inner : inner.replaceAll("_", " "), described(each, inner)]));
}

function plain(value, name) {
  if (value === null) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return value;
  if (/bytes/.test(name)) return grouped(value);
  return name === "seconds" ? `${value.toFixed(2)} s` : String(Number(value.toPrecision(6)));
}

function listed(values) {
  const names = [...new Set(values.flatMap((value) => Object.keys(value)))];
  return element("div", { className: "scroll" }, table(
    names.map((name) => heading(name.replaceAll("_", " "))),
    values.map((value) => names.map((name) => element("td", {}, ...prose(described(value[name] ?? null, name))))),
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
      element("details", {}, element("summary", {}, title), element("div", {}, ...prose(described(value)))));
  }
}

function redraw() {
  if (rows.length) fitNames();
  drawPanel();
  for (const each of drawings) each();
}

drawHead();
drawGlossary();
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
