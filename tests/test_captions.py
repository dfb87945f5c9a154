"""The general prior's captions: the built-in grammar, the readers, and what is left out."""

import hashlib
import json
import random
import re
import time

import pytest

from mace.concepts.captions import MAX_CAPTIONS, CaptionError, builtin_captions, leave_out, longer_names, read_captions

# Of the default list, its lines joined by newlines. A prior belongs to its captions: change the grammar on
# purpose only, and then record the new digests.
DIGEST = "2737e30c95cd8ce65d1a43347cf1ea8e463f1a9b2698f3d39fb42e29dab6c753"
DIGEST_500_OF_SEED_7 = "8e98b96e58537ff16e76fcfdc664c827c3bb2b4181f1c4d59f88deaecd3bb318"


def digest(captions):
    return hashlib.sha256("\n".join(captions).encode()).hexdigest()


@pytest.fixture(scope="module")
def captions():
    return builtin_captions(50_000)


def test_the_lists_are_the_recorded_ones():
    assert digest(builtin_captions()) == DIGEST
    assert digest(builtin_captions(500, seed=7)) == DIGEST_500_OF_SEED_7


def test_only_the_stable_method_of_random_is_used(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a method whose sequence may change between Python versions")

    for name in ("choice", "choices", "randrange", "randint", "shuffle", "sample", "getrandbits", "uniform"):
        monkeypatch.setattr(random.Random, name, refuse)
    assert len(builtin_captions(100)) == 100


def test_a_longer_list_begins_with_the_shorter(captions):
    assert builtin_captions(4000) == captions[:4000]
    assert builtin_captions(1) == captions[:1]


def test_another_seed_is_another_list():
    assert not set(builtin_captions(300, seed=1)) & set(builtin_captions(300, seed=2))


def test_captions_are_distinct_and_of_the_promised_length(captions):
    assert len({caption.lower() for caption in captions}) == len(captions) == 50_000
    assert {len(caption.split()) for caption in captions} == set(range(5, 21))


def test_the_vocabulary_is_wide(captions):
    assert len(set(re.findall(r"[a-z]+", " ".join(captions[:4000]).lower()))) > 1500


def test_the_share_of_prompts_as_artists_write_them(captions):
    prompts = [caption for caption in captions if not caption.endswith(".")]
    assert len(prompts) / len(captions) == pytest.approx(0.15, abs=0.01)
    assert not any(prompt[0].isupper() for prompt in prompts)
    assert all(caption[0].isupper() for caption in captions if caption.endswith("."))


def test_articles(captions):
    an_before_consonants = {"hourglass"}
    a_before_vowels = {"european", "eucalyptus", "ukulele", "unicorn", "uniform"}
    wrong = set()
    for article, word in re.findall(r"\b(an?) (\w+)", " ".join(captions).lower()):
        vowel = word[0] in "aeiou" and word not in a_before_vowels or word in an_before_consonants
        if (article == "an") != vowel:
            wrong.add((article, word))
    assert not wrong


def test_grammar_leaves_nothing_behind(captions):
    text = "\n".join(captions)
    assert not re.search(r"[{}|+]|  | ,| \.", text)
    # Counts take plurals and plural verbs.
    counted = re.findall(r"^(?:Two|Three|A few|Several) .*? (is|are) ", text, re.MULTILINE)
    assert len(counted) > 100 and set(counted) == {"are"}
    assert not re.search(
        r"\b(childs|mans|womans|gooses|sheeps|knifes|wolfs|mouses|calfs|oxes|deers|boxs|daisys)\b", text
    )


@pytest.mark.parametrize("count", [0, -1, MAX_CAPTIONS + 1])
def test_impossible_counts(count):
    with pytest.raises(ValueError, match=f"1 to {MAX_CAPTIONS}"):
        builtin_captions(count)


@pytest.mark.long
def test_the_longest_list_exists():
    assert len(set(builtin_captions(MAX_CAPTIONS))) == MAX_CAPTIONS


def test_read_text(tmp_path):
    file = tmp_path / "captions.TXT"
    file.write_bytes("\ufeff# mine\r\nA  dog\ton grass.\r\n\r\n  # more\r\nUn café.\nA dog on grass.\n".encode())
    assert read_captions(file) == ["A dog on grass.", "Un café."]
    assert read_captions(str(file)) == read_captions(file)


def test_read_json(tmp_path):
    coco = {
        "images": [],
        "annotations": [{"id": 1, "caption": "A dog.\n"}, {"caption": "A  cat."}, {"caption": "A dog."}],
    }
    file = tmp_path / "captions_val2017.json"
    file.write_text(json.dumps(coco))
    assert read_captions(file) == ["A dog.", "A cat."]
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(["One.", "", "# Two."]).encode())
    assert read_captions(file) == ["One.", "# Two."]


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("c.txt", b"fine\nca\xe9\n", r"c\.txt, line 2: not UTF-8.*save the file as UTF-8"),
        ("c.txt", b"\n# only a comment\n", r"c\.txt: no captions.*one a line"),
        ("c.txt", b"", r"c\.txt: no captions"),
        ("c.csv", b"a dog\n", r"c\.csv: not a \.txt or \.json"),
        ("c.json", b'[\n"a",\n}', r"c\.json, line 3: not valid JSON"),
        ("c.json", b"", r"c\.json, line 1: not valid JSON"),
        ("c.json", b"\xff\xfe[\x00", r"c\.json, line 1: not UTF-8"),
        ("c.json", b"[" * 200_000, r"c\.json: JSON that cannot be read"),
        ("c.json", b"[1" + b"0" * 9000 + b"]", r"c\.json.*(cannot be read|not a text)"),
        ("c.json", b"3", r"c\.json: neither COCO"),
        ("c.json", b"{}", r'c\.json: no list under the key "annotations"'),
        ("c.json", b'{"annotations": {}}', r'c\.json: no list under the key "annotations"'),
        ("c.json", b'{"annotations": [{"bbox": []}]}', r'c\.json: no "caption" under.*captions_\*\.json'),
        (
            "c.json",
            b'{"annotations": [{"caption": "a"}, {}]}',
            r"c\.json, annotations\[1\]: the caption is not a text",
        ),
        ("c.json", b'{"annotations": [{"caption": "a"}, 3]}', r"c\.json, annotations\[1\]"),
        ("c.json", b'["a", null]', r"c\.json, entry\[1\]: the caption is not a text"),
        ("c.json", b"[]", r"c\.json: no captions"),
        ("c.json", b'{"annotations": []}', r"c\.json: no captions"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CaptionError, match=message):
        read_captions(tmp_path / name)


