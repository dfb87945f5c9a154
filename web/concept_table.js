// The lines of concepts as a table, on Concepts and Erase Concepts. The text stays the only truth: an edit rewrites its
// line and nothing else, comments stay as they are, and nothing of the table is saved or sent. A button shows the text.
import { app } from "../../scripts/app.js";
import { errorsOf, isForeign, lineFrom, linesOf, numbersTaken, rowOf, switched } from "./concept_lines.js";
import { usualMapping, withLine, withLines, withMoved, withoutLine } from "./concept_lines.js";
import { makePanel } from "./concept_panel.js";
import { CELLS, dragRow, makeRow, showError, showRow, typedIn } from "./concept_rows.js";
import { makeSearch } from "./concept_search.js";
import { BREAK, composed, normalised, written } from "./notation.js";
import { after, isLinked, make, widgetOf } from "./page.js";

// By node, the text that holds the lines.
const FIELDS = { MACE_Concepts: "concepts", MACE_EraseConcepts: "words" };
const TABLE = "concept table";
// Of a node: its lines are shown as text.
const AS_TEXT = "concepts as text";
const OTHER_TYPE = "The lines of this node are of type";
const BAR = 26;
const HEAD = 16;
const ROW = 24;
const SEARCH = 134;
const MARGIN = 10;
const FEW = 5;
let made = 0;

const textOf = ({ node, field }) => String(widgetOf(node, field)?.value ?? "");
const typeOf = ({ node }) => (isLinked(node, "type") ? null : widgetOf(node, "type")?.value);
const asText = ({ node }) => Boolean(node.properties?.[AS_TEXT]);
const isHidden = (state) => asText(state) || isLinked(state.node, state.field);
const end = (state) => linesOf(state.text).length;

// One step of the page's undo.
function step(act) {
  app.canvas.emitBeforeChange();
  try {
    act();
  } finally {
    app.canvas.emitAfterChange();
  }
}

function setText(state, text) {
  state.text = text;
  widgetOf(state.node, state.field).value = text;
  showErrors(state);
}

const change = (state, text) =>
  step(() => {
    setText(state, text);
    render(state);
  });

// The text itself is shown where the table is not. Its options are copied where it is made an input of a subgraph, and
// what is hidden here must be seen there, so that the copy leaves this out.
function showText(state, shown) {
  const widget = widgetOf(state.node, state.field);
  if (Boolean(widget.hidden) === !shown) return;
  widget.hidden = !shown;
  Object.defineProperty(widget.options, "hidden", { value: !shown, enumerable: false, configurable: true });
  // Where nodes are drawn with Vue, options are looked at again when the list of widgets changes.
  const widgets = [...state.node.widgets];
  state.node.widgets = [];
  state.node.widgets = widgets;
}

function heightOf({ panel, rows, ...state }) {
  if (isHidden(state)) return BAR;
  const searched = !panel.search.root.hidden;
  const errors = rows.filter((row) => !row.error.hidden).length;
  const shown = Math.min(rows.length, searched ? 1 : FEW) + 1 + Math.min(errors, searched ? 0 : 2);
  return BAR + HEAD + shown * ROW + (searched ? SEARCH : 0) + (panel.note.hidden ? 0 : 2 * HEAD);
}

function fit(state) {
  const { node, panel } = state;
  const height = heightOf(state);
  panel.root.style.minHeight = `${height}px`;
  panel.root.style.maxHeight = isHidden(state) ? `${height}px` : "";
  // Nodes that are drawn with Vue grow by themselves.
  if (!window.LiteGraph.vueNodesMode) {
    const size = node.computeSize();
    node.setSize([Math.max(node.size[0], size[0]), Math.max(node.size[1], size[1])]);
  }
  app.canvas?.setDirty(true, true);
}

function showErrors(state) {
  const { panel, rows, text } = state;
  const errors = errorsOf(text, typeOf(state));
  panel.note.hidden = !isForeign(text);
  for (const row of rows) {
    showError(row, errors.get(row.index));
    if (row.data.kind === "concept") row.cells.mapping.placeholder = usualMapping(row.data.target, typeOf(state));
  }
  const kinds = linesOf(text).map(rowOf).filter((row) => row?.kind === "concept");
  const on = kinds.filter((row) => !row.off).length;
  const off = kinds.length - on;
  const counted = `${on} concept${on === 1 ? "" : "s"}${off ? `, ${off} off` : ""}`;
  panel.count.textContent = isLinked(state.node, state.field) ? "The lines come from another node." : counted;
}

