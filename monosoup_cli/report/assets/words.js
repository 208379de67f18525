/* Words: what they mean, in a list, and beside each where one points at it or reaches it with the keyboard */

function drawGlossary() {
  const used = Object.keys(labels).filter((name) => name in meanings && (
    rows.some((row) => typeof row[name] === "number") || name in written()[0].summary.means
    || (isPlaced && name === reachMeasure)));
  const entries = [
    ...Object.entries(words).map(([word, meaning]) => [word, word, meaning]),
    ...used.map((name) => [name, label(name), meanings[name]]),
  ];
  byId("glossary").append(element("dl", {}, ...entries.flatMap(([name, word, meaning]) => [
    element("dt", {}, ...prose(word)), element("dd", { id: `meaning-${name}` }, ...prose(meaning)),
  ])));
  const show = (event) => tell(event.target instanceof Element ? event.target.closest("[data-word]") : null);
  for (const kind of ["pointerover", "focusin"]) addEventListener(kind, show);
  for (const kind of ["focusout", "scroll"]) addEventListener(kind, () => tell(null), true);
  addEventListener("keydown", (event) => event.key === "Escape" && tell(null));
}

/* Let an element show what a word means. */
function explained(made, name) {
  if (name in meanings || name in words) {
    made.dataset.word = name;
    made.setAttribute("aria-describedby", `meaning-${name}`);
  }
  return made;
}

function tell(made) {
  const tip = byId("tip");
  tip.hidden = !made;
  if (!made) return;
  tip.replaceChildren(...prose(meanings[made.dataset.word] ?? words[made.dataset.word]));
  const { left, bottom, top } = made.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = tip;
  const room = document.documentElement.clientWidth - width - 8;
  tip.style.left = `${Math.max(Math.min(left, room), 8)}px`;
  tip.style.top = `${bottom + height + 6 < innerHeight ? bottom + 6 : top - height - 6}px`;
}
