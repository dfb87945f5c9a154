// The candidates on Find Aliases, with what they explain, a small picture and a box to tick, and the near words that are
// no aliases, of which those ticked are given out to be kept. The text "chosen" stays the only truth: a box rewrites its
// concept's line, and nothing of the boxes is saved or sent.
import { api } from "../../scripts/api.js";
import { parseChosen, withChosen } from "./chosen_text.js";
import { normalised } from "./notation.js";
import { addPanel, after, grow, isLinked, keepsKeys, make, outputsOf, scrolls, step, widgetOf } from "./page.js";

const NODE = "MACE_FindAliases";
const TEXT = "chosen";
const PANEL = "candidates";
// In place of a concept in the text, before the near words that are to stay.
const NEAR = "*";
const SIDE = 44;
const ROW = { false: 20, true: SIDE + 4 };
const HEAD = SIDE + 14;
const MOST = 420;

const address = (image) => api.apiURL(`/view?${new URLSearchParams(image)}`);

const picture = (image, alt) =>
  make("img", { width: `${SIDE}px`, height: `${SIDE}px`, objectFit: "contain", flex: "none" }, { alt, src: address(image) });

// As the model has it, without a word of the artist's.
const foundOf = (entry) => entry.words.filter(({ found }) => found).map(({ word }) => word);

// What is offered, group by group: each concept's candidates, then the near words.
function groupsOf(node) {
  const { candidates = [], near = [] } = outputsOf(node) ?? {};
  if (!near.length) return candidates;
  const words = near.map(({ word, found, stays }) => ({ word, found, chosen: stays, score: null, picture: null }));
  return [...candidates, { concept: NEAR, picture: null, words, near: true }];
}

function heightOf(concepts) {
  const rows = concepts.map(({ words }) => Math.ceil(words.length / 2) * ROW[words.some((own) => own.picture)] + HEAD);
  return Math.min(rows.reduce((sum, own) => sum + own, 8), MOST);
}

// The words that are ticked: the concept's line, else what the model found.
function tickedOf(entry, chosen) {
  return chosen?.get(normalised(entry.concept))?.words ?? foundOf(entry);
}

function write(node, entry, words) {
  const text = widgetOf(node, TEXT);
  const usual = foundOf(entry);
  const same = words && words.length === usual.length && words.every((word) => usual.includes(word));
  step(() => {
    text.value = withChosen(String(text.value), entry.concept, same ? null : words);
  });
  render(node);
}

function makeWord(node, entry, own) {
  const row = make("label", { display: "flex", alignItems: "center", gap: "4px", minWidth: "0", cursor: "pointer" });
  const box = make("input", { flex: "none", margin: "0" }, { type: "checkbox" });
  box.setAttribute("aria-label", entry.near ? `keep ${own.word}` : `${own.word} for ${entry.concept}`);
  box.addEventListener("change", () => {
    const others = tickedOf(entry, parseChosen(String(widgetOf(node, TEXT).value))).filter(
      (word) => normalised(word) !== normalised(own.word),
    );
    write(node, entry, box.checked ? [...others, own.word] : others);
  });
  const name = make(
    "span",
    { flex: "1 1 0", minWidth: "0", overflow: "hidden", textOverflow: "ellipsis", whiteSpace: "nowrap" },
    { textContent: own.word },
  );
  const share = own.score === null ? "" : `${Math.round(100 * own.score)}%`;
  const score = make("span", { flex: "none", opacity: "0.7" }, { textContent: share });
  row.title = share
    ? `"${own.word}" explains ${share} of what "${entry.concept}" explains${own.found ? "; the model takes it" : ""}`
    : entry.near
      ? `"${own.word}" is near and no alias; ticked, it goes to the output neighbours`
      : `"${own.word}" was not asked`;
  if (own.found && !entry.near) name.style.fontWeight = "600";
  row.append(box, ...(own.picture ? [picture(own.picture, own.word)] : []), name, score);
  return { row, box, own };
}

function makeConcept(node, entry) {
  const root = make("div", { padding: "4px 0" });
  root.setAttribute("role", "group");
  const called = entry.near ? "near, and no aliases: to be kept" : entry.concept;
  root.setAttribute("aria-label", entry.near ? called : `candidates for ${called}`);
  const head = make("div", { display: "flex", alignItems: "center", gap: "6px", height: `${SIDE}px` });
  const name = make("strong", { flex: "1 1 0" }, { textContent: called });
  const reset = make("button", { font: "inherit", flex: "none" }, { type: "button" });
  reset.textContent = entry.near ? "all" : "as found";
  reset.title = entry.near ? "Keep all of them" : "Take what the model found";
  reset.addEventListener("click", () => write(node, entry, null));
  head.append(...(entry.picture ? [picture(entry.picture, entry.concept)] : []), name, reset);
  const grid = make("div", { display: "grid", gridTemplateColumns: "1fr 1fr", gap: "4px 10px", marginTop: "4px" });
  const words = entry.words.map((own) => makeWord(node, entry, own));
  if (words.length) grid.append(...words.map(({ row }) => row));
  else grid.append(make("span", { opacity: "0.7" }, { textContent: "no candidates" }));
  root.append(head, grid);
  return { root, reset, words, entry };
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
  const note = make("div", { color: "var(--error-text)", flex: "none" });
  note.setAttribute("role", "status");
  const list = make("div", { flex: "1 1 0", minHeight: "0", overflowY: "auto" });
  root.append(note, list);
  scrolls(root, list);
  keepsKeys(root);
  const widget = addPanel(node, PANEL, root, {
    getMinHeight: () => Math.min(heightOf(state.concepts), 240),
    getMaxHeight: () => heightOf(state.concepts) + 20,
  });
  return { widget, root, note, list };
}

function show(node, state, concepts) {
  state.concepts = concepts;
  if (!concepts.length) {
    if (state.panel) node.removeWidget(state.panel.widget);
    state.panel = null;
    return;
  }
  state.panel ??= makePanel(node, state);
  state.parts = concepts.map((entry) => makeConcept(node, entry));
  state.panel.list.replaceChildren(...state.parts.map(({ root }) => root));
  state.panel.root.style.minHeight = `${Math.min(heightOf(concepts), 240)}px`;
  grow(node);
}

function render(node) {
  const text = widgetOf(node, TEXT);
  if (!text) return;
  const state = (node.maceCandidates ??= { concepts: [], parts: [], panel: null });
  const outputs = outputsOf(node);
  if (outputs !== state.shown) {
    state.shown = outputs;
    show(node, state, groupsOf(node));
  }
  if (!state.panel) return;
  const linked = isLinked(node, TEXT);
  const chosen = parseChosen(String(text.value));
  state.panel.note.textContent = linked ? "The words come from another node." : "There is an error in the chosen words.";
  state.panel.note.style.display = linked || !chosen ? "block" : "none";
  for (const { reset, words, entry } of state.parts) {
    const ticked = tickedOf(entry, chosen).map(normalised);
    reset.disabled = linked || !chosen?.has(normalised(entry.concept));
    for (const { box, own } of words) {
      box.disabled = linked || !chosen;
      box.checked = linked ? own.chosen : ticked.includes(normalised(own.word));
    }
  }
}

export const aliases = {
  isOwn: (name) => name === NODE,
  created(node) {
    const text = widgetOf(node, TEXT);
    if (text) after(text, "callback", () => render(node));
  },
  configured: render,
  connected: render,
  executed: render,
  updated: render,
};
