"""Text as a model's ports read it: which row is which token, and the sums over them, for every kind of text encoder."""

from collections import namedtuple

import pytest
import torch

from mace.method.tokens import fill
from tests.families import build
from tests.lanes import usually
from tests.port_cases import EDITED, LEFT, MODELS, UNHEARD, row_tokens, words_of
from tests.stages import delta_of
from tests.test_refine_node import concepts, refine
from tests.text_encoders import CLIPS, build_clip

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]

# A concept in few prompts: of sums of 4096 x 4096.
Few = namedtuple("Few", "target mapping readings")
TEMPLATES = ("a photo of the {} at night", "{}", "the {} and a {}, (red:1.2)")


# One of each way of reading: T5 and a pooled text, two CLIPs, a chat template whose tail is read, the same in one
# tokenizer that leaves out spaces, another's rows, rows that are not heard, layers that are mixed, padding inside the
# template, several texts. The others are read as one of these.
USUAL = (
    "flux",
    "sd3_clips",
    "qwen",
    "hunyuan_video",
    "anima",
    "ltxv",
    "newbie",
    "krea2",
    "longcat",
    "hidream",
    "hydit",
)


@pytest.fixture(scope="module", params=usually(CLIPS, USUAL))
def text(request, comfy_host):
    """(name, PortText, MODEL, CLIP)."""
    family, sizes = MODELS.get(request.param, (request.param, {}))
    with pytest.MonkeyPatch.context() as patched, torch.inference_mode():
        model, clip = build(family, patched, **sizes), build_clip(request.param)
        yield request.param, comfy_host.module("nodes.host.port_text").PortText(model, clip), model, clip


def read_by_hook(comfy_host, model, clip, prompt: str, layer: str) -> torch.Tensor:
    """What a layer is given when the host's own sampler draws with a prompt, [n, d] float64."""
    import comfy.sample

    seen = []
    module = model.model.diffusion_model.get_submodule(layer)
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    shape = model.model.latent_format
    latent = torch.zeros(1, shape.latent_channels, *[1] * (shape.latent_dimensions - 2), 16, 16)
    try:
        given = comfy_host.encode(clip, prompt)
        comfy.sample.sample(model, torch.randn_like(latent), 1, 1.0, "euler", "simple", given, given, latent, seed=0)
    finally:
        handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1]).double()


def test_edits_what_reads_the_prompt(text):
    name, found, *_ = text
    assert list(map(list, (found.layout.tokens, found.layout.pooled, *found.layout.others))) == list(EDITED[name])
    assert found.layout.left == LEFT.get(name, ()) and found.has_pooled == bool(EDITED[name][1])


def test_rows_are_those_the_sampler_gives(comfy_host, text):
    name, found, model, clip = text
    prompt = "a photo of the dog at night, in the rain"
    features = found.features([prompt])[0]
    tokens, pooled, *others = EDITED[name]
    for rows, layers in zip(features.texts, (tokens, *others), strict=True):
        assert torch.equal(rows.values.double(), read_by_hook(comfy_host, model, clip, prompt, layers[0]))
    if pooled:
        assert torch.equal(features.pooled.double(), read_by_hook(comfy_host, model, clip, prompt, pooled[0])[0])


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(("target", "mapping"), [("hot dog", "cat"), ("dog", "large green tree")])
def test_rows_pair_by_their_tokens(text, template, target, mapping):
    name, found, _, clip = text
    prompts = fill(template, target), fill(template, mapping)
    for place, (f, g) in enumerate(zip(*(each.texts for each in found.features(prompts)), strict=True)):
        pairing = found.pair(template, target, mapping, f, g, place)
        ours, theirs = (
            row_tokens(name, clip, prompt, len(rows.values), place)
            for prompt, rows in zip(prompts, (f, g), strict=True)
        )
        assert (len(f.values), len(g.values)) == (len(ours), len(theirs))
        pairs = list(zip(pairing.target, pairing.mapping, strict=True))
        assert all(ours[i] == theirs[j] for i, j in pairs)
        assert not set(pairing.target) & set(pairing.phrase)
        assert len(set(pairing.target)) == len(pairing.target) and len(set(pairing.mapping)) == len(pairing.mapping)
        # The host's Llama tokenizer leaves out spaces, so that the phrase's words melt with their neighbours.
        if name == "hunyuan_video" or name == "hidream" and place < 2:
            continue
        own, last = words_of(name, clip, target), words_of(name, clip, mapping)
        assert {ours[i] for i in pairing.phrase} <= own and {theirs[j] for j in pairing.own} <= last
        # All rows but the phrase's, less those that a longer mapping pushes out behind.
        blocks = ((0, len(ours)),)
        if name.startswith("sd3") or name == "hydit" and not place:
            blocks = ((0, 77), (77, len(ours)))
        ends = [max((i, j) for i, j in pairs if start <= i < stop) for start, stop in blocks if start < stop]
        filled = sum(token is not None for token in ours)
        lost = sum(max(0, j - i) for i, j in ends)
        if name == "hydit" and not place:
            # In place of padding stand vectors of their own, where the longer mapping has words.
            lost = sum(max(0, ours[slice(*own)].count(0) - theirs[slice(*own)].count(0)) for own in blocks)
        assert filled - len(pairing.phrase) - lost <= len(pairs)
        # The next row behind the phrase is the mapping's next one, where there is one.
        assert pairing.phrase[-1] + 1 == len(ours) or (pairing.phrase[-1] + 1, pairing.own[-1] + 1) in pairs


