// Answers as elements. Whatever came from a text or a model becomes text, never markup.
//
// element      a tag, what it holds, its attributes
// grid         a table of cells
// bars         labels and probabilities
// signedBars   layers and what they add
// saidBy       a text, coloured by what its characters say
// signed, percent   numbers as they are shown

export function element(tag, content = [], attributes = {}) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...[content].flat());
  return made;
}

// Nothing that is possible is shown as impossible or certain.
export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share < 1 && share > 0.999) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
}

export const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

export function grid(heads, rows, caption) {
  const number = (i) => (rows.length && typeof rows[0][i] === "object" ? { class: "number" } : {});
  const shown = (cell) => (typeof cell === "object" ? element("td", cell.number, { class: "number" }) : element("td", cell));
  return element("table", [
    ...(caption ? [element("caption", caption)] : []),
    element("thead", element("tr", heads.map((head, i) => element("th", head, { scope: "col", ...number(i) })))),
    element("tbody", rows.map((row) => element("tr", row.map(shown)))),
  ]);
}

function bar(from, size, classes) {
  const line = element("i");
  line.style.setProperty("--from", `${from}%`);
  line.style.setProperty("--size", `${size}%`);
  return element("td", element("div", line, { class: classes }), { "aria-hidden": "true" });
}

const FIRST = 12;

export function bars(pairs, inSet) {
  const rows = pairs.map(([label, share]) => {
    const within = inSet.has(label);
    const head = element("th", String(label) + (within ? "\u00a0●" : ""), { scope: "row" });
    if (within) head.title = "in the label set";
    const row = element("tr", [head, bar(0, 100 * share, "track"), element("td", percent(share), { class: "number" })]);
    row.classList.toggle("in-set", within);
    return row;
  });
  const made = [element("table", element("tbody", rows.slice(0, FIRST)), { class: "bars" })];
  if (rows.length > FIRST) {
    const rest = element("table", element("tbody", rows.slice(FIRST)), { class: "bars" });
    made.push(element("details", [element("summary", `${rows.length - FIRST} more`), rest]));
  }
  return made;
}

export function signedBars(layers) {
  const most = Math.max(...layers.map((layer) => Math.abs(layer.contribution)), 1e-9);
  const several = new Set(layers.map((layer) => layer.backbone).filter((one) => one !== null)).size > 1;
  const rows = layers.map((layer) => {
    const size = (50 * Math.abs(layer.contribution)) / most;
    const against = layer.contribution < 0;
    const name = several && layer.backbone !== null ? `${layer.backbone}/${layer.site}` : layer.site;
    return element("tr", [
      element("th", name, { scope: "row" }),
      bar(against ? 50 - size : 50, size, `track signed ${against ? "against" : "for"}`),
      element("td", signed(layer.contribution), { class: "number" }),
    ]);
  });
  return element("table", element("tbody", rows), { class: "bars" });
}

// Characters are counted as Python counts them: by code point.
export function saidBy(text, tokens) {
  const characters = Array.from(text);
  const says = new Float64Array(characters.length);
  const read = new Uint8Array(characters.length);
  const edges = new Set([0, characters.length]);
  for (const { start, stop, contribution } of tokens) {
    if (start === null || stop <= start) continue;
    edges.add(start).add(stop);
    for (let i = start; i < stop; i++) { says[i] += contribution / (stop - start); read[i] = 1; }
  }
  const sorted = [...edges].sort((a, b) => a - b);
  const pieces = sorted.slice(0, -1).map((from, i) => {
    const to = sorted[i + 1];
    return { text: characters.slice(from, to).join(""), says: says[from] * (to - from), read: read[from] };
  });
  const most = Math.max(...pieces.map((piece) => Math.abs(piece.says)), 1e-9);
  return pieces.map((piece) => shade(piece, most));
}

function shade(piece, most) {
  if (!piece.read) return element("span", piece.text, piece.text.trim() ? { class: "unread" } : {});
  const made = element("span", piece.text, { class: `say ${piece.says < 0 ? "against" : "for"}`, title: signed(piece.says) });
  made.style.setProperty("--strength", (Math.abs(piece.says) / most).toFixed(3));
  return made;
}
