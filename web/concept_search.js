// The paper's lists, searched: names to take into the concept table.
import { normalised } from "./notation.js";
import { make } from "./page.js";
import { LISTS } from "./paper_lists.js";

const MOST = 60;
// Each name once, with the first list that it stands in.
const NAMES = new Map();
for (const [list, entries] of Object.entries(LISTS)) {
  for (const entry of entries) {
    const key = normalised(entry[0]);
    if (!NAMES.has(key)) NAMES.set(key, { key, list, entry });
  }
}

function line(told, label, action, disabled, act) {
  const root = make("div", {}, {});
  root.setAttribute("role", "listitem");
  const take = make("button", {}, { type: "button", textContent: action, disabled });
  take.setAttribute("aria-label", label);
  take.addEventListener("click", act);
  root.append(make("span", {}, { textContent: told, title: told }), take);
  return root;
}

// has(key): whether a phrase stands in the table.  take(entries).
export function makeSearch({ has, take }) {
  const root = make("div", {}, { className: "mace-search", hidden: true });
  const query = make("input", {}, { type: "search", placeholder: "search the paper's lists", autocomplete: "off" });
  query.setAttribute("aria-label", "search the paper's lists");
  const found = make("div", {}, { className: "mace-found" });
  found.setAttribute("role", "list");
  found.setAttribute("aria-label", "found in the paper's lists");
  root.append(query, found);

  const lists = () =>
    Object.entries(LISTS).map(([name, entries]) => {
      const missing = entries.filter(([target]) => !has(normalised(target)));
      const act = () => choose(missing);
      return line(`${name} (${entries[0][2]})`, `add all: ${name}`, "add all", !missing.length, act);
    });
  const names = (wanted) =>
    [...NAMES.values()]
      .filter(({ key, list }) => key.includes(wanted) || normalised(list).includes(wanted))
      .slice(0, MOST)
      .map(({ key, list, entry }) => {
        const [target, mapping, type] = entry;
        const told = `${target} \u2192 ${mapping} (${type}; ${list})`;
        return line(told, `add ${target}`, has(key) ? "added" : "add", has(key), () => choose([entry]));
      });

  function update() {
    if (root.hidden) return;
    const wanted = normalised(query.value);
    const rows = wanted ? names(wanted) : lists();
    found.replaceChildren(...rows);
    if (!rows.length) found.textContent = "nothing of this name in the paper's lists";
  }
  function choose(entries) {
    const at = [...found.children].findIndex((child) => child.contains(document.activeElement));
    take(entries);
    update();
    // The button that was pressed is disabled now.
    (found.children[at + 1]?.querySelector("button:enabled") ?? query).focus();
  }
  query.addEventListener("input", update);
  const open = (shown) => {
    root.hidden = !shown;
    update();
    if (shown) query.focus();
  };
  return { root, query, update, open };
}
