// Reads and rewrites the text of strengths and reads that of concepts, as mace/concepts/strengths.py does.
import { ANY_ARROW, BREAK, UNREADABLE, typeAndRest } from "./notation.js";
import { commentOf, composed, lineOf, normalised, phraseOrNull, written } from "./notation.js";

export const ALL = "*";
// Narrower than float(): what it takes besides (1_0, inf) counts as an error here, and an error changes no text.
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

// Map of the normalised name to {name, value, part}, part being the line's place in text.split(BREAK).
// null for a text that the node would refuse.
export function parseStrengths(text) {
  if (UNREADABLE.test(text)) return null;
  const found = new Map();
  const parts = text.split(BREAK);
  for (let part = 0; part < parts.length; part += 2) {
    const line = lineOf(parts[part])?.text;
    if (!line) continue;
    const equals = line.lastIndexOf("=");
    const name = phraseOrNull(line.slice(0, Math.max(equals, 0)));
    const number = line.slice(equals + 1).trim().replaceAll(",", ".");
    const value = Number(number);
    if (!name || !NUMBER.test(number) || value < 0 || value > 1) return null;
    if (found.has(normalised(name))) return null;
    found.set(normalised(name), { name, value, part });
  }
  return found;
}

// Whether a line for this concept can be written.
export function writable(name) {
  const key = normalised(name);
  return key !== ALL && Boolean(parseStrengths(`${written(composed(name))} = 1`)?.has(key));
}

// The text with another strength for one concept; every other line stays as it is. A text with an error is given back.
// A strength of 1 takes the line out where 1 counts anyway, unless it bears a comment; with `settled` false it stays, so
// that a slider on its way past 1 does not move its line to the end.
export function withStrength(text, name, value, settled = true) {
  const found = parseStrengths(text);
  if (!found) return text;
  const needless = value === 1 && !found.has(ALL);
  const entry = found.get(normalised(name));
  const parts = text.split(BREAK);
  if (!entry) {
    if (needless) return text;
    return `${text}${parts.at(-1) === "" ? "" : "\n"}${written(composed(name))} = ${value}`;
  }
  const line = parts[entry.part];
  const comment = commentOf(line);
  if (needless && settled && !comment) {
    // With the break before it; the first line has only one after it.
    parts.splice(Math.max(entry.part - 1, 0), 2);
  } else {
    const said = line.slice(0, line.length - comment.length);
    parts[entry.part] = said.replace(/([=\uff1d]\s*)[^=\uff1d\s]*(\s*)$/, `$1${value}$2`) + comment;
  }
  return parts.join("");
}

// The targets in the lines of a Concepts node: [type] target | alias, alias -> mapping.
export function conceptNames(text) {
  const lines = text.split(BREAK).filter((_, part) => part % 2 === 0);
  const said = lines.map((raw) => typeAndRest((lineOf(raw)?.text ?? "").replace(/^\* /, ""))[1]);
  const targets = said.map((line) => line.split(ANY_ARROW)[0].split("|")[0]);
  return targets.map(phraseOrNull).filter(Boolean);
}
