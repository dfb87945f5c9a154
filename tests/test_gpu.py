"""The pack on a real device, with the host's default memory manager: `python dev.py test -m gpu`.

Skipped without a CUDA device. A process of its own, since the host chooses its device when it is imported.
"""

import copy as copying

import pytest
import torch

from devtools.cache import REPO
from tests.judge import Judge
from tests.stages import IMAGES, fuse, images, report, train
from tests.test_forward import FORM, batch_of, gradient, stack_of
from tests.test_refine_node import concepts, refine, weights_hash

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LIST = "dog | pooch -> sky\nship -> ground"


@pytest.fixture(scope="module")
def host(gpu_host):
    """The host on the device."""
    return gpu_host


@pytest.fixture(scope="module")
def models(host):
    """(MODEL, CLIP, VAE) of the demo checkpoint by the format of the UNet's weights."""
    import comfy.sd

    with torch.inference_mode():
        return {
            name: comfy.sd.load_checkpoint_guess_config(
                str(host.demo_checkpoint), output_vae=True, output_clip=True, model_options={"dtype": dtype}
            )[:3]
            for name, dtype in FORMATS.items()
        }


@pytest.fixture(scope="module", params=FORMATS)
def demo(models, request):
    return models[request.param]


def on_device(batch, device):
    values = {name: getattr(batch, name).to(device) for name in ("latents", "sigmas", "contexts", "tokens")}
    return type(batch)(**values, masks=batch.masks)


def gradients_of(host, model, clip, chosen=(0, 1, 2), upstream=None):
    """(losses, all gradients as one vector, the copy's facts) of one step on a trainable copy."""
    forward, unet = host.module("nodes.forward"), host.module("nodes.unet")
    precision, training = host.module("mace.precision"), host.module("mace.train")
    with forward.trainable_copy(model) as copied:
        device = copied.load_device
        stacked = {
            key: tuple(p.to(device).requires_grad_(True) for p in pair)
            for key, pair in stack_of(model, unet.cross_attention_keys(model), chosen).items()
        }
        batch = on_device(batch_of(forward, host, clip, chosen), device)
        scale = precision.LossScale(len(chosen), copied.model.get_dtype_inference(), device)
        while True:
            found = forward.losses(copied, batch, stacked, FORM)
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


def test_the_host_runs_on_the_device_with_its_own_memory_manager(host, models):
    from comfy import model_management

    assert model_management.get_torch_device().type == "cuda"
    assert host.dynamic, "the host's dynamic memory did not start: comfy-aimdo is missing or does not work here"
    assert all(model.is_dynamic() for model, _, _ in models.values())


def test_the_copy_is_plain_whole_and_trains(host, demo):
    model, clip, _ = demo
    before = weights_hash(model)
    losses, flat, facts = gradients_of(host, model, clip)
    assert not facts["dynamic"] and facts["devices"] == {"cuda"} and not facts["inference"]
    assert torch.isfinite(losses).all() and torch.isfinite(flat).all() and float(flat.norm()) > 0
    assert weights_hash(model) == before


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_gradients_of_half_precision_are_those_of_float32(host, models, name):
    """Each concept's own too, one of them with a loss a thousand times smaller than the rest."""
    wanted, exact, _ = gradients_of(host, *models["fp32"][:2])
    found, flat, facts = gradients_of(host, *models[name][:2])
    alike = cosine(flat, exact)
    print(f"{name}: cosine {alike:.5f}, norm {float(flat.norm() / exact.norm()):.4f}, scale {facts['scale']}")
    assert alike > 0.98
    assert float(flat.norm() / exact.norm()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0)


def test_upstream_patches_are_in_the_copy(host, demo):
    """LoRAs and refinements before the training node, which the host's dynamic memory only adds as it computes."""
    model, clip, _ = demo
    unet = host.module("nodes.unet")
    key = unet.cross_attention_keys(model)[0]
    changed = model.clone()
    shape = model.model.state_dict()[key].shape
    change = 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    changed.add_patches({key: ("diff", (change,))})
    with host.module("nodes.forward").trainable_copy(changed) as copied:
        found = dict(copied.model.named_parameters())[key].float().cpu()
    patches = model.get_key_patches("diffusion_model.")
    base = unet.effective_weight(patches[key], key, torch.device("cpu"))
    error = (found - base - change).norm() / change.norm()
    assert float(error) < 0.05, "the patch is not in the copy's weight"


