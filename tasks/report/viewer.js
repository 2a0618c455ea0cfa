// The trajectory viewer of a report: filters, a list, one trajectory. Text is set as text, never as HTML.
const rows = JSON.parse(document.getElementById("data").textContent);
const chosen = {};
const small = (value) => value !== 0 && Math.abs(value) < 0.001;
const show = (value) => (value === null || value === undefined ? "-" : small(value) ? value.toExponential(1) : value.toFixed(3));
const add = (parent, tag, text, kind) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  parent.appendChild(node);
  return node;
};
const score = (row) => Object.entries(row.scores)[0]; // name and value of the headline
const solved = (row) => (score(row)[1] >= 0.5 ? "solved" : "unsolved");
const fields = { cell: (r) => r.cell, arm: (r) => r.arm, seed: (r) => r.seed, step: (r) => r.step, split: (r) => r.split, outcome: solved };

for (const [name, value] of Object.entries(fields)) {
  const values = [...new Set(rows.map(value))].sort((a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(b)));
  if (values.length < 2) continue;
  const label = add(document.getElementById("filters"), "label", name + " ");
  const select = add(label, "select");
  for (const option of ["all", ...values]) add(select, "option", option);
  select.onchange = () => { chosen[name] = select.value; list(); };
}

function list() {
  const place = document.getElementById("list");
  place.replaceChildren();
  const kept = rows.filter((row) =>
    Object.entries(chosen).every(([name, value]) => value === "all" || String(fields[name](row)) === value));
  for (const row of kept) {
    const title = `${row.cell ? row.cell + "  " : ""}${row.arm} seed ${row.seed} ${row.split} step ${row.step}: ${score(row)[0]} ${score(row)[1].toFixed(2)}, ` +
      `${row.turns.length} turns, ${row.status}. ${row.question}`;
    const item = add(place, "div", title);
    item.onclick = () => {
      for (const other of place.children) other.className = "";
      item.className = "on";
      one(row);
    };
  }
  if (kept.length) return place.firstChild.click();
  add(place, "div", "no trajectory of this kind was kept");
  document.getElementById("one").replaceChildren();
}

function one(row) {
  const place = document.getElementById("one");
  place.replaceChildren();
  add(place, "h3", row.question);
  add(place, "p", `accepted: ${row.answers.join(" | ")}; ${Object.entries(row.scores).map(([name, value]) => `${name} ${value.toFixed(3)}`).join(", ")}; ${row.status}`);
  if (row.trace) add(place, "a", "this trajectory as an MLflow trace").href = row.trace;
  row.turns.forEach((turn, t) => {
    const kind = turn.action === "malformed" ? "turn bad" : turn.action === "answer" ? "turn answer" : "turn";
    const box = add(place, "div", undefined, kind);
    const before = turn.belief_before === null ? null : Math.exp(turn.belief_before);
    const after = turn.belief_after === null ? null : Math.exp(turn.belief_after);
    add(box, "div", `turn ${t + 1}: ${turn.action}; belief ${show(before)} to ${show(after)}; gain ${show(turn.gain)}; ` +
      `advantage ${show(turn.advantage)}`, "num");
    const bar = add(box, "span", undefined, "bar");
    bar.style.width = `${Math.round(200 * Math.min(1, after ?? before ?? 0))}px`;
    add(box, "pre", turn.text);
    if (turn.observation !== null) add(box, "pre", turn.observation);
  });
}
list();
