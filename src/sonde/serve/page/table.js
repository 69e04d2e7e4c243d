// Files of texts, and files of labels.
//
// parse    the text of a file -> rows of cells (RFC 4180); separator null = each row is one cell, blank ones too
// csv      the text of a .csv file -> { text, separator } for `parse`
// write    rows of cells -> the text of a CSV file that spreadsheets read as data; separator "," or ";"

export function parse(source, separator) {
  const rows = [];
  let row = [], cell = "", quoted = false, fresh = true;
  const endCell = () => { row.push(cell); cell = ""; fresh = true; };
  const endRow = () => { endCell(); if (row.length > 1 || row[0] !== "" || separator === null) rows.push(row); row = []; };
  const text = source.replace(/^\uFEFF/, "").replace(/\r\n?/g, "\n");
  for (let i = 0; i < text.length; i++) {
    const sign = text[i];
    if (quoted) {
      if (sign !== '"') cell += sign;
      else if (text[i + 1] === '"') { cell += '"'; i++; }
      else quoted = false;
    } else if (sign === '"' && fresh && closes(text, i, separator)) { quoted = true; fresh = false; }
    else if (sign === "\n") endRow();
    else if (sign === separator) endCell();
    else { cell += sign; fresh = false; }
  }
  endRow();
  while (rows.length && rows.at(-1).join("") === "") rows.pop(); // those between others keep their place in a sheet
  return rows;
}

// A quote opens a quoted cell only if one closes it right before a separator or the end of a row: people quote people.
function closes(text, start, separator) {
  for (let i = start + 1; i < text.length; i++) {
    if (text[i] !== '"') continue;
    if (text[i + 1] === '"') { i++; continue; }
    return i + 1 === text.length || text[i + 1] === "\n" || text[i + 1] === separator;
  }
  return false;
}

// Spreadsheets write semicolons or tabs where the comma is the decimal sign: what splits the first two rows alike, if
// commas do not; or what a line of its own ("sep=;") says.
export function csv(source) {
  const text = source.replace(/^\uFEFF/, "").replace(/\r\n?/g, "\n");
  const told = /^\s*sep=([,;\t|])[ ]*\n/i.exec(text);
  if (told) return { text: text.slice(told[0].length), separator: told[1] };
  const head = text.split("\n").filter((line) => line.trim()).slice(0, 2);
  if (((head.at(-1) ?? "").match(/"/g) ?? []).length % 2) head.pop(); // its text goes on in the next line
  const cells = (sign) => head.map((line) => parse(line, sign)[0]?.length ?? 0);
  const fields = (sign) => (new Set(cells(sign)).size === 1 ? cells(sign)[0] : 0);
  const best = [",", ";", "\t"].reduce((most, sign) => (fields(sign) > fields(most) ? sign : most));
  return { text, separator: fields(best) > 1 && fields(",") <= 1 ? best : "," };
}

// Spreadsheets run cells that begin so as formulas.
const FORMULA = /^[=+\-@\t\r\n]/;

export function write(rows, separator) {
  const cell = (value) => {
    const text = typeof value === "number" ? String(value) : String(value ?? "");
    const harmless = typeof value !== "number" && FORMULA.test(text) ? `'${text}` : text;
    return /[",;'\t\r\n]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
  };
  return "\uFEFF" + rows.map((row) => row.map(cell).join(separator)).join("\r\n") + "\r\n";
}
