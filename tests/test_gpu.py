"""The pack on a real device, with the host's default memory manager: `python dev.py test -m gpu`.

Skipped without a CUDA device. A process of its own, since the host chooses its device when it is imported.
"""

import copy as copying
import re

import pytest
import torch

from tests.device import DEVICE, ON_DEVICE, SIMULATED, statistics
from tests.stages import images, report, train
from tests.test_forward import batch_of, gradient, losses_of, stack_of
from tests.test_refine_node import concepts, refine, weights_hash

pytestmark = ON_DEVICE


def on_device(batch, device):
    values = {name: getattr(batch, name).to(device) for name in ("latents", "sigmas", "contexts", "tokens")}
    return type(batch)(**values, masks=batch.masks)


def gradients_of(host, model, clip, chosen=(0, 1, 2), upstream=None):
    """(losses, all gradients as one vector, the copy's facts) of one step on a trainable copy."""
    forward, unet = host.module("nodes.host.model.forward"), host.module("nodes.host.model.unet")
    precision, training = host.module("mace.method.precision"), host.module("mace.method.train")
    with forward.trainable_copy(model) as copied:
        device = copied.load_device
        stacked = {
            key: tuple(p.to(device).requires_grad_(True) for p in pair)
            for key, pair in stack_of(model, unet.cross_attention_keys(model), chosen).items()
        }
        batch = on_device(batch_of(forward, host, clip, chosen), device)
        scale = precision.LossScale(len(chosen), copied.model.get_dtype_inference(), device)
        while True:
            found = losses_of(forward, copied, batch, stacked)
            for pair in stacked.values():
                for p in pair:
                    p.grad = None
            scale.scaled(found).backward()
            scale.unscale(training.gradients(stacked))
            norms = torch.stack([g.flatten(1).square().sum(1) for g in training.gradients(stacked)]).sum(0).sqrt()
            if scale.fits(norms):
                break
        facts = {
            "dynamic": copied.is_dynamic(),
            "devices": {p.device.type for p in copied.model.diffusion_model.parameters()},
            "inference": any(p.is_inference() for p in copied.model.diffusion_model.parameters()),
            "scale": scale.factors.tolist(),
        }
        flat = torch.cat([gradient(p).flatten().float() for pair in stacked.values() for p in pair])
        return found.detach().cpu(), flat.cpu(), facts


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_the_host_runs_on_the_device_with_its_own_memory_manager(gpu_host, gpu_models):
    from comfy import model_management

    assert model_management.get_torch_device().type == DEVICE.type
    if SIMULATED:
        return
    assert gpu_host.dynamic, "the host's dynamic memory did not start: comfy-aimdo is missing or does not work here"
    assert all(model.is_dynamic() for model, _, _ in gpu_models.values())


def test_the_device_mixes_with_no_other_and_ends():
    """What the tests of this lane rest on."""
    ours = torch.ones(3, 3, device=DEVICE)
    for product in (torch.matmul, torch.nn.functional.linear, lambda a, b: torch.conv2d(a[None, None], b[None, None])):
        with pytest.raises(RuntimeError, match="same device|should be the same"):
            product(ours, torch.ones(3, 3))
    free, total = statistics.mem_get_info()
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(total + 1, dtype=torch.uint8, device=DEVICE)
    assert 0 < free <= total


def test_the_copy_is_plain_whole_and_trains(gpu_host, gpu_demo):
    model, clip, _ = gpu_demo
    before = weights_hash(model)
    losses, flat, facts = gradients_of(gpu_host, model, clip)
    assert not facts["dynamic"] and facts["devices"] == {DEVICE.type} and not facts["inference"]
    assert torch.isfinite(losses).all() and torch.isfinite(flat).all() and float(flat.norm()) > 0
    assert weights_hash(model) == before


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_gradients_of_half_precision_are_those_of_float32(gpu_host, gpu_models, name):
    """Each concept's own too, one of them with a loss a thousand times smaller than the rest."""
    wanted, exact, _ = gradients_of(gpu_host, *gpu_models["fp32"][:2])
    found, flat, facts = gradients_of(gpu_host, *gpu_models[name][:2])
    alike = cosine(flat, exact)
    print(f"{name}: cosine {alike:.5f}, norm {float(flat.norm() / exact.norm()):.4f}, scale {facts['scale']}")
    assert alike > 0.98
    assert float(flat.norm() / exact.norm()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0)


def test_upstream_patches_are_in_the_copy(gpu_host, gpu_demo):
    """LoRAs and refinements before the training node, which the host's dynamic memory only adds as it computes."""
    model, clip, _ = gpu_demo
    unet = gpu_host.module("nodes.host.model.unet")
    key = unet.cross_attention_keys(model)[0]
    changed = model.clone()
    shape = model.model.state_dict()[key].shape
    change = 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    changed.add_patches({key: ("diff", (change,))})
    with gpu_host.module("nodes.host.model.forward").trainable_copy(changed) as copied:
        found = dict(copied.model.named_parameters())[key].float().cpu()
    patches = model.get_key_patches("diffusion_model.")
    base = unet.effective_weight(patches[key], key, torch.device("cpu"))
    error = (found - base - change).norm() / change.norm()
    assert float(error) < 0.05, "the patch is not in the copy's weight"


