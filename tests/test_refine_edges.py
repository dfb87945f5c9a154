"""Unusual models and lists: what CFR Refine and Concepts refuse, upcast, record and keep."""

import pytest
import torch

from tests.test_refine_node import airplane, concepts, effective, refine, refined

pytestmark = pytest.mark.host

# Fixtures of the other file, used here by name.
__all__ = ["airplane", "refined"]


def test_models_that_cannot_be_refined(comfy_host, demo, airplane):
    """A model without cross-attention, and one that reads embeddings of another width (SD2.x's)."""
    import comfy.ops
    import comfy.sd
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    _, clip, _ = demo
    with pytest.raises(ValueError, match="no diffusion model"):
        refine(comfy_host, clip.patcher, clip, airplane, mu="10")
    unet = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_res_blocks=[1],
        channel_mult=[1],
        transformer_depth=[1],
        transformer_depth_output=[1, 1],
        transformer_depth_middle=1,
        context_dim=1024,
        num_heads=-1,
        num_head_channels=64,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        legacy=False,
        dtype=torch.float32,
        operations=comfy.ops.manual_cast,
    )
    with torch.inference_mode():
        state = {f"model.diffusion_model.{k}": torch.zeros_like(v) for k, v in unet.state_dict().items()}
        other = comfy.sd.load_diffusion_model_state_dict(state)
    with pytest.raises(ValueError, match="768 wide and the model reads 1024"):
        refine(comfy_host, other, clip, airplane, mu="10")


def test_fp8_is_upcast_and_saved_in_full(comfy_host, demo, airplane, refined):
    """The refinement of an fp8 model is that of its weights, and a file in another format keeps all of it."""
    import comfy.sd
    from safetensors.torch import load_file

    _, clip, vae = demo
    with torch.inference_mode():
        model = comfy.sd.load_checkpoint_guess_config(
            str(comfy_host.demo_checkpoint), output_clip=False, model_options={"dtype": torch.float8_e4m3fn}
        )[0]
    key = next(iter(refined[0].patches))
    assert model.get_key_patches("diffusion_model.")[key][0][0].dtype == torch.float8_e4m3fn
    node = refine(comfy_host, model, clip, airplane, mu="10")
    said = node.ui.as_dict()["text"][0]
    assert "held in float32" in said and "keeps its precision" in said
    weight, wanted = effective(model, key), effective(node[0], key)
    expected = weight + weight @ node[1].transform_delta.float()
    torch.testing.assert_close(wanted, expected, rtol=1e-5, atol=1e-6)
    # The loaded model holds the change, and the model it was made from is as it was, before and after.
    from comfy import model_management

    hashes = comfy_host.module("nodes.host.model.unet").weights_sha256
    own, named = hashes(model), comfy_host.module("nodes.host.kept.content").model_sha256(model)
    for _ in range(2):
        model_management.load_models_gpu([node[0]], force_full_load=True)
        torch.testing.assert_close(dict(node[0].model.named_parameters())[key], wanted, rtol=1e-5, atol=1e-6)
        assert hashes(model) == hashes(node[0]) == own
        model_management.load_models_gpu([model], force_full_load=True)
        held = dict(model.model.named_parameters())[key]
        assert held.dtype == torch.float8_e4m3fn and torch.equal(held.float(), weight)
    assert comfy_host.module("nodes.host.kept.content").model_sha256(model) == named
    assert "diffusion_model" in key and not model.object_patches
    # A second edit on top finds the same layers, and a copy to train on has layers of its own.
    again = refine(comfy_host, node[0], clip, concepts(comfy_host, "cat -> forest"), mu="10")[0]
    assert again.object_patches == node[0].object_patches
    model_management.load_models_gpu([again], force_full_load=True)
    torch.testing.assert_close(dict(again.model.named_parameters())[key], effective(again, key), rtol=1e-5, atol=1e-6)
    with comfy_host.module("nodes.host.model.forward").trainable_copy(again) as copy:
        torch.testing.assert_close(
            dict(copy.model.named_parameters())[key], effective(again, key), rtol=1e-5, atol=1e-6
        )
        assert not {id(layer) for layer in copy.object_patches.values()} & set(map(id, again.object_patches.values()))
    saved = comfy_host.run(
        "MACE_SaveErasedModel", model=node[0], clip=clip, vae=vae, filename_prefix="checkpoints/fp8", dtype="fp32"
    ).ui["checkpoints"][0]
    coarse = comfy_host.run(
        "MACE_SaveErasedModel", model=node[0], clip=clip, vae=vae, filename_prefix="checkpoints/fp8", dtype="as loaded"
    )
    assert "The file is in fp8" in coarse.ui["text"][0]
    part = coarse.ui["checkpoints"][0]
    mixed = load_file(comfy_host.base / "output" / part["subfolder"] / part["filename"])
    torch.testing.assert_close(mixed[f"model.{key}"].float(), expected, rtol=1e-3, atol=1e-4)
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in mixed.values()) > 100
    file = load_file(comfy_host.base / "output" / saved["subfolder"] / saved["filename"])
    torch.testing.assert_close(file[f"model.{key}"], expected, rtol=1e-5, atol=1e-6)


