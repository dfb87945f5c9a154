"""Find Aliases on the trained demo model: what it finds, and its errors against the UNet called by hand."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from tests.kinds import conditioning, latents, unet
from tests.stages import images, short_of_memory, train
from tests.stages import report as whole_report
from tests.test_refine_node import concepts

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]
SETTINGS = dict(words="", keep="", nearest=300, threshold=0.5, most=8, pictures=1, seed=0)
WORDS = "stag, hart\nhorse  # no deer\ncherry blossom, Doe, wolf"


def report(node) -> str:
    """What a node says of what it found, without the time that it took."""
    return whole_report(node).rpartition("\n")[0]


@pytest.fixture(scope="module")
def search(comfy_host):
    return comfy_host.module("nodes.stages.alias_search")


@pytest.fixture(scope="module")
def encoder(comfy_host, demo):
    return comfy_host.module("nodes.host.text").TextEncoder(demo[1])


@pytest.fixture(scope="module")
def shown(comfy_host, demo):
    return images(comfy_host, demo, concepts(comfy_host, "deer -> street\ndog | canine -> sky"), steps=8)[0]


@pytest.fixture
def find(comfy_host, demo, shown):
    def run(entries=shown, **settings):
        given = dict(model=demo[0], clip=demo[1], images=entries)
        return comfy_host.run("MACE_FindAliases", **{**given, **SETTINGS, **settings})

    return run


def test_attention_is_float32_in_half_precision(search, comfy_host):
    """What each cross-attention of a bf16 model hands on is what float64 gives of its q, k and v, rounded once.

    Two thirds of it differ where the probabilities are bf16 too.
    """
    from comfy import model_management

    model = unet("sd15", torch.bfloat16)
    model.set_model_compute_dtype(torch.bfloat16)
    model_management.load_models_gpu([model])
    seen, hooks = {}, []
    for name, layer in model.model.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")):
            note = lambda _, given, out, name=name: seen.update({name: given[0] if "to_out" in name else out})  # noqa: E731
            hooks.append(layer.register_forward_hook(note))
    contexts, _ = conditioning(model, 2)
    with torch.inference_mode():
        search._by_rows(model, 4 * contexts, None)(latents(2), torch.ones(2), torch.tensor([1, 0]))
    for hook in hooks:
        hook.remove()
    heads = model.model.model_config.unet_config["num_heads"]
    queries = [name for name in seen if name.endswith("to_q")]
    assert len(queries) > 2
    for name in queries:
        stem = name.removesuffix("to_q")
        q, k, v = (seen[f"{stem}to_{x}"].double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in "qkv")
        exact = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        found = seen[f"{stem}to_out.0"]
        assert found.dtype == torch.bfloat16
        assert (found == exact.bfloat16()).float().mean() > 0.99, name


def test_synonyms_are_found_and_neighbours_are_not(find, shown):
    node = find(words=WORDS)
    deer, dog = node[0]
    assert set(deer.aliases) == {"stag", "hart", "Doe"} and dog.aliases == ("canine",)
    assert [entry.concept for entry in node[1]] == [deer, dog]
    assert torch.equal(node[1][0].latents, shown[0].latents)
    assert node[2] == f"deer | {', '.join(deer.aliases)} -> street\ndog | canine -> sky"
    first, second, third, fourth = report(node).splitlines()
    near = ["hot dog", "horse", "cherry blossom", "wolf"]
    assert node[3].splitlines() == near and fourth == f"near, and no aliases: {', '.join(near)}"
    assert third.startswith("dog, longer names: hot dog ") and third.endswith("% another thing")
    assert first.startswith("deer: ") and "; then " in first and second.startswith("dog: nothing; then ")


def test_an_alias_too_many_is_not_kept(find):
    """What the model calls the same, beyond `most`, is neither erased nor to be kept."""
    node = find(words=WORDS, most=1)
    assert len(node[0][0].aliases) == 1 and node[3].splitlines() == ["hot dog", "horse", "cherry blossom", "wolf"]


def test_longer_names_of_the_thing_itself_go_with_it(find, shown):
    """Of names that hold an erased word those stay that the model draws another thing by."""
    node = find(shown[1:], words="wolf", threshold=-6.0, most=0)
    assert report(node).splitlines()[1].endswith("% erased with it") and not node[3]
    assert "longer names" not in report(find(shown[1:], words="wolf", neighbours=0))
    kept = find(shown[1:], words="wolf", keep="hot dog")
    assert "longer names" not in report(kept) and kept[3].splitlines() == ["hot dog", "wolf"]


def test_longer_names_move_no_other_words_type(comfy_host, demo, shown):
    """A word that both concepts were asked of has the later one's, whose own longer name stands before no word."""
    search, words = comfy_host.module("nodes.stages.alias_search"), comfy_host.module("nodes.stages.alias_words")
    deer, dog = shown
    mixed = (replace(deer, concept=replace(deer.concept, type="style")), dog)
    kinds = search.find_aliases(*demo[:2], mixed, words.AliasSettings(words="wolf")).kinds
    assert kinds == {"wolf": "object", "hot dog": "object"}