def test_recomputing_takes_less_and_gives_the_same(gpu_host, gpu_models):
    model, clip, _ = gpu_models["fp32"]
    forward, unet = gpu_host.module("nodes.host.model.forward"), gpu_host.module("nodes.host.model.unet")
    memory, recompute = gpu_host.module("nodes.host.model.memory"), gpu_host.module("nodes.host.model.recompute")
    peaks, kept, found = [], [], []
    with forward.trainable_copy(model) as copied:
        device = copied.load_device
        batch = batch_of(forward, gpu_host, clip)
        large = copying.copy(batch)
        object.__setattr__(large, "latents", torch.randn(3, 4, 64, 64, generator=torch.Generator().manual_seed(1)))
        large = on_device(large, device)
        for saving in (False, True):
            stacked = {
                key: tuple(p.to(device).requires_grad_(True) for p in pair)
                for key, pair in stack_of(model, unet.cross_attention_keys(model)).items()
            }

            held = []

            def step(stacked=stacked, held=held):
                for pair in stacked.values():
                    for p in pair:
                        p.grad = None
                statistics.synchronize(device)
                before = statistics.memory_allocated(device)
                losses = losses_of(forward, copied, large, stacked)
                held.append(statistics.memory_allocated(device) - before)
                losses.sum().backward()

            if saving:
                with recompute.recomputed_blocks(copied.model):
                    peaks.append(memory.measure(device, step).memory)
            else:
                peaks.append(memory.measure(device, step).memory)
            kept.append(held[-1])
            found.append(torch.cat([gradient(p).flatten() for pair in stacked.values() for p in pair]).cpu())
    print(f"peak of a step: {peaks[0] / 1e6:.0f} MB, recomputed {peaks[1] / 1e6:.0f} MB")
    print(f"kept for the backward pass: {kept[0] / 1e6:.0f} MB, recomputed {kept[1] / 1e6:.0f} MB")
    assert cosine(*found) > 0.9999
    # The peak holds one block while it is computed again.
    assert kept[1] <= kept[0] / 4 and peaks[1] < peaks[0] / 2


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_squeezed_memory_trains_the_same(gpu_host, gpu_models, monkeypatch, tmp_path, name):
    """With a ballast that leaves room for two, fewer train side by side or blocks are recomputed; the gradients are
    the same."""
    from comfy import model_management

    method, rows = gpu_host.module("mace.method.train"), []
    clip_gradients = method.clip_per_concept

    def noted(stacked, limit):
        """Each concept's gradient before it is clipped, unless the step is made again for it overflowed."""
        found = torch.cat([gradient.float().flatten(1).cpu() for gradient in method.gradients(stacked)], dim=1)
        norms = clip_gradients(stacked, limit)
        if torch.isfinite(norms).all():
            rows.extend(found)
        return norms

    monkeypatch.setattr(method, "clip_per_concept", noted)

    store, training = gpu_host.module("nodes.host.kept.lora_store"), gpu_host.module("nodes.stages.trainer")
    model, clip, _ = gpu_models[name]
    chosen = concepts(gpu_host, "dog -> sky\nship -> ground\ncat -> sky\nairplane -> ground")
    shown = images(gpu_host, gpu_models[name], chosen, width=256, height=256)[0]
    refined = refine(gpu_host, model, clip, chosen, mu="10")[0]
    plan, planned = training.Trainer._plan, []

    def noted_plan(self, *args):
        plan(self, *args)
        planned.append(self._each)

    monkeypatch.setattr(training.Trainer, "_plan", noted_plan)

    def trained(name):
        gpu_host.module("nodes.stages.trained")._store.clear()
        monkeypatch.setattr(store, "store", lambda: store.LoraStore(tmp_path / name))
        rows.clear()
        node = train(gpu_host, clip, refined, shown, steps="1")
        return list(rows), report(node)

    free, said = trained("free")
    model_management.unload_all_models()
    model_management.soft_empty_cache()
    device = model_management.get_torch_device()
    # The copy, and two and a half times what one concept takes. The texts are encoded and kept by now.
    left = int(model.model_size() + 2.5 * planned[0])
    ballast = torch.empty(max(statistics.mem_get_info(device)[0] - left, 0), dtype=torch.uint8, device=device)
    try:
        tight, told = trained("tight")
    finally:
        del ballast
        model_management.soft_empty_cache()
    print(f"{left / 1e6:.0f} MB left", said, told, sep="\n---\n")
    assert "4 concepts, 4 side by side" in said
    assert int(re.search(r"4 concepts, (\d+) side by side", told)[1]) < 4 or "save_memory" in told
    assert len(free) == len(tight) == 4
    for one, other in zip(free, tight, strict=True):
        assert one.any() and cosine(one, other) > 0.999
        assert float(other.norm()) == pytest.approx(float(one.norm()), rel=0.01)


