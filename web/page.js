// What the widgets of several nodes do with the page and with nodes of this pack.

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
export const isLinked = (node, name) =>
  node.inputs?.some((input) => input.widget?.name === name && input.link != null) ?? false;

export function make(tag, style, attributes = {}) {
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