def test_the_vocabulary_is_searched_where_no_words_are_given(find, shown):
    node = find(shown[1:], nearest=80)
    ((dog,), near) = node[0], node[3].splitlines()
    assert (
        len(near) == 9
        and near[0] == "hot dog"
        and not set(near) & {"dog", *dog.aliases}
        and report(node).endswith(", ".join(near))
    )
    assert {"hound", "pooch"} <= set(dog.aliases) and dog.aliases[0] == "canine"
    assert not {"cat", "wolf", "fox", "animal"} & set(dog.aliases)


def test_a_template_that_names_the_concept_twice(find, shown):
    """As Concept Images' prompt may: both are filled."""
    twice = (replace(shown[0], template="a {} and a {}"),)
    (deer,) = find(twice, words="stag, horse", threshold=0.3)[0]
    assert deer.aliases == ("stag",)


def test_the_text_reads_back_in_concepts(comfy_host, find, shown):
    node = find(words='"C#, a stag", horse', threshold=0.0, most=1)
    assert '"C#, a stag"' in node[2] + node[3]
    again = concepts(comfy_host, node[2])
    assert [(c.target, c.aliases, c.mapping) for c in again] == [(c.target, c.aliases, c.mapping) for c in node[0]]


def test_what_is_kept_is_no_alias(find, shown):
    (kept,) = find(shown[1:], words="pooch, hound", keep="hound")[0]
    assert kept.aliases == ("canine", "pooch")
    (fewer,) = find(shown[1:], words="pooch, hound", most=1)[0]
    assert fewer.aliases == ("canine", "hound")


def test_few_near_words_are_words_near(comfy_host, encoder):
    words = comfy_host.module("nodes.stages.alias_words")
    table = encoder.vocabulary()[1]
    assert table.shape[0] == 49408 and encoder.vocabulary()[0][encoder.tokenize("dog")[0]] == "dog"
    near, other = words.nearest_words(encoder, ["dog", "xylophonist"], 20)
    assert len(near) == 20 and "dog" not in near and all(word.isalpha() for word in near)
    rows = {word: table[encoder.tokenize(word)[0]] for word in (*near, "dog")}
    cosine = [float(torch.cosine_similarity(rows[word], rows["dog"], dim=0)) for word in near]
    assert cosine == sorted(cosine, reverse=True)
    # No word that the encoder knows nothing of, and nothing near such a one.
    assert len(words.nearest_words(encoder, ["dog"], 5000)[0]) < 311
    assert other == []


@pytest.mark.long
def test_a_size_that_memory_has_no_room_for_is_tried_once(demo, find):
    """For all concepts, and their longer names."""
    model, asked = short_of_memory(demo[0], 2)
    words = "stag, horse, wolf"
    assert report(find(model=model, words=words)) == report(find(words=words))
    assert [size for size in asked if size > 2] == [5] and len(asked) > 20


def test_errors_are_those_of_the_noise(comfy_host, demo, search, encoder, shown):
    """The UNet called by hand, one picture and prompt at a time."""
    model, clip, _ = demo
    entry, prompts = shown[0], ["a photo of the deer", "", "a photo of the ship"]
    draws = search.draws_of(entry, 2, seed=3)
    assert [(draw.image, draw.timestep) for draw in draws] == [(i, t) for i in (0, 1) for t in (300, 500, 700)]
    counted, at_once = [], comfy_host.module("nodes.host.networks").Batches(2)
    with torch.inference_mode():
        found = search.errors(model, encoder, entry, prompts, draws, counted.append, at_once)
        expected = torch.zeros(3, 6, dtype=torch.float64)
        for row, prompt in enumerate(prompts):
            context = clip.encode_from_tokens(clip.tokenize(prompt))
            for place, draw in enumerate(draws):
                clean = model.model.process_latent_in(entry.latents[draw.image][None])
                sigma = model.model.model_sampling.sigmas[draw.timestep]
                x = (clean + sigma * draw.noise) / (1 + sigma**2).sqrt()
                noise = model.model.diffusion_model(x, torch.tensor([float(draw.timestep)]), context=context)
                expected[row, place] = (noise - draw.noise).double().square().mean()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)
    assert sum(counted) == 18
    score = comfy_host.module("mace.concepts.aliases").explained(found[2:], found[0], found[1])
    assert float(score) < 0.2


