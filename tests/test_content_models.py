"""Keys by content of MODELs, with what other packs hang on them."""

import copy
import types

import pytest
import torch

from tests.test_content import HOLDERS, Scaled, pack, scaled, set_on

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def content(comfy_host):
    return comfy_host.module("nodes.host.kept.content")


def test_a_models_key(comfy_host, demo, content):
    """Patches, attention patches and wrappers count by their content; the loaded clone does not matter."""
    model = demo[0]
    key = "diffusion_model.out.2.bias"

    def changed(value):
        clone = model.clone()
        clone.add_patches({key: ("diff", (torch.full((4,), value),))})
        return clone

    base = content.model_sha256(model)
    assert content.model_sha256(model.clone()) == base
    assert content.model_sha256(changed(0.1)) == content.model_sha256(changed(0.1)) != base
    assert content.model_sha256(changed(0.1)) != content.model_sha256(changed(0.2))
    weaker = model.clone()
    weaker.add_patches({key: ("diff", (torch.full((4,), 0.1),))}, 0.5)
    assert content.model_sha256(weaker) != content.model_sha256(changed(0.1))

    def wrapped(put):
        clone = model.clone()
        put(clone)
        return content.model_sha256(clone)

    puts = {
        "attention": lambda value: lambda m: m.set_model_attn2_patch(scaled(value)),
        "function": lambda value: lambda m: m.set_model_unet_function_wrapper(Scaled(value)),
        "wrapper": lambda value: lambda m: m.add_wrapper("apply_model", scaled(value)),
        "callback": lambda value: lambda m: m.add_callback("on_pre_run", scaled(value)),
        "weight": lambda value: lambda m: m.add_weight_wrapper(key, scaled(value)),
    }
    puts |= {
        "global": lambda value: lambda m: m.set_model_unet_function_wrapper(HOLDERS["global"](value)),
        "class": lambda value: lambda m: m.set_model_sampler_cfg_function(HOLDERS["class"](value).__class__),
        "injection": lambda value: lambda m: m.set_injections("a", [Scaled(value)]),
        "part": lambda value: lambda m: m.add_object_patch("diffusion_model.out.1", set_on(torch.nn.SiLU(), value)),
        "itself": lambda value: lambda m: m.set_model_unet_function_wrapper(lambda *args: (m, value)),
        "network": lambda value: lambda m: m.set_model_unet_function_wrapper(lambda *args: (m.model, value)),
        "sampling": lambda value: lambda m: m.add_object_patch("model_sampling", sampling_of(m, value)),
    }
    seen = {base}
    for put in puts.values():
        assert wrapped(put(1.0)) == wrapped(put(1.0))
        seen |= {wrapped(put(1.0)), wrapped(put(0.2))}
    assert len(seen) == 1 + 2 * len(puts)
    comfy_host.sample(changed(0.1), demo[1], "a dog", steps=1)
    assert content.model_sha256(model) == base
    hook = model.model.diffusion_model.register_forward_hook(scaled(None))
    assert content.model_sha256(model) != base
    hook.remove()
    out = model.model.diffusion_model.out
    out.forward = lambda x: x
    assert content.model_sha256(model) != base
    del out.forward
    assert content.model_sha256(model) == base


def test_a_text_encoders_key(demo, content):
    """Weights, patches and functions that others put over its own; whether it is loaded, patched, does not matter."""
    from comfy import model_management

    clip = demo[1]
    key = next(name for name in clip.patcher.model_state_dict() if name.endswith("layers.0.mlp.fc1.bias"))

    def changed(value):
        clone = clip.clone()
        clone.add_patches({key: ("diff", (torch.full_like(clip.patcher.model_state_dict()[key], value),))})
        return clone

    layer = clip.cond_stage_model.get_submodule(key.removesuffix(".mlp.fc1.bias"))
    own = vars(layer).pop("forward", None)
    keys = [content.text_sha256(one) for one in (clip, changed(0.1), changed(0.2))]
    layer.forward = types.MethodType(lambda layer, *given, **more: type(layer).forward(layer, *given, **more), layer)
    keys.append(content.text_sha256(clip))
    assert len(set(keys)) == len(keys)
    model_management.load_models_gpu([changed(0.1).patcher], force_full_load=True)
    assert content.text_sha256(clip) == keys[-1]
    del layer.forward
    assert content.text_sha256(clip.clone()) == keys[0] and content.text_sha256(changed(0.1)) == keys[1]
    model_management.unload_all_models()
    if own is not None:
        layer.forward = own


def other_dtype(model):
    from comfy_extras.nodes_model_advanced import ModelComputeDtype

    return ModelComputeDtype().patch(model, "bf16")[0]


def other_function(model):
    network, changed = model.model.diffusion_model, model.clone()
    function = types.MethodType(lambda network, *given, **more: type(network).forward(network, *given, **more), network)
    changed.add_object_patch("diffusion_model.forward", function)
    return changed


def other_part(model):
    """With a tensor of its own, and a patch on the weight in it."""
    name, changed = "diffusion_model.input_blocks.0.0", model.clone()
    part = copy.deepcopy(model.get_model_object(name))
    part.extra = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    changed.add_object_patch(name, part)
    changed.add_patches({f"{name}.weight": ("diff", (torch.full_like(part.weight, 0.1),))})
    return changed


