"""Erase Concepts in the real host, on the demo model: words, gentle - strong, the estimate, before and after."""

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.stages import delta_of, fuse, report, train
from tests.test_refine_node import concepts, refine

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]

GIVEN = dict(preset="short", width=64, height=64, seed=3, strengths="")
STEPS, CAPTIONS = 4, 20


@pytest.fixture(scope="module")
def erasing(comfy_host):
    return comfy_host.module("nodes.stages.erasing")


@pytest.fixture
def erase(comfy_host, demo, erasing, monkeypatch):
    """The node with a preset that trains a few steps, for time."""
    presets = comfy_host.module("mace.presets.presets")
    short = presets.Preset(lambda type: presets.LoraRow(2, STEPS, 3e-3), end_of_text=True)
    monkeypatch.setattr(comfy_host.module("nodes.host.preset_files"), "PRESETS", {**presets.PRESETS, "short": short})
    monkeypatch.setattr(erasing, "IMAGES", 2)
    monkeypatch.setattr(erasing, "CAPTIONS", erasing.CaptionSource("built-in", CAPTIONS, seed=0))
    monkeypatch.setattr(erasing, "SAMPLING", {**erasing.SAMPLING, "steps": 3})

    def run(**inputs):
        model, clip, vae = demo
        return comfy_host.run("MACE_EraseConcepts", model=model, clip=clip, vae=vae, **{**GIVEN, **inputs})

    return run


def same(first, second):
    assert list(first.patches) == list(second.patches)
    return all(torch.equal(delta_of(first, key), delta_of(second, key)) for key in first.patches)


def prior_of(host, clip, count):
    nothing = dict(preserve="", preserve_type="object", retention="none")
    return host.run("MACE_Prior", clip=clip, captions="built-in", count=count, seed=0, **nothing)[0]


def size(model):
    return sum(float(delta_of(model, key).square().sum()) for key in model.patches) ** 0.5


def test_words_alone_are_enough(comfy_host, erase):
    node = erase(words="dog -> sky")
    assert same(node[0], erase(concepts=concepts(comfy_host, "dog -> sky"))[0])
    assert tuple(node[2:]) == (64, 64, "dog")
    listed = [entry.concept.target for entry in node[1].loras]
    assert listed == ["dog"] and node.ui["concepts"] == [["dog", 1.0]]


def test_its_own_settings_go_before_those_of_the_concepts(comfy_host, demo, erase):
    demos = "demo model (mace_demo)"
    chosen = comfy_host.module("mace.concepts.concept").ConceptList(concepts(comfy_host, "dog -> sky"), demos)
    node = erase(concepts=chosen)
    said = f"settings: short, chosen here; the concepts' own, {demos}, are passed over\n"
    assert report(node).startswith(said) and same(node[0], erase(words="dog -> sky")[0])
    # What is fused of its LoRAs later takes the settings that they were trained with.
    assert node[1].recipe.preset == "short" and said not in report(erase(words="dog -> sky"))


def test_words_come_after_the_concepts_that_are_connected(comfy_host, erase):
    node = erase(words="[style] cat | kitty", concepts=concepts(comfy_host, "dog -> sky"))
    found = [(entry.concept.target, entry.concept.type, entry.concept.aliases) for entry in node[1].loras]
    assert found == [("dog", "object", ()), ("cat", "style", ("kitty",))]
    with pytest.raises(ValueError, match="'dog' is in the list twice"):
        erase(words="dog", concepts=concepts(comfy_host, "dog -> sky"))


def test_nothing_to_erase_says_what_to_do(erase):
    for words in ("", "  \n# dog"):
        with pytest.raises(ValueError, match="there is nothing to erase: write a word into words, such as dog"):
            erase(words=words)


def test_an_error_in_the_text_is_said_before_anything_runs(comfy_host):
    def check(**text):
        return comfy_host.validate("MACE_EraseConcepts", **text)

    assert check(words="dog\nship -> a -> b").startswith("words: line 2: more than one '->'")
    assert check(words="dog\nshi\ud800p").startswith("words: line 2: ")
    assert check(strengths="dog = 2", words="dog").startswith("strengths: line 1: 'dog = 2' is not a concept")
    # A mapping that is the usual one of one type alone is an error of that type alone.
    assert check(words="sky") is True and check(words="", strengths="") is True and check() is True


def test_strengths_are_read_before_the_training(erase, erasing, monkeypatch):
    monkeypatch.setattr(erasing, "make_images", None)
    with pytest.raises(ValueError, match="strengths: line 1: 'dog' is not a concept and a strength"):
        erase(words="dog", strengths="dog")


