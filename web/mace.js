// Shows what a MACE node reports (settings used, captions drawn, the saved file) on the node itself.
import { app } from "../../scripts/app.js";

const REPORT = "report";

function reportElement(node) {
  const found = node.widgets?.find((widget) => widget.name === REPORT);
  if (found) return found.element;
  const element = document.createElement("textarea");
  element.readOnly = true;
  element.className = "comfy-multiline-input";
  element.setAttribute("aria-label", "report");
  element.style.fontSize = "10px";
  // Neither saved in the workflow nor sent with the prompt: it belongs to one run.
  const widget = node.addDOMWidget(REPORT, "mace-report", element, {
    serialize: false,
    getMinHeight: () => 90,
    hideOnZoom: true,
  });
  widget.serialize = false;
  return element;
}

app.registerExtension({
  name: "MACE.Report",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("MACE_")) return;
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (message) {
      onExecuted?.apply(this, arguments);
      if (!message?.text) return;
      const element = reportElement(this);
      element.value = message.text.join("\n");
      const size = this.computeSize();
      this.setSize([Math.max(this.size[0], size[0]), Math.max(this.size[1], size[1])]);
      app.graph.setDirtyCanvas(true, false);
    };
  },
});
