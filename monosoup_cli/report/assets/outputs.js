/* Head: what was done, to what, and what came out */

function written() {
  return report.outputs ?? [{ ...report.output, summary: report.summary }];
}

function drawHead() {
  const head = byId("head");
  const made = `${report.tool.name} ${report.search ? "search" : report.command}, version ${report.tool.version}`;
  head.append(element("h1", {}, title, element("small", {}, made)));
  head.append(...opening.map((paragraph) => element("p", { className: "opening" }, ...prose(paragraph))));
  if (sentences.length) {
    const items = sentences.map((text) => element("li", {}, ...prose(text)));
    head.append(element("ul", { className: "sentences" }, ...items));
  }
  const facts = report.inputs.map((input) => [ROLES[input.role] ?? input.role, input.source]);
  if (report.outputs) facts.push(["outputs", `${report.arguments.output}, a folder for each`]);
  else if (report.output) facts.push(["output", report.output.path]);
  if (report.output?.scores) {
    const shown = Object.entries(report.output.scores).map(([score, value]) => `${score} ${short(value)}`);
    facts.push([report.search ? "final scores" : "scores", shown.join(", ")]);
  }
  facts.push(...counted(written()[0].summary));
  const boxes = element("div", { className: "facts" }, pairs(facts));
  if (report.summary) boxes.append(...averages(report.summary));
  head.append(boxes);
  if (report.outputs) head.append(outputs(report.outputs));
  if (report.selection?.trials) head.append(trials(report.selection));
  if (report.search) head.append(candidates(report.search));
}

function counted(summary) {
  const edited = `${count(summary.edited, "tensor")} of ${grouped(summary.tensors)}`;
  return [
    [report.command === "inspect-spectrum" ? "layers" : "edited", `${edited}, ${parameters(summary)}`],
    kept,
    ...(summary.clamped === undefined ? [] : [["clamped", `${count(summary.clamped, "ratio")} below 0`]]),
  ];
}

function parameters({ parameters: total, parameters_edited: edited }) {
  if (total === undefined) return count(edited, "parameter");
  const share = 100 * edited / Math.max(total, 1);
  const shown = edited > 0 && edited < total ? Math.min(Math.max(share, 0.1), 99.9) : share;
  return `${grouped(edited)} of ${count(total, "parameter")} (${Number(shown.toPrecision(3))}%)`;
}

function averages(summary) {
  const known = Object.entries(summary.ranges).filter(([name, range]) => range && name in labels);
  if (!known.length) return [];
  return [element("div", {}, table(
    [heading(""), ...["mean", "min", "max"].map((text) => heading(text, "number"))],
    known.map(([name, range]) => [
      element("th", { scope: "row" }, explained(element("span", { tabIndex: 0 }, label(name)), name)),
      number(summary.means[name]), ...range.map(number),
    ]),
  ), ...beforeStep())];
}

/* A row for every output: how far it is from the base, its scores, its means and its size. */
function outputs(made) {
  const names = Object.keys(made[0].summary.means).filter((name) => name in labels && differs(
    made.map(({ summary }) => short(summary.means[name])))
    && made.some(({ summary }, at) => summary.means[name] !== reaches[at]));
  const scored = Object.keys(made[0].scores ?? {});
  const best = new Map(scored.map((name) => [name, Math.max(...made.map(({ scores }) => scores?.[name]))]));
  const isUneven = differs(made.map(({ summary }) => summary.edited));
  const top = Math.max(1, ...reaches.map((reach) => reach ?? 0));
  const place = element("span", { tabIndex: 0 }, `${reachLabel}, from base (0) to fine-tuned (1)`);
  const places = isPlaced ? [heading(explained(place, reachMeasure))] : [];
  return element("div", { className: "scroll" }, table(
    [
      heading("output"), ...places, ...scored.map((name) => heading(name, "number")),
      ...names.map((name) => heading(explained(element("span", { tabIndex: 0 }, `mean ${label(name)}`), name), "number")),
      ...(isUneven ? [heading("edited", "number")] : []), heading("size", "number"),
    ],
    made.map(({ path, scores, summary, files }, at) => [
      element("th", { scope: "row", title: path }, path.split("/").pop()),
      ...(isPlaced ? [element("td", {}, ...bar(reaches[at], top))] : []),
      ...scored.map((name) => {
        const cell = number(scores?.[name]);
        if (made.length > 1 && scores?.[name] === best.get(name)) cell.append(element("span", { className: "best" }, " best"));
        return cell;
      }),
      ...names.map((name) => number(summary.means[name])),
      ...(isUneven ? [number(summary.edited)] : []),
      element("td", { className: "number" }, bytes(files.reduce((sum, file) => sum + file.bytes, 0))),
    ]),
    { className: "outputs" },
  ), ...(names.length ? beforeStep() : []));
}

/* The trials of a greedy soup: every candidate's score alone, and with those that had joined. */
function trials({ scores: singly = [], trials: tried }) {
  const alone = new Map(singly.map(({ source, score }) => [source, score]));
  const head = [heading("candidate"), heading("alone", "number"), heading("with members", "number"), heading("")];
  return element("div", { className: "scroll" }, table(head, tried.map(({ candidate, score, joined }) => [
    element("th", { scope: "row", title: candidate }, candidate.split("/").pop()), number(alone.get(candidate)),
    number(score), element("td", { className: joined ? "best" : "" }, joined ? "joined" : "left out"),
  ]), { className: "outputs" }));
}

/* What a search tried, the best in the preferred score first. */
function candidates({ scores: names, prefer, candidates: tried, front, chosen }) {
  const sorted = tried.filter((one) => !one.same_as).sort((a, b) => b.scores[prefer] - a.scores[prefer]);
  const head = [heading("candidate"), ...names.map((name) => heading(name, "number")), heading("")];
  const body = sorted.map(({ candidate, scores }) => [
    element("th", { scope: "row" }, ...prose(candidate)), ...names.map((name) => number(scores[name])),
    element("td", { className: candidate === chosen ? "best" : "" }, [
      roles[candidate], names.length > 1 && front.includes(candidate) && "front", candidate === chosen && "chosen",
    ].filter(Boolean).join(", ")),
  ]);
  return element("details", { className: "candidates", open: body.length <= MAX_OPEN },
    element("summary", {}, `Candidates: ${grouped(body.length)} scored`),
    element("div", { className: "scroll" }, table(head, body, { className: "outputs" })));
}

function differs(values) {
  return values.some((value) => value !== values[0]);
}

function bar(share, top) {
  if (share === null) return ["–"];
  const fill = element("i");
  fill.style.width = `${Math.max(share / top, 0) * 100}%`;
  return [element("span", { className: "bar" }, fill), element("span", { className: "value" }, short(share, 3))];
}

function bytes(count) {
  const power = Math.min(Math.floor(Math.log10(Math.max(count, 1)) / 3), 4);
  return `${Number((count / 1000 ** power).toPrecision(3))} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}