def test_a_copy_that_leaves_no_room_for_the_text_encoder_trains(gpu_host, gpu_models, monkeypatch, tmp_path):
    """Encoding the texts takes the copy off the device as a whole, and it comes back before the first step."""
    from comfy import model_management

    training, store = gpu_host.module("nodes.stages.trainer"), gpu_host.module("nodes.host.kept.lora_store")
    model, clip, _ = gpu_models["fp16"]
    chosen = concepts(gpu_host, "dog -> sky")
    shown = images(gpu_host, gpu_models["fp16"], chosen)[0]
    refined = refine(gpu_host, model, clip, chosen, mu="10")[0]
    own = clip.patcher.model_size

    def trained(name, needed):
        gpu_host.module("nodes.stages.trained")._store.clear()
        gpu_host.module("nodes.host.text")._embeddings.clear()
        monkeypatch.setattr(store, "store", lambda: store.LoraStore(tmp_path / name))
        monkeypatch.setattr(clip.patcher, "model_size", lambda: own() + needed)
        return train(gpu_host, clip, refined, shown, steps="4")[0].loras[0].lora

    beside = trained("beside", 0)
    copies, places, aside, load = [], [], training.step_aside, model_management.load_models_gpu

    def noted(models, *given, **more):
        if copies and clip.patcher in models:
            places.append({own.device.type for own in copies[-1].model.parameters()})
        return load(models, *given, **more)

    monkeypatch.setattr(training, "step_aside", lambda copy, needed: copies.append(copy) or aside(copy, needed))
    monkeypatch.setattr(model_management, "load_models_gpu", noted)
    away = trained("away", model_management.get_total_memory(model_management.get_torch_device()))
    assert places and all(own == {"cpu"} for own in places), "the copy stayed where it was"
    for key, (up, down) in beside.items():
        assert float((up @ down - away[key][0] @ away[key][1]).norm()) <= 0.05 * float((up @ down).norm()) + 1e-6


def test_the_plan_holds(gpu_host, gpu_models, monkeypatch, tmp_path):
    """What a group takes at its peak is at most what was planned from one concept."""
    store, training = gpu_host.module("nodes.host.kept.lora_store"), gpu_host.module("nodes.stages.trainer")
    model, clip, _ = gpu_models["fp16"]
    chosen = concepts(gpu_host, "dog -> sky\nship -> ground\ncat -> sky\nairplane -> ground")
    shown = images(gpu_host, gpu_models["fp16"], chosen, width=512, height=512, count=1, steps=1)[0]
    gpu_host.module("nodes.stages.trained")._store.clear()
    monkeypatch.setattr(store, "store", lambda: store.LoraStore(tmp_path / "plan"))
    planned, peaks = [], []
    plan, run = training.Trainer._plan, training.Trainer._train

    def noted_plan(self, *args):
        plan(self, *args)
        planned.append(self._each)

    def noted_train(self, copied, settings, items, states):
        statistics.synchronize()
        statistics.reset_peak_memory_stats()
        before = statistics.memory_allocated()
        found = run(self, copied, settings, items, states)
        peaks.append((len(items), statistics.max_memory_allocated() - before))
        return found

    monkeypatch.setattr(training.Trainer, "_plan", noted_plan)
    monkeypatch.setattr(training.Trainer, "_train", noted_train)
    refined = refine(gpu_host, model, clip, chosen, mu="10")[0]
    train(gpu_host, clip, refined, shown, steps="3")
    (count, peak), each = peaks[0], planned[0]
    print(f"planned {count} x {each / 1e6:.0f} MB, took {peak / 1e6:.0f} MB")
    assert count == 4 and peak <= 1.1 * count * each


def test_fusion_on_the_device_equals_the_cpu(gpu_host, gpu_models):
    """The closed forms in float64 on the device against the same sums on the CPU."""
    module = gpu_host.module("mace.method.refine")
    generator = torch.Generator().manual_seed(0)
    moments = gpu_host.module("mace.method.moments")
    total = torch.randn(400, 768, generator=generator, dtype=torch.float64)
    targets = torch.randn(300, 768, generator=generator, dtype=torch.float64)
    maps = torch.randn(300, 768, generator=generator, dtype=torch.float64)
    pack = moments.pack
    made = moments.ConceptMoments(maps.mT @ targets, pack(targets.mT @ targets), pack(total.mT @ total), 300, 10)
    weights = module.RefineWeights(0.0, 0.0, 10.0)
    found = [module.refinement((made,), weights, None, None, device=torch.device(d)).cpu() for d in ("cpu", DEVICE)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-10)
