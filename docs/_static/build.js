// Builds a command line from what is chosen in the form. The choices are those of the parser (builder_page.py).
(() => {
  const data = JSON.parse(document.getElementById("build-data").textContent);
  const part = name => document.getElementById(`build-${name}`);
  const make = (tag, properties, ...inside) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...inside);
    return made;
  };
  let chosen; // {command, fields: [{parameter, input}]}

  const entry = parameter => {
    if (parameter.is_switch) return make("input", {type: "checkbox"});
    if (parameter.choices.length) {
      const none = parameter.default ? `${parameter.default} (default)` : "";
      const rest = parameter.choices.filter(value => value !== parameter.default);
      return make("select", {}, new Option(none, ""), ...rest.map(value => new Option(value)));
    }
    const properties = {placeholder: parameter.default ?? parameter.placeholder, spellcheck: false};
    return parameter.is_repeated ? make("textarea", {...properties, rows: 2}) : make("input", properties);
  };

  const field = (parameter, value) => {
    const input = entry(parameter);
    input.id = `build-of-${parameter.name}`;
    input.setAttribute("aria-describedby", `${input.id}-help`);
    if (value !== undefined) input[parameter.is_switch ? "checked" : "value"] = value;
    input.required = parameter.is_required;
    input.addEventListener("input", show);
    const name = parameter.flags.length ? parameter.flags.join(", ") : parameter.placeholder;
    const help = `${parameter.help ?? ""}${parameter.is_repeated ? " One in each line." : ""}`;
    const row = make("div", {className: "field"}, make("label", {htmlFor: input.id, textContent: name}), " ", input,
      make("p", {id: `${input.id}-help`, textContent: help.trim()}));
    part(parameter.is_required ? "needed" : "options").append(row);
    return {parameter, input};
  };

  const quoted = word => /^[\w@%+=:,.\/~-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;

  // The values of a field; of one that is needed and empty, its placeholder
  const values = ({parameter, input}) => {
    if (parameter.is_switch) return input.checked ? [""] : [];
    const lines = parameter.is_repeated ? input.value.split("\n") : [input.value];
    const found = lines.map(line => line.trim()).filter(line => line);
    return found.length || !parameter.is_required ? found.map(quoted) : [parameter.placeholder];
  };

  const words = () => chosen.fields.flatMap(one => {
    const {flags, is_switch: isSwitch, is_required: isRequired, choices} = one.parameter;
    const flag = isRequired ? flags[0] : flags.at(-1); // -o, but --quiet
    return values(one).flatMap(value => {
      if (!flags.length) return /^'?-./.test(value) ? [value.replace("-", "./-")] : [value];
      if (isSwitch) return [flag];
      if (choices.includes(flag)) return [value]; // --clamp or --no-clamp
      return /^'?-/.test(value) ? [`${flag}=${value}`] : [flag, value];
    });
  });

  function show() {
    const line = words().flatMap(word => [" ", make("span", {textContent: word})]);
    part("line").replaceChildren(`monosoup ${chosen.command}`, ...line);
    part("said").textContent = "";
  }

  function choose() {
    const job = data.jobs[part("job").value];
    const command = data.commands[job.command];
    part("needed").replaceChildren();
    part("options").replaceChildren();
    const parameters = command.parameters.map(at => data.parameters[at]);
    chosen = {command: job.command, fields: parameters.map(one => field(one, job.values[one.name]))};
    part("help").textContent = `monosoup ${job.command}: ${command.help}`;
    filter();
    show();
  }

  function filter() {
    const wanted = part("filter").value.toLowerCase();
    for (const row of part("options").children) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  }

  async function copy() {
    const line = part("line");
    try {
      await navigator.clipboard.writeText(line.textContent);
      part("said").textContent = "Copied.";
    } catch { // a browser that lets no page write there
      getSelection().selectAllChildren(line);
      part("said").textContent = "Selected: copy it with your keyboard.";
    }
  }

  part("job").append(...data.jobs.map(({job, command}, at) => new Option(`${job} (${command})`, at)));
  part("job").value = data.jobs.findIndex(({command}) => command === "edit");
  part("job").addEventListener("input", choose);
  part("filter").addEventListener("input", filter);
  part("copy").addEventListener("click", copy);
  document.getElementById("build").addEventListener("submit", event => event.preventDefault());
  choose();
})();
