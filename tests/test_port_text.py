"""Text as a model's ports read it: which row is which token, and the sums over them, for every kind of text encoder."""

from collections import Counter, namedtuple

import pytest
import torch

from mace.method.tokens import fill
from tests.families import build
from tests.stages import delta_of
from tests.test_refine_node import concepts, refine
from tests.text_encoders import CLIPS, build_clip

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]

SD3_SIZES = dict(
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
    num_patches=256,
    pos_embed_max_size=16,
)
# A concept in few prompts: of sums of 4096 x 4096.
Few = namedtuple("Few", "target mapping readings")
# The family of the model that each CLIP is for, where it has another name or other sizes.
MODELS = {
    "sd3": ("sd3", SD3_SIZES),
    "sd3_clips": ("sd3", SD3_SIZES),
    "pixeldit": ("pixeldit", dict(txt_max_length=300)),
    "newbie": ("newbie", dict(clip_text_dim=24)),
    "cogvideox": ("cogvideox", dict(max_text_seq_length=226)),
    "mochi": ("mochi", dict(t5_token_length=256)),
    "ideogram4": ("ideogram4", dict(llm_features_dim=78)),
}
# By CLIP: the layers edited, and those of the pooled text.
EDITED = {
    "flux": (["txt_in"], ["vector_in.in_layer"]),
    "chroma": (["txt_in"], []),
    "sd3": (["context_embedder"], ["y_embedder.mlp.0"]),
    "sd3_clips": (["context_embedder"], ["y_embedder.mlp.0"]),
    "qwen": (["txt_in"], []),
    "zimage": (["cap_embedder.1"], []),
    "flux2_klein": (["txt_in"], []),
    # The second reads the mean of what the first reads.
    "hunyuan_video": (["txt_in.input_embedder", "txt_in.c_embedder.in_layer"], ["vector_in.in_layer"]),
    "anima": (["llm_adapter.out_proj"], []),
    "flux2": (["txt_in"], []),
    "ernie": (["text_proj"], []),
    "lumina2": (["cap_embedder.1"], []),
    "newbie": (["cap_embedder.1"], ["clip_text_pooled_proj.1"]),
    "pixeldit": (["y_embedder.proj"], []),
    "wan21": (["text_embedding.0"], []),
    "aura": (["cond_seq_linear"], []),
    "cosmos1": ([f"blocks.block{n}.blocks.1.block.attn.to_{side}.0" for n in (0, 1) for side in "kv"], []),
    "ltxv": (["caption_projection.linear_1"], []),
    "cogvideox": (["patch_embed.text_proj"], []),
    "cascade_c": (["clip_txt_mapper"], ["clip_txt_pooled_mapper"]),
    "kandinsky5_image": (["text_embeddings.in_layer"], ["pooled_text_embeddings.in_layer"]),
    "kandinsky5_video": (["text_embeddings.in_layer"], ["pooled_text_embeddings.in_layer"]),
    "krea2": (["txtmlp.1"], []),
    "omnigen2": (["time_caption_embed.caption_embedder.1"], []),
    "boogu": (["time_caption_embed.caption_embedder.1"], []),
    "joyimage": (["condition_embedder.text_embedder.linear_1"], []),
    "mage_flow": (["txt_in"], []),
    "longcat": (["txt_in"], []),
    "ovis": (["txt_in"], []),
    "ideogram4": (["llm_cond_proj"], []),
    # The last two read the tokens once more, and their mean.
    "mochi": (["t5_yproj", "t5_y_embedder.to_kv", "t5_y_embedder.to_q"], []),
    "lens": (["txt_in"], []),
    "hunyuan_image21": (["txt_in.input_embedder", "txt_in.c_embedder.in_layer"], []),
    "hunyuan_video15": (["txt_in.input_embedder", "txt_in.c_embedder.in_layer"], []),
}
# Layers that read quoted text alone, which are left.
LEFT = dict.fromkeys(("hunyuan_image21", "hunyuan_video15"), ("byt5_in.fc1",))
# Rows begin behind "<|im_start|>user\n" of the template.
BEHIND_USER = (
    "qwen",
    "kandinsky5_image",
    "kandinsky5_video",
    "krea2",
    "mage_flow",
    "hunyuan_image21",
    "hunyuan_video15",
)
# Of which section the rows are, where a CLIP has several.
READ = {"flux": "t5xxl", "anima": "t5xxl", "newbie": "gemma", "hunyuan_video": "llama"}
# The padding whose rows a model does not hear.
UNHEARD = {"ltxv": 0, "mochi": 0}
TEMPLATES = ("a photo of the {} at night", "{}", "the {} and a {}, (red:1.2)")


