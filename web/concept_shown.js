// What a concept table shows of its node's text, and how the text is set.
import { app } from "../../scripts/app.js";
import { errorsOf, hintsOf, isForeign, linesOf, rowOf, usualMapping } from "./concept_lines.js";
import { makeRow, showError, showRow, showUsualType } from "./concept_rows.js";
import { isLinked, step, widgetOf } from "./page.js";

// Of a node: its lines are shown as text.
export const AS_TEXT = "concepts as text";
export const BAR = 26;
const HEAD = 16;
const ROW = 24;
const SEARCH = 134;
const FEW = 5;

export const textOf = ({ node, field }) => String(widgetOf(node, field)?.value ?? "");
export const typeOf = ({ node }) => (isLinked(node, "type") ? null : widgetOf(node, "type")?.value);
export const asText = ({ node }) => Boolean(node.properties?.[AS_TEXT]);
export const isHidden = (state) => asText(state) || isLinked(state.node, state.field);
export const end = (state) => linesOf(state.text).length;

export function setText(state, text) {
  state.text = text;
  widgetOf(state.node, state.field).value = text;
  showErrors(state);
}

export const change = (state, text) =>
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

export function heightOf({ panel, rows, ...state }) {
  if (isHidden(state)) return BAR;
  const searched = !panel.search.root.hidden;
  const errors = rows.filter((row) => !row.error.hidden).length;
  const shown = Math.min(rows.length, searched ? 1 : FEW) + 1 + Math.min(errors, searched ? 0 : 2);
  return BAR + HEAD + shown * ROW + (searched ? SEARCH : 0) + (panel.note.hidden ? 0 : 2 * HEAD);
}

export function fit(state) {
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
  const hints = hintsOf(text);
  panel.note.hidden = !isForeign(text);
  for (const row of [...rows, state.draft]) showUsualType(row, typeOf(state));
  for (const row of rows) {
    showError(row, errors.get(row.index), hints.get(row.index));
    if (row.data.kind !== "concept") continue;
    row.cells.mapping.placeholder = usualMapping(row.data.target, row.type.value || typeOf(state));
  }
  const kinds = linesOf(text).map(rowOf).filter((row) => row?.kind === "concept");
  const on = kinds.filter((row) => !row.off).length;
  const off = kinds.length - on;
  const counted = `${on} concept${on === 1 ? "" : "s"}${off ? `, ${off} off` : ""}`;
  panel.count.textContent = isLinked(state.node, state.field) ? "The lines come from another node." : counted;
}

export function render(state) {
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
  // The row of a line that is gone, so that what is pressed or focused in the others stays with its concept.
  const places = new Set(shown.map(({ index }) => index));
  while (rows.length > shown.length) {
    const gone = rows.findIndex(({ index }) => !places.has(index));
    rows.splice(gone, 1)[0].root.remove();
  }
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