def test_refinements_in_a_row_are_both_recorded(comfy_host, demo, airplane, refined):
    _, clip, _ = demo
    unet = comfy_host.module("nodes.host.model.unet")
    again = refine(comfy_host, refined[0], clip, concepts(comfy_host, "cat -> forest"), mu="10")[0]
    assert [stage["concepts"][0]["target"] for stage in again.get_attachment(unet.ATTACHMENT)] == ["airplane", "cat"]
    assert len(refined[0].get_attachment(unet.ATTACHMENT)) == 1


def test_own_prompt_file(comfy_host, demo):
    folder = comfy_host.base / "input"
    (folder / "prompts.txt").write_text("\ufeff# mine\n{} waiting at a bus stop\n", encoding="utf-8")
    (folder / "bad.txt").write_text("no place here\n", encoding="utf-8")
    node = dict(concepts="dog -> sky", type="object", preset="none")
    (plain,) = comfy_host.run("MACE_Concepts", **node, prompt_file="none")[0]
    (own,) = comfy_host.run("MACE_Concepts", **node, prompt_file="prompts.txt")[0]
    assert own.prompts == (*plain.prompts, "{} waiting at a bus stop")
    with pytest.raises(ValueError, match="bad.txt: line 1"):
        comfy_host.run("MACE_Concepts", **node, prompt_file="bad.txt")


def test_moments_are_kept_within_bounds(comfy_host, demo, airplane, refined):
    store = comfy_host.module("nodes.host.kept.store")
    (moments,) = refined[1].moments
    kept = store.MomentStore(limit=2 * moments.bytes)
    model, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    kept.put(other, "x", moments)
    for key in ("a", "b", "c"):
        kept.put(model, key, moments)
        kept.get(model, "a")
    assert kept.get(other, "x") is None and kept.bytes == 2 * moments.bytes
    assert kept.get(model, "a") is moments and kept.get(model, "b") is None and kept.get(model, "c") is moments
    del model
    assert kept.bytes == 0


def test_fp8_keeps_the_changes_of_baselines_in_convolutions_too(comfy_host, demo):
    """Linear maps and convolutions are held in a wider format; what is small stays, and the note says how many."""
    import comfy.sd
    from comfy import model_management

    trainee, fp8, save = map(
        comfy_host.module, ("nodes.baselines.trainee", "nodes.host.model.fp8", "nodes.files.save_model")
    )
    with torch.inference_mode():
        model = comfy.sd.load_checkpoint_guess_config(
            str(comfy_host.demo_checkpoint), output_clip=False, model_options={"dtype": torch.float8_e4m3fn}
        )[0]
        keys = [
            f"diffusion_model.{name}"
            for name in ("input_blocks.1.0.in_layers.2.weight", "input_blocks.1.0.in_layers.2.bias", "out.0.weight")
        ]
        own = {key: model.get_key_patches("diffusion_model.")[key][0][0].float() for key in keys}
        draw = torch.Generator().manual_seed(0)
        changes = {key: 1e-3 * torch.randn(value.shape, generator=draw) for key, value in own.items()}
        done = trainee.with_changes(model, changes)
        wide = save.upcast_fp8(done)
        picture = comfy_host.sample(done, demo[1], "a photo of the dog", steps=2)
        model_management.load_models_gpu([done], force_full_load=True)
        held = dict(done.model.named_parameters())
    # The file in another format holds all of it, in what is no matrix and is small too.
    for key in keys:
        torch.testing.assert_close(wide[f"model.{key}"] - own[key], changes[key], rtol=1e-3, atol=1e-6)
    for key in keys[:2]:
        torch.testing.assert_close(held[key].float() - own[key], changes[key], rtol=1e-3, atol=1e-6)
    assert held[keys[2]].dtype == torch.float8_e4m3fn and torch.isfinite(picture).all()
    assert "1 small ones stay in fp8" in fp8.fp8_note(done, keys)
