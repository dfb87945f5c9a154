// The pack's one extension of the page. Its parts each say which nodes are theirs, isOwn(name), and what they do when
// such a node is created, configured, connected, executed or saved, and when the page has what nodes reported anew:
// updated. What they do they do on the nodes themselves: no type of node is changed, neither ours nor another's.
import { app } from "../../scripts/app.js";
import { aliases } from "./aliases.js";
import { compare } from "./compare.js";
import { conceptTable } from "./concept_table.js";
import { numbers } from "./numbers.js";
import { after, everyNode, make } from "./page.js";
import { report } from "./report.js";
import { strengths } from "./strengths.js";

// In the order of their panels on a node: what it says stands above its pictures.
const PARTS = [numbers, conceptTable, strengths, aliases, report, compare];
const STYLES = ["concept_table.css", "compare.css"];
// What the page calls on a node, by what a part calls it.
const CALLED = {
  configured: "onConfigure",
  connected: "onConnectionsChange",
  executed: "onExecuted",
  saved: "onSerialize",
};

// A part that fails takes no other with it.
function call(part, name, ...given) {
  try {
    part[name]?.(...given);
  } catch (error) {
    console.error(`MACE: ${name}`, error);
  }
}

const partsOf = (node) => PARTS.filter((part) => part.isOwn(node.comfyClass ?? ""));

app.registerExtension({
  name: "MACE",
  init() {
    for (const name of STYLES) {
      document.head.append(make("link", {}, { rel: "stylesheet", href: new URL(name, import.meta.url).href }));
    }
  },
  setup() {
    for (const part of PARTS) call(part, "setup");
  },
  // Called by what makes every node, by hand or of a workflow, a copy or a subgraph, before its values are set.
  nodeCreated(node) {
    for (const part of partsOf(node)) {
      call(part, "created", node);
      for (const [name, method] of Object.entries(CALLED)) {
        if (part[name]) after(node, method, (...given) => call(part, name, ...given));
      }
    }
  },
  onNodeOutputsUpdated() {
    for (const node of everyNode()) for (const part of partsOf(node)) call(part, "updated", node);
  },
});
