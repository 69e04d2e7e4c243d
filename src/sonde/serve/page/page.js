// The page: what people do on it, and what they see then.

import { bars, element, grid, percent, saidBy, signed, signedBars } from "./pictures.js";
import { Problem, ask, setToken } from "./service.js";
import { csv, parse, write } from "./table.js";

const $ = (id) => document.getElementById(id);
const MOST_TEXTS = 64; // in one request: enough to fill a call of the model, few enough that the bar moves
const MOST_CHARACTERS = 200_000; // in one request, far below what a body may hold
const SHOWN_ROWS = 100; // of the table; the file holds all
const TRIES = 20; // of a request that finds the service full
let models = [];
let mostTexts = MOST_TEXTS; // or fewer, where the service takes fewer
let labelled = null;
let running = null; // while a column is labelled
let newest = 0; // the number of the last question: answers to older ones are dropped

// ------------------------------------------------------------------ models and errors

async function begin() {
  try {
    const found = await ask("/v1/models");
    models = found.models;
    mostTexts = Math.min(MOST_TEXTS, found.max_texts);
  } catch (error) {
    $("about").textContent = "";
    return complain(error);
  }
  $("access").hidden = true;
  complain(null);
  const chosen = $("model").value;
  $("model").replaceChildren(...models.map(({ name }) => element("option", name, { value: name })));
  if (models.some(({ name }) => name === chosen)) $("model").value = chosen;
  describe();
}

function describe() {
  const model = models.find(({ name }) => name === $("model").value);
  if (!model) return;
  const depth = model.layers ? `, ${model.layers_run} of ${model.layers} layers` : ", reads words alone";
  $("about").textContent = `${model.labels.length} labels, recipe ${model.recipe}${depth}`;
  $("abstain-field").hidden = model.multilabel;
}

function complain(error) {
  $("alert").hidden = error === null;
  $("alert").textContent = error === null ? "" : error.message;
  if (error instanceof Problem && error.status === 401) {
    $("access").hidden = false;
    $("token").focus();
  }
}

function settings() {
  const asked = { model: $("model").value, alpha: Number($("alpha").value) };
  if ($("abstain").value && !$("abstain-field").hidden) asked.abstain_below = Number($("abstain").value);
  return asked;
}

// ------------------------------------------------------------------------- one text

async function classify() {
  const text = $("text").value;
  if (!text.trim()) return;
  const own = ++newest;
  try {
    const found = await ask("/v1/classify", { text, ...settings() });
    if (own !== newest) return;
    complain(null);
    show(found, found.results[0]);
    $("answer").hidden = false;
    await why(text, found, own);
  } catch (error) {
    if (own !== newest) return;
    $("answer").hidden = true;
    complain(error);
  }
}

function show(found, result) {
  const several = Array.isArray(result.label);
  const label = several ? result.label.join(", ") || "no label" : result.label ?? "no label: not sure enough";
  const sure = result.probability === null ? "" : `, ${percent(result.probability)}`;
  const notes = [`Label set: ${result.label_set.join(", ")}`];
  if (result.truncated) notes.push("The text is longer than the model reads: its end was cut.");
  $("verdict").replaceChildren(element("strong", String(label)), sure, element("small", notes.join(" · ")));
  const pairs = found.labels.map((name, i) => [name, result.probabilities[i]]).sort((a, b) => b[1] - a[1]);
  $("probabilities").replaceChildren(...bars(pairs, new Set(result.label_set)));
}

async function why(text, { model }, own) {
  for (const id of ["layers", "tokens", "token-table", "gram-table"]) $(id).replaceChildren();
  $("legend").textContent = "Looking for the reasons …";
  let said;
  try {
    said = await ask("/v1/explain", { text, model });
  } catch (error) {
    if (own === newest) $("legend").textContent = error.message;
    return;
  }
  if (own !== newest) return;
  $("legend").textContent =
    `Solid blue speaks for ${said.label}, dashed orange against it. Log-odds ${signed(said.score)}, of which ` +
    `${signed(said.bias)} for any text` + (said.method === "exact" ? "." : `, the rest by ${said.method}.`);
  $("layers").replaceChildren(said.layers.length ? signedBars(said.layers) : "None: no layer is read.");
  $("tokens").replaceChildren(...saidBy(text, said.tokens));
  const rows = [...said.tokens].sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution));
  const number = ({ contribution }) => ({ number: signed(contribution) });
  $("token-table").replaceChildren(grid(["token", "says"], rows.map((one) => [one.text, number(one)]), "Tokens, the loudest first"));
  if (said.grams.length) {
    const grams = said.grams.map((one) => [one.kind === "char" ? one.gram.replaceAll(" ", "␣") : one.gram, one.kind, number(one)]);
    $("gram-table").replaceChildren(grid(["n-gram", "of", "says"], grams, "N-grams, contained in the tokens"));
  }
}

// --------------------------------------------------------------------------- a column

let rows = [];