def test_recomputing_takes_less_and_gives_the_same(host, models):
    model, clip, _ = models["fp32"]
    forward, unet = host.module("nodes.forward"), host.module("nodes.unet")
    memory, recompute = host.module("nodes.memory"), host.module("nodes.recompute")
    peaks, found = [], []
    with forward.trainable_copy(model) as copied:
        device = copied.load_device
        batch = batch_of(forward, host, clip)
        large = copying.copy(batch)
        object.__setattr__(large, "latents", torch.randn(3, 4, 64, 64, generator=torch.Generator().manual_seed(1)))
        large = on_device(large, device)
        for saving in (False, True):
            stacked = {
                key: tuple(p.to(device).requires_grad_(True) for p in pair)
                for key, pair in stack_of(model, unet.cross_attention_keys(model)).items()
            }

            def step(stacked=stacked):
                for pair in stacked.values():
                    for p in pair:
                        p.grad = None
                forward.losses(copied, large, stacked, FORM).sum().backward()

            if saving:
                with recompute.recomputed_blocks(copied.model):
                    peaks.append(memory.measure(device, step).memory)
            else:
                peaks.append(memory.measure(device, step).memory)
            found.append(torch.cat([gradient(p).flatten() for pair in stacked.values() for p in pair]).cpu())
    print(f"peak of a step: {peaks[0] / 1e6:.0f} MB, recomputed {peaks[1] / 1e6:.0f} MB")
    assert cosine(*found) > 0.9999
    assert peaks[1] < peaks[0] / 2


@pytest.fixture(scope="module")
def preset(host):
    """The name of the preset found for the demo model."""
    names = [option for option in host.module("mace.presets").PRESETS if "demo" in option]
    return names[0]


def erased(host, demo, preset):
    """(erased MODEL, its LoRAs, the node's words) of Erase Concepts."""
    model, clip, vae = demo
    node = host.run(
        "MACE_EraseConcepts", model=model, clip=clip, vae=vae, concepts=concepts(host, LIST), preset=preset,
        width=64, height=64, seed=0, strengths="", prior=prior_of(host),
    )  # fmt: skip
    return node[0], node[1], report(node)


def prior_of(host):
    return host.module("nodes.load_prior").LoadPrior.execute("mace_demo_prior.safetensors").result[0]


def share_of(host, model, clip, vae, concept, seeds=8):
    judge = Judge(REPO / "assets/demo/judge.safetensors")
    pictures = [
        host.decode(vae, host.sample(model, clip, f"a photo of the {concept}", seed=seed)).cpu()
        for seed in range(seeds)
    ]
    return judge.accuracy(torch.cat(pictures).float(), concept)


def test_the_whole_way_erases_saves_and_loads(host, demo, preset, request):
    model, clip, vae = demo
    done, loras, said = erased(host, demo, preset)
    print(said)
    assert share_of(host, model, clip, vae, "dog") > 0.8
    saved = host.run(
        "MACE_SaveErasedModel", model=done, clip=clip, vae=vae, filename_prefix="checkpoints/gpu", dtype="as loaded"
    )
    path = host.base / "output" / "checkpoints" / saved.ui["checkpoints"][0]["filename"]
    again, clip2, vae2 = host.load_checkpoint(path)
    for concept, least, most in (("dog", 0.0, 0.25), ("ship", 0.0, 0.25), ("cat", 0.7, 1.0)):
        found = share_of(host, again, clip2, vae2, concept)
        print(f"{request.node.callspec.id}: {concept} {found:.0%}")
        assert least <= found <= most
    # What the node hands on and what was saved draw the same, though one's patches are added as it computes.
    ours = host.sample(done, clip, "a photo of the cat", seed=0).cpu()
    theirs = host.sample(again, clip2, "a photo of the cat", seed=0).cpu()
    assert float((ours - theirs).norm() / ours.norm()) < 0.1


def test_fp8_keeps_the_change_with_dynamic_memory(host):
    """What an edited layer computes is what its weight with the change gives, in the first step and in the last."""
    import comfy.sd

    with torch.inference_mode():
        model, clip, _ = comfy.sd.load_checkpoint_guess_config(
            str(host.demo_checkpoint), output_vae=True, output_clip=True, model_options={"dtype": torch.float8_e4m3fn}
        )[:3]
    before = weights_hash(model)
    node = refine(host, model, clip, concepts(host, LIST), mu="10")
    said = report(node)
    print(said)
    assert model.is_dynamic() and "keeps its precision" in said
    unet = host.module("nodes.unet")
    key = unet.cross_attention_keys(model)[0]
    weights = [
        unet.effective_weight(m.get_key_patches("diffusion_model.")[key], key, torch.device("cuda"))
        for m in (model, node[0])
    ]
    layer, seen = node[0].object_patches[key.removesuffix(".weight")], []
    hook = layer.register_forward_hook(lambda _, x, out: seen.append((x[0].float(), out.float())))
    for _ in range(2):
        host.sample(node[0], clip, "a photo of the dog")
        host.sample(model, clip, "a photo of the dog")
    hook.remove()
    for x, out in (seen[0], seen[-1]):
        change = x @ (weights[1] - weights[0]).mT
        noise = float((out - x @ weights[1].mT).norm() / change.norm())
        print(f"of the change, what the layer computes is off by {noise:.1e}")
        assert noise < 0.02
    assert weights_hash(model) == before


