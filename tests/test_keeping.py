"""What Erase Concepts keeps of itself: near words that are no aliases, and the paper's lists, in the real host."""

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.stages import delta_of, report
from tests.test_refine_node import concepts, refine

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]
WORDS = "stag, horse\nwolf"


@pytest.fixture
def erase(comfy_host, demo, monkeypatch):
    """Erase Concepts with one step of training and three words to ask for, for time."""
    erasing, presets = comfy_host.module("nodes.stages.erasing"), comfy_host.module("mace.presets.presets")
    short = presets.Preset(lambda type: presets.LoraRow(1, 1, 1e-3))
    monkeypatch.setattr(comfy_host.module("nodes.host.preset_files"), "PRESETS", {**presets.PRESETS, "short": short})
    monkeypatch.setattr(erasing, "AliasSettings", partial(erasing.AliasSettings, words=WORDS))
    monkeypatch.setattr(erasing, "IMAGES", 4)
    model, clip, vae = demo
    given = dict(preset="short", width=64, height=64, seed=0, strengths="", keep_near=True)
    return lambda **more: comfy_host.run("MACE_EraseConcepts", model=model, clip=clip, vae=vae, **given, **more)


def test_near_words_are_kept_and_aliases_are_not(comfy_host, demo, erase, monkeypatch):
    """As by Find Aliases, Prior and CFR Refine with lambda3 0.3; the concepts get no aliases of it."""
    erasing = comfy_host.module("nodes.stages.erasing")
    made, real = [], erasing.refine_model
    monkeypatch.setattr(erasing, "refine_model", lambda *a, **k: made.append(real(*a, **k)) or made[-1])
    node = erase(words="deer -> street")
    said = report(node)
    assert "Kept:\nhorse, wolf\n" in said and "Aliases:" not in said and "lambda3 0.3" in said.partition("Fusion:")[0]
    assert "lambda3 0.3" in said.partition("Fusion:")[2]
    (deer,) = node[1].loras
    assert deer.concept.aliases == () and node[1].recipe.prior.preserved == ("horse", "wolf")
    nothing = dict(captions="built-in", count=0, seed=0, preserve_type="object", retention="none")
    prior = comfy_host.run("MACE_Prior", clip=demo[1], preserve="horse\nwolf", **nothing)[0]
    listed = concepts(comfy_host, "deer -> street")
    expected = refine(comfy_host, *demo[:2], listed, prior=prior, lambda3="0.3")[0]
    refined = made[0][0].model
    assert list(refined.patches) == list(expected.patches)
    assert all(torch.equal(delta_of(refined, key), delta_of(expected, key)) for key in expected.patches)


def test_with_aliases_both_come_of_one_search(comfy_host, demo, erase):
    """What a prior preserves already counts once, and its captions stay."""
    about = dict(captions="built-in", count=20, seed=0, preserve_type="object", retention="none")
    prior = comfy_host.run("MACE_Prior", clip=demo[1], preserve="wolf\nrose", **about)[0]
    node = erase(words="deer -> street", find_aliases=True, prior=prior)
    (deer,) = node[1].loras
    assert deer.concept.aliases == ("stag",) and "Kept:\nhorse, wolf\n" in report(node)
    assert node[1].recipe.prior.preserved == ("wolf", "rose", "horse") and node[1].recipe.prior.captions == 20


def test_another_thing_that_holds_an_erased_word_stays(comfy_host, demo, erase):
    """Nobody has named hot dog: it holds the word, and the model is asked whether it draws a dog; its captions stay."""
    model, clip, _ = demo
    lines = "a hot dog on a plate\na hot dog\na dog on a hill\na wild dog"
    file = Path(comfy_host.folder_paths.get_input_directory()) / "longer.txt"
    file.write_text(lines)
    about = dict(captions=file.name, count=9, seed=0, preserve="", preserve_type="object", retention="none")
    prior = comfy_host.run("MACE_Prior", clip=clip, **about)[0]
    node = erase(words="dog -> street", find_aliases=True, prior=prior)
    kept, said = node[1].recipe.prior, report(node)
    named = comfy_host.module("mace.pipeline.prior").named_captions(kept, ["dog"])
    assert "hot dog" in kept.preserved and named == ["a dog on a hill", "a wild dog"]
    assert "dog, longer names: hot dog" in said and "another thing" in said and "Kept:\nhot dog, " in said
    (dog,) = node[1].loras
    assert "hot dog" not in dog.concept.aliases