function render(state) {
  const { node, panel, rows } = state;
  state.text = textOf(state);
  const hidden = isHidden(state);
  const linked = isLinked(node, state.field);
  showText(state, hidden);
  panel.view.textContent = asText(state) ? "table" : "text";
  panel.view.setAttribute("aria-label", asText(state) ? "show as a table" : "show as text");
  panel.view.hidden = linked;
  panel.lists.hidden = panel.head.hidden = panel.list.hidden = hidden;
  if (hidden) panel.search.open(false);
  panel.lists.setAttribute("aria-expanded", String(!panel.search.root.hidden));
  const shown = linesOf(state.text).flatMap((line, index) => {
    const data = rowOf(line);
    return data ? [{ index, data }] : [];
  });
  while (rows.length > shown.length) rows.pop().root.remove();
  while (rows.length < shown.length) {
    const row = makeRow(state.told);
    state.draft.root.before(row.root);
    rows.push(row);
  }
  shown.forEach(({ index, data }, at) => showRow(rows[at], index, data));
  showRow(state.draft, null, null);
  showError(state.draft, "");
  showErrors(state);
  panel.search.update();
  fit(state);
}

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
  settled: () => step(() => render(state)),
  toggled(row) {
    const line = linesOf(state.text)[row.index];
    const at = state.rows.indexOf(row);
    change(state, withLine(state.text, row.index, switched(line, row.data.off)));
    focusOn(state, at, "toggle");
  },
  removed(row) {
    const at = state.rows.indexOf(row);
    change(state, withoutLine(state.text, row.index));
    focusOn(state, at, "remove");
  },
  pressed(row, column, event) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const at = state.rows.indexOf(row);
    const place = at < 0 ? state.rows.length : at;
    if (by && (event.altKey || column === "handle")) moveBy(state, row, by);
    else if (by) focusOn(state, Math.max(place + by, 0), column);
    else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey && column !== "handle") {
      step(() => render(state));
      focusOn(state, place + 1, "target");
    } else if (event.key === "Backspace" && at >= 0 && column !== "handle" && !Object.values(typedIn(row)).join("")) {
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
    const empty = row.index !== null && !Object.values(typedIn(row)).join("");
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
    refusal(type) {
      const own = typeOf(state);
      if (!own || own === type || !on().length) return "";
      return `${OTHER_TYPE} ${own}. Take a Concepts node of its own for type ${type}.`;
    },
    take(entries) {
      const type = widgetOf(state.node, "type");
      const [, , kind] = entries[0];
      const lines = entries.map(([target, mapping]) => `${written(target)} -> ${written(mapping)}`);
      step(() => {
        if (typeOf(state) && type.value !== kind) {
          type.value = kind;
          type.callback?.(kind);
        }
        setText(state, withLines(state.text, end(state), lines));
        render(state);
      });
      state.panel.said.textContent = `${lines.length} added`;
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
  addDraft(state);
  const text = widgetOf(node, field);
  // Where undo makes a node anew, Vue would keep the old one's element for a widget of the same name and type.
  const table = node.addDOMWidget(TABLE, `mace-concepts-${(made += 1)}`, state.panel.root, {
    serialize: false,
    hideOnZoom: true,
    margin: MARGIN,
    getMinHeight: () => heightOf(state) + 2 * MARGIN,
    getMaxHeight: () => (isHidden(state) ? BAR + 2 * MARGIN : undefined),
    // A link to the text is dropped where the table stands.
    onDraw: () => {
      if (text.hidden) text.y = table.y;
    },
  });
  table.serialize = false;
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

app.registerExtension({
  name: "MACE.ConceptTable",
  init() {
    const href = new URL("./concept_table.css", import.meta.url).href;
    document.head.append(make("link", {}, { rel: "stylesheet", href }));
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    const field = FIELDS[nodeData.name];
    if (!field) return;
    const own = nodeType.prototype;
    after(own, "onNodeCreated", (node) => addTable(node, field));
    for (const name of ["onConfigure", "onConnectionsChange"]) {
      after(own, name, (node) => node.maceTable && render(node.maceTable));
    }
    // The host leaves a hole for a widget in the midst that is not saved, and reads without one.
    after(own, "onSerialize", (node, saved) => {
      if (saved.widgets_values) saved.widgets_values = saved.widgets_values.filter(() => true);
    });
  },
});