def test_a_strength_of_what_is_not_in_the_list_stops_nothing(erase, erasing, monkeypatch):
    """It is said before the first picture and in the report, as is a comma's part, with LoRAs and without."""
    sent = []
    monkeypatch.setattr(erasing, "send_text", sent.append)
    note = "strengths names what is not in the list, and is passed over: cat"
    for preset in ("short", "demo model, lists of any length"):
        said = erase(words="dog, pup", strengths="cat = 0.5", preset=preset).ui["text"][0].split("\n")
        assert said[0].startswith("words: line 1: 'dog, pup' is read as one concept") and said.count(note) == 1
        assert sent[0].split("\n")[:2] == [said[0], note]
        sent.clear()


def test_the_middle_is_the_single_nodes_to_the_bit(comfy_host, demo, erase):
    model, clip, vae = demo
    chosen = concepts(comfy_host, "frog -> forest")
    refined, refinement = refine(comfy_host, model, clip, chosen).result
    shown = comfy_host.run(
        "MACE_ConceptImages", model=model, clip=clip, vae=vae, concepts=chosen, prompt="auto", negative="", count=2,
        width=64, height=64, seed=3, steps=3, cfg=7.0, sampler_name="euler", scheduler="normal",
    )[0]  # fmt: skip
    masks = comfy_host.run("MACE_MaskConcept", model=model, clip=clip, images=shown, backend="attention")[0]
    loras = train(comfy_host, clip, refined, shown, masks=masks, steps=str(STEPS), seed=3)[0]
    expected = fuse(comfy_host, model, loras, refinement=refinement, clip=clip)[0]
    assert same(erase(concepts=chosen, gentle_strong=0.0)[0], expected)


def test_gentle_to_strong_changes_more_and_trains_nothing(erase):
    nodes = {lean: erase(words="horse -> forest", gentle_strong=lean) for lean in (0.0, -1.0, -0.5, 0.5, 1.0)}
    sizes = [size(nodes[lean][0]) for lean in sorted(nodes)]
    assert sizes == sorted(sizes) and sizes[0] < 0.7 * sizes[2] < 0.7 * sizes[4]
    said = report(nodes[0.5])
    assert "0 LoRAs trained, 1 of 1 kept from before" in said
    assert "gentle - strong 0.5: what holds the rest weighs 0.1 times as much" in said
    assert "another list" not in said and "gentle" not in report(nodes[0.0])
    middle, gentle = (nodes[lean][0].get_attachment("mace_stages")[-1] for lean in (0.0, -0.5))
    assert gentle["refinement"]["settings"]["gentle_strong"] == "-0.5" and middle["refinement"]["mu"] > 0
    assert gentle["refinement"]["mu"] == pytest.approx(10 * middle["refinement"]["mu"])
    assert gentle["weights"]["mu"] == pytest.approx(10 * middle["weights"]["mu"])


def test_the_presets_own_fusion_leans_too(comfy_host, erase, monkeypatch):
    presets = comfy_host.module("mace.presets.presets")
    weights, fused = comfy_host.module("mace.method.refine"), comfy_host.module("mace.method.fuse")
    own = presets.Preset(
        lambda type: presets.LoraRow(1, 1, 1e-3),
        presets.ListWeights(weights.RefineWeights, tuple(map(presets.Growing, (0.0, 0.0, 5.0)))),
        presets.ListWeights(fused.FuseWeights, tuple(map(presets.Growing, (0.0, 0.0, 3.0)))),
    )
    monkeypatch.setattr(comfy_host.module("nodes.host.preset_files"), "PRESETS", {"short": own})
    said = report(erase(words="horse -> forest", gentle_strong=-0.5))
    assert "mu 5" in said.partition("Fusion:")[0] and "mu 30" in said.partition("Fusion:")[2]


def test_a_preset_of_the_closed_form_trains_nothing(comfy_host, demo, erase, monkeypatch):
    """It is CFR Refine with the concepts' own words; no picture is drawn, and nothing goes where LoRAs would."""
    presets = comfy_host.module("mace.presets.presets")
    text = b'{"name": "alone", "refine": {"mu": 2}, "closed_form": true}'
    _, alone = presets.preset_of_text(text, "alone.json")
    monkeypatch.setattr(comfy_host.module("nodes.host.preset_files"), "PRESETS", {"alone": alone, **presets.PRESETS})
    monkeypatch.setattr(comfy_host.module("nodes.stages.erasing"), "make_images", lambda *a: pytest.fail("drawn"))
    node = erase(words="dog -> sky", preset="alone")
    expected = refine(comfy_host, demo[0], demo[1], concepts(comfy_host, "dog -> sky"), mu="2", own_words="on")[0]
    assert same(node[0], expected) and type(node[1]).__name__ == "ExecutionBlocker"
    assert report(node).splitlines()[1].startswith("of 12 words nearby, moved most: ")
    assert report(node).startswith("Erased: dog. It took ") and "No LoRA is trained by this preset: " in report(node)


