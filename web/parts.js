// What several of the page's parts need of a node.
import { app } from "../../scripts/app.js";

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
export const isLinked = (node, name) => node.inputs?.some((input) => input.widget?.name === name && input.link != null);

export function make(tag, style = {}, attributes = {}) {
  const element = Object.assign(document.createElement(tag), attributes);
  Object.assign(element.style, style);
  return element;
}

// What a node reported of its last run. The page keeps it when it makes the nodes anew, as undo and another tab do.
export function outputsOf(node) {
  const graph = node.graph;
  const place = !graph || graph === app.rootGraph ? node.id : `${graph.id}:${node.id}`;
  return app.nodeOutputs?.[place];
}

export function after(prototype, method, then) {
  const before = prototype[method];
  prototype[method] = function () {
    const result = before?.apply(this, arguments);
    then(this, ...arguments);
    return result;
  };
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
