// Reads and rewrites the text of strengths and reads that of concepts, as mace/concepts/text.py, notation.py and
// strengths.py do.

export const ALL = "*";
// Where Python's splitlines ends a line.
export const BREAK = /(\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])/;
const SPACE = /[\s\x1c-\x1f\x85]+/;
const INVISIBLE = /[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]/g;
const UNREADABLE =
  /[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ue000-\uf8ff\u{f0000}-\u{ffffd}\u{100000}-\u{10fffd}]/u;
// Narrower than float(): what it takes besides (1_0, inf) counts as an error here, and an error changes no text.
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const COMMENT = /(^|\s)#.*$/;
const ARROWS = "\u2192\u21d2\u21a6\u27f6\u27f9\u279c\u2794\u279d\u27a1";
const ANY_ARROW = new RegExp(`(?:[-=\u2010-\u2015\u2212\uff0d\uff1d]{1,20}\\s?(?:[>\uff1e]|&gt;)|[${ARROWS}])\ufe0f?`);
const LIKE = "\uff5c\u2223\u2502\uff0c\u3001\uff64\uff1a\uff1d\uff1b\uff1e\uff1c";
const SIGNS = "|||,,,:=;><";
const BULLET = /^(?:[-\u2010-\u2015\u2022\u2023\u25cf\u00b7]\s+)+/;
const QUOTED = new RegExp(
  `((?:^|[|,:;=>\uff5c\uff0c\u3001\uff1a\uff1d\uff1e${ARROWS}])\\s*(?:[-*\u2022]\\s+)?)"((?:[^"\\\\]|\\\\.)*)"` +
    `(?=\\s*(?:$|#|[|,:;=\uff5c\uff0c\u3001\uff1a\uff1d\uff1b]|${ANY_ARROW.source}))`,
  "g",
);
const OTHER_QUOTES = "'' `` \u2018\u2019 \u201c\u201d \u201e\u201c \u201e\u201d \u00ab\u00bb \u2039\u203a".split(" ");
const SPECIAL = new RegExp(
  `["\`|,:;=#<>\\\\\\[\\]*${ARROWS}\u2010-\u2015\u2018-\u201e\u2022\u2023\u25cf\u00ab\u00b7\u00bb\u2039\u203a\u2212\u2223\u2502\u3000-\u303f\uff00-\uffef]`,
);
const AWAY = 0xf0000;

export const composed = (text) => text.normalize("NFC").replace(INVISIBLE, "").split(SPACE).filter(Boolean).join(" ");
export const normalised = (name) => [...composed(name)].map((letter) => letter.toLowerCase()).join("").normalize("NFC");

const moved = (letter, by) => String.fromCodePoint(letter.codePointAt(0) + by);
const shifted = (text) => text.replace(/[^\p{L}\p{N} ]/gu, (c) => (c.length > 1 ? c : moved(c, AWAY)));
const unsealed = (text) => text.replace(/[\u{f0000}-\u{fffff}]/gu, (c) => moved(c, -AWAY));
const sealed = (line) => line.replace(QUOTED, (_, lead, inside) => lead + shifted(inside.replace(/\\(["\\])/g, "$1")));

// A line ready to be parted at the notation's signs.
export function lineOf(raw) {
  const line = sealed(composed(raw)).replace(COMMENT, "").trim();
  return [...line].map((c) => SIGNS[LIKE.indexOf(c)] ?? c).join("").replace(BULLET, "").replace(/[,; ]+$/, "");
}

// The comment at the end of a line as it was typed, with the space before it.
export function commentOf(raw) {
  const masked = raw.replace(QUOTED, (all, lead) => lead + "x".repeat(all.length - lead.length));
  return raw.slice(raw.length - (masked.match(COMMENT)?.[0].length ?? 0));
}

// The phrase that a part of a line is, null for what the node would refuse.
export function phraseOf(part) {
  let text = part.trim();
  for (const [first, last] of OTHER_QUOTES) {
    const inside = text.slice(1, -1);
    const wraps = inside && text[0] === first && text.at(-1) === last;
    if (wraps && !inside.includes(first) && !inside.includes(last)) {
      text = inside.trim();
      break;
    }
  }
  const phrase = unsealed(text);
  const bare = text.replace(/<[^<>\s]*>/g, "");
  const foreign = /^[[\]]/.test(text) || (text.endsWith("]") && !text.includes("["));
  const open = text.startsWith('"') && text.split('"').length === 2;
  if (/[{}]/.test(phrase) || open || />|<-|<$/.test(bare) || text.includes(";") || foreign) return null;
  return phrase;
}

// A phrase as a line holds it, in quotes where it needs them.
export function written(phrase) {
  const plain = !SPECIAL.test(phrase) && !BULLET.test(phrase) && !phrase.includes("->") && !/^['(-]|^$/.test(phrase);
  return plain ? phrase : `"${phrase.replace(/["\\]/g, "\\$&")}"`;
}

// Map of the normalised name to {name, value, part}, part being the line's place in text.split(BREAK).
// null for a text that the node would refuse.
export function parseStrengths(text) {
  if (UNREADABLE.test(text)) return null;
  const found = new Map();
  const parts = text.split(BREAK);
  for (let part = 0; part < parts.length; part += 2) {
    const line = lineOf(parts[part]);
    if (!line) continue;
    const equals = line.lastIndexOf("=");
    const name = phraseOf(line.slice(0, Math.max(equals, 0)));
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

// The targets in the lines of a Concepts node: target | alias, alias -> mapping.
export function conceptNames(text) {
  const lines = text.split(BREAK).filter((_, part) => part % 2 === 0);
  const targets = lines.map((raw) => lineOf(raw).replace(/^\* /, "").split(ANY_ARROW)[0].split("|")[0]);
  return targets.map(phraseOf).filter(Boolean);
}