// Which column holds the texts is guessed when the texts are new; what the person chose then stays.
function take(source, separator, fresh) {
  rows = parse(source, separator);
  const width = rows.reduce((most, row) => Math.max(most, row.length), 0); // a spread of so many arguments overflows
  const heads = $("header").checked && rows.length ? rows[0] : [];
  const names = Array.from({ length: width }, (_, i) => heads[i] || `column ${i + 1}`);
  const chosen = Math.min(Number($("which").value) || 0, Math.max(width - 1, 0));
  const likely = fresh ? names.findIndex((name) => name.toLowerCase() === "text") : -1;
  $("which").replaceChildren(...names.map((name, i) => element("option", name, { value: String(i) })));
  $("which").value = String(likely >= 0 ? likely : chosen);
  $("which-field").hidden = width < 2;
}

let source = null; // of a file: { text, separator }

async function open() {
  const file = $("file").files[0];
  source = null;
  try {
    if (file) source = await read(file);
    complain(null);
  } catch (error) {
    $("file").value = ""; // the same file, saved anew, counts as another choice
    complain(error);
  }
  refresh(true);
  $("progress-text").textContent = source ? `${rows.length} rows in ${file.name}.` : "";
}

async function read(file) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    throw new Problem(`${file.name} is not UTF-8. Save it as UTF-8; in Excel: "CSV UTF-8".`);
  }
  if (/\.txt$/i.test(file.name)) return { text, separator: null };
  return /\.tsv$/i.test(file.name) ? { text, separator: "\t" } : csv(text);
}

function refresh(fresh) {
  if (source) take(source.text, source.separator, fresh);
  else take($("column").value, null, fresh);
}

function* batches(texts) {
  let start = 0;
  while (start < texts.length) {
    let stop = start, characters = 0;
    while (stop < texts.length && stop - start < mostTexts && (stop === start || characters + texts[stop].length < MOST_CHARACTERS)) {
      characters += texts[stop++].length;
    }
    yield texts.slice(start, stop);
    start = stop;
  }
}

async function patiently(body, signal) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await ask("/v1/classify", body, signal);
    } catch (error) {
      if (error.status !== 503 || attempt === TRIES) throw error;
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, 1000 * Math.max(error.seconds, 1));
        signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
      });
      signal.throwIfAborted();
    }
  }
}

async function labelAll() {
  if (running) return;
  refresh(false);
  const head = $("header").checked ? 1 : 0;
  const column = Number($("which").value) || 0;
  const texts = rows.slice(head).map((row) => row[column] ?? "");
  if (!texts.length) return complain(new Problem("There is no text to label: paste a column or open a file first."));
  complain(null);
  const asked = settings(); // one model for the whole column, whatever is chosen meanwhile
  running = new AbortController();
  labelled = [];
  busy(true, texts.length);
  try {
    for (const some of batches(texts)) {
      const { results } = await patiently({ texts: some, ...asked }, running.signal);
      results.forEach((result, i) => labelled.push([some[i], shownLabel(result), result.probability ?? Math.max(...result.probabilities)]));
      $("progress").value = labelled.length;
      $("progress-text").textContent = `${labelled.length} of ${texts.length} labelled.`;
    }
  } catch (error) {
    if (!running.signal.aborted) complain(error);
    $("progress-text").textContent = `Stopped: ${labelled.length} of ${texts.length} labelled.`;
  } finally {
    running = null;
    busy(false);
  }
  showLabelled();
}

const shownLabel = ({ label }) => (Array.isArray(label) ? label.join(" | ") : String(label ?? ""));

function busy(on, total = 1) {
  $("label-all").setAttribute("aria-disabled", String(on)); // a button that is disabled loses the keyboard
  $("stop").hidden = !on;
  if (on) Object.assign($("progress"), { max: total, value: 0, hidden: false });
  else $("progress").hidden = true;
}

function showLabelled() {
  const shown = labelled.slice(0, SHOWN_ROWS).map(([text, label, sure]) => [text, label, { number: percent(sure) }]);
  const more = labelled.length > SHOWN_ROWS ? `The first ${SHOWN_ROWS} of ${labelled.length} rows; the file holds all.` : "";
  $("table").replaceChildren(grid(["text", "label", "probability"], shown, more));
  $("table").hidden = $("download").hidden = labelled.length === 0;
}

function download() {
  const lines = labelled.map(([text, label, sure]) => [text, label, Number(sure.toFixed(6))]);
  const separator = source?.separator === ";" ? ";" : ","; // as the spreadsheet writes it that the file came from
  const content = write([["text", "label", "probability"], ...lines], separator);
  const address = URL.createObjectURL(new Blob([content], { type: "text/csv;charset=utf-8" }));
  const link = element("a", "", { href: address, download: "labels.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

// ----------------------------------------------------------------------------- events

$("one").addEventListener("submit", (event) => { event.preventDefault(); classify(); });
$("text").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); classify(); } });
$("model").addEventListener("change", () => { describe(); if (!$("answer").hidden) classify(); });
for (const id of ["alpha", "abstain"]) $(id).addEventListener("change", () => { if (!$("answer").hidden) classify(); });
$("access").addEventListener("submit", (event) => { event.preventDefault(); setToken($("token").value); begin(); });
$("many").addEventListener("submit", (event) => { event.preventDefault(); labelAll(); });
$("column").addEventListener("input", () => { $("file").value = ""; source = null; });
$("file").addEventListener("change", open);
$("header").addEventListener("change", () => refresh(true));
$("stop").addEventListener("click", () => running?.abort());
$("download").addEventListener("click", download);
begin();
