// Numbers that may also be auto hold text. They are dragged to the side as numbers are: weights and rates by decades,
// counts one by one; a click writes one, or auto.
import { app } from "../../scripts/app.js";
import { isLinked, isOfPack, widgetOf } from "./page.js";
import { innerOf } from "./upstream.js";

// What the schema calls such an input; the value that a drag begins with where auto stands, and whether it is whole.
const NUMBER = "mace_number";
// Pixels for a factor of ten, and for one more.
const DECADE = 120;
const ONE = 12;
const LEAST = 1e-12;
const MOST = 1e9;
// Pixels before a press in a field is a drag and no longer a click.
const SLACK = 4;

// Of an input of a subgraph, that of the node which it goes to.
const specOf = (node, name) => {
  const inner = node.isSubgraphNode?.() ? innerOf(node, name) : null;
  if (inner) return specOf(inner.node, inner.name);
  const inputs = node.constructor.nodeData?.input ?? {};
  return (inputs.required?.[name] ?? inputs.optional?.[name])?.[1]?.[NUMBER];
};

// Moves a widget's value with the pointer.
function makeMover(widget, { usual, whole }) {
  // What the text rounds, so that small movements add up.
  let exact = 0;
  let shown = null;
  return (pixels, set) => {
    if (!pixels) return;
    const written = widget.value === shown ? exact : Number(widget.value);
    const start = written > 0 ? written : usual;
    const to = whole ? Math.max(1, start + pixels / ONE) : start * 10 ** (pixels / DECADE);
    exact = Math.min(Math.max(to, whole ? 1 : LEAST), MOST);
    shown = whole ? String(Math.round(exact)) : String(Number(exact.toPrecision(2)));
    if (shown !== widget.value) set(shown);
  };
}

// Where the page draws nodes with Vue, such a widget is a text field in the node's element.
function fieldOf(target) {
  const field = target.closest?.("input[aria-label]");
  const id = field?.closest("[data-node-id]")?.dataset.nodeId;
  const node = id == null ? null : app.canvas?.graph?.getNodeById(id);
  const name = field?.getAttribute("aria-label");
  const widget = node && widgetOf(node, name);
  const spec = widget && specOf(node, name);
  return spec && !isLinked(node, name) ? { field, widget, spec } : null;
}

function dragField(event) {
  const found = event.button === 0 && fieldOf(event.target);
  // In a field that is being written in, a drag selects text.
  if (!found || found.field.readOnly || found.field.disabled || found.field === document.activeElement) return;
  const { field, widget, spec } = found;
  const move = makeMover(widget, spec);
  const from = event.clientX;
  let last = null;
  const moved = ({ clientX, pointerId }) => {
    if (last === null) {
      if (Math.abs(clientX - from) < SLACK) return;
      last = from;
      field.setPointerCapture(pointerId);
      field.blur();
      field.style.userSelect = "none";
    }
    move(clientX - last, (value) => {
      widget.value = value;
      widget.callback?.(value);
    });
    last = clientX;
  };
  const ended = () => {
    document.removeEventListener("pointermove", moved, true);
    for (const kind of ["pointerup", "pointercancel"]) document.removeEventListener(kind, ended, true);
    if (last === null) return;
    field.style.userSelect = "";
    // The press has put the cursor there.
    field.blur();
  };
  document.addEventListener("pointermove", moved, true);
  for (const kind of ["pointerup", "pointercancel"]) document.addEventListener(kind, ended, true);
}

// On the canvas. The page may draw a copy of a widget, which is the one that is set.
function letDrag(node) {
  for (const widget of node.widgets ?? []) {
    const spec = widget.onDrag ? null : specOf(node, widget.name);
    if (!spec) continue;
    const move = makeMover(widget, spec);
    widget.onDrag = function ({ e, node, canvas }) {
      move(e.deltaX, (value) => this.setValue(value, { e, node, canvas }));
    };
  }
}

export const numbers = {
  isOwn: isOfPack,
  created: letDrag,
  setup() {
    // The fields are the page's own, and they and the inputs of subgraphs come and go; in the capturing phase, since
    // they stop what reaches them, and the canvas looks for onDrag when it is pressed.
    document.addEventListener(
      "pointerdown",
      (event) => {
        for (const node of app.canvas?.graph?.nodes ?? []) if (node.isSubgraphNode?.()) letDrag(node);
        dragField(event);
      },
      true,
    );
    document.addEventListener(
      "pointerover",
      (event) => {
        const found = fieldOf(event.target);
        if (found) found.field.style.cursor = found.field === document.activeElement ? "" : "ew-resize";
      },
      true,
    );
  },
};
