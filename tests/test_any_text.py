"""What is kept of models that are no UNets, by the text encoder itself and not by the bits that it gives."""

import pytest
import torch

from tests.families import build
from tests.port_cases import EDITED
from tests.test_port_text import Few
from tests.text_encoders import build_clip

pytestmark = pytest.mark.host


@pytest.fixture
def key_of(comfy_host):
    module = comfy_host.module

    def found(clip):
        with torch.inference_mode():
            content = module("nodes.host.any_text").AnyText(clip).content("a dog")
        return module("nodes.host.kept.content").content_sha256(content)

    return found


@pytest.fixture(scope="module")
def clip(comfy_host):
    return build_clip("flux")


def other(clip, change):
    made = clip.clone()
    change(made)
    return made


def lora(clip, name, value):
    weight = clip.patcher.model_state_dict()[name]
    clip.add_patches({name: ("diff", (torch.full_like(weight, value),))})


def test_the_same_encoder_has_one_key(key_of, clip, monkeypatch):
    """Loaded again, and where a device computes other bits; nothing is encoded for it."""
    monkeypatch.setattr(type(clip), "encode_from_tokens", None)
    again = build_clip("flux")
    assert again.cond_stage_model is not clip.cond_stage_model
    # No file of it has the projection, which it does not read.
    again.cond_stage_model.clip_l.transformer.text_projection.weight.data.fill_(7)
    assert key_of(clip) == key_of(clip.clone()) == key_of(again)
    # What the last prompt was encoded with, by any CLIP of this module.
    clip.cond_stage_model.set_clip_options({"layer": -2, "execution_device": torch.device("meta")})
    assert key_of(clip) == key_of(again)
    clip.cond_stage_model.reset_clip_options()


def test_another_encoder_or_setting_has_another_key(key_of, clip, monkeypatch):
    """Also where few prompts are read otherwise: hooks go with what is encoded, and change the model."""
    import comfy.hooks

    key = "t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"
    made = [clip, *(build_clip(name) for name in ("chroma", "sd3_clips"))]
    made += [other(clip, lambda own, by=by: lora(own, key, by)) for by in (1e-6, 2e-6)]
    made.append(other(clip, lambda own: own.clip_layer(-2)))
    made.append(other(clip, lambda own: own.set_tokenizer_option("t5xxl_min_length", 8)))
    made.append(other(clip, lambda own: setattr(own, "apply_hooks_to_conds", comfy.hooks.HookGroup())))
    keys = [key_of(own) for own in made]
    for name, value in (
        ("zero_out_masked", True),
        ("enable_attention_masks", True),
        ("layer_norm_hidden_state", False),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(clip.cond_stage_model.t5xxl, name, value)
            keys.append(key_of(clip))
    assert len(set(keys)) == len(keys) and key_of(clip) == keys[0]


def test_padding_with_the_number_of_its_word(key_of):
    clip = build_clip("longcat")
    assert {len(token) for token in clip.tokenize("a dog")["qwen25_7b"][0]} == {2, 3}
    assert len(key_of(clip)) == 64


def test_another_t5_has_another_key(key_of, clip):
    """One number in it is another."""
    again = build_clip("flux")
    again.cond_stage_model.t5xxl.transformer.shared.weight.data[1000, 0] += 1
    assert key_of(again) != key_of(clip)


def test_what_projects_the_pooled_text_counts_where_it_is_read(key_of):
    hidream, again = build_clip("hidream"), build_clip("hidream")
    assert key_of(hidream) == key_of(again)
    changed = build_clip("hidream")
    changed.cond_stage_model.clip_l.transformer.text_projection.weight.data.fill_(7)
    assert key_of(changed) != key_of(hidream)


class Prefixed:
    """Another pack's tokenizer, that puts words before a prompt."""

    def __init__(self, own):
        self.own = own

    def __getattr__(self, name):
        return getattr(self.own, name)

    def tokenize_with_weights(self, text, *args, **kwargs):
        return self.own.tokenize_with_weights(f"masterpiece, {text}", *args, **kwargs)


@pytest.mark.parametrize("loaded_again", [False, True])
def test_another_tokenizer_has_moments_of_its_own(comfy_host, monkeypatch, loaded_again):
    """Also one that was put beside the same encoder."""
    ports = comfy_host.module("nodes.host.port_text")
    concept = Few("dog", "cat", (("a photo of the {}", "dog"),))
    with torch.inference_mode():
        model, clip = build("anima", monkeypatch), build_clip("anima")
        text = ports.PortText(model, clip)
        text.moments(concept, print)
        other = build_clip("anima") if loaded_again else clip.clone()
        other.tokenizer = Prefixed(other.tokenizer)
        prefixed = ports.PortText(model, other)
        assert not prefixed.knows(concept) and not torch.equal(prefixed.fingerprint, text.fingerprint)


def test_moments_are_found_again_where_other_bits_are_read(comfy_host, monkeypatch):
    """With the CLIP loaded again and the MODEL refined; not with another encoder, setting or what stands in front."""
    ports = comfy_host.module("nodes.host.port_text")
    concept = Few("dog", "cat", (("a photo of the {}", "dog"),))
    (port,) = EDITED["anima"][0]
    with torch.inference_mode():
        model, clip = build("anima", monkeypatch), build_clip("anima")
        ports.PortText(model, clip).moments(concept, print)

        def known(model=model, clip=clip):
            return ports.PortText(model, clip).knows(concept)

        def changed(layer):
            made, key = model.clone(), f"diffusion_model.{layer}.weight"
            made.add_patches({key: ("diff", (torch.full_like(model.model.state_dict()[key], 0.01),))})
            return made

        layers = [
            name for name, part in model.model.diffusion_model.named_modules() if isinstance(part, torch.nn.Linear)
        ]
        front, behind = (
            next(name for name in layers if name.startswith(start)) for start in ("llm_adapter.blocks.0", "blocks.0")
        )
        assert known() and known(changed(behind)) and not known(changed(front))
        skipped, again, other = clip.clone(), build_clip("anima"), build_clip("anima")
        skipped.clip_layer(-2)
        weight = next(part for name, part in other.cond_stage_model.named_parameters() if "mlp.up_proj" in name)
        weight.data[0, 0] += 1
        assert not known(clip=skipped) and not known(clip=other)
        read = ports.PortText._at_ports

        def other_bits(self, conditioning):
            found = read(self, conditioning)
            found.rows.values.mul_(1 + 1e-6)
            return found

        monkeypatch.setattr(ports.PortText, "_at_ports", other_bits)
        ports._layouts.clear()
        assert known() and known(clip=again) and known(changed(port))
