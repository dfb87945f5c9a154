// Numbers that may also be auto hold text. On the canvas they are dragged to the side as numbers are: weights and rates
// by decades, counts one by one; a click writes one, or auto.
import { app } from "../../scripts/app.js";
import { widgetOf } from "./page.js";

// What the schema calls such an input; the value that a drag begins with where auto stands, and whether it is whole.
const NUMBER = "mace_number";
// Pixels for a factor of ten, and for one more.
const DECADE = 120;
const ONE = 12;
const LEAST = 1e-12;
const MOST = 1e9;

function makeDraggable(widget, { usual, whole }) {
  // What the text rounds, so that small movements add up.
  let exact = 0;
  let shown = null;
  widget.onDrag = ({ e, node, canvas }) => {
    if (!e.deltaX) return;
    const written = widget.value === shown ? exact : Number(widget.value);
    const start = written > 0 ? written : usual;
    const to = whole ? Math.max(1, start + e.deltaX / ONE) : start * 10 ** (e.deltaX / DECADE);
    exact = Math.min(Math.max(to, whole ? 1 : LEAST), MOST);
    shown = whole ? String(Math.round(exact)) : String(Number(exact.toPrecision(2)));
    if (shown !== widget.value) widget.setValue(shown, { e, node, canvas });
  };
}

app.registerExtension({
  name: "MACE.Numbers",
  nodeCreated(node) {
    const inputs = node.constructor.nodeData?.input ?? {};
    for (const [name, spec] of Object.entries({ ...inputs.required, ...inputs.optional })) {
      const widget = spec[1]?.[NUMBER] && widgetOf(node, name);
      if (widget) makeDraggable(widget, spec[1][NUMBER]);
    }
  },
});
