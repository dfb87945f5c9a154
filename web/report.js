// Shows what a MACE node reports (settings used, captions drawn, the saved file) on the node itself.
import { addPanel, drawingOutputs, grow, isOfPack, make, outputsOf, scrolls, widgetOf } from "./page.js";

const REPORT = "report";
const HEIGHT = 90;
// The widget in which the page shows what a node says while it runs. It stays, and empty space below its last words.
const PROGRESS = "$$node-text-preview";

function addReport(node) {
  const element = make("textarea", { fontSize: "10px", minHeight: `${HEIGHT}px` }, { readOnly: true });
  element.className = "comfy-multiline-input mace-report";
  element.setAttribute("aria-label", REPORT);
  scrolls(element, element);
  return addPanel(node, REPORT, element, { getMinHeight: () => HEIGHT });
}

// A node that had grown for the widget is as high as before again, so that a run is no step of undo.
function removeProgress(node) {
  const progress = widgetOf(node, PROGRESS);
  if (!progress) return;
  const fits = node.size[1] <= node.computeSize()[1];
  node.removeWidget(progress);
  if (fits) node.setSize([node.size[0], node.computeSize()[1]]);
}

function draw(node, ran) {
  const said = outputsOf(node)?.text?.join("\n");
  const found = widgetOf(node, REPORT);
  if (!said) {
    if (found) node.removeWidget(found);
    return;
  }
  if (ran) removeProgress(node);
  const { element } = found ?? addReport(node);
  element.value = said;
  grow(node);
}

export const report = drawingOutputs(isOfPack, draw);
