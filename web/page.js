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

// Something more to do after a method of an object or a node type of ours.
export function after(owner, method, then) {
  const before = owner[method];
  owner[method] = function (...given) {
    const result = before?.apply(this, given);
    then(this, ...given);
    return result;
  };
}

// What a node reported of its last run. The page keeps it when it makes the nodes anew, as undo and another tab do.
export function outputsOf(node) {
  const graph = node.graph;
  const place = !graph || graph === app.rootGraph ? node.id : `${graph.id}:${node.id}`;
  return app.nodeOutputs?.[place];
}

// The wheel scrolls a list that is too long; else it is the canvas's, as everywhere on a node.
export function scrolls(root, list) {
  root.dataset.captureWheel = "true";
  root.addEventListener("wheel", (event) => {
    event.stopPropagation();
    if (!event.ctrlKey && list.scrollHeight > list.clientHeight) return;
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  });
}
