"""The general prior's captions (the lambda1 term of Eq. 1): built in, read from a file, and sorted out.

The paper takes MS-COCO's captions. The built-in ones stand in for them: a seeded grammar of everyday scenes
whose patterns and words are data/captions.json. An entry there may hold slots: `{thing}` draws from the list
of that name, `{thing+s}` draws its plural; `goose|geese` spells an irregular plural out.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..messages import MessageError
from .text import TextError, check_characters, composed, normalised

# The longest list that is offered. The grammar has many more captions; up to here repeats are rare, so the
# list grows at a constant pace.
MAX_CAPTIONS = 200_000

# Of the built-in captions, the share written as artists prompt ("a watercolor painting of ...").
PROMPT_SHARE = 0.15
MIN_WORDS, MAX_WORDS = 5, 20

# Of the captions that hold a word, those that may have it elsewhere than before a phrase that it makes a name with.
MOST_ELSEWHERE = 0.9

_SLOT = re.compile(r"\{(\w+)(\+s)?\}")
_ARTICLE = re.compile(r"\b([Aa])n? (?=([A-Za-z0-9]+))")
_WORD = re.compile(r"\w+")
_DETERMINERS = frozenset(
    "a an the this that these those my your his her its our their one two three some any no".split()
)
# What no name of two words goes across: signs between parts of a sentence, and the end of a possessive.
_PAUSE = re.compile(r"[^\w\s'’-]+|['’]s?(?!\w)")
# Spelled with a vowel and spoken with a consonant, or the reverse.
_A_WORDS = re.compile(r"(?:uni(?!n)|use|usu|ute|uku|eu|ewe|one\b|once\b)", re.IGNORECASE)
_AN_WORDS = re.compile(r"(?:hour|honest|honou?r|heir)", re.IGNORECASE)

_GRAMMAR = json.loads((Path(__file__).parent / "data" / "captions.json").read_text(encoding="utf-8"))
_WORDS: dict[str, list[str]] = _GRAMMAR["words"]
_IRREGULAR: dict[str, str] = _GRAMMAR["irregular"]


class CaptionError(MessageError):
    """A file of captions that cannot be read; the message names the file, the place and what to do."""


def builtin_captions(count: int = 4000, seed: int = 0) -> list[str]:
    """`count` distinct everyday captions of 5 to 20 words.

    The same seed gives the same list on every platform and Python version, and a longer list begins with the
    shorter one: of random.Random only random() is used, the one method whose sequence Python guarantees.
    Raises ValueError unless 1 <= count <= MAX_CAPTIONS.
    """
    if not 1 <= count <= MAX_CAPTIONS:
        raise ValueError(f"{count} built-in captions were asked for: choose 1 to {MAX_CAPTIONS}")
    captions = _generate(random.Random(seed))
    return [next(captions) for _ in range(count)]


def _generate(rng: random.Random) -> Iterator[str]:
    seen: set[str] = set()
    while True:
        prompt = rng.random() < PROMPT_SHARE
        patterns = _GRAMMAR["prompts" if prompt else "captions"]
        text = _articles(_expand(patterns[_index(rng, len(patterns))], rng, set()))
        if not prompt:
            text = f"{text[0].upper()}{text[1:]}."
        if text not in seen and _reads_well(text):
            seen.add(text)
            yield text


def _index(rng: random.Random, length: int) -> int:
    return int(rng.random() * length)


def _expand(text: str, rng: random.Random, used: set[str]) -> str:
    """Fill the slots of a text, left to right; no entry is drawn twice for one caption."""

    def fill(slot: re.Match[str]) -> str:
        name, plural = slot.groups()
        entries = _WORDS[name]
        i = _index(rng, len(entries))
        while entries[i] in used and not used.issuperset(entries):
            i = (i + 1) % len(entries)
        entry = entries[i]
        used.add(entry)
        if plural and _SLOT.fullmatch(entry):
            # A list of lists, such as "animal": the plural belongs to the list within.
            entry = entry.replace("}", "+s}")
        elif plural:
            entry = _plural_entry(entry)
        return _expand(entry.split("|")[0], rng, used)

    return _SLOT.sub(fill, text)


def _plural_entry(entry: str) -> str:
    if "|" in entry:
        return entry.split("|")[1]
    head, space, last = entry.rpartition(" ")
    return f"{head}{space}{_IRREGULAR.get(last) or _regular_plural(last)}"


def _regular_plural(word: str) -> str:
    if re.search(r"[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    return f"{word}es" if re.search(r"(?:s|x|z|ch|sh)$", word) else f"{word}s"


def _articles(text: str) -> str:
    """Write a or an, as the word after it wants."""

    def fix(match: re.Match[str]) -> str:
        article, word = match.groups()
        vowel = word[0] in "aeiouAEIOU8"
        an = (vowel and not _A_WORDS.match(word)) or _AN_WORDS.match(word)
        return f"{article}{'n' if an else ''} "

    return _ARTICLE.sub(fix, text)


def _reads_well(text: str) -> bool:
    """Within the length, and no longer word said twice ("a red lamp on a red table")."""
    words = re.findall(r"[\w'-]+", text.lower())
    long = [word for word in re.findall(r"\w+", text.lower()) if len(word) > 3]
    return MIN_WORDS <= len(words) <= MAX_WORDS and len(set(long)) == len(long)


def read_captions(path: str | Path) -> list[str]:
    """Captions from a file, white space collapsed, each once, in the file's order.

    .txt: one caption a line in UTF-8; blank lines and lines that start with # are passed over. .json: COCO
    annotations ({"annotations": [{"caption": ...}, ...]}) or a list of texts, or of
    such entries. Raises CaptionError.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".txt", ".json"):
        raise CaptionError(f"{path.name}: not a .txt or .json file; give one caption a line, or COCO annotations")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CaptionError(f"{path}: there is no such file of captions; check the path") from None
    except OSError as error:
        raise CaptionError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CaptionError(f"{path.name}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    try:
        if kind == ".json":
            found: Iterable[str] = _from_json(text, path.name)
        else:
            check_characters(text, path.name)
            found = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    except TextError as error:
        raise CaptionError(str(error)) from None
    captions = list(dict.fromkeys(filter(None, map(composed, found))))
    if not captions:
        raise CaptionError(f"{path.name}: no captions in this file; write one a line (# starts a comment)")
    return captions


def _from_json(text: str, name: str) -> list[str]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise CaptionError(
            f"{name}, line {error.lineno}: not valid JSON ({error.msg}); correct it or download it again"
        ) from None
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        raise CaptionError(f"{name}: JSON that cannot be read; give COCO annotations or a list of texts") from None
    where = "entry"
    if isinstance(data, dict):
        if not isinstance(data.get("annotations"), list):
            raise CaptionError(f'{name}: no list under the key "annotations"; give COCO captions or a list of texts')
        where, data = "annotations", data["annotations"]
        # COCO's instances_*.json and person_keypoints_*.json look alike but hold no captions.
        if data and not any(isinstance(item, dict) and "caption" in item for item in data):
            raise CaptionError(f'{name}: no "caption" under "annotations"; of COCO take captions_*.json, no other file')
        data = [item.get("caption") if isinstance(item, dict) else None for item in data]
    elif not isinstance(data, list):
        raise CaptionError(f"{name}: neither COCO annotations nor a list of texts; give one of them")
    # The annotations alone, as some programs write them out.
    data = [item["caption"] if isinstance(item, dict) and "caption" in item else item for item in data]
    for i, item in enumerate(data):
        if not isinstance(item, str):
            raise CaptionError(f"{name}, {where}[{i}]: the caption is not a text; correct or remove it")
        check_characters(item, f"{name}, {where}[{i}]")
    return data


def leave_out(
    captions: Iterable[str], phrases: Iterable[str], preserved: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """(kept, left out): captions that name one of the phrases would keep what is to be erased.

    Whole words count, in any case: "cat" is not in "category", but "dog" is in "hot dog" and "dog-friendly",
    for white space, hyphens and punctuation all part words. The plural of a phrase's last word counts too
    (airplanes, buses, puppies, wolves, men); the singular of a phrase given in the plural does not. A phrase
    without a word in it names nothing.

    preserved: phrases that stay. A word within a longer one of them is its own and names no other thing: with
    "hot dog" preserved, "a hot dog" stays and "a dog beside a hot dog" goes.
    """
    named, spared = _variants(phrases), _variants(preserved)
    kept: list[str] = []
    left: list[str] = []
    for caption in captions:
        (left if _names(_words(caption), named, spared) else kept).append(caption)
    return kept, left


def longer_names(captions: Iterable[str], phrases: Iterable[str]) -> dict[str, list[str]]:
    """For each phrase the names of other things that end with it, as "hot dog" with "dog"; the most frequent first.

    A word before a phrase, no article and the like, makes a name with it where two captions hold both and at most
    MOST_ELSEWHERE of those that hold the word have it elsewhere: a first sieve, which "a dog" and "big dog" do not
    pass. What tells things of the kind ("guide dog") from others is left to the model. CLIP reads from left to
    right, a phrase before another word ("dog house") as it does alone, so that no such name can stay where the
    phrase goes. Names are in small letters; nothing is found in writing that parts no words.
    """
    own = {phrase: " ".join(_words(phrase)) for phrase in phrases}
    owners = {variant: phrase for phrase in own for variant in _forms(phrase)}
    index, held, pairs = _variants(own), Counter(), Counter()
    for caption in captions:
        found = set()
        for words in map(_words, _PAUSE.split(caption)):
            held.update(words)
            found |= {(words[start - 1], owners[words[start:stop]]) for start, stop in _places(words, index) if start}
        pairs.update(found)
    names: dict[str, list[str]] = {phrase: [] for phrase in own}
    for (word, phrase), count in pairs.most_common():
        if word not in _DETERMINERS and count > 1 and count >= (1 - MOST_ELSEWHERE) * held[word]:
            names[phrase].append(f"{word} {own[phrase]}")
    return names


def written_forms(phrases: Iterable[str]) -> set[str]:
    """Phrases and their plurals, in small letters, as words with a space between; one without a word as it stands."""
    return {" ".join(form) for phrase in phrases for form in _forms(phrase) or [(normalised(phrase),)]}


# Words are looked up by the first of a phrase, so a thousand phrases cost no more than one.
_Variants = dict[str, set[tuple[str, ...]]]


def _variants(phrases: Iterable[str]) -> _Variants:
    """The phrases as words, with their plurals, by the first word."""
    index: _Variants = {}
    for variant in (variant for phrase in phrases for variant in _forms(phrase)):
        index.setdefault(variant[0], set()).add(variant)
    return index


def _forms(phrase: str) -> list[tuple[str, ...]]:
    """A phrase as words, and its plurals; nothing of one without a word in it."""
    words = _words(phrase)
    return [(*words[:-1], last) for last in _plurals(words[-1])] if words else []


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(normalised(text)))


def _plurals(word: str) -> set[str]:
    forms = {word, f"{word}s", f"{word}es", _IRREGULAR.get(word, word)}
    return forms | {f"{word[:-1]}ies"} if word.endswith("y") else forms


def _places(words: tuple[str, ...], index: _Variants) -> list[tuple[int, int]]:
    """Where the phrases stand in a text: (from, to) of each."""
    return [
        (i, i + len(variant))
        for i, word in enumerate(words)
        for variant in index.get(word, ())
        if words[i : i + len(variant)] == variant
    ]


def _names(words: tuple[str, ...], named: _Variants, spared: _Variants) -> bool:
    places = _places(words, named)
    longer = _places(words, spared) if places and spared else []
    return any(not any(i <= start and stop <= j and j - i > stop - start for i, j in longer) for start, stop in places)
