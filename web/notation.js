// Reads lines as mace/concepts/text.py and notation.py do, with the same errors.

// Where Python's splitlines ends a line.
export const BREAK = /(\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])/;
const SPACE = /[\s\x1c-\x1f\x85]+/;
export const INVISIBLE = /[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]/g;
export const UNREADABLE =
  /[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ue000-\uf8ff\u{f0000}-\u{ffffd}\u{100000}-\u{10fffd}]/u;
const COMMENT = /(^|\s)#.*$/;
const ARROWS = "\u2192\u21d2\u21a6\u27f6\u27f9\u279c\u2794\u279d\u27a1";
export const ANY_ARROW = new RegExp(
  `(?:[-=\u2010-\u2015\u2212\uff0d\uff1d]{1,20}\\s?(?:[>\uff1e]|&gt;)|[${ARROWS}])\ufe0f?`,
);
const TYPE = /^\[([A-Za-z]+)\]\s*(?=\S)/;
const LIKE = "\uff5c\u2223\u2502\uff0c\u3001\uff64\uff1a\uff1d\uff1b\uff1e\uff1c";
const SIGNS = "|||,,,:=;><";
const BULLET = /^(?:[-\u2010-\u2015\u2022\u2023\u25cf\u00b7]\s+)+/;
const QUOTED = new RegExp(
  `((?:^|[|,:;=>\uff5c\uff0c\u3001\uff1a\uff1d\uff1e${ARROWS}])\\s*(?:[-*\u2022]\\s+)?(?:\\[[A-Za-z]+\\]\\s*)?)"((?:[^"\\\\]|\\\\.)*)"` +
    `(?=\\s*(?:$|#|[|,:;=\uff5c\uff0c\u3001\uff1a\uff1d\uff1b]|${ANY_ARROW.source}))`,
  "g",
);
const OTHER_QUOTES = "'' `` \u2018\u2019 \u201c\u201d \u201e\u201c \u201e\u201d \u00ab\u00bb \u2039\u203a".split(" ");
const SPECIAL = new RegExp(
  `["\`|,:;=#<>\\\\\\[\\]*${ARROWS}\u2010-\u2015\u2018-\u201e\u2022\u2023\u25cf\u00ab\u00b7\u00bb\u2039\u203a\u2212\u2223\u2502\u3000-\u303f\uff00-\uffef]`,
);
const AWAY = 0xf0000;
const LONGEST = 120;

// An error of a text; the message is the node's.
export class TextError extends Error {
  constructor(message) {
    super(shortened(message));
  }
}

// Long quotes and words cut in the middle, as mace/messages.py does.
function shortened(message) {
  const cut = (found) => `${[...found].slice(0, 60).join("")} ... ${[...found].slice(-20).join("")}`;
  const quoted = `(?<![\\p{L}\\p{N}_])(?:'[^']{${LONGEST},}'|"[^"]{${LONGEST},}")(?![\\p{L}\\p{N}_])`;
  return message
    .replace(new RegExp(quoted, "gu"), cut)
    .replace(new RegExp(`[^\\s\\x1c-\\x1f\\x85]{${LONGEST + 4},}`, "gu"), cut);
}

const NAMED = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };

function escaped(letter) {
  const code = letter.codePointAt(0);
  const [sign, width] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
  return `\\${sign}${code.toString(16).padStart(width, "0")}`;
}

// A text in quotes as Python's repr writes it.
export function quoted(text) {
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  const inside = text.replace(/[\\\n\r\t]/g, (c) => NAMED[c]).replace(/(?! )[\p{C}\p{Z}]/gu, escaped);
  return mark + (mark === "'" ? inside.replaceAll("'", "\\'") : inside) + mark;
}

export const composed = (text) => text.normalize("NFC").replace(INVISIBLE, "").split(SPACE).filter(Boolean).join(" ");
export const normalised = (name) => [...composed(name)].map((letter) => letter.toLowerCase()).join("").normalize("NFC");

