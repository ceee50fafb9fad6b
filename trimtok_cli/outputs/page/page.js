"use strict";
/* Filters, order, stages and downloads. Chips, overlays and dense's words are switched by CSS alone. */
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const list = document.querySelector(".cards");
const cards = data.samples.map((sample) => $("sample-" + sample.number));
const chips = [...document.querySelectorAll(".chip input")];
document.body.classList.add("scripted");

const text = (value) => (value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value));
const found = data.samples.map((sample) => {
  const answers = sample.answers.flatMap((each) => [each.answer, each.error]);
  return [sample.id, sample.question, ...sample.images, ...sample.references, ...answers, ...Object.values(sample.columns)].map(text).join("\n").toLowerCase();
});

/* A select for each further column that has 2 to 60 different values. */
const names = [...new Set(data.samples.flatMap((sample) => Object.keys(sample.columns)))];
const columns = [];
for (const name of names) {
  const values = [...new Set(data.samples.map((sample) => text(sample.columns[name])))].sort();
  const reference = data.samples.every((sample) => sample.references.includes(text(sample.columns[name])));
  if (values.length < 2 || values.length > 60 || reference) continue;
  const select = document.createElement("select");
  select.append(new Option("any", ""), ...values.map((value, i) => new Option(value || "(empty)", String(i + 1))));
  const label = document.createElement("label");
  label.append(name + " ", select);
  if ($("columns")) $("columns").append(label);
  columns.push({ name, values, select });
}

const chosen = (sample) => sample.answers.filter((_, i) => i > 0 && (!chips[i - 1] || chips[i - 1].checked));
const differs = (sample) => chosen(sample).map((each) => (each.error ? 2 : each.same ? 0 : 1 + 1e-3 - (each.words_in_common ?? 0))).reduce((a, b) => Math.max(a, b), sample.answers.length ? 0 : 2);
const slow = (sample) => Math.max(0, ...sample.answers.map((each) => each.total_ms ?? 0));
const kinds = {
  all: () => true,
  differs: (sample) => chosen(sample).some((each) => each.same === false),
  same: (sample) => chosen(sample).length > 0 && chosen(sample).every((each) => each.same),
  wrong: (sample) => [sample.answers[0], ...chosen(sample)].some((each) => each && each.matched === false),
  lost: (sample) => sample.answers[0]?.matched && chosen(sample).some((each) => each.matched === false),
  gained: (sample) => sample.answers[0]?.matched === false && chosen(sample).some((each) => each.matched),
  failed: (sample) => sample.answers.length === 0 || [sample.answers[0], ...chosen(sample)].some((each) => each.error),
};
const orders = {
  input: (a, b) => a.number - b.number,
  differs: (a, b) => differs(b) - differs(a) || a.number - b.number,
  slow: (a, b) => slow(b) - slow(a),
  id: (a, b) => text(a.id).localeCompare(text(b.id), undefined, { numeric: true }),
};

let order = "input";
function show() {
  const words = $("search").value.trim().toLowerCase().split(/\s+/);
  let count = 0;
  data.samples.forEach((sample, i) => {
    const fits = kinds[$("show").value](sample)
      && columns.every((each) => !each.select.value || text(sample.columns[each.name]) === each.values[each.select.value - 1])
      && words.every((word) => found[i].includes(word));
    cards[i].hidden = !fits;
    count += fits;
  });
  $("count").textContent = count + " of " + cards.length + " shown";
  const wanted = $("order").value;
  if (wanted === order && wanted !== "differs") return;
  order = wanted;
  list.append(...[...data.samples].sort(orders[order]).map((sample) => cards[sample.number - 1]));
}

/* Each picture shows the last stage up to the chosen layer, or its very last one. */
function stages() {
  const layer = $("layer").value;
  for (const picture of document.querySelectorAll(".picture")) {
    const groups = [...picture.querySelectorAll(".overlay")];
    const reached = layer ? groups.filter((group) => Number(group.dataset.layer) <= Number(layer)) : groups;
    groups.forEach((group) => group.classList.toggle("off", group !== reached.at(-1)));
  }
}

const form = document.querySelector(".tools");
if (form) {
  form.addEventListener("input", (event) => (event.target.id === "layer" ? stages() : show()));
  form.addEventListener("submit", (event) => event.preventDefault());
  const all = (checked) => { chips.forEach((chip) => { chip.checked = checked; }); show(); };
  if ($("all")) { $("all").onclick = () => all(true); $("none").onclick = () => all(false); }
  $("clear").onclick = () => { form.reset(); show(); if ($("layer")) stages(); };
  form.reset();
  show();
}

const cell = (value) => (/[",\r\n]/.test(text(value)) ? '"' + text(value).replaceAll('"', '""') + '"' : text(value));
const table = (rows) => {
  const head = [...new Set(rows.flatMap(Object.keys))];
  return "\ufeff" + [head, ...rows.map((row) => head.map((name) => row[name]))].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
};
const flat = () => data.samples.flatMap((sample) => sample.answers.map((answer) => {
  const row = { number: sample.number, id: sample.id, image: sample.images.join(" "), question: sample.question, reference: sample.references.join(" / "), ...answer };
  for (const [name, value] of Object.entries(sample.columns)) row[name in row ? "input_" + name : name] = value;
  return row;
}));
const files = {
  "summary.csv": () => table(data.summary),
  "summary.json": () => JSON.stringify(data.summary, null, 1),
  "answers.csv": () => table(flat()),
  "answers.json": () => JSON.stringify(data.samples, null, 1),
};
for (const button of document.querySelectorAll("[data-file]")) {
  button.onclick = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([files[button.dataset.file]()], { type: button.dataset.file.endsWith("csv") ? "text/csv" : "application/json" }));
    link.download = button.dataset.file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
}
