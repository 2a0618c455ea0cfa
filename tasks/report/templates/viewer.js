// The script of a report: addresses that can be copied where links are dead, what scrolls, and the trajectory viewer. Text is set
// as text, never as HTML.
const add = (parent, tag, text, kind) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  parent.appendChild(node);
  return node;
};

// MLflow shows the page in a frame without an origin, in which a link would load MLflow inside the frame
const framed = window !== window.top;
if (framed) {
  for (const link of document.querySelectorAll("a")) link.replaceWith(`${link.textContent}: ${link.href}`);
}

// what is wider than its place says that it scrolls
for (const box of document.querySelectorAll(".scroll")) {
  const mark = () => box.classList.toggle("wide", box.scrollWidth > box.clientWidth + 1);
  new ResizeObserver(mark).observe(box);
}

const data = document.getElementById("data");
const { rows, units } = data ? JSON.parse(data.textContent) : { rows: [], units: {} };
const chosen = {};
let shown = [], place = 0, second = "";

const small = (value) => value !== 0 && Math.abs(value) < 0.001;
const show = (value) => (value === null || value === undefined ? "-" : small(value) ? value.toExponential(1) : value.toFixed(3));
const score = (row) => Object.entries(row.scores)[0]; // name and value of the headline
const solved = (row) => (score(row)[1] >= 0.5 ? "solved" : "unsolved");
const fields = { cell: (r) => r.cell, arm: (r) => r.arm, seed: (r) => r.seed, step: (r) => r.step, split: (r) => r.split, outcome: solved };
const order = (a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(b));
const who = (row) => `${row.cell ? row.cell + "  " : ""}${row.arm} seed ${row.seed} ${row.split} step ${row.step}`;

function filters() {
  for (const [name, value] of Object.entries(fields)) {
    const values = [...new Set(rows.map(value))].sort(order);
    if (values.length < 2) continue;
    const label = add(document.getElementById("filters"), "label", name + " ");
    const select = add(label, "select");
    for (const option of ["all", ...values]) add(select, "option", option);
    select.value = chosen[name] ?? "all";
    select.onchange = () => { chosen[name] = select.value; place = 0; remember(); list(); };
  }
}

// the address of what is shown, to be sent to others
function remember() {
  if (framed) return;
  const kept = Object.entries(chosen).filter(([, value]) => value !== "all");
  location.replace("#" + new URLSearchParams([...kept, ["at", place]]).toString());
}

function recall() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (name === "at") place = Math.max(0, Math.floor(Number(value)) || 0);
    else if (name in fields) chosen[name] = value;
  }
}

function list() {
  const box = document.getElementById("list");
  box.replaceChildren();
  shown = rows.filter((row) =>
    Object.entries(chosen).every(([name, value]) => value === "all" || String(fields[name](row)) === value));
  document.getElementById("count").textContent = `${shown.length} of ${rows.length}`;
  shown.forEach((row, number) => {
    const [name, value] = score(row);
    const item = add(box, "div", `${row.question}  ${who(row)}: ${name} ${value.toFixed(2)}, ${row.turns.length} turns, ${row.status}`);
    item.onclick = () => { open(number); remember(); };
  });
  if (shown.length) return open(Math.min(place, shown.length - 1));
  add(box, "div", "no trajectory of this kind was kept");
  for (const id of ["one", "other", "beside"]) document.getElementById(id).replaceChildren();
}

function open(number) {
  const box = document.getElementById("list");
  place = number;
  [...box.children].forEach((item, n) => { item.className = n === number ? "on" : ""; });
  const item = box.children[number], top = item.offsetTop - box.offsetTop; // within the list: the page stays where it is
  box.scrollTop = Math.min(Math.max(box.scrollTop, top + item.offsetHeight - box.clientHeight), top);
  one(document.getElementById("one"), shown[number]);
  beside(shown[number]);
}

// the others on the same question, of other arms first
function beside(row) {
  const bar = document.getElementById("beside");
  bar.replaceChildren();
  const same = rows.filter((other) => other !== row && other.question_id === row.question_id && other.split === row.split);
  same.sort((a, b) => (a.arm === row.arm) - (b.arm === row.arm) || Math.abs(a.step - row.step) - Math.abs(b.step - row.step));
  const select = add(add(bar, "label", "beside it, on the same question: "), "select");
  const number = (other) => rows.filter((one) => who(one) === who(other) && one.question_id === other.question_id).indexOf(other) + 1;
  ["nothing", ...same.map((other) => `${who(other)} rollout ${number(other)}`)].forEach((text, n) => {
    add(select, "option", text).value = n;
  });
  const draw = () => {
    const pane = document.getElementById("other"), n = Number(select.value) - 1;
    pane.replaceChildren();
    document.getElementById("panes").className = n < 0 ? "" : "two";
    second = n < 0 ? "" : same[n].arm;
    if (n >= 0) one(pane, same[n]);
  };
  select.value = second ? same.findIndex((other) => other.arm === second) + 1 : 0;
  select.onchange = draw;
  draw();
}

function one(pane, row) {
  pane.replaceChildren();
  const unit = units[row.arm] ? ` ${units[row.arm]}` : "";
  add(pane, "h3", row.question);
  add(pane, "p", `${who(row)}. Accepted: ${row.answers.join(" | ")}; ` +
    `${Object.entries(row.scores).map(([name, value]) => `${name} ${value.toFixed(3)}`).join(", ")}; ${row.status}`);
  if (row.trace) {
    if (framed) add(pane, "p", `this trajectory as an MLflow trace: ${row.trace}`);
    else add(pane, "a", "this trajectory as an MLflow trace").href = row.trace;
  }
  row.turns.forEach((turn, t) => {
    const kind = turn.action === "malformed" ? "turn bad" : turn.action === "answer" ? "turn answer" : "turn";
    const box = add(pane, "div", undefined, kind);
    const before = turn.belief_before === null ? null : Math.exp(turn.belief_before);
    const after = turn.belief_after === null ? null : Math.exp(turn.belief_after);
    add(box, "div", `turn ${t + 1}: ${turn.action}; belief ${show(before)} to ${show(after)}; ` +
      `gain ${show(turn.gain)}${turn.gain === null ? "" : unit}; advantage ${show(turn.advantage)}`, "num");
    const bar = add(box, "span", undefined, "bar");
    bar.style.width = `${Math.round(200 * Math.min(1, after ?? before ?? 0))}px`;
    add(box, "pre", turn.text);
    if (turn.observation !== null) add(box, "pre", turn.observation);
  });
}

if (rows.length) {
  rows.sort((a, b) => order(a.cell, b.cell) || order(a.split, b.split) || order(a.question, b.question) ||
    order(a.step, b.step) || order(a.arm, b.arm) || a.seed - b.seed);
  recall();
  filters();
  document.getElementById("list").onkeydown = (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by || !shown.length) return;
    event.preventDefault();
    open(Math.max(0, Math.min(shown.length - 1, place + by)));
    remember();
  };
  list();
}
