// What the widgets of several nodes do with the page and with nodes of this pack.
import { app } from "../../scripts/app.js";

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
export const isLinked = (node, name) =>
  node.inputs?.some((input) => input.widget?.name === name && input.link != null) ?? false;

export function make(tag, style = {}, attributes = {}) {
  const element = Object.assign(document.createElement(tag), attributes);
  Object.assign(element.style, style);
  return element;
}

// Something more to do after a method of a node or a widget of ours, and of it alone.
export function after(owner, method, then) {
  const before = owner[method];
  owner[method] = function (...given) {
    const result = before?.apply(this, given);
    then(this, ...given);
    return result;
  };
}

// One step of the page's undo.
export function step(act) {
  app.canvas.emitBeforeChange();
  try {
    act();
  } finally {
    app.canvas.emitAfterChange();
  }
}

// Every node of the workflow, also those in subgraphs. None while the page makes the graph.
export function everyNode() {
  if (!app.isGraphReady) return [];
  const graphs = [app.rootGraph, ...(app.rootGraph.subgraphs?.values() ?? [])];
  return graphs.flatMap((graph) => graph.nodes);
}

// What the page calls a node's place among what nodes reported.
export const placeOf = ({ graph, id }) => (graph === app.rootGraph ? id : `${graph.id}:${id}`);

// What a node reported of its last run. The page keeps it when it makes the nodes anew, as undo and another tab do.
export const outputsOf = (node) => (node.graph ? app.nodeOutputs?.[placeOf(node)] : undefined);

export const isOfPack = (name) => name.startsWith("MACE_");

// A part that draws on nodes what they reported: after a run, and where the page makes them anew.
// draw(node, ran): ran: the node has just run.
export const drawingOutputs = (isOwn, draw) => ({
  isOwn,
  executed: (node) => draw(node, true),
  configured: (node) => draw(node, false),
  updated: (node) => draw(node, false),
});

let made = 0;

// A panel of ours on a node. It is neither saved in the workflow nor sent with the prompt.
export function addPanel(node, name, root, options) {
  // Where undo makes a node anew, Vue would keep the old one's element for a widget of the same name and type.
  const type = `mace-panel-${(made += 1)}`;
  const widget = node.addDOMWidget(name, type, root, { serialize: false, hideOnZoom: true, ...options });
  widget.serialize = false;
  return widget;
}

// As wide and as high as its widgets need, and no smaller than it was made.
export function grow(node, width = 0) {
  const [wide, high] = node.computeSize();
  node.setSize([Math.max(node.size[0], wide, width), Math.max(node.size[1], high)]);
  app.canvas?.setDirty(true, true);
}

// The wheel scrolls a list that is too long; else it is the canvas's, as everywhere on a node. list: an element, or
// which one an event is for.
export function scrolls(root, list) {
  root.dataset.captureWheel = "true";
  root.addEventListener("wheel", (event) => {
    event.stopPropagation();
    const own = typeof list === "function" ? list(event) : list;
    if (!event.ctrlKey && own && own.scrollHeight > own.clientHeight) return;
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  });
}

// Keys that are typed here are not the canvas's, where Delete takes nodes away; those with Ctrl are (queue, undo).
export function keepsKeys(root) {
  for (const name of ["keydown", "keyup"]) {
    root.addEventListener(name, (event) => {
      if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
    });
  }
}
