"""The pack's nodes on a real device, with the host's default memory manager: `python dev.py test -m gpu`."""

import json
import subprocess
import sys

import pytest
import torch

from devtools.cache import REPO
from tests.device import DEVICE, LIST, ON_DEVICE, SIMULATED
from tests.judge import Judge
from tests.stages import IMAGES, fuse, images, report, train
from tests.test_refine_node import concepts, refine, weights_hash

pytestmark = ON_DEVICE


@pytest.fixture(scope="module")
def preset(gpu_host):
    """The name of the preset found for the demo model."""
    names = [option for option in gpu_host.module("mace.presets.presets").PRESETS if "demo" in option]
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
    return host.module("nodes.files.load_prior").LoadPrior.execute("mace_demo_prior.safetensors").result[0]


def share_of(host, model, clip, vae, concept, seeds=8):
    judge = Judge(REPO / "assets/demo/judge.safetensors")
    pictures = [
        host.decode(vae, host.sample(model, clip, f"a photo of the {concept}", seed=seed)).cpu()
        for seed in range(seeds)
    ]
    return judge.accuracy(torch.cat(pictures).float(), concept)


def test_the_whole_way_erases_saves_and_loads(gpu_host, gpu_demo, preset, request):
    model, clip, vae = gpu_demo
    done, loras, said = erased(gpu_host, gpu_demo, preset)
    print(said)
    assert share_of(gpu_host, model, clip, vae, "dog") > 0.8
    saved = gpu_host.run(
        "MACE_SaveErasedModel", model=done, clip=clip, vae=vae, filename_prefix="checkpoints/gpu", dtype="as loaded"
    )
    path = gpu_host.base / "output" / "checkpoints" / saved.ui["checkpoints"][0]["filename"]
    again, clip2, vae2 = gpu_host.load_checkpoint(path)
    for concept, least, most in (("dog", 0.0, 0.25), ("ship", 0.0, 0.25), ("cat", 0.7, 1.0)):
        found = share_of(gpu_host, again, clip2, vae2, concept)
        print(f"{request.node.callspec.id}: {concept} {found:.0%}")
        assert least <= found <= most
    # What the node hands on and what was saved draw the same, though one's patches are added as it computes.
    ours = gpu_host.sample(done, clip, "a photo of the cat", seed=0).cpu()
    theirs = gpu_host.sample(again, clip2, "a photo of the cat", seed=0).cpu()
    assert float((ours - theirs).norm() / ours.norm()) < 0.1


def test_fp8_keeps_the_change_with_dynamic_memory(gpu_host):
    """What an edited layer computes is what its weight with the change gives, in the first step and in the last."""
    import comfy.sd

    with torch.inference_mode():
        model, clip, _ = comfy.sd.load_checkpoint_guess_config(
            str(gpu_host.demo_checkpoint),
            output_vae=True,
            output_clip=True,
            model_options={"dtype": torch.float8_e4m3fn},
        )[:3]
    before = weights_hash(model)
    node = refine(gpu_host, model, clip, concepts(gpu_host, LIST), mu="10")
    said = report(node)
    print(said)
    assert (SIMULATED or model.is_dynamic()) and "keeps its precision" in said
    unet = gpu_host.module("nodes.host.model.unet")
    key = unet.cross_attention_keys(model)[0]
    weights = [unet.effective_weight(m.get_key_patches("diffusion_model.")[key], key, DEVICE) for m in (model, node[0])]
    layer, seen = node[0].object_patches[key.removesuffix(".weight")], []
    hook = layer.register_forward_hook(lambda _, x, out: seen.append((x[0].float(), out.float())))
    for _ in range(2):
        gpu_host.sample(node[0], clip, "a photo of the dog")
        gpu_host.sample(model, clip, "a photo of the dog")
    hook.remove()
    for x, out in (seen[0], seen[-1]):
        change = x @ (weights[1] - weights[0]).mT
        noise = float((out - x @ weights[1].mT).norm() / change.norm())
        print(f"of the change, what the layer computes is off by {noise:.1e}")
        assert noise < 0.02
    assert weights_hash(model) == before