def test_missing_file(tmp_path):
    with pytest.raises(CaptionError, match="missing.txt: there is no such file.*check the path"):
        read_captions(tmp_path / "missing.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(CaptionError, match="folder.txt: cannot be read"):
        read_captions(tmp_path / "folder.txt")


@pytest.mark.parametrize(
    "caption, phrase",
    [
        ("A Cat sleeps.", "cat"),
        ("A cat sleeps.", "  CAT "),
        ("Two cats sleep.", "cat"),
        ("The cat's tail.", "cat"),
        ("A hot dog with mustard.", "dog"),
        ("A hot-dog stand.", "hot dog"),
        ("Hot  dogs on a plate.", "hot\tdog"),
        ("A hot dog.", "Hot-Dog"),
        ("A dog-friendly cafe.", "dog"),
        ("Airplanes, far away.", "airplane"),
        ("Three buses.", "bus"),
        ("Puppies in a box.", "puppy"),
        ("A pack of wolves.", "wolf"),
        ("Two policemen and three men.", "man"),
        ("A street by Briton Rivi\u0300ere", "Rivìere"),
        ("Charles-Francois Daubigny's river", "charles francois daubigny"),
    ],
)
def test_captions_that_name_a_phrase(caption, phrase):
    assert leave_out(["A tree.", caption], ["zebra", phrase]) == (["A tree."], [caption])


@pytest.mark.parametrize(
    "caption, phrase",
    [
        ("A category of scattered things.", "cat"),
        ("A bobcat.", "cat"),
        ("A dog in hot weather.", "hot dog"),
        ("A hot grey dog.", "hot dog"),
        ("A caterpillar.", "cat"),
        ("A cat.", "cats"),
        ("A cat.", ""),
        ("A cat.", " - "),
        ("Bus stop.", "bus station"),
    ],
)
def test_captions_that_do_not(caption, phrase):
    assert leave_out([caption], [phrase]) == ([caption], [])


@pytest.mark.parametrize(
    "caption, stays",
    [
        ("A hot dog with mustard.", True),
        ("Two Hot-Dogs.", True),
        ("A dog beside a hot dog.", False),
        ("A hot dog, dog and all.", False),
        ("A dog in hot weather.", False),
        ("A hot dog stand.", False),
        ("A police car.", True),
        ("Police cars by a car.", False),
        ("A tree.", True),
    ],
)
def test_a_word_within_a_longer_phrase_that_stays_names_nothing_else(caption, stays):
    kept, left = leave_out([caption], ["dog", "car", "hot dog stand"], ["hot dog", "dog", "police car", "-"])
    assert (kept, left) == (([caption], []) if stays else ([], [caption]))


def test_names_of_other_things_hold_a_phrase(captions):
    """A word before it that hardly stands elsewhere; the most frequent first, one form for all plurals."""
    own = ["A hot dog.", "Hot dogs in a row.", "A big dog.", "A big cat, a cold Guide-dog", "guide dogs", "guide dog"]
    things = "ship tree wall road lamp bell ring bird rose fork car bus sea sky toy map".split()
    own += [f"A big {thing}, a dog beside a {thing}." for thing in things]
    own += ["A tree."] * 180
    assert longer_names(own, ["dog", "Cat", "-"]) == {"dog": ["guide dog", "hot dog"], "Cat": [], "-": []}
    apart = ["A dog's tail.", "Sunny! Dogs run", "So sunny, dogs", "dogs\u2019 tails", "The dog\u2019s tail"]
    assert longer_names(apart, ["dog", "tail", "Top-Hat"]) == {"dog": [], "tail": [], "Top-Hat": []}
    assert longer_names(["A big top-hat", "Big top hats"], ["Hat", "Top-Hat"]) == {
        "Hat": ["top hat"],
        "Top-Hat": ["big top hat"],
    }
    assert longer_names([*own, *["A hot day."] * 18], ["dog"])["dog"] == ["guide dog", "hot dog"]
    assert longer_names([*own, *["A hot day."] * 19], ["dog"])["dog"] == ["guide dog"]
    assert longer_names(["A dog.", "the dog", "A dog!", "two dogs", "the dog", "two dogs"], ["dog"]) == {"dog": []}
    found = longer_names(captions[:20_000], ["dog", "car"])
    assert "hot dog" in found["dog"] and {"police car", "cable car"} <= set(found["car"])


def test_leave_out_keeps_order_and_every_caption(captions):
    kept, left = leave_out(captions[:4000], ["dog", "automobile", "car", "bird"])
    assert 20 < len(left) < 400
    assert sorted(kept + left) == sorted(captions[:4000])
    assert [caption for caption in captions[:4000] if caption in set(kept)] == kept
    assert all(re.search(r"\b(dog|automobile|car|bird)s?\b", caption, re.IGNORECASE) for caption in left)
    assert not any(re.search(r"\b(dog|automobile|car|bird)s?\b", caption, re.IGNORECASE) for caption in kept)
    assert leave_out(captions[:10], []) == (captions[:10], [])


def test_leave_out_is_fast(captions):
    phrases = [f"{first} {second}" for first in "red blue old new".split() for second in map(str, range(50))]
    start = time.perf_counter()
    leave_out(captions[:4000], phrases)
    assert time.perf_counter() - start < 2
