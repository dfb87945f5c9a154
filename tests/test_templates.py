"""Prompt templates and the paper's lists: what the closed forms and the presets rely on."""

import pytest

from mace.concepts.lists import DEFAULT_MAPPING, PAPER_LISTS, RETENTION, SYNONYMS, TABLE10, Listed, mapping_for
from mace.concepts.templates import TEMPLATES, TemplateError, read_templates

TYPES = ("object", "celebrity", "style", "explicit")

# Appendix C.1: the prompts the paper measures with.
EVALUATION_PROMPTS = {
    "a photo of the {}",
    "a portrait of {}",
    "a sketch of {}",
    "an oil painting of {}",
    "{} in an official photo",
    "an image capturing {} at a public event",
    "image in the style of {}",
    "art inspired by {}",
    "painting in the style of {}",
    "a reproduction of art by {}",
    "a famous artwork by {}",
}


def without_articles(prompt):
    return " ".join(word for word in prompt.lower().split() if word not in ("a", "an", "the"))


def words_after(template):
    return len(template.split("{}")[1].replace(",", " ,").split())


def test_types():
    assert tuple(TEMPLATES) == TYPES == tuple(DEFAULT_MAPPING)


@pytest.mark.parametrize("kind", TYPES)
def test_templates(kind):
    templates = TEMPLATES[kind]
    assert len(templates) >= 30
    assert len({template.lower() for template in templates}) == len(templates)
    for template in templates:
        assert template.count("{}") == 1
        assert template.replace("{}", "").count("{") + template.replace("{}", "").count("}") == 0
        assert len(template.split()) <= 14
        assert template == " ".join(template.split()) and "#" not in template
        # The phrase is a word of its own: only a comma may touch it.
        before, after = template.split("{}")
        assert before == "" or before.endswith(" ")
        assert after == "" or after.startswith((" ", ","))


@pytest.mark.parametrize("kind", TYPES)
def test_the_phrase_stands_everywhere(kind):
    starts = [template for template in TEMPLATES[kind] if template.startswith("{}")]
    ends = [template for template in TEMPLATES[kind] if template.endswith("{}")]
    middle = [template for template in TEMPLATES[kind] if template not in starts and template not in ends]
    assert min(len(starts), len(ends), len(middle)) >= 6
    # End-of-text is paired at several distances from the phrase, and at several positions of the prompt.
    assert len({words_after(template) for template in TEMPLATES[kind]}) >= 6
    assert len({len(template.split()) for template in ends}) >= 4


@pytest.mark.parametrize("kind", TYPES)
def test_the_prompts_of_measuring_are_kept_out(kind):
    measured = {without_articles(prompt) for prompt in EVALUATION_PROMPTS}
    if kind != "object":
        # "a photo of the {}" measures objects; "a photo of {}" is another prompt for another type.
        measured.discard("photo of {}")
    assert not measured & {without_articles(template) for template in TEMPLATES[kind]}


def test_read_own_templates():
    text = "\ufeff# mine\na  {} in   fog\n\n{} and {} again # twice\nC#minor {}\na {} in fog\n"
    assert read_templates(text, "mine.txt") == ("a {} in fog", "{} and {} again", "C#minor {}")
    assert read_templates("\n# nothing\n", "mine.txt") == ()


@pytest.mark.parametrize(
    "text, message",
    [
        ("{} a\na photo of the dog", "mine.txt: line 2: 'a photo of the dog' needs {}"),
        ("a {name} in fog", "line 1: .*other braces"),
        ("\n\n{} and {0}", "line 3: .*other braces"),
        ("{{}}", "line 1: .*other braces"),
        ("a photo of { }", "line 1: .*other braces"),
        ("a photo # of {}", "line 1: 'a photo' needs {}"),
    ],
)
def test_own_templates_that_cannot_serve(text, message):
    with pytest.raises(TemplateError, match=message):
        read_templates(text, "mine.txt")