def row_tokens(name: str, clip, prompt: str, count: int) -> list:
    """The token that each of the port's rows reads, by what the host's text encoders do with tokens; None for rows that
    a model puts in front."""
    sections = {key: [entry[0] for entry in parts[0]] for key, parts in clip.tokenize(prompt).items()}
    if name.startswith("sd3"):
        return sections["l"] + (sections["t5xxl"] if name == "sd3" else [])
    tokens = sections[READ.get(name, next(iter(sections)))]
    if name in BEHIND_USER:
        user = [place for place, token in enumerate(tokens) if token == 151644][1]
        return tokens[user + 3 :]
    if name == "longcat":
        # The end of the template is cut off too.
        user, end = [place for place, token in enumerate(tokens) if token == 151644][1:]
        return tokens[user + 3 : end - 2]
    if name == "ovis":
        # From the colon on; what is put behind has the padding's token.
        return tokens[tokens.index(4004) + 1 :][:count]
    if name == "joyimage":
        return tokens[34:]
    if name == "lens":
        return tokens[len(tokens) - count :]
    if name == "pixeldit":
        return tokens[:1] + tokens[-299:]
    if name != "hunyuan_video":
        return [None] * (count - len(tokens)) + tokens
    user = next(place for place in range(len(tokens)) if tokens[place : place + 3] == [128006, 882, 128007])
    # Behind the header and, where it is one token, its empty line; up to the end of the turn.
    begin = user + 2 + 2 * (tokens[user + 3] == 271)
    return tokens[begin : tokens.index(128009, user) + 1]


@pytest.fixture(scope="module", params=CLIPS)
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


def words_of(name: str, clip, phrase: str) -> set:
    """Tokens that a phrase may be made of, alone or behind a space, without those of the template."""
    found = set()
    for text in (phrase, " " + phrase):
        for key, parts in clip.tokenize(text).items():
            # What two other texts have alike: a space that is a token of its own may be the phrase's.
            first, second = (Counter(entry[0] for entry in clip.tokenize(other)[key][0]) for other in ("0", "the"))
            found |= set(Counter(entry[0] for entry in parts[0]) - (first & second))
    return found


def test_edits_what_reads_the_prompt(text):
    name, found, *_ = text
    assert [list(found.layout.tokens), list(found.layout.pooled)] == list(EDITED[name])
    assert found.layout.left == LEFT.get(name, ()) and found.has_pooled == bool(EDITED[name][1])


def test_rows_are_those_the_sampler_gives(comfy_host, text):
    name, found, model, clip = text
    prompt = "a photo of the dog at night, in the rain"
    features = found.features([prompt])[0]
    tokens, pooled = EDITED[name]
    assert torch.equal(features.rows.values.double(), read_by_hook(comfy_host, model, clip, prompt, tokens[0]))
    if pooled:
        assert torch.equal(features.pooled.double(), read_by_hook(comfy_host, model, clip, prompt, pooled[0])[0])


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(("target", "mapping"), [("hot dog", "cat"), ("dog", "large green tree")])
def test_rows_pair_by_their_tokens(text, template, target, mapping):
    name, found, _, clip = text
    prompts = fill(template, target), fill(template, mapping)
    f, g = (each.rows for each in found.features(prompts))
    pairing = found.pair(template, target, mapping, f, g)
    ours, theirs = (
        row_tokens(name, clip, prompt, len(rows.values)) for prompt, rows in zip(prompts, (f, g), strict=True)
    )
    assert (len(f.values), len(g.values)) == (len(ours), len(theirs))
    pairs = list(zip(pairing.target, pairing.mapping, strict=True))
    assert all(ours[i] == theirs[j] for i, j in pairs)
    assert not set(pairing.target) & set(pairing.phrase)
    assert len(set(pairing.target)) == len(pairing.target) and len(set(pairing.mapping)) == len(pairing.mapping)
    # The host's Llama tokenizer leaves out spaces, so that the phrase's words melt with their neighbours.
    if name != "hunyuan_video":
        own, last = words_of(name, clip, target), words_of(name, clip, mapping)
        assert {ours[i] for i in pairing.phrase} <= own and {theirs[j] for j in pairing.own} <= last
        # All rows but the phrase's, less those that a longer mapping pushes out behind.
        blocks = ((0, 77), (77, len(ours))) if name.startswith("sd3") else ((0, len(ours)),)
        ends = [max((i, j) for i, j in pairs if start <= i < stop) for start, stop in blocks if start < stop]
        filled = sum(token is not None for token in ours)
        assert filled - len(pairing.phrase) - sum(max(0, j - i) for i, j in ends) <= len(pairs)
        # The next row behind the phrase is the mapping's next one, where there is one.
        assert pairing.phrase[-1] + 1 == len(ours) or (pairing.phrase[-1] + 1, pairing.own[-1] + 1) in pairs


