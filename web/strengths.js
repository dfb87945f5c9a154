// One slider a concept below the text of strengths in Fuse LoRAs and Erase Concepts. The text stays the only truth: a
// slider rewrites its concept's line and nothing else, and nothing of the sliders is saved or sent.
import { api } from "../../scripts/api.js";
import { normalised } from "./notation.js";
import { addPanel, after, everyNode, grow, isLinked, isOfPack, keepsKeys, make, outputsOf } from "./page.js";
import { scrolls, step, widgetOf } from "./page.js";
import { ALL, conceptNames, parseStrengths, withStrength, writable } from "./strengths_text.js";
import { isOff, originsOf, textsOf } from "./upstream.js";

const FUSING = ["MACE_FuseLoras", "MACE_EraseConcepts"];
const CONCEPTS = "MACE_Concepts";
const WORDS = "words";
const PANEL = "strength sliders";
const ROW = 22;
const MARGIN = 10;
const UNFILTERED = 12;
// Where a fusion's concepts come from.
const SOURCES = ["refinement", "loras", "concepts", WORDS];
// Inputs that bring along the concepts which are fused; those of a prior or a model are others. The last two are of the
// host's switch, which stands in the blueprint.
const FOLLOWED = ["refinement", "loras", "concepts", "images", "more", "on_false", "on_true"];

// What the last run fused, where another node may have named it; else the node's words name all there is.
function ranWith(node) {
  const isGiven = ({ name }, slot) => SOURCES.includes(name) && originsOf(node, slot).some(({ widget }) => !widget);
  return node.inputs?.some(isGiven) ? (outputsOf(node)?.concepts ?? []).map(([target]) => target) : [];
}

function upstream(node) {
  const names = [];
  const seen = new Set();
  const add = (from, name) => names.push(...textsOf(from, name).flatMap(conceptNames));
  const follow = (from, inputs) => {
    if (seen.has(from)) return;
    seen.add(from);
    from.inputs?.forEach((input, slot) => {
      if (!inputs.includes(input.name)) return;
      for (const { node: origin, widget } of originsOf(from, slot)) if (!widget) follow(origin, FOLLOWED);
    });
    if (from.comfyClass === CONCEPTS && !isOff(from)) add(from, "concepts");
  };
  // A refinement's list decides what is fused.
  const refinement = node.inputs?.findIndex((input) => input.name === "refinement") ?? -1;
  follow(node, originsOf(node, refinement).length ? ["refinement"] : ["loras", "concepts"]);
  // Erase Concepts has words of its own, after those that are connected.
  if (widgetOf(node, WORDS)) add(node, WORDS);
  return names;
}

// Names by key, each once, in the order they came to be known, so that no slider moves under the hand. A slider at 1
// may take its line out of the text and must not go with it: `kept`, until the concepts change or are known of a run.
function namesOf(node, state, found) {
  if (found) state.written = [...found.values()].map((entry) => entry.name).filter((name) => name !== ALL);
  const known = new Map();
  for (const name of [...ranWith(node), ...upstream(node), ...state.written, ...state.kept.values()]) {
    if (!known.has(normalised(name))) known.set(normalised(name), name);
  }
  const before = [...state.rows.keys()].filter((key) => known.has(key));
  return new Map([...before.map((key) => [key, known.get(key)]), ...known]);
}

function makeRow(node, state, key, name) {
  const row = make("label", { display: "flex", alignItems: "center", gap: "6px", height: `${ROW}px` });
  const label = make(
    "span",
    { flex: "1 1 40%", overflow: "hidden", textOverflow: "ellipsis", whiteSpace: "nowrap" },
    { textContent: name, title: writable(name) ? name : `${name}: the text cannot name it; use * for it` },
  );
  const slider = make(
    "input",
    { flex: "1 1 45%", minWidth: "0", margin: "0" },
    { type: "range", min: "0", max: "1", step: "0.05" },
  );
  slider.setAttribute("aria-label", `strength of ${name}`);
  const value = make("output", { flex: "0 0 4ch", textAlign: "right" });
  const write = (settled) => {
    const text = widgetOf(node, "strengths");
    state.kept.set(key, name);
    text.value = withStrength(text.value, name, Number(slider.value), settled);
  };
  slider.addEventListener("input", () => write(false));
  slider.addEventListener("change", () => step(() => write(true)));
  row.append(label, slider, value);
  return { row, slider, value, name };
}