def test_the_estimate_comes_first_and_only_for_what_is_new(comfy_host, erase, monkeypatch):
    said = []
    for name in ("planning", "erasing"):
        monkeypatch.setattr(comfy_host.module(f"nodes.stages.{name}"), "send_text", said.append)
    # Pictures of another seed are new, of concepts that were read before for time.
    words, other = "dog -> sky\nfrog -> forest", dict(seed=5)
    first = report(erase(words=words, find_aliases=False, preview_prompt="a photo of the dog", **other))
    plan = next(text for text in said if "about" in text)
    assert plan.startswith("2 of 2 concepts are to be trained, about ") and "memory: model and text encoder" in plan
    assert plan.splitlines()[-1] == "drawing training images" and said.index(plan) == 1
    assert plan.splitlines()[0] in first
    # What became of it stands first.
    result, moved, *rest = first.splitlines()
    assert result.startswith("Erased: dog, frog. It took ") and said[-1] == result
    assert moved.startswith("of 12 words nearby, moved most: ") and rest[0] == "Estimate:"
    more = report(erase(words=f"{words}\nhorse -> forest", **other))
    assert "1 of 3 concepts are to be trained, about " in more
    assert "Estimate" not in report(erase(words="dog -> sky", **other))


@pytest.fixture
def one_word(comfy_host, erasing, monkeypatch):
    """The model is asked for one other word, for time, of pictures that it can tell."""
    settings = partial(comfy_host.module("nodes.stages.alias_words").AliasSettings, words="wolf")
    monkeypatch.setattr(erasing, "AliasSettings", settings)
    monkeypatch.setattr(erasing, "SAMPLING", {**erasing.SAMPLING, "steps": 8})


def test_what_is_left_is_in_the_estimate_though_pictures_are_kept(comfy_host, demo, erase, one_word, monkeypatch):
    """Another mapping, another preset, aliases; after a restart only the pictures are to be drawn."""
    presets, files = comfy_host.module("mace.presets.presets"), comfy_host.module("nodes.host.preset_files")
    longer = presets.Preset(lambda type: presets.LoraRow(2, STEPS + 1, 3e-3))
    monkeypatch.setattr(files, "PRESETS", {**files.PRESETS, "longer": longer})
    planning, found, looked_up = comfy_host.module("nodes.stages.planning"), [], []
    real, kept = planning.estimated, planning.kept_images
    monkeypatch.setattr(planning, "estimated", lambda speed, parts, *a: found.append(parts) or real(speed, parts, *a))
    monkeypatch.setattr(planning, "kept_images", lambda *a: looked_up.append(a) or kept(*a))

    def left(**inputs):
        """(predictions by part, the words that stand first) of what is left to do."""
        found.clear()
        looked_up.clear()
        said = report(erase(seed=8, **inputs)).partition("Estimate:\n")[2]
        assert len(looked_up) == 1
        predictions = {name: own for name, (_, own) in found[0].items() if own} if found else None
        return predictions, said.partition(",")[0]

    training, drawing = 3 * STEPS, 2 * 8 * 2
    assert left(words="rose") == ({"pictures": drawing, "training": training}, "1 of 1 concepts are to be trained")
    assert left(words="rose") == (None, "")
    assert left(words="rose -> cat") == ({"training": training}, "1 of 1 concepts are to be trained")
    assert left(words="rose", preset="longer")[0] == {"training": training + 3}
    asked = left(words="rose", find_aliases=True)[0]
    assert asked["other words"] > 0 and set(asked) <= {"other words", "training"}
    assert left(words="rose", find_aliases=True) == (None, "")
    assert left(words="rose", gentle_strong=0.5, preview_prompt="a rose")[1] == "nothing is to be trained"
    # A longer name is asked when near words are to be kept, though all else is answered.
    (Path(comfy_host.folder_paths.get_input_directory()) / "roses.txt").write_text("a compass rose\nthe compass rose")
    about = dict(captions="roses.txt", count=9, seed=0, preserve="", preserve_type="object", retention="none")
    prior = comfy_host.run("MACE_Prior", clip=demo[1], **about)[0]
    search = comfy_host.module("nodes.stages.alias_search")
    predicted, asks = [], search.errors
    monkeypatch.setattr(search, "errors", lambda *a: predicted.append(len(a[3]) * len(a[4])) or asks(*a))
    near = left(words="rose", keep_near=True, prior=prior)[0]
    assert near["other words"] == sum(predicted) == 3 + 3 * 2 * 3
    assert left(words="rose", keep_near=True, prior=prior) == (None, "")
    # As in a new process.
    for name, store in (("images", "_store"), ("trained", "_store"), ("train", "_plans")):
        getattr(comfy_host.module(f"nodes.stages.{name}"), store).clear()
    assert left(words="rose -> cat") == ({"pictures": drawing}, "nothing is to be trained")