const moved = (letter, by) => String.fromCodePoint(letter.codePointAt(0) + by);
const shifted = (text) => text.replace(/[^\p{L}\p{N} ]/gu, (c) => (c.length > 1 ? c : moved(c, AWAY)));
const unsealed = (text) => text.replace(/[\u{f0000}-\u{fffff}]/gu, (c) => moved(c, -AWAY));
const sealed = (line) => line.replace(QUOTED, (_, lead, inside) => lead + shifted(inside.replace(/\\(["\\])/g, "$1")));

// A text of the same length in which nothing that stands in quotes is a sign, and look-alikes are what they look like.
export function masked(text) {
  const plain = text.replace(QUOTED, (all, lead) => lead + "x".repeat(all.length - lead.length));
  return plain.replace(new RegExp(`[${LIKE}]`, "g"), (c) => SIGNS[LIKE.indexOf(c)]);
}

// The comment at the end of a line as it was typed, with the space before it.
export const commentOf = (line) => line.slice(line.length - (masked(line).match(COMMENT)?.[0].length ?? 0));

// {raw, text} of a line that says something, null for others. raw: without the comment; text: ready to be parted at the
// notation's signs.
export function lineOf(typed) {
  const whole = composed(typed);
  const comment = commentOf(whole);
  const raw = comment ? whole.slice(0, whole.length - comment.length).trim() : whole;
  const line = [...sealed(raw)].map((c) => SIGNS[LIKE.indexOf(c)] ?? c).join("");
  const text = line.replace(BULLET, "").replace(/[,; ]+$/, "");
  return text ? { raw, text } : null;
}

const IN_QUOTES = 'What stands in "double quotes" is taken as it is';

// A part without space and other quotes around it.
function bareOf(given) {
  const part = given.trim();
  for (const [first, last] of OTHER_QUOTES) {
    const inside = part.slice(1, -1);
    const wraps = inside && part[0] === first && part.at(-1) === last;
    if (wraps && !inside.includes(first) && !inside.includes(last)) return inside.trim();
  }
  return part;
}

function eachOf(part, sign) {
  const names = part.split(sign).map((name) => name.trim()).filter(Boolean);
  return names.map((name) => written(unsealed(name))).join(", then ");
}

// What a comma in a concept's name does, in the node's words; "" where there is none outside quotes.
export function commaIn(name) {
  const bare = bareOf(name);
  if (!bare.includes(",") || bare !== name.trim()) return "";
  return (
    `${quoted(unsealed(bare))} is read as one concept with a comma in its name; if several are meant, write each in ` +
    `its own line: ${eachOf(bare, ",")}; if it is one, put it in double quotes`
  );
}

// The phrase that a part of a line is. Throws TextError for what is left of another notation.
export function phraseOf(given) {
  const part = bareOf(given);
  const phrase = unsealed(part);
  if (/[{}]/.test(phrase)) throw new TextError("braces are kept for prompt templates; write the phrase without them");
  if (part.startsWith('"') && part.split('"').length === 2) {
    throw new TextError(`a quote is not closed; write "${part.slice(1)}", or leave it out`);
  }
  const bare = part.replace(/<[^<>\s]*>/g, "");
  if (bare.includes(">") || bare.includes("<-") || bare.endsWith("<")) {
    const [left, ...rest] = part.replace(/[-=<>~|:]+/g, ">").split(">");
    const order = bare.includes("<-") ? [rest.join(">"), left] : [left, rest.join(">")];
    const said = order.map((side) => side.replace(/^[ >]+|[ >]+$/g, "") || "...").join(" -> ");
    throw new TextError(`${quoted(phrase)} is no phrase; if it is a mapping, write: ${said}. ${IN_QUOTES}`);
  }
  if (part.includes(";")) {
    const each = eachOf(part, ";");
    throw new TextError(`a line holds one concept, and there is a ';' in it; write each in its own line: ${each}`);
  }
  if (/^[[\]]/.test(part) || (part.endsWith("]") && !part.includes("["))) {
    throw new TextError(`${quoted(phrase)} is a bit of another program's list; write the phrase alone. ${IN_QUOTES}`);
  }
  return phrase;
}

// [type, rest] of a line, which may begin with a word in brackets, [style] Van Gogh; "" for no type.
export function typeAndRest(line) {
  const [tag, type] = TYPE.exec(line) ?? ["", ""];
  return [type.toLowerCase(), line.slice(tag.length)];
}

// A part's phrase, null for what the node would refuse.
export function phraseOrNull(part) {
  try {
    return phraseOf(part);
  } catch {
    return null;
  }
}

// A phrase as a line holds it, in quotes where it needs them.
export function written(phrase) {
  const plain = !SPECIAL.test(phrase) && !BULLET.test(phrase) && !phrase.includes("->") && !/^['(-]|^$/.test(phrase);
  return plain ? phrase : `"${phrase.replace(/["\\]/g, "\\$&")}"`;
}

// What is wrong with a line's characters, as check_characters says it without field and line; null for a good line.
export function charactersError(line) {
  const letters = [...line];
  const at = letters.findIndex((letter) => UNREADABLE.test(letter));
  if (at < 0) return null;
  const code = letters[at].codePointAt(0);
  const kind = code < 0xa0 ? "a control character" : code < 0xe000 ? "half of a character" : "of private use";
  const near = quoted(letters.slice(Math.max(0, at - 19), at + 20).join(""));
  const name = code.toString(16).toUpperCase().padStart(4, "0");
  return new TextError(`${near} holds U+${name}, ${kind}, which is no text; take it out`).message;
}
