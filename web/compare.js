// Shows the pictures before and after on Erase Concepts and Fuse LoRAs, with a divider to drag. Where the page draws
// nodes with Vue it is the core's own widget of Compare Images; its classic renderer has none, so there two pictures lie
// over each other.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPanel, drawingOutputs, everyNode, grow, keepsKeys, make } from "./page.js";
import { outputsOf, placeOf, scrolls, widgetOf } from "./page.js";

const NODES = ["MACE_EraseConcepts", "MACE_FuseLoras"];
const NAME = "before and after";
const HEIGHT = 260;
// The widget in which the classic renderer shows a node's pictures.
const PREVIEW = "$$canvas-image-preview";

const address = (image) => api.apiURL(`/view?${new URLSearchParams(image)}${app.getRandParam()}`);

// The divider is a slider over the pictures, unseen: it drags by mouse and moves by keyboard.
function pairElement({ beforeImages, afterImages }) {
  const root = make("div", { display: "flex", flexDirection: "column", gap: "4px", boxSizing: "border-box" });
  root.className = "mace-compare";
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
  divider.title = "drag the divider";
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
  scrolls(root, null);
  keepsKeys(root);
  show();
  divide();
  return root;
}

function addCompare(node, value) {
  if (!window.LiteGraph.vueNodesMode) return addPanel(node, NAME, pairElement(value), { getMinHeight: () => HEIGHT });
  const widget = node.addWidget("imagecompare", NAME, ["", ""], () => {}, { serialize: false });
  widget.value = value;
  widget.serialize = false;
  return widget;
}

// The losses of the training, which the page shows while the node runs, and leaves there.
function endPreview(node) {
  // The page has no public way: Vue draws its store's own list, which does not notice what is taken from
  // app.nodePreviewImages, and the page itself takes them away only where the node begins to run again.
  const store = app.extensionManager?._p?._s?.get("nodeOutput");
  store?.revokePreviewsByLocatorId?.(String(placeOf(node)));
  node.imgs = undefined;
  const picture = widgetOf(node, PREVIEW);
  if (picture) node.removeWidget(picture);
}

function draw(node, ran) {
  const { a_images: befores = [], b_images: afters = [] } = outputsOf(node) ?? {};
  const shown = befores.length && befores.length === afters.length ? JSON.stringify([befores, afters]) : "";
  if (shown && ran) endPreview(node);
  const vue = Boolean(window.LiteGraph.vueNodesMode);
  const found = widgetOf(node, NAME);
  if (found && found.maceShown === shown && found.maceVue === vue) return;
  if (found) node.removeWidget(found);
  if (!shown) return;
  const widget = addCompare(node, { beforeImages: befores.map(address), afterImages: afters.map(address) });
  Object.assign(widget, { maceShown: shown, maceVue: vue });
  grow(node, HEIGHT + 60);
}

const isOwn = (name) => NODES.includes(name);

function drawAll() {
  for (const node of everyNode()) if (isOwn(node.comfyClass)) draw(node, false);
}

export const compare = {
  ...drawingOutputs(isOwn, draw),
  setup() {
    // Each way of drawing nodes has its own.
    app.ui.settings.addEventListener("Comfy.VueNodes.Enabled.change", () => setTimeout(drawAll));
  },
};
