// The lines of concepts as a table, on Concepts and Erase Concepts. The text stays the only truth: an edit rewrites its
// line and nothing else, comments stay as they are, and nothing of the table is saved or sent. A button shows the text.
import { lineFrom, linesOf, numbersTaken, rowOf, switched } from "./concept_lines.js";
import { withLine, withLines, withMoved, withoutLine } from "./concept_lines.js";
import { makePanel } from "./concept_panel.js";
import { CELLS, dragRow, isEmpty, makeRow, showError, showRow, typedIn } from "./concept_rows.js";
import { makeSearch } from "./concept_search.js";
import { AS_TEXT, BAR, asText, change, end, fit, heightOf } from "./concept_shown.js";
import { isHidden, render, setText, textOf, typeOf } from "./concept_shown.js";
import { BREAK, composed, normalised, written } from "./notation.js";
import { addPanel, after, step, widgetOf } from "./page.js";

// By node, the text that holds the lines.
const FIELDS = { MACE_Concepts: "concepts", MACE_EraseConcepts: "words" };
const TABLE = "concept table";
const MARGIN = 10;

function focusOn(state, at, column) {
  const row = state.rows[at] ?? state.draft;
  const wanted = row[column] ?? row.cells[column];
  (wanted.offsetParent ? wanted : row.cells.target.offsetParent ? row.cells.target : row.toggle).focus();
}

function moveRow(state, row, before) {
  const at = state.rows.indexOf(row);
  const column = CELLS.find((name) => row.cells[name] === document.activeElement) ?? "handle";
  change(state, withMoved(state.text, row.index, before ? before.index ?? end(state) : end(state)));
  const to = before && before !== state.draft ? state.rows.indexOf(before) : state.rows.length;
  const now = to > at ? to - 1 : to;
  focusOn(state, now, column);
  state.panel.said.textContent = `moved to place ${now + 1} of ${state.rows.length}`;
}

function moveBy(state, row, by) {
  const at = state.rows.indexOf(row);
  const to = at + by;
  if (at < 0 || to < 0 || to >= state.rows.length) return;
  moveRow(state, row, by < 0 ? state.rows[to] : state.rows[to + 1] ?? null);
}

// A press leaves the cell that was typed in before it comes to its click. Until then every row stays where it was, or
// the click would act on another concept.
function holdRows(state) {
  state.held = true;
  state.unsettled = false;
  const released = new AbortController();
  const release = () => {
    released.abort();
    // The click comes after the release.
    setTimeout(() => {
      state.held = false;
      if (state.unsettled) render(state);
    });
  };
  for (const name of ["pointerup", "pointercancel", "mouseup"]) {
    window.addEventListener(name, release, { capture: true, signal: released.signal });
  }
}

// What the rows tell.
const events = (state) => ({
  typed(row) {
    const line = lineFrom({ ...row.data, ...typedIn(row) }).split(BREAK).join(" ");
    if (row !== state.draft) return setText(state, withLine(state.text, row.index, line));
    if (!row.cells.target.value.trim()) return;
    // It is a row now, and another one for the next concept follows.
    const typed = typedIn(row);
    const at = linesOf(state.text).at(-1) === "" ? end(state) - 1 : end(state);
    state.rows.push(row);
    addDraft(state);
    showRow(row, at, { kind: "concept", off: false, lead: "", comment: "", ...typed });
    setText(state, withLines(state.text, end(state), [line]));
    fit(state);
  },
  settled() {
    state.unsettled = true;
    step(() => state.held || render(state));
  },
  toggled(row) {
    if (row.data.kind === "concept" && isEmpty(row)) return;
    const line = linesOf(state.text)[row.index];
    change(state, withLine(state.text, row.index, switched(line, row.data.off)));
    focusOn(state, state.rows.indexOf(row), "toggle");
  },
  removed(row) {
    const at = state.rows.indexOf(row);
    change(state, withoutLine(state.text, row.index));
    focusOn(state, at, "remove");
  },
  pressed(row, column, event) {
    // A key that chooses among an input method's candidates is that method's; Safari says so by its code alone.
    if (event.isComposing || event.keyCode === 229) return;
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const at = state.rows.indexOf(row);
    const place = at < 0 ? state.rows.length : at;
    if (by && (event.altKey || column === "handle")) moveBy(state, row, by);
    else if (by) focusOn(state, Math.max(place + by, 0), column);
    else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey && column !== "handle") {
      step(() => render(state));
      focusOn(state, place + 1, "target");
    } else if (event.key === "Backspace" && at >= 0 && column !== "handle" && isEmpty(row)) {
      change(state, withoutLine(state.text, row.index));
      focusOn(state, Math.max(at - 1, 0), "target");
    } else return;
    event.preventDefault();
  },
  pasted(row, event) {
    const pasted = event.clipboardData.getData("text/plain").split(BREAK);
    const lines = pasted.filter((line, part) => part % 2 === 0 && composed(line));
    if (lines.length < 2) return;
    event.preventDefault();
    event.stopPropagation();
    const taken = numbersTaken(lines) ?? lines;
    // In place of a row in which nothing stands yet, else after it.
    const empty = row.index !== null && isEmpty(row);
    const text = empty ? withoutLine(state.text, row.index) : state.text;
    const before = row.index === null ? linesOf(text).length : row.index + (empty ? 0 : 1);
    change(state, withLines(text, before, taken));
    focusOn(state, state.rows.findIndex((own) => own.index === before + taken.length - 1), "target");
  },
  grabbed: (row, event) =>
    dragRow(row, state.rows, state.panel.list, event, (moved, before) => moveRow(state, moved, before)),
});

