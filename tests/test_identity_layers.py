"""Text layers that change nothing are skipped in the tests' host: to the bit as if they were not."""

from types import SimpleNamespace

import pytest
import torch

from devtools import identity_layers
from devtools.identity_layers import forget_layers, is_identity, skip_identity_layers

pytestmark = pytest.mark.host

PROMPTS = ("a photo of the airplane", "", "the (cat:1.3) and the dog", "a drawing of a rose " * 30)
SKIPS = (None, -1, -2, -12)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No other process of the run has computed anything."""
    monkeypatch.delenv(identity_layers.SHARED, raising=False)


@pytest.fixture(scope="module")
def plain(comfy_host, demo_checkpoint):
    """The demo's CLIP as the host loads it."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(demo_checkpoint), output_vae=False, output_clip=True)[1]


@pytest.fixture
def ran(monkeypatch):
    """The layers that the host's own code computes, from here on."""
    from comfy.clip_model import CLIPLayer

    layers, forward = [], CLIPLayer.forward
    monkeypatch.setattr(CLIPLayer, "forward", lambda self, *rest: layers.append(self) or forward(self, *rest))
    return layers


def layers_of(clip):
    return clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers


def encoded(clip, prompt, layer=None):
    """(embeddings, pooled) at a clip skip."""
    clip = clip.clone()
    clip.clip_layer(layer)
    with torch.inference_mode():
        return clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)


def same_bits(found, expected) -> bool:
    return all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(found, expected, strict=True))


def changed(clip, name, value):
    """The CLIP with every element of one of its weights changed, by a patch."""
    clip = clip.clone()
    (key,) = (key for key in clip.patcher.model_state_dict() if key.endswith(name))
    assert clip.add_patches({key: ("diff", (torch.full_like(clip.patcher.model_state_dict()[key], value),))})
    return clip


def test_ten_layers_are_skipped(demo, plain, ran):
    found = demo[1]
    forget_layers()
    assert [is_identity(layer) for layer in layers_of(plain)] == [False] * 2 + [True] * 10
    encoded(found, PROMPTS[0])
    assert ran == list(layers_of(found)[:2])
    ran.clear()
    encoded(plain, PROMPTS[0])
    assert ran == list(layers_of(plain))


def test_a_batch_is_computed_once(demo, plain, ran, monkeypatch):
    """The same bits again, another batch anew; what was used last is held, up to the room there is."""
    forget_layers()
    first = encoded(demo[1], PROMPTS[0])
    assert same_bits(encoded(demo[1], PROMPTS[0]), first) and len(ran) == 2
    assert same_bits(first, encoded(plain, PROMPTS[0])) and len(ran) == 2 + 12
    encoded(demo[1], PROMPTS[1])
    assert len(ran) == 4 + 12
    held = identity_layers._remembered.held
    monkeypatch.setattr(identity_layers, "_ROOM", held)
    encoded(demo[1], PROMPTS[0])
    encoded(demo[1], "a rose")
    assert identity_layers._remembered.held <= held and len(ran) == 6 + 12
    encoded(demo[1], PROMPTS[0])
    assert len(ran) == 6 + 12
    encoded(demo[1], PROMPTS[1])
    assert len(ran) == 8 + 12
    forget_layers()


def test_what_another_process_computed_is_read(demo, ran, monkeypatch, tmp_path):
    monkeypatch.setenv(identity_layers.SHARED, str(tmp_path))
    forget_layers()
    first = encoded(demo[1], PROMPTS[0])
    assert len(ran) == 2 and len(list(tmp_path.iterdir())) == 2
    forget_layers()
    assert same_bits(encoded(demo[1], PROMPTS[0]), first) and len(ran) == 2
    forget_layers()
    encoded(demo[1], PROMPTS[1])
    assert len(ran) == 4