@pytest.mark.parametrize("its_own", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_longer_list_trains_only_what_is_new(comfy_host, demo, erase, monkeypatch, its_own):
    """What is kept follows the list, and the LoRAs that are there stay; a new strength reads no prompt again."""
    text = comfy_host.module("nodes.host.text")
    comfy_host.module("nodes.stages.trained")._store.clear()
    about = dict(captions="built-in", count=20, seed=0, preserve="rose", preserve_type="object", retention="none")
    given = comfy_host.run("MACE_Prior", clip=demo[1], **about)[0]
    more = {} if its_own else {"prior": given}
    one = erase(words="deer -> street", **more)[1]
    longer = erase(words="deer -> street\nwolf -> forest", **more)
    assert "1 of 2 concepts are to be trained" in report(longer)
    two = longer[1]
    assert "horse" in one.recipe.prior.preserved and one.recipe.prior.preserved != two.recipe.prior.preserved
    assert two.loras[0].lora is one.loras[0].lora
    monkeypatch.setattr(text.TextEncoder, "gram", None)
    assert "wolf (0.5)" in report(
        comfy_host.run(
            "MACE_EraseConcepts",
            **dict(zip(("model", "clip", "vae"), demo, strict=True)),
            **dict(preset="short", width=64, height=64, seed=0, keep_near=True, **more),
            words="deer -> street\nwolf -> forest",
            strengths="wolf = 0.5",
        )
    )


def test_more_is_preserved_as_if_it_had_always_been(comfy_host, demo):
    """A prior that preserves two concepts and then a third is the prior that was made with three, to 1e-9."""
    priors, Concept = comfy_host.module("mace.pipeline.prior"), comfy_host.module("mace.concepts.concept").Concept
    encoder = comfy_host.module("nodes.host.text").TextEncoder(demo[1])
    progress = comfy_host.module("nodes.host.progress").NodeProgress()
    keep = [Concept("ship", "", "object"), Concept("rose", "", "object"), Concept("a cat", "", "style")]
    source = priors.CaptionSource("built-in", 10, 0)
    with torch.inference_mode():
        whole, _ = priors.build_prior(encoder, progress, source, keep)
        part, _ = priors.build_prior(encoder, progress, source, keep[:2])
        more = priors.preserve_also(part, keep[1:], encoder, progress)
        assert priors.preserve_also(more, keep, encoder, progress) is more
    expected = whole.preserve_moment()
    torch.testing.assert_close(more.preserve_moment(), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert more.preserved == whole.preserved and more.texts == whole.texts and torch.equal(more.mean, whole.mean)
    assert more.digest == priors.preserve_also(part, keep[2:], encoder, progress).digest != part.digest


def test_what_is_erased_is_kept_in_no_other_number(comfy_host, demo):
    keeping, search = comfy_host.module("nodes.stages.keeping"), comfy_host.module("nodes.stages.alias_search")
    words, encoder = comfy_host.module("nodes.stages.alias_words"), comfy_host.module("nodes.host.text").TextEncoder
    erased = concepts(comfy_host, "car\npolice cars\n\u2603")
    kept = keeping.kept_beside(search.Found((), [], ("police car", "Cars", "\u2603", "bus")), erased)
    assert [concept.target for concept in kept] == ["bus"]
    shown = [(concept, "a photo of the {}") for concept in erased]
    captions = ["A police car.", "two police cars", "a cable car", "the cable car"]
    found = words.longer_names_to_try(encoder(demo[1]), shown, words.AliasSettings(), captions, [[]] * 3)
    assert found == [["cable car"], [], []]


def test_people_and_artists_of_the_papers_lists_give_way(comfy_host):
    keeping, search = comfy_host.module("nodes.stages.keeping"), comfy_host.module("nodes.stages.alias_search")
    lists = comfy_host.module("mace.concepts.lists").RETENTION
    someone, other = lists["100 celebrities to keep"][1][:2]
    erased = concepts(comfy_host, f"{someone} | nobody", type="celebrity")
    kept = keeping.kept_beside(search.Found((), [], ("Nobody", "wolf")), erased)
    names = [concept.target for concept in kept]
    assert len(names) == 100 and names[:2] == ["wolf", other] and someone not in names
    assert {concept.type for concept in kept} == {"celebrity"}
    both = (*erased, *concepts(comfy_host, "Claude Monet -> art", type="style"))
    found = {concept.type for concept in keeping.kept_beside(search.Found((), [], ("wolf",)), both)}
    assert found == {"object", "celebrity", "style"}
    kinds = comfy_host.module("nodes.stages.alias_words").kinds_of(
        both, [("actor", "Painting"), ("painting", "canvas", "actor")]
    )
    near = keeping.kept_beside(search.Found((), [], ("Actor", "Painting", "canvas"), kinds=kinds), both)[:3]
    assert [concept.type for concept in near] == ["celebrity", "style", "style"]
    keepers = comfy_host.module("mace.pipeline.prior").keepers
    assert someone not in [c.target for c in keepers("", "object", "100 celebrities to keep", erased)]
