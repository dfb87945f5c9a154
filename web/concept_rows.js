// A row of the concept table: handle, on or off, three cells, type, remove; what is wrong with it stands below.
import { TYPES } from "./concept_lines.js";
import { make } from "./page.js";

export const CELLS = ["target", "aliases", "mapping"];
let made = 0;

function button(className, textContent) {
  return make("button", {}, { type: "button", className, textContent });
}

// told: what the table does on {typed, settled, toggled, removed, pressed, pasted, grabbed}.
export function makeRow(told) {
  const root = make("div", {}, { className: "mace-row" });
  root.setAttribute("role", "listitem");
  const handle = button("mace-handle", "\u283f");
  const toggle = button("mace-toggle", "");
  toggle.setAttribute("role", "checkbox");
  const comment = make("span", {}, { className: "mace-comment" });
  const type = make("select", {}, { className: "mace-type" });
  type.append(...["", ...TYPES].map((kind) => make("option", {}, { value: kind, textContent: kind })));
  const remove = button("mace-remove", "\u2715");
  const error = make("div", {}, { className: "mace-error", id: `mace-error-${(made += 1)}` });
  const cells = Object.fromEntries(
    CELLS.map((name) => {
      const attributes = { type: "text", className: `mace-${name}`, autocomplete: "off", spellcheck: false };
      return [name, make("input", {}, attributes)];
    }),
  );
  root.append(handle, toggle, ...Object.values(cells), type, comment, remove, error);
  const row = { root, handle, toggle, cells, type, comment, remove, error, index: null, data: null };
  for (const [name, cell] of Object.entries(cells)) {
    cell.addEventListener("input", () => told.typed(row));
    // The browser's own undo reaches into a field that was left, beside the page's undo.
    cell.addEventListener("beforeinput", (event) => {
      if (event.inputType.startsWith("history") && cell !== document.activeElement) event.preventDefault();
    });
    cell.addEventListener("change", () => told.settled(row));
    cell.addEventListener("paste", (event) => told.pasted(row, event));
    cell.addEventListener("keydown", (event) => told.pressed(row, name, event));
  }
  type.addEventListener("change", () => {
    type.classList.toggle("mace-usual", !type.value);
    told.typed(row);
    // Of the row for a new concept the type waits for its target.
    if (row.data) told.settled(row);
  });
  handle.addEventListener("keydown", (event) => told.pressed(row, "handle", event));
  handle.addEventListener("pointerdown", (event) => told.grabbed(row, event));
  toggle.addEventListener("click", () => told.toggled(row));
  remove.addEventListener("click", () => told.removed(row));
  return row;
}

// What stands in a row.
export const typedIn = ({ cells, type }) => ({
  ...Object.fromEntries(CELLS.map((name) => [name, cells[name].value])),
  type: type.value,
});
export const isEmpty = ({ cells }) => CELLS.every((name) => !cells[name].value);

// What a line without a type of its own is; null where that is not known.
export function showUsualType(row, usual) {
  row.type.options[0].textContent = usual ? `(${usual})` : "(type)";
}

// data: of rowOf, null for the row in which a new concept is typed.
export function showRow(row, index, data) {
  Object.assign(row, { index, data });
  const { root, handle, toggle, cells, type, comment, remove } = row;
  const isComment = data?.kind === "comment";
  const name = data ? data.target || data.text || "empty line" : "new concept";
  root.classList.toggle("mace-off", Boolean(data?.off) || isComment);
  handle.hidden = remove.hidden = !data;
  toggle.hidden = !data || (isComment && !data.off);
  toggle.setAttribute("aria-checked", String(Boolean(data && !data.off)));
  toggle.textContent = data && !data.off ? "\u2713" : "";
  const label = (element, text) => {
    element.setAttribute("aria-label", text);
    element.title = text;
  };
  label(handle, `move ${name}`);
  label(toggle, `${name} on`);
  label(remove, `remove ${name}`);
  label(type, `type of ${name}`);
  type.hidden = isComment;
  type.value = data?.type ?? "";
  type.classList.toggle("mace-usual", !type.value);
  comment.hidden = !isComment;
  comment.textContent = comment.title = isComment ? data.text : "";
  for (const cell of CELLS) {
    cells[cell].hidden = isComment;
    const text = data?.[cell] ?? "";
    if (cells[cell].value !== text) cells[cell].value = text;
    cells[cell].setAttribute("aria-label", data && cell !== "target" ? `${cell} of ${name}` : `${cell}: ${name}`);
  }
  cells.target.placeholder = data ? "" : "new concept";
  cells.target.title = data?.comment?.trim() ?? "";
}

// What is wrong with a row, else what is to be said of it.
export function showError(row, wrong, hint = "") {
  const { cells, error } = row;
  const text = wrong || hint;
  error.hidden = !text;
  error.textContent = text;
  error.classList.toggle("mace-hint", !wrong);
  cells.target.setAttribute("aria-invalid", String(Boolean(wrong)));
  if (text) cells.target.setAttribute("aria-describedby", error.id);
  else cells.target.removeAttribute("aria-describedby");
}

// Follows a drag of a row's handle. rows: all of the list.  drop(row, before): before: the row that it is dropped
// before, null for the end.
export function dragRow(row, rows, list, event, drop) {
  if (event.button !== 0) return;
  event.preventDefault();
  const { handle } = row;
  handle.focus();
  handle.setPointerCapture(event.pointerId);
  row.root.classList.add("mace-moving");
  let before = row;
  const mark = () => {
    for (const other of rows) other.root.classList.toggle("mace-before", other === before);
    list.classList.toggle("mace-end", before === null);
  };
  const move = ({ clientY }) => {
    const box = list.getBoundingClientRect();
    if (clientY < box.top) list.scrollTop -= 8;
    if (clientY > box.bottom) list.scrollTop += 8;
    const below = (other) => {
      const { top, height } = other.root.getBoundingClientRect();
      return clientY < top + height / 2;
    };
    before = rows.find(below) ?? null;
    mark();
  };
  const stop = new AbortController();
  const end = (dropped) => {
    stop.abort();
    row.root.classList.remove("mace-moving");
    const target = before;
    before = undefined;
    mark();
    if (dropped && target !== row) drop(row, target);
  };
  const { signal } = stop;
  handle.addEventListener("pointermove", move, { signal });
  handle.addEventListener("pointerup", () => end(true), { signal });
  handle.addEventListener("pointercancel", () => end(false), { signal });
}
