// Reads and rewrites the aliases that an artist chose, one concept a line: target | alias, alias. As parse_chosen in
// mace/concepts/subjects.py does.
import { BREAK, commentOf, composed, lineOf, normalised, phraseOrNull, written } from "./notation.js";

// Map of the normalised target to {name, words, part}, part being the line's place in text.split(BREAK). null for a
// text that the node would refuse.
export function parseChosen(text) {
  const found = new Map();
  const parts = text.split(BREAK);
  for (let part = 0; part < parts.length; part += 2) {
    const line = lineOf(parts[part])?.text;
    if (!line) continue;
    const sign = line.includes("|") ? "|" : ":";
    const [left, ...rest] = line.split(sign);
    const name = phraseOrNull(left);
    const words = rest.join(sign).split(",").map(phraseOrNull);
    if (!name || words.includes(null) || /[:|]/.test(rest.join(sign)) || found.has(normalised(name))) return null;
    const each = new Map();
    for (const word of words.filter(Boolean)) if (!each.has(normalised(word))) each.set(normalised(word), word);
    found.set(normalised(name), { name, words: [...each.values()], part });
  }
  return found;
}

// The text with other words for one concept, null for no line: what the model finds. Every other line stays as it is; a
// text with an error is given back.
export function withChosen(text, target, words) {
  const found = parseChosen(text);
  if (!found) return text;
  const entry = found.get(normalised(target));
  const said = words && `${written(composed(target))}${words.length ? ` | ${words.map(written).join(", ")}` : ""}`;
  const parts = text.split(BREAK);
  if (!entry) return said === null ? text : `${text}${parts.at(-1) === "" ? "" : "\n"}${said}`;
  const comment = commentOf(parts[entry.part]);
  // A line goes with the break before it; the first one has only that after it.
  if (said === null) parts.splice(Math.max(entry.part - 1, 0), 2);
  else parts[entry.part] = said + comment;
  return parts.join("");
}