def test_pictures_of_something_else_are_told(find, comfy_host, demo):
    """Noise is not explained by the word."""
    noise = images(comfy_host, demo, concepts(comfy_host, "dog"), images=torch.rand(1, 64, 64, 3))[0]
    with pytest.raises(ValueError, match="dog: the pictures are not explained .* look at them, or take more pictures"):
        find(noise, words="hound")


def test_words_that_cannot_be_tried(find, shown):
    """Those in the list, those kept and those too long are left out; then nothing is left to ask."""
    long = " ".join(["dog"] * 80)
    node = find(shown[1:], words=f"dog, Canine, hound, {long}", keep="Hound, hot dog")
    assert node[0][0].aliases == ("canine",) and report(node) == "dog: nothing\nnear, and no aliases: Hound, hot dog"


def test_an_interrupt_ends_the_search(find, shown):
    from comfy import model_management

    model_management.interrupt_current_processing()
    with pytest.raises(model_management.InterruptProcessingException):
        find(shown[1:], words="hound")
    assert not model_management.processing_interrupted()


def test_training_takes_the_images_with_their_aliases(comfy_host, demo, find, shown):
    node = find(shown[:1], words="stag")
    loras = train(comfy_host, demo[1], demo[0], node[1], steps="1")[0]
    assert loras.loras[0].concept.aliases == ("stag",)


@pytest.mark.long
def test_the_one_node_version_finds_them_too(comfy_host, demo, monkeypatch):
    """With one step of training and two words, for time."""
    erase, presets = comfy_host.module("nodes.stages.erasing"), comfy_host.module("mace.presets.presets")
    short = presets.Preset(lambda type: presets.LoraRow(1, 1, 1e-3))
    monkeypatch.setattr(comfy_host.module("nodes.host.preset_files"), "PRESETS", {"short": short})
    monkeypatch.setattr(erase, "AliasSettings", partial(erase.AliasSettings, words="stag, horse"))
    model, clip, vae = demo
    given = dict(model=model, clip=clip, vae=vae, preset="short", width=64, height=64, seed=0, strengths="deer = 0.5")
    chosen = concepts(comfy_host, "deer -> street")
    node = comfy_host.run("MACE_EraseConcepts", concepts=chosen, find_aliases=True, **given)
    assert node[1].loras[0].concept.aliases == ("stag",)
    said = report(node)
    assert "Aliases:\ndeer: stag 8" in said and said.index("Aliases:") < said.index("Refinement:")


def test_what_is_chosen_becomes_the_aliases_and_nothing_is_asked_anew(find, shown, search, monkeypatch):
    """Also words that were not asked; without a line for it a concept takes what the model found."""
    search._searches.clear()
    first = find(words=WORDS)
    assert "\nasked in " in whole_report(first)
    monkeypatch.setattr(search, "errors", lambda *a: pytest.fail("asked anew"))
    node = find(words=WORDS, chosen="deer | Hart, horse, elk  # mine\ncat | kitty\ndog")
    deer, dog = node[0]
    assert deer.aliases == ("Hart", "horse", "elk") and dog.aliases == ("canine",)
    assert [entry.concept for entry in node[1]] == [deer, dog]
    said = whole_report(node).splitlines()
    assert said[0].startswith("deer: Hart 7") and ", elk (chosen); then Doe 8" in said[0]
    assert said[1].startswith("dog: nothing (chosen); then ") and "asked in" not in whole_report(node)
    assert said[2] == "chosen names what is not in the list, and is passed over: cat"
    # What the model found and the artist did not choose is to stay, before what is only near.
    assert node[3].splitlines()[:2] == ["Doe", "stag"] and "wolf" in node[3] and "horse" not in node[3]
    (usual, _), (own, other) = first.ui["candidates"], node.ui["candidates"]
    assert usual["concept"] == own["concept"] == "deer" and [w for w in own["words"] if w["picture"]] == []
    found = {entry["word"]: entry for entry in usual["words"]}
    assert [word for word, entry in found.items() if entry["found"]] == list(first[0][0].aliases)
    assert all(entry["chosen"] == entry["found"] for entry in found.values())
    assert [entry["score"] for entry in usual["words"]] == sorted((w["score"] for w in usual["words"]), reverse=True)
    chosen = {entry["word"]: entry for entry in own["words"] if entry["chosen"]}
    assert set(chosen) == {"hart", "horse", "elk"} and chosen["elk"]["score"] is None
    assert chosen["horse"]["score"] < 0 and not chosen["horse"]["found"] and other["concept"] == "dog"


