// Shows the pictures before and after on Erase Concepts and Fuse LoRAs, with a divider to drag. Where the page draws nodes with Vue it
// is the core's own widget of Compare Images; its classic renderer has none, so there two pictures lie over each other.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { make } from "./page.js";

const NODES = ["MACE_EraseConcepts", "MACE_FuseLoras"];
const NAME = "before and after";
const HEIGHT = 260;

const address = (image) => api.apiURL(`/view?${new URLSearchParams(image)}${app.getRandParam()}`);

// The divider is a slider over the pictures, unseen: it drags by mouse and moves by keyboard.
function pairElement({ beforeImages, afterImages }) {
  const root = make("div", { display: "flex", flexDirection: "column", gap: "4px", boxSizing: "border-box" });
  const over = { position: "absolute", inset: "0", width: "100%", height: "100%", objectFit: "contain" };
  const stage = make("div", { position: "relative", flex: "1 1 0", minHeight: "0", overflow: "hidden" });
  const after = make("img", over, { alt: "after", draggable: false });
  const before = make("img", over, { alt: "before", draggable: false });
  const line = make("div", {
    position: "absolute",
    top: "0",
    bottom: "0",
    width: "2px",
    background: "rgba(255, 255, 255, 0.8)",
    boxShadow: "0 0 3px black",
    pointerEvents: "none",
  });
  const divider = make(
    "input",
    { ...over, margin: "0", opacity: "0", cursor: "ew-resize" },
    { type: "range", min: "0", max: "100", value: "50" },
  );
  divider.setAttribute("aria-label", "divider between before and after");
  const divide = () => {
    before.style.clipPath = `inset(0 ${100 - Number(divider.value)}% 0 0)`;
    line.style.left = `${divider.value}%`;
  };
  divider.addEventListener("input", divide);
  const row = make("div", { display: "flex", justifyContent: "space-between", flex: "none", fontSize: "11px" });
  const seed = make("button", { font: "inherit" }, { type: "button" });
  let shown = 0;
  const show = () => {
    before.src = beforeImages[shown];
    after.src = afterImages[shown];
    seed.textContent = `seed ${shown + 1} of ${beforeImages.length}`;
  };
  seed.addEventListener("click", () => {
    shown = (shown + 1) % beforeImages.length;
    show();
  });
  row.append(make("span", {}, { textContent: "before" }), seed, make("span", {}, { textContent: "after" }));
  stage.append(after, before, line, divider);
  root.append(row, stage);
  show();
  divide();
  return root;
}

function addCompare(node, value) {
  if (window.LiteGraph.vueNodesMode) {
    const widget = node.addWidget("imagecompare", NAME, ["", ""], () => {}, { serialize: false });
    widget.value = value;
    return widget;
  }
  return node.addDOMWidget(NAME, "mace-compare", pairElement(value), {
    serialize: false,
    hideOnZoom: true,
    getMinHeight: () => HEIGHT,
  });
}

app.registerExtension({
  name: "MACE.Compare",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.includes(nodeData.name)) return;
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (message) {
      onExecuted?.apply(this, arguments);
      const before = this.widgets?.find((widget) => widget.name === NAME);
      if (before) this.removeWidget(before);
      if (!message?.a_images?.length || message.a_images.length !== message.b_images?.length) return;
      const value = { beforeImages: message.a_images.map(address), afterImages: message.b_images.map(address) };
      // Neither saved in the workflow nor sent with the prompt: it belongs to one run.
      const widget = addCompare(this, value);
      widget.serialize = false;
      const size = this.computeSize();
      // The core's widget shares what room there is with the texts, so that it needs more.
      const room = !before && window.LiteGraph.vueNodesMode ? HEIGHT : 0;
      this.setSize([Math.max(this.size[0], size[0], HEIGHT + 60), Math.max(this.size[1], size[1]) + room]);
      app.graph.setDirtyCanvas(true, false);
    };
  },
});
