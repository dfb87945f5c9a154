"""The loss through the real host's forward on the demo model: per-sample LoRAs, gradients, checkpointing."""

from contextlib import nullcontext

import pytest
import torch

from mace.pipeline.attention_loss import Batch, losses
from tests.kept import kept_bytes
from tests.test_refine_node import concepts, refine

pytestmark = pytest.mark.host

FORM = "squared norm (paper)"
PROMPTS = ["a photo of the dog", "a drawing of a cat", "an image of the ship"]


@pytest.fixture(scope="module")
def forward(comfy_host):
    return comfy_host.module("nodes.host.model.forward")


@pytest.fixture(scope="module")
def keys(comfy_host, demo):
    return comfy_host.module("nodes.host.model.unet").cross_attention_keys(demo[0])


def batch_of(forward, host, clip, chosen=(0, 1, 2)):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 4, 8, 8, generator=generator)
    masks = (torch.rand(3, 64, 64, generator=generator) > 0.5).float()
    tokens = torch.zeros(3, 77)
    tokens[:, 5] = 1
    with torch.inference_mode():
        contexts = torch.cat([host.encode(clip, prompt)[0][0] for prompt in PROMPTS])
    pick = list(chosen)
    sigmas = torch.tensor([1.0, 3.0, 0.5])
    return Batch(latents[pick], sigmas[pick], contexts.clone()[pick], tokens[pick], masks[pick])


def losses_of(forward, model, batch, stacked):
    """Eq. 3's losses of a batch through a MODEL. forward: the host's module."""
    return losses(forward.ModelDenoiser(model), batch, stacked, FORM)


def stack_of(model, keys, chosen=(0, 1, 2), rank=2, scale=3.0):
    generator = torch.Generator().manual_seed(1)
    stacked = {}
    for key in keys:
        d_out, d = model.model.state_dict()[key].shape
        up = scale * torch.randn(3, d_out, rank, generator=generator) / rank
        down = torch.randn(3, rank, d, generator=generator) / d**0.5
        stacked[key] = (up[list(chosen)], down[list(chosen)])
    return stacked


def gradient(parameter):
    """The gradient, 0 where the loss does not depend on the parameter."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def test_the_copy_is_whole_with_novram(forward, comfy_host, demo, monkeypatch):
    """All patches in its weights, which lie on the device, where the host has been told to leave them elsewhere."""
    from comfy import model_management

    model = refine(comfy_host, *demo[:2], concepts(comfy_host, "dog -> sky"), mu="10")[0]
    key = next(iter(model.patches))
    with forward.trainable_copy(model) as copy:
        expected = copy.model.state_dict()[key].clone()
    assert not torch.equal(expected, model.model.state_dict()[key])
    state = model_management.VRAMState.NO_VRAM
    monkeypatch.setattr(model_management, "vram_state", state)
    # On a CPU the host passes over it.
    monkeypatch.setattr(model_management, "is_device_cpu", lambda device: False)
    with forward.trainable_copy(model) as copy:
        assert model_management.vram_state == state
        assert not any(getattr(layer, "weight_function", None) for layer in copy.model.modules())
        assert not any(hasattr(layer, "prev_comfy_cast_weights") for layer in copy.model.modules())
        assert torch.equal(copy.model.state_dict()[key], expected)


def test_places_of_the_layers(forward, keys):
    assert {forward.place(key) for key in keys} == {
        ("input", 1, 0),
        ("middle", 0, 0),
        ("output", 0, 0),
        ("output", 1, 0),
    }
    sdxl = "diffusion_model.output_blocks.2.1.transformer_blocks.9.attn2.to_k.weight"
    assert forward.place(sdxl) == ("output", 2, 9)
    with pytest.raises(ValueError, match="not in a block"):
        forward.place("diffusion_model.double_blocks.0.attn.to_k.weight")


def test_each_sample_has_its_own_lora(comfy_host, demo, forward, keys):
    """The batch with three LoRAs against the host's own forward with each LoRA merged into the weights as a patch."""
    model, clip, _ = demo
    stacked = stack_of(model, keys)
    with forward.trainable_copy(model) as copy:
        together = losses_of(forward, copy, batch_of(forward, comfy_host, clip), stacked).detach()
    nothing = {key: (torch.zeros(1, up.shape[1], 1), torch.zeros(1, 1, 768)) for key, (up, _) in stacked.items()}
    for c in (0, 2):
        merged = model.clone()
        merged.add_patches({key: ("diff", (up[c] @ down[c],)) for key, (up, down) in stacked.items()})
        with forward.trainable_copy(merged) as copy:
            alone = losses_of(forward, copy, batch_of(forward, comfy_host, clip, [c]), nothing).detach()
        torch.testing.assert_close(together[c : c + 1], alone, rtol=2e-4, atol=0)
    with forward.trainable_copy(model) as copy:
        plain = losses_of(forward, copy, batch_of(forward, comfy_host, clip), {}).detach()
    assert not torch.allclose(plain, together, rtol=1e-2)