def test_strength_zero_is_the_input(host, demo):
    """As near as the input is to itself: kernels on a device may add up in another order from run to run."""
    model, clip, _ = demo
    refined = refine(host, model, clip, concepts(host, LIST), strength=0.0, mu="10")[0]
    assert not refined.patches
    one, two, ours = (host.sample(m, clip, "a photo of the dog").cpu() for m in (model, model, refined))
    own = float((one - two).norm() / one.norm())
    print(f"two runs of the input differ by {own:.1e}")
    assert float((ours - one).norm() / one.norm()) <= max(3 * own, 1e-3)


def test_squeezed_memory_trains_the_same(host, models, monkeypatch, tmp_path):
    """With a ballast that leaves little, fewer train side by side or blocks are recomputed; the LoRAs are the same."""
    from comfy import model_management

    store = host.module("nodes.lora_store")
    model, clip, vae = models["fp16"]
    chosen = concepts(host, "dog -> sky\nship -> ground\ncat -> sky\nairplane -> ground")
    shown = images(host, models["fp16"], chosen, width=256, height=256)[0]
    refined = refine(host, model, clip, chosen, mu="10")[0]

    def trained(name):
        host.module("nodes.training")._store.clear()
        monkeypatch.setattr(store, "store", lambda: store.LoraStore(tmp_path / name))
        node = train(host, clip, refined, shown, steps="4")
        return node[0], report(node)

    free, said = trained("free")
    model_management.unload_all_models()
    model_management.soft_empty_cache()
    device = model_management.get_torch_device()
    left = 1500 << 20
    ballast = torch.empty(max(torch.cuda.mem_get_info(device)[0] - left, 0), dtype=torch.uint8, device=device)
    try:
        tight, told = trained("tight")
    finally:
        del ballast
        model_management.soft_empty_cache()
    print(said, told, sep="\n---\n")
    for one, other in zip(free.loras, tight.loras, strict=True):
        for key, (up, down) in one.lora.items():
            a, b = up @ down, other.lora[key][0] @ other.lora[key][1]
            assert float((a - b).norm()) <= 0.05 * float(a.norm()) + 1e-6, key


def test_a_copy_that_leaves_no_room_for_the_text_encoder_trains(host, models, monkeypatch, tmp_path):
    """Encoding the texts takes the copy off the device as a whole, and it comes back before the first step."""
    from comfy import model_management

    memory, store = host.module("nodes.memory"), host.module("nodes.lora_store")
    model, clip, _ = models["fp16"]
    chosen = concepts(host, "dog -> sky")
    shown = images(host, models["fp16"], chosen)[0]
    refined = refine(host, model, clip, chosen, mu="10")[0]
    own = clip.patcher.model_size

    def trained(name, needed):
        host.module("nodes.training")._store.clear()
        monkeypatch.setattr(store, "store", lambda: store.LoraStore(tmp_path / name))
        monkeypatch.setattr(clip.patcher, "model_size", lambda: own() + needed)
        return train(host, clip, refined, shown, steps="4")[0].loras[0].lora

    beside = trained("beside", 0)
    seen, load = [], memory.model_management.free_memory
    monkeypatch.setattr(memory.model_management, "free_memory", lambda *a, **k: seen.append(k) or load(*a, **k))
    away = trained("away", model_management.get_total_memory(model_management.get_torch_device()))
    assert {} in seen, "the copy stayed where it was"
    for key, (up, down) in beside.items():
        assert float((up @ down - away[key][0] @ away[key][1]).norm()) <= 0.05 * float((up @ down).norm()) + 1e-6


def test_the_plan_holds(host, models, monkeypatch, tmp_path):
    """What a group takes at its peak is at most what was planned from one concept."""
    store, training = host.module("nodes.lora_store"), host.module("nodes.training")
    model, clip, _ = models["fp16"]
    chosen = concepts(host, "dog -> sky\nship -> ground\ncat -> sky\nairplane -> ground")
    shown = images(host, models["fp16"], chosen, width=512, height=512, count=1, steps=1)[0]
    training._store.clear()
    monkeypatch.setattr(store, "store", lambda: store.LoraStore(tmp_path / "plan"))
    planned, peaks = [], []
    plan, run = training.Trainer._plan, training.Trainer._train

    def noted_plan(self, *args):
        plan(self, *args)
        planned.append(self._each)

    def noted_train(self, copied, settings, items, states):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = run(self, copied, settings, items, states)
        peaks.append((len(items), torch.cuda.max_memory_allocated() - before))
        return found

    monkeypatch.setattr(training.Trainer, "_plan", noted_plan)
    monkeypatch.setattr(training.Trainer, "_train", noted_train)
    refined = refine(host, model, clip, chosen, mu="10")[0]
    train(host, clip, refined, shown, steps="3")
    (count, peak), each = peaks[0], planned[0]
    print(f"planned {count} x {each / 1e6:.0f} MB, took {peak / 1e6:.0f} MB")
    assert count == 4 and peak <= 1.1 * count * each


