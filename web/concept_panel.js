// What the concept table stands in: its bar, the search of the paper's lists and the list of rows.
import { CELLS } from "./concept_rows.js";
import { keepsKeys, make, scrolls } from "./page.js";

// told: what the table does on {searched, viewed}.
export function makePanel(search, told) {
  const root = make("div", {}, { className: "mace-concepts" });
  const bar = make("div", {}, { className: "mace-bar" });
  const count = make("span");
  const lists = make("button", {}, { type: "button", textContent: "paper's lists" });
  const view = make("button", {}, { type: "button" });
  bar.append(count, lists, view);
  const foreign = "This is another program's list, or a numbered one. Queue it: the node's error says how to write it here.";
  const note = make("div", {}, { className: "mace-note", textContent: foreign });
  note.setAttribute("role", "status");
  const head = make("div", {}, { className: "mace-head" });
  head.setAttribute("aria-hidden", "true");
  const columns = ["", "", ...CELLS, "type"];
  head.append(...columns.map((name) => make("span", {}, { textContent: name })));
  const list = make("div", {}, { className: "mace-rows" });
  list.setAttribute("role", "list");
  list.setAttribute("aria-label", "concepts");
  const said = make("div", { position: "absolute", width: "1px", height: "1px", overflow: "hidden" });
  said.setAttribute("aria-live", "polite");
  root.append(bar, note, search.root, head, list, said);
  lists.addEventListener("click", told.searched);
  view.addEventListener("click", told.viewed);
  search.root.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) lists.click();
  });
  keepsKeys(root);
  scrolls(root, (event) => event.target.closest(".mace-rows, .mace-found"));
  return { root, count, lists, view, note, head, list, said, search };
}