function makePanel(node, state) {
  const root = make("div", {
    display: "flex",
    flexDirection: "column",
    boxSizing: "border-box",
    padding: "2px 6px",
    fontSize: "11px",
    color: "var(--input-text)",
    background: "var(--comfy-input-bg)",
  });
  const note = make("div", { color: "var(--error-text)" });
  note.setAttribute("role", "status");
  const filter = make("input", { margin: "2px 0", font: "inherit", flex: "none" }, { type: "search" });
  filter.setAttribute("aria-label", "filter concepts");
  const list = make("div", { flex: "1 1 0", minHeight: "0", overflowY: "auto" });
  list.setAttribute("role", "group");
  list.setAttribute("aria-label", "strengths");
  root.append(note, filter, list);
  filter.addEventListener("input", () => applyFilter(state));
  scrolls(root, list);
  keepsKeys(root);
  // Last among the widgets: one in their midst that is not saved would shift the saved values behind it.
  const widget = addPanel(node, PANEL, root, {
    margin: MARGIN,
    getMinHeight: () => heightOf(state, 6) + 2 * MARGIN,
    getMaxHeight: () => heightOf(state, 12) + 2 * MARGIN,
  });
  return { widget, root, note, filter, list };
}

const heightOf = (state, most) =>
  Math.min(state.rows.size, most) * ROW + (state.rows.size > UNFILTERED ? 28 : 0) + 6;

function applyFilter({ rows, panel: { filter } }) {
  const wanted = rows.size > UNFILTERED ? normalised(filter.value) : "";
  for (const [key, { row }] of rows) row.style.display = key.includes(wanted) ? "flex" : "none";
}

function showRows(node, state, names) {
  state.rows = new Map([...names].map(([key, name]) => [key, makeRow(node, state, key, name)]));
  if (!names.size) {
    if (state.panel) node.removeWidget(state.panel.widget);
    state.panel = null;
    return;
  }
  const { root, filter, list } = (state.panel ??= makePanel(node, state));
  list.replaceChildren(...[...state.rows.values()].map((entry) => entry.row));
  filter.style.display = names.size > UNFILTERED ? "block" : "none";
  filter.placeholder = `filter ${names.size} concepts`;
  applyFilter(state);
  root.style.minHeight = `${heightOf(state, 6)}px`;
  root.style.maxHeight = `${heightOf(state, 12)}px`;
  grow(node);
}

function render(node) {
  const text = widgetOf(node, "strengths");
  if (!text) return;
  const state = (node.maceStrengths ??= { kept: new Map(), written: [], rows: new Map(), panel: null });
  const found = parseStrengths(String(text.value));
  const names = namesOf(node, state, found);
  if ([...names.keys()].join("\n") !== [...state.rows.keys()].join("\n")) showRows(node, state, names);
  if (!state.panel) return;
  const linked = isLinked(node, "strengths");
  const { note } = state.panel;
  note.textContent = linked ? "The strengths come from another node." : "There is an error in the strengths.";
  note.style.display = linked || !found ? "block" : "none";
  const usual = found?.get(ALL)?.value ?? 1;
  for (const [key, { slider, value, name }] of state.rows) {
    slider.disabled = linked || !found || !writable(name);
    if (!found) continue;
    const strength = found.get(key)?.value ?? usual;
    slider.value = strength;
    value.textContent = String(strength);
  }
}

const fuses = (node) => FUSING.includes(node.comfyClass);

function renderIfFusing(node) {
  if (fuses(node)) render(node);
}

function renderAll() {
  everyNode().forEach(renderIfFusing);
}

function renderAnew(node) {
  node.maceStrengths?.kept.clear();
  renderIfFusing(node);
}

export const strengths = {
  isOwn: isOfPack,
  setup() {
    // Also what changes on nodes of subgraphs, which are not ours.
    api.addEventListener("graphChanged", renderAll);
  },
  created(node) {
    const told = fuses(node)
      ? { strengths: () => render(node), [WORDS]: () => renderAnew(node) }
      : node.comfyClass === CONCEPTS
        ? { concepts: () => everyNode().forEach(renderAnew) }
        : {};
    for (const [name, tell] of Object.entries(told)) {
      const widget = widgetOf(node, name);
      if (widget) after(widget, "callback", tell);
    }
  },
  configured: renderIfFusing,
  // A link anywhere before the fusion may bring other concepts.
  connected: renderAll,
  executed: renderAnew,
  updated: renderIfFusing,
};
