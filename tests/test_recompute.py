"""Recomputing blocks (nodes.host.model.recompute): what it saves at full size, and that nothing else changes."""

from collections import Counter
from contextlib import nullcontext

import pytest
import torch

from devtools import random_models
from mace.pipeline.attention_loss import Batch
from tests.kept import kept_bytes
from tests.kinds import conditioning, latents, unet
from tests.test_forward import losses_of

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("one_thread")]

META = torch.device("meta")


@pytest.fixture(scope="module")
def modules(comfy_host):
    """forward, recompute and unet of the host's model, by name."""
    return {name: comfy_host.module(f"nodes.host.model.{name}") for name in ("forward", "recompute", "unet")}


def on_meta(kind):
    """A MODEL at its true size with shapes alone, in fp16 as on a GPU."""
    import comfy.model_detection
    from comfy.model_patcher import ModelPatcher

    class Boundless(ModelPatcher):
        def get_free_memory(self, device):
            return 1e12

    config = comfy.model_detection.model_config_from_unet_config(random_models.unet_config(kind, small=False))
    config.set_inference_dtype(torch.float16, None)
    network = config.get_model({}, "", device=META)
    network.model_sampling.to(META)
    network.current_patcher = Boundless(network, load_device=META, offload_device=META)
    return network.current_patcher


def stack_of(model, keys, count=1, rank=1, scale=0.0):
    """LoRAs of every projection, on the MODEL's device."""
    generator, state = torch.Generator().manual_seed(1), model.model.state_dict()
    stacked = {}
    for key in keys:
        d_out, d = state[key].shape
        up = scale * torch.randn(count, d_out, rank, generator=generator)
        down = torch.randn(count, rank, d, generator=generator) / d**0.5
        stacked[key] = tuple(p.to(model.load_device).requires_grad_(True) for p in (up, down))
    return stacked


def batch_of(forward, model, count, side):
    """A batch on the MODEL's device; pooled text is where the host wants it."""
    device = model.load_device
    contexts, pooled = conditioning(model, count)
    tokens = torch.zeros(count, 77, device=device)
    tokens[:, 3:5] = 1
    masks = torch.ones(count, side * 8, side * 8)
    masks[:, : side * 4] = 0
    sigmas = torch.linspace(1, 2, count, device=device)
    return Batch(latents(count, side).to(device), sigmas, contexts.to(device), tokens, masks, pooled)


@pytest.mark.parametrize(("kind", "side"), [("sd15", 64), ("sdxl", 128)])
def test_a_full_sized_step_keeps_a_quarter_at_most(comfy_host, modules, kind, side):
    """SD1.5 at 512 and SDXL at 1024 pixels, one concept, a LoRA on every projection."""
    forward, recompute = modules["forward"], modules["recompute"]
    model = on_meta(kind)
    stacked = stack_of(model, modules["unet"].cross_attention_keys(model))
    batch, found = batch_of(forward, model, 1, side), []

    def step():
        losses = losses_of(forward, model, batch, stacked)
        assert losses.shape == (1,) and losses.is_meta
        losses.sum().backward()

    for mode in (nullcontext, lambda: recompute.recomputed_blocks(model.model)):
        with mode():
            found += kept_bytes(step)
    plain, plain_fused, saved, saved_fused = found
    sizes = ", ".join(f"{size / 1e9:.2f}" for size in found)
    print(f"{kind}, GB kept plainly, with fused attention, recomputed, both: {sizes}")
    assert saved <= plain / 4 and saved_fused <= plain_fused / 4
    assert all(up.grad is not None for key, (up, _) in stacked.items() if ".to_k." in key)


@pytest.fixture(scope="module")
def sdxl(comfy_host):
    """Several transformer blocks a level, so that their numbers matter."""
    return unet("sdxl")


def one_step(modules, model, saving, patch=None):
    """(losses, gradients by projection) of two concepts with LoRAs of their own."""
    forward, recompute = modules["forward"], modules["recompute"]
    chosen = model.clone()
    if patch is not None:
        patch(chosen)
    with forward.trainable_copy(chosen) as copy:
        stacked = stack_of(copy, modules["unet"].cross_attention_keys(copy), 2, 2, scale=1.0)
        batch = batch_of(forward, copy, 2, 8)
        with recompute.recomputed_blocks(copy.model) if saving else nullcontext():
            losses = losses_of(forward, copy, batch, stacked)
            losses.sum().backward()
        assert not any("forward" in vars(module) for module in copy.model.modules())
    return losses.detach(), {key: [p.grad for p in pair] for key, pair in stacked.items()}


def test_gradients_are_the_same_where_blocks_are_many(modules, sdxl):
    depths = Counter(modules["forward"].place(key)[:2] for key in modules["unet"].cross_attention_keys(sdxl))
    assert max(depths.values()) >= 2 * 5
    (plain, gradients), (saved, again) = (one_step(modules, sdxl, saving) for saving in (False, True))
    torch.testing.assert_close(saved, plain, rtol=1e-6, atol=0)
    moved = 0
    for key, pair in gradients.items():
        for a, b in zip(pair, again[key], strict=True):
            assert (a is None) == (b is None), key
            if a is not None:
                moved += bool(a.abs().max() > 0)
                torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5 * float(a.abs().max()), msg=key)
    # No attention comes after the last layer's values.
    assert moved == 2 * (len(gradients) - 1)


def test_other_packs_patches_see_the_same_places_again(modules, sdxl):
    """Each place once in the forward pass and once in the backward pass, which goes from the last block to the first.

    The patches change what they are given by their place, so a wrong place is a wrong gradient too.
    """
    seen = []

    def place(options):
        return options["block"], options["block_index"], options["transformer_index"], options["activations_shape"][2:]

    def noted(name):
        def patch(q, k, v, options):
            seen.append((name, place(options)))
            return q * (1 + 0.1 * options["block_index"]), k, v

        return patch

    def put(model):
        model.set_model_attn1_patch(noted("attn1"))
        model.set_model_attn2_patch(noted("attn2"))

    plain, gradients = one_step(modules, sdxl, False, put)
    forward = seen.copy()
    seen.clear()
    saved, again = one_step(modules, sdxl, True, put)
    # Two samples at two sigmas are two calls where another pack's patches are.
    half = len(forward) // 2
    assert forward[:half] == forward[half:] and len(set(map(repr, forward))) == half == len(gradients)
    assert seen[: len(forward)] == forward
    blocks = [forward[start : start + 2] for start in range(0, len(forward), 2)]
    assert seen[len(forward) :] == sum(reversed(blocks), [])
    torch.testing.assert_close(saved, plain, rtol=1e-6, atol=0)
    for key, pair in gradients.items():
        for a, b in zip(pair, again[key], strict=True):
            if a is not None:
                torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5 * float(a.abs().max()), msg=key)


def test_without_a_gradient_nothing_is_recomputed(modules, sdxl):
    calls = []
    patched = sdxl.clone()
    patched.set_model_attn1_patch(lambda q, k, v, options: calls.append(1) or (q, k, v))
    forward = modules["forward"]
    with forward.trainable_copy(patched) as copy, modules["recompute"].recomputed_blocks(copy.model), torch.no_grad():
        losses = losses_of(forward, copy, batch_of(forward, copy, 1, 8), {})
    keys = modules["unet"].cross_attention_keys(sdxl)
    assert not losses.requires_grad and len(calls) == len(keys) // 2
