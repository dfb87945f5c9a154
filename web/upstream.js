// Where what an input gets comes from, also across the borders of subgraphs.
import { everyNode, widgetOf } from "./page.js";

// Muted or bypassed.
export const isOff = (node) => node.mode === 2 || node.mode === 4;

// The input that an output of a node only hands on, as the page resolves it: of a Reroute, or of a node that is bypassed.
// -1 where there is none, undefined where the node makes the output itself.
function handedOn(node, slot) {
  // The page calls a subgraph's node virtual too.
  if (node.isVirtualNode && !node.isSubgraphNode?.() && node.inputs?.[slot]) return slot;
  if (node.mode !== 4) return undefined;
  const { type } = node.outputs[slot];
  return node.inputs?.[slot]?.type === type ? slot : (node.inputs?.findIndex((input) => input.type === type) ?? -1);
}

function ofLink(graph, link) {
  if (graph.inputNode && link.origin_id === graph.inputNode.id) {
    // The same subgraph may stand in several places.
    const hosts = everyNode().filter((node) => node.subgraph === graph);
    return hosts.flatMap((host) => {
      const input = host.inputs[link.origin_slot];
      if (input?.link != null) return originsOf(host, link.origin_slot);
      const widget = input && widgetOf(host, input.name);
      return widget ? [{ node: host, widget }] : [];
    });
  }
  const node = graph.getNodeById(link.origin_id);
  if (!node) return [];
  const passed = handedOn(node, link.origin_slot);
  if (passed !== undefined) return originsOf(node, passed);
  if (!node.isSubgraphNode?.()) return [{ node }];
  const inner = isOff(node) ? null : node.subgraph.outputNode.slots[link.origin_slot]?.getLinks().at(0);
  return inner ? ofLink(node.subgraph, inner) : [];
}

// The nodes that an input of a node is linked to, [{node}]. Where it is an input of the subgraph that is written on the
// subgraph's node, the widget there, [{node, widget}].
export function originsOf(node, slot) {
  const id = node.inputs?.[slot]?.link;
  const link = id == null ? null : node.graph?.getLink(id);
  return link ? ofLink(node.graph, link) : [];
}

// The texts that a widget's input may get: its own, or those written on the nodes of its subgraph.
export function textsOf(node, name) {
  const slot = node.inputs?.findIndex((input) => input.widget?.name === name) ?? -1;
  const widgets =
    node.inputs?.[slot]?.link == null ? [widgetOf(node, name)] : originsOf(node, slot).map(({ widget }) => widget);
  return widgets.filter(Boolean).map(({ value }) => String(value));
}

// The input of a node in a subgraph that an input of the subgraph's node goes to, {node, name}: the first of several.
export function innerOf(host, name) {
  const slot = host.subgraph.inputNode.slots.find((own) => own.name === name);
  for (const link of slot?.getLinks() ?? []) {
    const { inputNode, input } = link.resolve(host.subgraph);
    if (inputNode && input) return { node: inputNode, name: input.widget?.name ?? input.name };
  }
  return null;
}