def test_gradients_hooks_and_weights_are_computed_anew(demo, ran):
    layer = layers_of(demo[1])[0]
    x = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(0))

    def run():
        before = len(ran)
        out = layer(x.clone(), None, attention())
        return out, len(ran) - before

    forget_layers()
    with torch.inference_mode():
        plain = run()[0]
        assert run()[1] == 0
        hook = layer.mlp.fc1.register_forward_hook(lambda module, given, out: out + 1)
        assert not same_bits([run()[0]], [plain]) and run()[1] == 1
        hook.remove()
        kept = layer.mlp.fc1.bias.clone()
        layer.mlp.fc1.bias[0] += 1
        assert not same_bits([run()[0]], [plain]) and run()[1] == 0
        layer.mlp.fc1.bias.copy_(kept)
        assert run()[1] == 0
    assert same_bits([run()[0]], [plain]) and run()[1] == 1
    forget_layers()


@pytest.mark.parametrize("layer", SKIPS)
def test_the_bits_are_the_same(demo, plain, layer):
    for prompt in PROMPTS:
        assert same_bits(encoded(demo[1], prompt, layer), encoded(plain, prompt, layer)), prompt


def test_all_intermediate_outputs(demo, plain):
    x = torch.randn(2, 77, 768, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0] = -0.0
    with torch.inference_mode():
        found, expected = (
            clip.cond_stage_model.clip_l.transformer.text_model.encoder(x.clone(), intermediate_output="all")
            for clip in (demo[1], plain)
        )
    assert found[1].shape == (2, 12, 77, 768) and same_bits(found, expected)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_spreads_as_in_the_host(demo, plain, value):
    x = torch.zeros(1, 77, 768)
    x[0, 3] = value
    with torch.inference_mode():
        found, expected = (layers_of(clip)[5](x.clone(), None, attention()) for clip in (demo[1], plain))
    assert torch.equal(found.isnan(), expected.isnan()) and found.isnan().any()


def attention():
    from comfy.ldm.modules.attention import optimized_attention_for_device

    return optimized_attention_for_device(torch.device("cpu"), small_input=True)


@pytest.mark.parametrize(
    "name", ["layers.7.mlp.fc2.bias", "layers.11.self_attn.out_proj.bias", "layers.0.mlp.fc1.bias"]
)
def test_a_patch_counts_and_goes_away_again(demo, plain, name):
    before = encoded(demo[1], PROMPTS[0])
    found = encoded(changed(demo[1], name, 0.01), PROMPTS[0])
    assert same_bits(found, encoded(changed(plain, name, 0.01), PROMPTS[0])) and not same_bits(found, before)
    assert same_bits(encoded(demo[1], PROMPTS[0]), before)


def test_the_last_bit_of_a_weight_counts(plain):
    layer = layers_of(plain)[4]
    for name, weight in layer.named_parameters():
        with torch.inference_mode():
            last = weight.flatten()[-1:]
            kept = last.clone()
            last += 2.0**-10 if kept else 2.0**-24
            assert not is_identity(layer), name
            last.copy_(kept)
    assert is_identity(layer)


def test_what_is_put_on_a_part_counts(plain):
    """The host's ways to change a weight or a module without touching the weight, and PyTorch's hooks."""
    layer = layers_of(plain)[4]
    part = layer.mlp.fc2
    part.weight_function = [lambda weight: weight + 1]
    assert not is_identity(layer)
    part.weight_function = []
    part.forward = lambda x: x + 1
    assert not is_identity(layer)
    del part.forward
    hook = part.register_forward_hook(lambda module, given, out: out + 1)
    assert not is_identity(layer)
    hook.remove()
    assert is_identity(layer)


def test_layers_that_do_something_compute():
    import comfy.ops
    from comfy.clip_model import CLIPEncoder

    encoder = CLIPEncoder(2, 64, 1, 256, "gelu", torch.float32, "cpu", comfy.ops.manual_cast)
    for number, weight in enumerate(encoder.parameters()):
        torch.nn.init.constant_(weight, number / 1000)
    x = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = encoder(x.clone())[0]
        assert skip_identity_layers(SimpleNamespace(cond_stage_model=encoder)) == []
        for _ in range(2):
            assert same_bits([encoder(x.clone())[0]], [expected]) and not torch.equal(expected, x)