def new_attribute(model):
    changed = model.clone()
    changed.add_object_patch("diffusion_model.put_there", 1.0)
    return changed


@pytest.mark.parametrize("make", [other_dtype, other_function, other_part, new_attribute])
def test_what_is_loaded_puts_into_the_network_is_its_own(comfy_host, demo, content, make):
    """Whether it is loaded, was loaded or is not, and also where it was before any key was asked for."""
    from comfy import model_management, utils

    keys = [content.model_sha256(one) for one in (demo[0], make(demo[0]))]
    plain = comfy_host.load_checkpoint(comfy_host.demo_checkpoint)[0]
    changed = make(plain)
    model_management.load_models_gpu([changed], force_full_load=True)
    standing = {name: utils.get_attr(plain.model, name) for name in changed.object_patches}
    backup = dict(plain.backup)
    assert [content.model_sha256(one) for one in (plain, changed)] == keys and len(set(keys)) == 2
    # All is back in its place.
    assert standing == changed.object_patches and plain.backup == backup
    assert set(plain.object_patches_backup) == set(standing)
    model_management.load_models_gpu([plain], force_full_load=True)
    assert [content.model_sha256(one) for one in (plain, changed)] == keys
    assert content.content_sha256(plain.model.diffusion_model) == content.content_sha256(demo[0].model.diffusion_model)


@pytest.mark.parametrize("make", [other_part, new_attribute])
def test_a_network_gets_back_what_stood_there_also_where_taking_parts_off_fails(comfy_host, content, monkeypatch, make):
    """As for want of memory, at the weight that is patched in a part or at the part itself."""
    from comfy import model_management, utils

    model = comfy_host.load_checkpoint(comfy_host.demo_checkpoint)[0]
    changed = make(model)
    key = content.model_sha256(changed)
    model_management.load_models_gpu([changed], force_full_load=True)
    before = [dict(model.backup), dict(model.object_patches_backup)]
    real, failing = utils.set_attr, [MemoryError()]

    def set_attr(*given):
        if failing:
            raise failing.pop()
        return real(*given)

    monkeypatch.setattr(utils, "set_attr", set_attr)
    with pytest.raises(MemoryError):
        content.model_sha256(changed)
    assert [model.backup, model.object_patches_backup] == before
    assert all(utils.get_attr(model.model, name) is part for name, part in changed.object_patches.items())
    assert content.model_sha256(changed) == key


def sampling_of(model, factor):
    """Another pack's sampling: a class of its own with a method of its own."""
    theirs = type(model.model.model_sampling)

    class Own(theirs):
        def calculate_denoised(self, sigma, output, given):
            return super().calculate_denoised(sigma, output, given) * factor

    return Own(model.model.model_config)


def test_pictures_are_of_the_function_that_is_there(comfy_host, demo):
    """A function around the model that leaves it alone, then one that does not."""
    dog = comfy_host.run("MACE_Concepts", concepts="dog", type="object", preset="none", prompt_file="none")[0]
    shown = []
    for factor in (1.0, 0.2, 1.0):
        model = demo[0].clone()
        model.set_model_unet_function_wrapper(
            pack(
                f"F = {factor}\ndef f(apply, given): return F * apply(given['input'], given['timestep'], **given['c'])"
            ).f
        )
        settings = dict(
            count=1, width=64, height=64, seed=5, steps=2, cfg=1.0, sampler_name="euler", scheduler="normal"
        )
        given = {"model": model, "clip": demo[1], "vae": demo[2], "concepts": dog, "prompt": "auto", "negative": ""}
        shown.append(comfy_host.run("MACE_ConceptImages", **given, **settings)[1].clone())
    assert not torch.equal(shown[0], shown[1]) and torch.equal(shown[0], shown[2])


@pytest.mark.parametrize("pooled", [None, torch.full((3, 3), 2.0, dtype=torch.float64)])
def test_loras_know_their_refinement_by_its_content(comfy_host, content, pooled):
    """Sets that were saved hold this hash, so that what it is of stays as it is."""
    digest = comfy_host.module("mace.formats.lora_set").refinement_digest
    delta = torch.arange(16, dtype=torch.float64).reshape(4, 4)
    refinement = types.SimpleNamespace(transform_delta=delta, strength=0.5, projections="keys", pooled_delta=pooled)
    assert digest(refinement) == content.content_sha256(delta, 0.5, "keys", *([] if pooled is None else [pooled]))
    assert digest(None) == ""


def test_a_text_encoder_loaded_again_is_the_same(comfy_host, content):
    """The file lacks what projects its pooled text, which no UNet reads: there stands what the memory held before."""
    first, again = (comfy_host.load_checkpoint(comfy_host.demo_checkpoint)[1] for _ in range(2))
    for value, clip in enumerate((first, again)):
        clip.cond_stage_model.clip_l.transformer.text_projection.weight.data.fill_(value)
    assert content.text_sha256(first) == content.text_sha256(again)
    assert content._is_read("clip_g.transformer.text_projection.weight")