def test_sums_are_those_of_the_rows(comfy_host, text):
    """A, G and S against products of the rows, which are the ones that the sampler hands to the layer.

    They are compared in four directions at random, which takes no products of 4096 x 4096.
    """
    name, found, model, clip = text
    concept = Few("hot dog", "cat", (("a photo of the {}", "hot dog"), ("(the {}:1.3) on a mat", "hot dog")))
    pooled = EDITED[name][1]
    whole = found.moments(concept, lambda count: None, bool(pooled), own_words=True)
    for place, moments in enumerate((whole, *whole.others)):
        check_sums(comfy_host, text, concept, moments, place)
    if pooled:
        vectors = 0
        for template, phrase in concept.readings:
            f, g = (each.pooled for each in found.features((fill(template, phrase), fill(template, concept.mapping))))
            vectors = vectors + torch.outer(g.double(), f.double())
        torch.testing.assert_close(whole.pooled.cross, vectors, rtol=1e-9, atol=1e-9)


def check_sums(comfy_host, text, concept, moments, place):
    """The sums of one text's rows. place: of the text."""
    name, found, _, clip = text
    width = found.widths[place]
    cross, paired, total = (torch.zeros(width, 4, dtype=torch.float64) for _ in range(3))
    along = torch.randn(width, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for template, phrase in concept.readings:
        prompts = fill(template, phrase), fill(template, concept.mapping)
        f, g = (each.texts[place] for each in found.features(prompts))
        pairing = found.pair(template, phrase, concept.mapping, f, g, place)
        pairs = [*zip(pairing.target, pairing.mapping, strict=True), *zip(pairing.phrase, pairing.own, strict=True)]
        rows, others = (each.values.double() for each in (f, g))
        if name in UNHEARD:
            heard = [
                [token != UNHEARD[name] for token in row_tokens(name, clip, prompt, len(rows))] for prompt in prompts
            ]
            pairs = [(i, j) for i, j in pairs if heard[0][i] and heard[1][j]]
            rows = rows * torch.tensor(heard[0])[:, None]
        ours, theirs = rows[[i for i, _ in pairs]], others[[j for _, j in pairs]]
        cross += theirs.T @ (ours @ along)
        paired += ours.T @ (ours @ along)
        total += rows.T @ (rows @ along)
    unpack = comfy_host.module("mace.method.moments").unpack
    for sums, wanted in ((moments.cross, cross), (unpack(moments.paired), paired), (unpack(moments.total), total)):
        torch.testing.assert_close(sums @ along, wanted, rtol=1e-9, atol=1e-9)


def test_the_refined_model_is_least_squares_over_the_rows(comfy_host, text):
    """W' of every layer that reads the tokens, against its equation written out over the pairs of rows."""
    name, found, model, clip = text
    if found.width > 100:
        pytest.skip("systems of 4096 take minutes; test_small_sd3 refines one")
    chosen = concepts(comfy_host, "dog -> cat")
    node = refine(comfy_host, model, clip, chosen, mu="10")
    tokens, _, *others = EDITED[name]
    for place, layers in enumerate((tokens, *others)):
        ours, theirs = [], []
        for template, phrase in chosen[0].readings:
            prompts = fill(template, phrase), fill(template, chosen[0].mapping)
            f, g = (each.texts[place] for each in found.features(prompts))
            pairing = found.pair(template, phrase, chosen[0].mapping, f, g, place)
            pairs = [*zip(pairing.target, pairing.mapping, strict=True), *zip(pairing.phrase, pairing.own, strict=True)]
            pairs = [(i, j) for i, j in pairs if f.counted[i] and g.counted[j]]
            ours.append(f.values[[i for i, _ in pairs]].double())
            theirs.append(g.values[[j for _, j in pairs]].double())
        f, g = torch.cat(ours), torch.cat(theirs)
        held = 10 * f.square().mean() * torch.eye(f.shape[1], dtype=torch.float64)
        for layer in layers:
            key = f"diffusion_model.{layer}.weight"
            weight = model.model.state_dict()[key].double()
            wanted = torch.linalg.solve(f.T @ f + held, (g.T @ f + held).T @ weight.T).T
            torch.testing.assert_close(weight + delta_of(node[0], key).double(), wanted, rtol=1e-4, atol=1e-4)