def test_strength_zero_is_the_input(gpu_host, gpu_demo):
    """As near as the input is to itself: kernels on a device may add up in another order from run to run."""
    model, clip, _ = gpu_demo
    refined = refine(gpu_host, model, clip, concepts(gpu_host, LIST), strength=0.0, mu="10")[0]
    assert not refined.patches
    one, two, ours = (gpu_host.sample(m, clip, "a photo of the dog").cpu() for m in (model, model, refined))
    own = float((one - two).norm() / one.norm())
    print(f"two runs of the input differ by {own:.1e}")
    assert float((ours - one).norm() / one.norm()) <= max(3 * own, 1e-3)


def test_images_and_masks(gpu_host, gpu_demo):
    model, clip, vae = gpu_demo
    shown, pictures = images(gpu_host, gpu_demo, concepts(gpu_host, LIST)).result
    assert all(entry.latents.device.type == "cpu" and entry.latents.dtype == torch.float32 for entry in shown)
    node = gpu_host.run("MACE_MaskConcept", model=model, clip=clip, images=shown, backend="attention")
    mask = node[0]
    assert mask.shape == (len(pictures), 64, 64) and 0.02 < float(mask.mean()) < 0.98
    assert IMAGES["count"] * 2 == len(mask)


def test_find_aliases(gpu_host, gpu_models):
    model, clip, _ = gpu_models["fp16"]
    shown = images(gpu_host, gpu_models["fp16"], concepts(gpu_host, "deer -> sky"), count=4, steps=12)[0]
    node = gpu_host.run(
        "MACE_FindAliases", model=model, clip=clip, images=shown, words="stag, hart, doe, bread, guitar", keep="",
        nearest=50, threshold=0.5, most=8, pictures=4, seed=0,
    )  # fmt: skip
    assert {"stag", "hart"} <= set(node[0][0].aliases) and "bread" not in node[0][0].aliases


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("method", ["ESD", "FMN"])
def test_baselines_that_train(gpu_host, gpu_models, method, name):
    """In half precision too: the masters move, and the host's model stays."""
    model, clip, _ = gpu_models[name]
    before = weights_hash(model)
    chosen = concepts(gpu_host, "dog")
    if method == "ESD":
        node = gpu_host.run(
            "MACE_BaselineESD", model=model, clip=clip, concepts=chosen, method="ESD-x (cross-attention)", steps=3,
            learning_rate="1e-4", eta=1.0, start_guidance=3.0, sampling_steps=4, batch=1, width=64, height=64,
            prompt="{}", seed=0,
        )  # fmt: skip
    else:
        shown = images(gpu_host, gpu_models[name], chosen)[0]
        node = gpu_host.run(
            "MACE_BaselineFMN", model=model, clip=clip, images=shown, train="cross-attention", end_of_text=False,
            steps=3, learning_rate="1e-4", batch=1, seed=0,
        )  # fmt: skip
    assert node[0].patches and weights_hash(model) == before
    assert all(torch.isfinite(torch.tensor(node[1]["loss"])))


def test_the_whole_way_without_dynamic_memory(tmp_path):
    """On a host of its own, since one process has one memory manager: weights that moved with gradients on too."""
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
    command += ["--words", "8", "--refine", "2", "--fuse", "0", "--out", str(tmp_path / "rows.json")]
    subprocess.run(command, cwd=REPO, check=True)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert rows[0]["stage"] == "make the checkpoint" and rows[1]["manager"] == "ModelPatcher"
    assert not [row for row in rows if "error" in row]


def test_fuse_again_with_other_strengths(gpu_host, gpu_models):
    model, clip, _ = gpu_models["bf16"]
    chosen = concepts(gpu_host, LIST)
    refined = refine(gpu_host, model, clip, chosen, mu="10")[0]
    loras = train(gpu_host, clip, refined, images(gpu_host, gpu_models["bf16"], chosen)[0])[0]
    half, nothing = (fuse(gpu_host, model, loras, strengths=f"* = {value}")[0] for value in (0.5, 0))
    assert half.patches and not nothing.patches