def test_images_and_masks(host, demo):
    model, clip, vae = demo
    shown, pictures = images(host, demo, concepts(host, LIST)).result
    assert all(entry.latents.device.type == "cpu" and entry.latents.dtype == torch.float32 for entry in shown)
    node = host.run("MACE_MaskConcept", model=model, clip=clip, images=shown, backend="attention")
    mask = node[0]
    assert mask.shape == (len(pictures), 64, 64) and 0.02 < float(mask.mean()) < 0.98
    assert IMAGES["count"] * 2 == len(mask)


def test_find_aliases(host, models):
    model, clip, _ = models["fp16"]
    shown = images(host, models["fp16"], concepts(host, "deer -> sky"), count=4, steps=12)[0]
    node = host.run(
        "MACE_FindAliases", model=model, clip=clip, images=shown, words="stag, hart, doe, bread, guitar", keep="",
        nearest=50, threshold=0.5, most=8, pictures=4, seed=0,
    )  # fmt: skip
    assert {"stag", "hart"} <= set(node[0][0].aliases) and "bread" not in node[0][0].aliases


@pytest.mark.parametrize("method", ["ESD", "FMN"])
def test_baselines_that_train(host, models, method):
    """In fp16 too: the masters move, and the host's model stays."""
    model, clip, _ = models["fp16"]
    before = weights_hash(model)
    chosen = concepts(host, "dog")
    if method == "ESD":
        node = host.run(
            "MACE_BaselineESD", model=model, clip=clip, concepts=chosen, method="ESD-x (cross-attention)", steps=3,
            learning_rate="1e-4", eta=1.0, start_guidance=3.0, sampling_steps=4, batch=1, width=64, height=64,
            prompt="{}", seed=0,
        )  # fmt: skip
    else:
        shown = images(host, models["fp16"], chosen)[0]
        node = host.run(
            "MACE_BaselineFMN", model=model, clip=clip, images=shown, train="cross-attention", end_of_text=False,
            steps=3, learning_rate="1e-4", batch=1, seed=0,
        )  # fmt: skip
    assert node[0].patches and weights_hash(model) == before
    assert all(torch.isfinite(torch.tensor(node[1]["loss"])))


def test_fusion_on_the_device_equals_the_cpu(host, models):
    """The closed forms in float64 on the device against the same sums on the CPU."""
    module = host.module("mace.refine")
    generator = torch.Generator().manual_seed(0)
    moments = host.module("mace.moments")
    total = torch.randn(400, 768, generator=generator, dtype=torch.float64)
    targets = torch.randn(300, 768, generator=generator, dtype=torch.float64)
    maps = torch.randn(300, 768, generator=generator, dtype=torch.float64)
    pack = moments.pack
    made = moments.ConceptMoments(maps.mT @ targets, pack(targets.mT @ targets), pack(total.mT @ total), 300, 10)
    weights = module.RefineWeights(0.0, 0.0, 10.0)
    found = [module.refinement((made,), weights, None, None, device=torch.device(d)).cpu() for d in ("cpu", "cuda")]
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-10)


def test_the_whole_way_without_dynamic_memory(tmp_path):
    """On a host of its own, since one process has one memory manager: weights that moved with gradients on too."""
    import json
    import subprocess
    import sys

    command = [
        sys.executable,
        "-m",
        "benchmarks.full_size",
        "--kind",
        "sd15",
        "--small",
        "--no-dynamic",
        "--images",
        "2",
    ]
    command += ["--size", "64", "--draw-steps", "2", "--steps", "2", "--captions", "20", "--concepts", "2"]
    command += ["--refine", "2", "--fuse", "0", "--out", str(tmp_path / "rows.json")]
    subprocess.run(command, cwd=REPO, check=True)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert rows[0]["stage"] == "make the checkpoint" and rows[1]["manager"] == "ModelPatcher"
    assert not [row for row in rows if "error" in row]


def test_fuse_again_with_other_strengths(host, models):
    model, clip, _ = models["bf16"]
    chosen = concepts(host, LIST)
    refined = refine(host, model, clip, chosen, mu="10")[0]
    loras = train(host, clip, refined, images(host, models["bf16"], chosen)[0])[0]
    half, nothing = (fuse(host, model, loras, strengths=f"* = {value}")[0] for value in (0.5, 0))
    assert half.patches and not nothing.patches