function addDraft(state) {
  state.draft = makeRow(state.told);
  state.panel.list.append(state.draft.root);
  showRow(state.draft, null, null);
  showError(state.draft, "");
}

function searchOf(state) {
  const on = () => linesOf(state.text).map(rowOf).filter((row) => row?.kind === "concept" && !row.off);
  return makeSearch({
    has: (key) => on().some((row) => normalised(row.target.replace(/^"(.*)"$/, "$1")) === key),
    take(entries) {
      const type = widgetOf(state.node, "type");
      const [, , kind] = entries[0];
      step(() => {
        // The first of a node give it their type; what comes to others of another type brings its own.
        if (typeOf(state) && type.value !== kind && !on().length) {
          type.value = kind;
          type.callback?.(kind);
        }
        const own = typeOf(state) === kind ? "" : kind;
        const lines = entries.map(([target, mapping]) =>
          lineFrom({ off: false, type: own, target: written(target), aliases: "", mapping: written(mapping) }),
        );
        setText(state, withLines(state.text, end(state), lines));
        render(state);
      });
      state.panel.said.textContent = `${entries.length} added`;
      state.panel.list.scrollTop = state.panel.list.scrollHeight;
    },
  });
}

function addTable(node, field) {
  const state = { node, field, text: "", rows: [] };
  node.maceTable = state;
  state.told = events(state);
  state.panel = makePanel(searchOf(state), {
    searched() {
      state.panel.search.open(state.panel.search.root.hidden);
      render(state);
    },
    viewed() {
      step(() => {
        if (asText(state)) delete node.properties[AS_TEXT];
        else node.properties[AS_TEXT] = true;
        render(state);
      });
      state.panel.view.focus();
    },
  });
  // A finger's touch is told as a mouse's press only when it is over.
  for (const name of ["pointerdown", "mousedown"]) {
    state.panel.root.addEventListener(name, () => holdRows(state), { capture: true });
  }
  addDraft(state);
  const text = widgetOf(node, field);
  const table = addPanel(node, TABLE, state.panel.root, {
    margin: MARGIN,
    getMinHeight: () => heightOf(state) + 2 * MARGIN,
    getMaxHeight: () => (isHidden(state) ? BAR + 2 * MARGIN : undefined),
    // A link to the text is dropped where the table stands.
    onDraw: () => {
      if (text.hidden) text.y = table.y;
    },
  });
  // Where the text is.
  const widgets = node.widgets.filter((widget) => widget !== table);
  widgets.splice(widgets.indexOf(text), 0, table);
  node.widgets = widgets;
  after(text, "callback", () => {
    if (textOf(state) !== state.text) render(state);
  });
  const type = widgetOf(node, "type");
  if (type) after(type, "callback", () => render(state));
  render(state);
}

const update = (node) => render(node.maceTable);

export const conceptTable = {
  isOwn: (name) => Object.hasOwn(FIELDS, name),
  created: (node) => addTable(node, FIELDS[node.comfyClass]),
  configured: update,
  connected: update,
  // The host leaves a hole for a widget in the midst that is not saved, and reads without one.
  saved(node, saved) {
    if (saved.widgets_values) saved.widgets_values = saved.widgets_values.filter(() => true);
  },
};
