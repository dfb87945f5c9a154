"""Quantised models through the nodes: they draw and tell where a thing is, and what edits them says what to load."""

from functools import partial

import pytest
import torch

from tests.evaluation import SETTINGS, judges
from tests.stages import IMAGES, TRAIN
from tests.test_refine_node import concepts, refine

pytestmark = pytest.mark.host

# Fixtures of the other file, used here by name.
__all__ = ["judges"]


def scaled(state):
    """The host's own format: every attention matrix in fp8, with a scale and a word on its format beside it."""
    found = {}
    for key, tensor in state.items():
        found[key] = tensor
        if ".attn" in key and key.endswith(".weight"):
            layer, scale = key.removesuffix(".weight"), tensor.float().abs().max() / 448
            found[key] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            found[f"{layer}.weight_scale"] = scale
            found[f"{layer}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    return found, {}


def packed(state):
    """As packs of other formats have it: bytes of another shape, and entries for the host's counting of memory."""
    import comfy.ops

    class Packed(torch.Tensor):
        tensor_type = 8

        def detach(self):
            return self

    class Operations(comfy.ops.manual_cast):
        class Linear(comfy.ops.manual_cast.Linear):
            def _load_from_state_dict(self, *args):
                super()._load_from_state_dict(*args)
                held = self.weight.detach().half().contiguous().view(torch.uint8).as_subclass(Packed)
                self.weight = torch.nn.Parameter(held, requires_grad=False)

            def _save_to_state_dict(self, destination, prefix, keep_vars):
                super()._save_to_state_dict(destination, prefix, keep_vars)
                destination[f"{prefix}weight"] = torch.zeros_like(self.weight, device="meta")
                destination[f"{prefix}temp.weight"] = torch.zeros(1, device="meta")

            def forward_comfy_cast_weights(self, given):
                weight = self.weight.as_subclass(torch.Tensor).to(given.device).view(torch.float16)
                bias = None if self.bias is None else self.bias.to(given)
                return torch.nn.functional.linear(given, weight.to(given), bias)

    return state, {"custom_operations": Operations}


@pytest.fixture(scope="module", params=[scaled, packed])
def quantised(comfy_host, demo, request):
    import comfy.sd
    from safetensors.torch import load_file

    prefix = "model.diffusion_model."
    state = {
        key.removeprefix(prefix): tensor
        for key, tensor in load_file(comfy_host.demo_checkpoint).items()
        if key.startswith(prefix)
    }
    with torch.inference_mode():
        state, options = request.param(state)
        return (comfy.sd.load_diffusion_model_state_dict(state, options), *demo[1:])


@pytest.fixture(scope="module")
def dog(comfy_host):
    return concepts(comfy_host, "dog -> sky")


@pytest.fixture(scope="module")
def shown(comfy_host, quantised, dog):
    model, clip, vae = quantised
    return comfy_host.run("MACE_ConceptImages", model=model, clip=clip, vae=vae, concepts=dog, **IMAGES)[0]


def test_they_draw_and_say_where_a_thing_is(comfy_host, quantised, dog, shown, judges):
    model, clip, vae = quantised
    assert shown[0].pictures.float().std() > 10
    names = comfy_host.module("nodes.host.kept.content")
    assert names.model_sha256(model) == names.model_sha256(model.clone())
    settings = {**SETTINGS, "seeds": 1, "keep": "", "synonyms": "", "steps": 2}
    report = comfy_host.run(
        "MACE_EvaluateErasure", model=model, erased_model=model, clip=clip, vae=vae, concepts=dog, **settings
    )[0]
    assert "the two models are the same" in report
    masks = comfy_host.run("MACE_MaskConcept", model=model, clip=clip, images=shown, backend="attention")
    assert 0 < float(masks[0][0].float().mean()) < 255


def test_what_edits_them_says_what_to_load(comfy_host, quantised, dog, shown):
    model, clip, _ = quantised
    says = "is quantised .*load the fp16, bf16 or fp32 model"
    with pytest.raises(ValueError, match=says):
        refine(comfy_host, model, clip, dog, mu="10")
    with pytest.raises(ValueError, match=says):
        comfy_host.run("MACE_TrainErasureLora", model=model, clip=clip, images=shown, **TRAIN)
    with pytest.raises(ValueError, match=says):
        comfy_host.module("nodes.baselines.trainee").train_baseline(
            model, comfy_host.module("mace.baselines.parts").cross_attention, None, None, [], None
        )


def test_they_are_saved_as_loaded_where_they_can_be(comfy_host, quantised):
    from comfy.sd import load_diffusion_model

    model = quantised[0]
    save = partial(comfy_host.run, "MACE_SaveErasedModel", model=model, filename_prefix="quantised")
    with pytest.raises(ValueError, match="quantised|in a format of another pack"):
        save(dtype="fp16")
    if any(tensor.is_meta for tensor in model.model.state_dict().values()):
        with pytest.raises(ValueError, match="in a format of another pack .*load the fp16, bf16 or fp32 model"):
            save(dtype="as loaded")
        return
    part = save(dtype="as loaded").ui["checkpoints"][0]
    with torch.inference_mode():
        again = load_diffusion_model(str(comfy_host.base / "output" / part["filename"]))
    key = comfy_host.module("nodes.host.model.unet").weights_sha256
    assert key(again) == key(model)