def test_prompts_of_what_is_kept_are_in_the_estimate(comfy_host):
    """Known from the types before a word is found: the paper's names, and the most words near."""
    planning = comfy_host.module("nodes.stages.planning")
    kind, names = comfy_host.module("mace.concepts.lists").RETENTION["100 artists to keep"]
    artists = concepts(comfy_host, "Monet\nRembrandt", type=kind)
    assert planning.prompts_to_keep(artists, 16) == (len(names) + 2 * 8) * len(artists[0].prompts)
    dog = concepts(comfy_host, "dog")
    assert planning.prompts_to_keep(dog, 8) == 8 * len(dog[0].prompts)


def test_the_closed_form_says_how_long_too(comfy_host, erase, one_word, monkeypatch):
    presets, files = comfy_host.module("mace.presets.presets"), comfy_host.module("nodes.host.preset_files")
    _, alone = presets.preset_of_text(b'{"name": "a", "refine": {"mu": 2}, "closed_form": true}', "a.json")
    monkeypatch.setattr(files, "PRESETS", {**files.PRESETS, "alone": alone})
    said = report(erase(words="rose", preset="alone"))
    assert "Estimate:\nnothing is to be trained, about " in said and "to draw" not in said and "training" not in said
    assert "Estimate" not in report(erase(words="rose", preset="alone", gentle_strong=0.5))
    assert "pictures at once\n" in report(erase(words="rose", preset="alone", find_aliases=True, seed=8))


def test_captions_are_in_the_estimate_and_their_cure(comfy_host, erase, monkeypatch):
    monkeypatch.setattr(
        comfy_host.module("mace.pipeline.prior"),
        "_last_general",
        comfy_host.module("mace.pipeline.store").LastResult(),
    )
    first = report(erase(words="cat", type="style", seed=6))
    assert "20 captions are read: a Prior with fewer, saved, is quicker" in first
    assert "captions are read" not in report(erase(words="cat", type="style", seed=4))


def test_a_slow_cpu_reads_fewer_captions_and_says_so(comfy_host, demo, erase, monkeypatch):
    """The same ones as with a Prior of so many."""
    stage, store = (comfy_host.module(name) for name in ("nodes.stages.captions", "mace.pipeline.store"))
    monkeypatch.setattr(comfy_host.module("mace.pipeline.prior"), "_last_general", store.LastResult())
    monkeypatch.setattr(stage, "LONGEST", 0)
    monkeypatch.setattr(stage, "FEWEST", 10)
    monkeypatch.setattr(stage, "BATCH", 5)
    node = erase(words="cat", type="style", seed=6)
    said = report(node)
    assert "10 captions in place of 20, which would take this CPU about " in said and "captions are read" not in said
    own = prior_of(comfy_host, demo[1], 10)
    assert own.captions == 10 and same(node[0], erase(words="cat", type="style", seed=6, prior=own)[0])


def test_before_and_after_of_a_prompt(comfy_host, demo, erase, monkeypatch):
    gallery = comfy_host.module("nodes.host.gallery")
    drawn, sampled = [], gallery.sampled
    monkeypatch.setattr(
        gallery, "sampled", lambda model, *rest, **more: drawn.append(model) or sampled(model, *rest, **more)
    )
    node = erase(words="dog -> sky", preview_prompt=" a photo\n of the {} ")
    assert node.result[4] == "a photo of the dog"
    before, after = (node.ui[name] for name in ("a_images", "b_images"))
    assert len(before) == len(after) == 2 and len(drawn) == 2
    pictures = [torch.from_numpy(pixels(comfy_host, image)) for image in (*before, *after)]
    assert pictures[0].shape == (64, 64, 3)
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])
    # As a KSampler with the seed draws it.
    latents = comfy_host.sample(demo[0], demo[1], "a photo of the dog", seed=3, steps=3, cfg=7.0, sampler="euler")
    expected = (comfy_host.decode(demo[2], latents)[0].movedim(0, -1) * 255).round()
    assert (pictures[0] - expected).abs().max() <= 1
    # The base is drawn once; nothing is without a prompt.
    again = erase(words="dog -> sky", preview_prompt="a photo of the dog", gentle_strong=0.5)
    assert len(drawn) == 3 and torch.equal(torch.from_numpy(pixels(comfy_host, again.ui["a_images"][0])), pictures[0])
    without = erase(words="dog -> sky")
    assert "a_images" not in without.ui and len(drawn) == 3 and without.result[4] == "dog"


def pixels(host, image):
    import numpy
    from PIL import Image

    folder = host.folder_paths.get_temp_directory()
    return numpy.asarray(Image.open(f"{folder}/{image['filename']}"), dtype="float32")
