// Reads the text of concepts line by line as mace/concepts/concept.py does, with the same errors, and rewrites single
// lines of it; all others stay as they were typed.
import { ANY_ARROW, BREAK, INVISIBLE, typeAndRest } from "./notation.js";
import { TextError, charactersError, commaIn, commentOf, composed, lineOf, masked } from "./notation.js";
import { normalised, phraseOf, quoted, written } from "./notation.js";
import { CLASSES, MAPPINGS } from "./paper_lists.js";

export const TYPES = Object.keys(MAPPINGS);
const LEAD = /^\s*(?:[-\u2010-\u2015\u2022\u2023\u25cf\u00b7]\s+)*(?:\*\s+)?/;
const END = /[,;\uff0c\u3001\uff64\uff1b\s]+$/;
const NUMBER = /^(\d{1,6})[.)]\s+/;
// Another program's list, as pasted.py tells it by a line.
const FOREIGN =
  /^(?:\[(?![A-Za-z]+\]\s*\S)|[\]}]|\{(?!\})|\(\s*["']|-\s+(?:\[(?![A-Za-z]+\]\s*\S)|-|["']?[a-z_]+["']?:(?:\s|$))|["']?[A-Za-z_][\p{L}\p{N}_]*["']?:$|"(?:[^"\\]|\\.)*"\s*:\s|'[^']*'\s*:\s)/u;

export const usualMapping = (target, type) =>
  (type === "object" && CLASSES.get(normalised(target))) || MAPPINGS[type] || "";

// {target, phrases, mapping} of a line, under a type where it has none of its own. Throws TextError.
function conceptOf({ raw, text }, usual) {
  const [own, typed] = typeAndRest(text.replace(/^\* /, ""));
  const type = own || usual;
  if (own && !TYPES.includes(own)) {
    const types = TYPES.map((kind) => `[${kind}]`).join(", ");
    throw new TextError(`[${own}] is no type; write one of ${types}, or leave it out`);
  }
  const sides = typed.split(ANY_ARROW);
  if (sides.length > 2) throw new TextError("more than one '->'; write one concept a line as: target -> mapping");
  const [name, ...aliases] = sides[0].split("|");
  if (aliases.length > 1) {
    throw new TextError("more than one '|'; separate several aliases with commas: target | alias, alias");
  }
  const target = phraseOf(name);
  if (!target) throw new TextError("there is no target phrase; write: target -> mapping");
  const others = aliases.length ? aliases[0].split(",").map(phraseOf) : [];
  if (others.includes("")) throw new TextError("an alias is empty; write: target | alias, alias -> mapping");
  let mapping = usualMapping(target, type);
  if (sides.length === 2) {
    mapping = phraseOf(sides[1]);
    if (!mapping) {
      const what = `name what ${quoted(target)} is to become, or leave it out`;
      throw new TextError(`nothing stands after '->'; ${what}`);
    }
  } else if (name.includes(" = ")) {
    const at = raw.indexOf(" = ");
    const [left, right] = at < 0 ? [raw, ""] : [raw.slice(0, at), raw.slice(at + 3)];
    throw new TextError(
      `'=' gives a strength in Fuse LoRAs; a mapping is written ${left.trim()} -> ${right.trim()}, and a phrase with ` +
        `= in quotes: "${raw}"`,
    );
  }
  const phrases = [target, ...others];
  const keys = phrases.map(normalised);
  phrases.forEach((phrase, i) => {
    if (keys[i] === normalised(mapping)) {
      const other = `give another mapping, such as: ${phrase} -> a scene`;
      throw new TextError(`${quoted(phrase)} would be mapped to itself; ${other}`);
    }
    if (keys.indexOf(keys[i]) < i) throw new TextError(`${quoted(phrase)} is named twice`);
  });
  return { target, phrases, mapping };
}

export const linesOf = (text) => text.split(BREAK).filter((_, part) => part % 2 === 0);

function errorsUnder(lines, type) {
  const errors = new Map();
  const owners = new Map();
  const concepts = [];
  lines.forEach((typed, index) => {
    try {
      const unreadable = charactersError(typed);
      if (unreadable) throw new TextError(unreadable);
      const read = lineOf(typed);
      if (!read) return;
      if (FOREIGN.test(composed(typed))) {
        const bit = quoted([...read.raw].slice(0, 60).join(""));
        throw new TextError(`${bit} is a bit of another program's list; write one concept a line: target -> mapping`);
      }
      const concept = conceptOf(read, type);
      const keys = concept.phrases.map(normalised);
      const again = keys.findIndex((key) => owners.has(key));
      if (again >= 0) {
        const where = `line ${owners.get(keys[again]) + 1}`;
        throw new TextError(`${quoted(concept.phrases[again])} already stands in ${where}; remove one of them`);
      }
      keys.forEach((key) => owners.set(key, index));
      concepts.push({ ...concept, index });
    } catch (error) {
      if (!(error instanceof TextError)) throw error;
      errors.set(index, new TextError(error.message).message);
    }
  });
  for (const { target, mapping, index } of concepts) {
    const words = ` ${normalised(mapping)} `;
    const named = [...owners.keys()].find((key) => words.includes(` ${key} `));
    if (named === undefined) continue;
    const told = `${quoted(target)} is mapped to ${quoted(mapping)}, which names ${quoted(named)}, itself to be erased`;
    errors.set(index, new TextError(`${told}; choose another mapping`).message);
  }
  return errors;
}

// The error of each line that has one, by its index, in the node's words without field and line. type: null where it is
// not known; what is then told is wrong under every type.
export function errorsOf(text, type) {
  const lines = linesOf(text);
  const [first, ...others] = (type ? [type] : TYPES).map((kind) => errorsUnder(lines, kind));
  return new Map([...first].filter(([index]) => others.every((errors) => errors.has(index))));
}

// What the node says after a run of a line that it takes, by the line's index.
export function hintsOf(text) {
  const hints = new Map();
  linesOf(text).forEach((typed, index) => {
    const [, said] = typeAndRest((lineOf(typed)?.text ?? "").replace(/^\* /, ""));
    const hint = commaIn(said.split(ANY_ARROW)[0].split("|")[0]);
    if (hint) hints.set(index, hint);
  });
  return hints;
}

// Whether a text is another program's list, or a numbered one, which the node refuses as a whole.
export const isForeign = (text) =>
  numbersTaken(linesOf(text)) !== null ||
  linesOf(text).some((line) => lineOf(line) && FOREIGN.test(composed(line)));

// Lines that are numbered from 1 without their numbers, null for others.
export function numbersTaken(lines) {
  const said = lines.map((line) => lineOf(line)?.raw).filter(Boolean);
  const counted = said.every((raw, i) => Number(NUMBER.exec(raw)?.[1]) === i + 1);
  return said.length > 1 && counted ? said.map((raw) => raw.replace(NUMBER, "")) : null;
}

// The cells of a line without its comment, each as it was typed. type: "" for a line without one of its own; one that
// is none of the types stays with the target.
function cellsOf(said) {
  const typed = said.replace(INVISIBLE, "");
  const lead = masked(typed).match(LEAD)[0];
  const whole = typed.slice(lead.length).replace(END, "");
  const [own, rest] = typeAndRest(whole);
  const [type, body] = TYPES.includes(own) ? [own, rest] : ["", whole];
  const plain = masked(body);
  const arrow = plain.match(ANY_ARROW);
  const left = arrow ? arrow.index : body.length;
  const bar = plain.slice(0, left).indexOf("|");
  return {
    lead,
    type,
    target: body.slice(0, bar < 0 ? left : bar).trim(),
    aliases: bar < 0 ? "" : body.slice(bar + 1, left).trim(),
    mapping: arrow ? body.slice(left + arrow[0].length).trim() : "",
  };
}

function readable(line) {
  try {
    const read = lineOf(line);
    return Boolean(read && !charactersError(line) && conceptOf(read, ""));
  } catch (error) {
    if (error instanceof TextError) return false;
    throw error;
  }
}

// The cells of a word alone that is off without the quotes which tell it from a comment.
function unquoted(row, body) {
  if (row.type || row.aliases || row.mapping) return row;
  const phrase = conceptOf(lineOf(body), "").target;
  return written(phrase) === phrase ? { ...row, target: phrase } : row;
}

// A line as a row: {kind: "concept", off, lead, type, target, aliases, mapping, comment}, {kind: "comment", text, off}
// or null for one that says nothing. A comment that reads as a line with a type, an arrow, aliases or quotes is a
// concept that is off; any other is shown as it stands, off where it could be a concept.
export function rowOf(line) {
  const split = (typed, off) => {
    const comment = commentOf(typed);
    return { kind: "concept", off, comment, ...cellsOf(typed.slice(0, typed.length - comment.length)) };
  };
  if (lineOf(line)) return split(line, false);
  const body = /^\s*#\s?(.*)$/.exec(line)?.[1];
  if (body === undefined || !composed(line)) return null;
  const off = readable(body);
  const plain = masked(body);
  const typed = typeAndRest(body.trim())[0] !== "";
  const signs = typed || /^\s*"/.test(body) || plain.includes("|") || ANY_ARROW.test(plain);
  return off && signs ? unquoted(split(body, true), body) : { kind: "comment", off, text: line.trim() };
}

// What stands in a cell, in quotes where it would turn the rest of the line into a comment.
const held = (cell) => (commentOf(cell) ? written(composed(cell)) : cell.trim());

// The line of a row. A target alone may be a whole line in the notation, with a comment of its own.
export function lineFrom({ off, lead = "", type = "", target, aliases, mapping, comment = "" }) {
  const alone = !aliases.trim() && !mapping.trim() && !comment && !/^\s*#\S/.test(target);
  const parts = [alone ? target.trim() : held(target)];
  if (aliases.trim()) parts.push("|", held(aliases));
  if (mapping.trim()) parts.push("->", held(mapping));
  const untyped = parts.join(" ").trim();
  const said = type && untyped ? `[${type}] ${untyped}` : untyped;
  const line = said || comment ? `${lead}${said}${comment}` : "";
  return off && line ? switchedOff(line) : line;
}

// A line as a comment that reads as a concept which is off: a word alone stands in quotes.
function switchedOff(line) {
  const off = `# ${line}`;
  if (!readable(line) || rowOf(off).kind === "concept") return off;
  const { target } = conceptOf(lineOf(line), "");
  return `# "${target.replace(/["\\]/g, "\\$&")}"${commentOf(line)}`;
}

// A line switched on or off.
export function switched(line, on) {
  if (!on) return switchedOff(line);
  const row = rowOf(line);
  const plain = line.replace(/^(\s*)#\s?/, "$1");
  return row.kind === "concept" && row.target !== rowOf(plain).target ? lineFrom({ ...row, off: false }) : plain;
}

// The text with another line in place of one.
export function withLine(text, index, line) {
  const parts = text.split(BREAK);
  parts[2 * index] = line;
  return parts.join("");
}

// The text without a line, and without the break before it; the first line has only one after it.
export function withoutLine(text, index) {
  const parts = text.split(BREAK);
  parts.splice(Math.max(2 * index - 1, 0), 2);
  return parts.join("");
}

// The text with lines before one of its lines, or at its end.
export function withLines(text, index, lines) {
  const parts = text.split(BREAK);
  const end = parts[1] ?? "\n";
  if (2 * index < parts.length) parts.splice(2 * index, 0, ...lines.flatMap((line) => [line, end]));
  else parts.push(parts.at(-1) === "" ? "" : end, lines.join(end));
  return parts.join("");
}

// The text with a line moved before another one; the breaks between the lines stay where they are.
export function withMoved(text, from, before) {
  const parts = text.split(BREAK);
  const lines = linesOf(text);
  const [line] = lines.splice(from, 1);
  lines.splice(before > from ? before - 1 : before, 0, line);
  return parts.map((part, i) => (i % 2 ? part : lines[i / 2])).join("");
}