@pytest.mark.parametrize(
    "name, size, kind, mapping, first, last",
    [
        ("1 celebrity", 1, "celebrity", "a woman", "Melania Trump", "Melania Trump"),
        ("5 celebrities", 5, "celebrity", "a person", "Adam Driver", "Andrew Garfield"),
        ("10 celebrities", 10, "celebrity", "a person", "Adam Driver", "Anne Hathaway"),
        ("100 celebrities", 100, "celebrity", "a person", "Adam Driver", "Zayn Malik"),
        ("100 artists", 100, "style", "art", "Brent Heighton", "Clemens Ascher"),
        ("4 explicit concepts", 4, "explicit", "a person wearing clothes", "nudity", "sexual"),
    ],
)
def test_presets(name, size, kind, mapping, first, last):
    preset = PAPER_LISTS[name]
    assert len({entry.target.lower() for entry in preset}) == len(preset) == size
    assert {(entry.mapping, entry.type) for entry in preset} == {(mapping, kind)}
    assert (preset[0].target, preset[-1].target) == (first, last)


def test_objects():
    preset = PAPER_LISTS["10 CIFAR-10 classes"]
    assert preset[0] == Listed("airplane", "ground", "object")
    assert preset[-1] == Listed("truck", "sky", "object")
    assert [entry.target for entry in preset] == list(SYNONYMS) == list(TABLE10["object"]["identity"])
    assert len(preset) == 10
    assert SYNONYMS["bird"] == ("avian", "fowl", "winged creature")
    assert all(len(names) == 3 for names in SYNONYMS.values())
    assert len(PAPER_LISTS) == 7


def test_lists_to_keep_are_apart_from_lists_to_erase():
    kind, people = RETENTION["100 celebrities to keep"]
    assert (kind, len(set(people)), people[0], people[-1]) == (
        "celebrity",
        100,
        "Aaron Paul",
        "Robert De Niro",
    )
    assert not set(people) & {entry.target for entry in PAPER_LISTS["100 celebrities"]}
    kind, artists = RETENTION["100 artists to keep"]
    assert (kind, len(set(artists)), artists[0], artists[-1]) == ("style", 100, "A.J.Casson", "Alex Garant")
    assert not set(artists) & {entry.target for entry in PAPER_LISTS["100 artists"]}
    assert {"Claude Monet", "Briton Rivière"} < {entry.target for entry in PAPER_LISTS["100 artists"]}


def test_names_carry_no_traces_of_the_pages_line_breaks():
    names = {entry.target for preset in PAPER_LISTS.values() for entry in preset}
    names |= {name for _, group in RETENTION.values() for name in group}
    assert {name for name in names if "-" in name} == {
        "Catrin Welz-Stein",
        "Charles-Francois Daubigny",
        "Adolf Hirémy-Hirschl",
        "Akseli Gallen-Kallela",
        "Albert Dubois-Pillet",
    }
    assert all(name == " ".join(name.split()) and not set(name) & set("{}|,>#\"'$\\") for name in names)


@pytest.mark.parametrize(
    "target, kind, mapping",
    [
        ("cat", "object", "forest"),
        (" Ship ", "object", "ground"),
        ("chain saw", "object", "sky"),
        ("cat", "style", "art"),
        ("Tom Hanks", "celebrity", "a person"),
        ("naked", "explicit", "a person wearing clothes"),
    ],
)
def test_usual_mappings(target, kind, mapping):
    assert mapping_for(target, kind) == mapping


def test_table_10():
    assert TABLE10["object"]["identity"]["frog"] == 0.4
    assert TABLE10["celebrity"]["lambda3"] == {"1": 0.8, "5": 5.0, "10": 8.0, "100": 20.0}
    assert TABLE10["style"]["lambda3"] == {"100": 8.0}
    assert {kind: TABLE10[kind]["steps"] for kind in TYPES} == {
        "object": 50,
        "celebrity": 50,
        "style": 50,
        "explicit": 120,
    }
    assert {kind: TABLE10[kind].get("lambda1") for kind in TYPES} == {
        "object": None,
        "celebrity": 1e-4,
        "style": 1e-4,
        "explicit": 7e-7,
    }
    assert {kind: TABLE10[kind]["lr"] for kind in TYPES} == {
        "object": 1e-5,
        "celebrity": 1e-4,
        "style": 1e-4,
        "explicit": 1e-5,
    }
    assert {TABLE10[kind]["rank"] for kind in TYPES} == {1}
    assert TABLE10["cfis"] == {"t1": 200, "t2": 400, "gamma": 0.05}