def test_sums_are_those_of_the_rows(comfy_host, text):
    """A, G and S against products of the rows, which are the ones that the sampler hands to the layer.

    They are compared in four directions at random, which takes no products of 4096 x 4096.
    """
    name, found, model, clip = text
    concept = Few("hot dog", "cat", (("a photo of the {}", "hot dog"), ("(the {}:1.3) on a mat", "hot dog")))
    tokens, pooled = EDITED[name]
    moments = found.moments(concept, lambda count: None, bool(pooled), own_words=True)
    cross, paired, total = (torch.zeros(found.width, 4, dtype=torch.float64) for _ in range(3))
    along = torch.randn(found.width, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors = 0
    for template, phrase in concept.readings:
        prompts = fill(template, phrase), fill(template, concept.mapping)
        f, g = found.features(prompts)
        pairing = found.pair(template, phrase, concept.mapping, f.rows, g.rows)
        pairs = [*zip(pairing.target, pairing.mapping, strict=True), *zip(pairing.phrase, pairing.own, strict=True)]
        rows, others = (each.rows.values.double() for each in (f, g))
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
        if pooled:
            vectors = vectors + torch.outer(g.pooled.double(), f.pooled.double())
    unpack = comfy_host.module("mace.method.moments").unpack
    for sums, wanted in ((moments.cross, cross), (unpack(moments.paired), paired), (unpack(moments.total), total)):
        torch.testing.assert_close(sums @ along, wanted, rtol=1e-9, atol=1e-9)
    if pooled:
        torch.testing.assert_close(moments.pooled.cross, vectors, rtol=1e-9, atol=1e-9)


def test_the_refined_model_is_least_squares_over_the_rows(comfy_host, text):
    """W' of every layer that reads the tokens, against its equation written out over the pairs of rows."""
    name, found, model, clip = text
    if found.width > 100:
        pytest.skip("systems of 4096 take minutes; test_small_sd3 refines one")
    chosen = concepts(comfy_host, "dog -> cat")
    node = refine(comfy_host, model, clip, chosen, mu="10")
    ours, theirs = [], []
    for template, phrase in chosen[0].readings:
        f, g = (each.rows for each in found.features((fill(template, phrase), fill(template, chosen[0].mapping))))
        pairing = found.pair(template, phrase, chosen[0].mapping, f, g)
        pairs = [*zip(pairing.target, pairing.mapping, strict=True), *zip(pairing.phrase, pairing.own, strict=True)]
        pairs = [(i, j) for i, j in pairs if f.counted[i] and g.counted[j]]
        ours.append(f.values[[i for i, _ in pairs]].double())
        theirs.append(g.values[[j for _, j in pairs]].double())
    f, g = torch.cat(ours), torch.cat(theirs)
    held = 10 * f.square().mean() * torch.eye(found.width, dtype=torch.float64)
    for layer in EDITED[name][0]:
        key = f"diffusion_model.{layer}.weight"
        weight = model.model.state_dict()[key].double()
        wanted = torch.linalg.solve(f.T @ f + held, (g.T @ f + held).T @ weight.T).T
        torch.testing.assert_close(weight + delta_of(node[0], key).double(), wanted, rtol=1e-4, atol=1e-4)