def test_gradient_is_that_of_finite_differences(comfy_host, demo, forward, keys):
    """Along a random direction; the model runs in float32, which sets the step and the tolerance."""
    model, clip, _ = demo
    stacked = {k: tuple(p.double().requires_grad_(True) for p in v) for k, v in stack_of(model, keys).items()}
    with forward.trainable_copy(model) as copy:
        batch = batch_of(forward, comfy_host, clip)

        def total(loras):
            return losses_of(forward, copy, batch, loras).double().sum()

        total(stacked).backward()
        generator = torch.Generator().manual_seed(2)
        direction = {
            k: tuple(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 5e-4 for p in v)
            for k, v in stacked.items()
        }
        slope = sum(
            float((gradient(p) * d).sum())
            for key, pair in stacked.items()
            for p, d in zip(pair, direction[key], strict=True)
        )
        values = []
        for sign in (-1, 1):
            moved = {
                k: tuple(p.detach() + sign * d for p, d in zip(v, direction[k], strict=True))
                for k, v in stacked.items()
            }
            values.append(float(total(moved)))
    assert slope == pytest.approx((values[1] - values[0]) / 2, rel=2e-2)


def test_one_concepts_loss_does_not_see_the_others(comfy_host, demo, forward, keys):
    model, clip, _ = demo
    stacked = {k: tuple(p.requires_grad_(True) for p in v) for k, v in stack_of(model, keys).items()}
    with forward.trainable_copy(model) as copy:
        losses_of(forward, copy, batch_of(forward, comfy_host, clip), stacked)[1].backward()
    for up, down in stacked.values():
        for p in (up, down):
            assert torch.equal(gradient(p)[0], torch.zeros_like(p[0]))
            assert torch.equal(gradient(p)[2], torch.zeros_like(p[2]))
    moved = {key for key, (up, _) in stacked.items() if float(gradient(up)[1].abs().max()) > 0}
    # No attention comes after the last layer's values: Eq. 3 cannot train them.
    assert set(stacked) - moved == {"diffusion_model.output_blocks.1.1.transformer_blocks.0.attn2.to_v.weight"}


def test_saving_memory_changes_nothing(comfy_host, demo, forward, keys):
    recompute = comfy_host.module("nodes.host.model.recompute")
    model, clip, _ = demo
    found, kept = [], []
    with forward.trainable_copy(model) as copy:
        batch = batch_of(forward, comfy_host, clip)
        for mode in (nullcontext(), recompute.recomputed_blocks(copy.model)):
            stacked = {k: tuple(p.requires_grad_(True) for p in v) for k, v in stack_of(model, keys).items()}
            out = {}

            def step(stacked=stacked, out=out):
                out["loss"] = losses_of(forward, copy, batch, stacked)
                out["loss"].sum().backward()

            with mode:
                kept.append(kept_bytes(step)[0])
            found.append((out["loss"].detach(), [gradient(p) for pair in stacked.values() for p in pair]))
        assert not any("forward" in vars(module) for module in copy.model.modules())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-8)
    assert kept[1] < kept[0] / 3


def test_another_packs_patch_is_chained(comfy_host, demo, forward, keys):
    model, clip, _ = demo
    seen = []

    def theirs(q, k, v, options):
        from comfy.ldm.modules.attention import attention_pytorch

        seen.append(options["block"])
        return attention_pytorch(q, k, v, options["n_heads"])

    patched = model.clone()
    patched.set_model_attn2_replace(theirs, "middle", 0)
    with forward.trainable_copy(model) as copy:
        plain = losses_of(forward, copy, batch_of(forward, comfy_host, clip), stack_of(model, keys)).detach()
    with forward.trainable_copy(patched) as copy:
        chained = losses_of(forward, copy, batch_of(forward, comfy_host, clip), stack_of(model, keys)).detach()
    # The samples are at three sigmas, and other packs look at the first one's.
    assert seen == [("middle", 0)] * 3
    torch.testing.assert_close(chained, plain, rtol=1e-4, atol=0)


def test_the_refined_model_is_what_is_trained_on_and_the_host_stays_as_it_was(comfy_host, demo, forward, keys):
    from comfy import model_management

    model, clip, _ = demo
    refined = refine(comfy_host, model, clip, concepts(comfy_host, "dog -> sky"))[0]
    before = comfy_host.sample(refined, clip, "a photo of the dog", steps=2)
    with pytest.raises(KeyboardInterrupt), forward.trainable_copy(refined) as copy:
        inside = losses_of(forward, copy, batch_of(forward, comfy_host, clip), {}).detach()
        raise KeyboardInterrupt
    with forward.trainable_copy(model) as copy:
        base = losses_of(forward, copy, batch_of(forward, comfy_host, clip), {}).detach()
    assert not torch.allclose(inside, base, rtol=1e-3)
    assert not model_management.in_training
    assert torch.equal(comfy_host.sample(refined, clip, "a photo of the dog", steps=2), before)