def test_near_words_are_chosen_to_be_kept(find, shown, search, monkeypatch):
    """A line of * names those that go out; without it all do, and one's own and those of keep are there too."""
    every = find(words=WORDS, keep="hot dog")
    near = ["horse", "cherry blossom", "wolf"]
    assert every[3].splitlines() == ["hot dog", *near]
    assert every.ui["near"] == [{"word": word, "found": True, "stays": True} for word in near]
    monkeypatch.setattr(search, "errors", lambda *a: pytest.fail("asked anew"))
    some = find(words=WORDS, keep="hot dog", chosen="* | Wolf, fox, hot dog, stag\ndeer | stag, hart")
    assert some[3].splitlines() == ["hot dog", "wolf", "fox"] and some[0][0].aliases == ("stag", "hart")
    words = {own["word"]: (own["found"], own["stays"]) for own in some.ui["near"]}
    left = dict.fromkeys(["Doe", "horse", "cherry blossom"], (True, False))
    assert words == {**left, "wolf": (True, True), "fox": (False, True)}
    assert "passed over" not in whole_report(some) and "near, and no aliases: hot dog, wolf, fox" in whole_report(some)
    assert find(words=WORDS, chosen="*")[3] == ""


def test_a_candidate_is_drawn_as_a_sampler_draws_it(comfy_host, demo, find, shown, monkeypatch):
    """One small picture for each of the best; the second run draws nothing."""
    gallery = comfy_host.module("nodes.host.gallery")
    model, clip, vae = demo
    node = find(shown[:1], words="stag, horse, ship", vae=vae, thumbnails=2)
    (own,) = node.ui["candidates"]
    assert [bool(entry["picture"]) for entry in own["words"]] == [True, True, False] and own["picture"]
    assert "2 small pictures drawn in " in whole_report(node)

    def opened(entry):
        folder = comfy_host.base / "temp" / entry["subfolder"]
        return to_tensor(Image.open(folder / entry["filename"]).convert("RGB")).movedim(0, -1)

    assert torch.equal((opened(own["picture"]) * 255).round().to(torch.uint8), shown[0].pictures[0])
    settings = dict(steps=8, cfg=7.0, sampler="dpmpp_2m", scheduler="karras")
    latents = comfy_host.sample(model, clip, f"a photo of the {own['words'][0]['word']}", seed=0, **settings)
    expected = comfy_host.decode(vae, latents)[0].movedim(0, -1)
    assert float((opened(own["words"][0]["picture"]) - expected).abs().max()) < 0.02
    monkeypatch.setattr(gallery, "sampled", lambda *a, **k: pytest.fail("drawn anew"))
    again = find(shown[:1], words="stag, horse, ship", vae=vae, thumbnails=2, chosen="deer")
    assert again[0][0].aliases == () and again.ui["candidates"][0]["words"][0]["picture"]
    assert whole_report(again).endswith("\nnothing was asked or drawn anew")


def test_chosen_words_that_contradict(comfy_host, find, shown):
    with pytest.raises(ValueError, match="'hound' is in keep and in chosen: take it out of one of them"):
        find(shown[1:], words="hound, pooch", keep="Hound", chosen="dog | hound")
    with pytest.raises(ValueError, match="'stag' is in the list twice"):
        find(words="stag", chosen="dog | stag\ndeer | stag")
    checked = comfy_host.validate("MACE_FindAliases", words="", keep="", chosen="dog | pooch, hound\n| x")
    assert "chosen: line 2: '| x' is not a concept and its aliases; write: dog | canine, hound" in checked
