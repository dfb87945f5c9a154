"""Save Erased Model: what sampling nodes set is in the file as far as files can say it; the rest is named."""

import json

import pytest
import torch
from safetensors import safe_open

from benchmarks.demo_model.checkpoint import write
from devtools.cache import REPO
from tests.kinds import conditioning, latents, sampled_as, unet
from tests.lanes import usually

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]


def by(name, *settings):
    def patched(model):
        from comfy_extras import nodes_model_advanced

        return getattr(nodes_model_advanced, name)().patch(model, *settings)[0]

    return patched


# Kind of model, what a node makes of it, the markers in its file, modelspec.predict_key, whether the host reads it so.
DISCRETE = "ModelSamplingDiscrete"
CASES = {
    "sdxl": ("sdxl", None, set(), "epsilon", True),
    "sdxl to v": ("sdxl", by(DISCRETE, "v_prediction", False), {"v_pred"}, "v", True),
    "sdxl to v zsnr": ("sdxl", by(DISCRETE, "v_prediction", True), {"v_pred", "ztsnr"}, "v", True),
    "sdxl to eps": ("sdxl", by(DISCRETE, "eps", False), set(), "epsilon", True),
    "sdxl to eps zsnr": ("sdxl", by(DISCRETE, "eps", True), set(), "epsilon", False),
    "sdxl to lcm": ("sdxl", by(DISCRETE, "lcm", False), set(), None, False),
    "sdxl to x0": ("sdxl", by(DISCRETE, "x0", False), set(), None, False),
    "sdxl to edm v": (
        "sdxl",
        by("ModelSamplingContinuousEDM", "v_prediction", 80.0, 0.01),
        {"edm_vpred.sigma_max", "edm_vpred.sigma_min"},
        None,
        True,
    ),
    "sdxl to playground": (
        "sdxl",
        by("ModelSamplingContinuousEDM", "edm_playground_v2.5", 80.0, 0.002),
        {"edm_mean", "edm_std"},
        None,
        True,
    ),
    "sdxl to playground otherwise": (
        "sdxl",
        by("ModelSamplingContinuousEDM", "edm_playground_v2.5", 100.0, 0.002),
        {"edm_mean", "edm_std"},
        None,
        False,
    ),
    "sdxl to edm": ("sdxl", by("ModelSamplingContinuousEDM", "edm", 80.0, 0.002), set(), None, False),
    "sdxl to eps of edm": ("sdxl", by("ModelSamplingContinuousEDM", "eps", 120.0, 0.002), set(), None, False),
    "sdxl to continuous v": ("sdxl", by("ModelSamplingContinuousV", "v_prediction", 500.0, 0.03), set(), None, False),
    "sdxl_v": ("sdxl_v", None, {"v_pred"}, "v", True),
    "sdxl_v to eps": ("sdxl_v", by(DISCRETE, "eps", False), set(), "epsilon", True),
    "sdxl_v to zsnr": ("sdxl_v", by(DISCRETE, "v_prediction", True), {"v_pred", "ztsnr"}, "v", True),
    "sdxl_edm_v": ("sdxl_edm_v", None, {"edm_vpred.sigma_max", "edm_vpred.sigma_min"}, None, True),
    "sdxl_edm_v to v": ("sdxl_edm_v", by(DISCRETE, "v_prediction", False), {"v_pred"}, "v", True),
    "sdxl_edm": ("sdxl_edm", None, {"edm_mean", "edm_std"}, None, True),
    "sdxl_refiner": ("sdxl_refiner", None, set(), "epsilon", True),
    "sd15": ("sd15", None, set(), "epsilon", True),
    # ComfyUI does not look for it in SD1.x; other programs do.
    "sd15 to v": ("sd15", by(DISCRETE, "v_prediction", True), {"v_pred", "ztsnr"}, "v", False),
    "sd21": ("sd21", None, {"v_pred"}, "v", True),
    # SD2.x is told by its weights alone.
    "sd21 to eps": ("sd21", by(DISCRETE, "eps", False), set(), "epsilon", False),
}
MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")


def save(host, model, name, dtype="as loaded"):
    """(path, what the node says) of a diffusion model alone."""
    out = host.run(
        "MACE_SaveErasedModel", model=model, filename_prefix=f"diffusion_models/{name.replace(' ', '_')}", dtype=dtype
    )
    (saved,) = out.ui["checkpoints"]
    return host.base / "output" / saved["subfolder"] / saved["filename"], out.ui["text"][0]


def predicted(host, model, sigma=1.5):
    contexts, pooled = conditioning(model)
    x = latents()
    with torch.inference_mode():
        sigmas = torch.tensor([sigma])
        return host.module("nodes.host.model.predict").predict(model, x, sigmas, contexts, pooled)


# One of each kind of marker, and of what no file can say; the others when asked for.
USUAL = ("sdxl", "sdxl to v", "sdxl to v zsnr", "sdxl to eps zsnr", "sdxl to edm v", "sdxl to playground otherwise")
USUAL += ("sdxl_v to eps", "sdxl_edm", "sd15 to v", "sd21", "sd21 to eps")


@pytest.mark.parametrize("case", usually(CASES, USUAL))
def test_the_file_is_sampled_as_the_model_was(comfy_host, case):
    """What is in the file, without writing it: it is large."""
    import comfy.sd

    files, sampling = (comfy_host.module(f"nodes.{name}") for name in ("files.save_model", "host.model.sampling"))
    kind, patch, markers, predict_key, read = CASES[case]
    model = unet(kind) if patch is None else patch(unet(kind))
    key, extra = sampling.sampling_keys(model)
    with torch.inference_mode():
        tensors = files.checkpoint_tensors(model, None, None, None, extra)
    assert key == predict_key and {name for name in MARKERS if name in tensors} == markers
    assert sampling.samples_as_saved(model, tensors, "") == read
    with torch.inference_mode():
        loaded = comfy.sd.load_diffusion_model_state_dict(tensors)
    before, after = (m.get_model_object("model_sampling") for m in (model, loaded))
    steps = torch.tensor([0.1, 0.5, 0.9])
    sigmas = [[float(s.percent_to_sigma(float(step))) for step in steps] for s in (before, after)]
    same = torch.allclose(torch.tensor(sigmas[0]), torch.tensor(sigmas[1]), rtol=1e-3)
    pictures = [predicted(comfy_host, m) for m in (model, loaded)]
    same &= torch.allclose(*pictures, rtol=1e-3, atol=1e-3)
    same &= type(model.get_model_object("latent_format")) is type(loaded.model.latent_format)
    # What is said to be read back is, and what is said not to be is not.
    assert same == read


def test_families_that_predict_in_one_way(comfy_host, tmp_path):
    """An SD3's shift is no part of a file."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    write(REPO / "assets/demo/demo_sd3.safetensors", tmp_path / "sd3.safetensors")
    model, _, _ = comfy_host.load_checkpoint(tmp_path / "sd3.safetensors")
    for case, other, lost in (
        ("as it was", model, False),
        ("the same shift", ModelSamplingSD3().patch(model, 3.0)[0], False),
        ("another shift", ModelSamplingSD3().patch(model, 5.0)[0], True),
    ):
        path, text = save(comfy_host, other, f"sd3 {case}")
        assert ("model_sampling (CONST, ModelSamplingDiscreteFlow, shift 5" in text) == lost, case
        assert ("model_sampling" in text) == lost, case
        path.unlink()


def test_the_hosts_own_saving_of_the_same(comfy_host, demo):
    """Where the host's CheckpointSave says all there is to say, the markers are the same."""
    from comfy_extras.nodes_model_merging import save_checkpoint

    for number, kind in enumerate(("sdxl_edm_v", "sd21")):
        model = unet(kind)
        with torch.inference_mode():
            save_checkpoint(model, filename_prefix=f"by_host_{number}", output_dir=str(comfy_host.base / "output"))
        (theirs,) = (comfy_host.base / "output").glob(f"by_host_{number}*")
        ours, _ = save(comfy_host, model, f"ours_{number}")
        with safe_open(theirs, framework="pt") as one, safe_open(ours, framework="pt") as other:
            for name in MARKERS:
                assert (name in one.keys()) == (name in other.keys())
                if name in one.keys():
                    torch.testing.assert_close(one.get_tensor(name), other.get_tensor(name))
        theirs.unlink()
        ours.unlink()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_limits_of_the_noise_keep_their_precision(comfy_host, dtype):
    model = by("ModelSamplingContinuousEDM", "v_prediction", 80.0, 0.0123)(unet("sdxl"))
    path, text = save(comfy_host, model, f"limits {dtype}", dtype)
    with safe_open(path, framework="pt") as opened:
        assert opened.get_tensor("edm_vpred.sigma_min").item() == pytest.approx(0.0123, rel=1e-5)
        assert json.loads(opened.metadata()["mace.provenance"])["not_saved"] == []
    assert "model_sampling" not in text
    path.unlink()


def test_a_whole_checkpoint(comfy_host, demo):
    """SD1.x with CLIP and VAE: the markers stand at the top, and what the host will not read is said."""
    model = sampled_as(demo[0], "v_prediction", True)
    out = comfy_host.run(
        "MACE_SaveErasedModel", model=model, clip=demo[1], vae=demo[2], filename_prefix="checkpoints/v", dtype="fp16"
    )
    (saved,) = out.ui["checkpoints"]
    with safe_open(comfy_host.base / "output/checkpoints" / saved["filename"], framework="pt") as opened:
        assert {"v_pred", "ztsnr"} <= set(opened.keys())
    assert "model_sampling (V_PREDICTION, ModelSamplingDiscrete, zsnr 1" in out.ui["text"][0]


def test_what_a_file_cannot_hold_is_named(comfy_host, demo):
    from comfy.patcher_extension import WrappersMP
    from comfy_extras.nodes_freelunch import FreeU
    from comfy_extras.nodes_hypertile import HyperTile
    from comfy_extras.nodes_model_advanced import RescaleCFG

    plain, clip, vae = demo

    def saved(model, name):
        inputs = {"clip": clip, "vae": vae, "filename_prefix": f"checkpoints/{name}", "dtype": "fp16"}
        return comfy_host.run("MACE_SaveErasedModel", model=model, **inputs).ui["text"][0]

    assert "cannot hold" not in saved(plain, "plain")
    model = RescaleCFG().patch(plain, 0.7)[0]
    model = FreeU.execute(model, 1.1, 1.2, 0.9, 0.2)[0]
    model = HyperTile.execute(model, 256, 2, 0, False)[0]
    model.set_model_unet_function_wrapper(lambda apply, args: apply(args["input"], args["timestep"], **args["c"]))
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "mine", lambda executor, *args, **more: executor(*args, **more))
    model.add_object_patch("diffusion_model.out", model.model.diffusion_model.out)
    text = saved(model, "more")
    for words in (
        "sampler_cfg_function (RescaleCFG)",
        "patches output_block_patch (FreeU)",
        "patches attn1_patch (HyperTile)",
        "model_function_wrapper (test_what_a_file_cannot_hold_is_named)",
        "wrappers (test_what_a_file_cannot_hold_is_named)",
        "diffusion_model.out (Sequential)",
    ):
        assert words in text
    assert "model_sampling" not in text


def test_the_set_says_what_a_patched_model_predicts(comfy_host):
    family = comfy_host.module("nodes.host.model.family").family
    assert family(unet("sdxl")).prediction == "epsilon"
    assert family(sampled_as(unet("sdxl"), "v_prediction")).prediction == "v"
    assert family(sampled_as(unet("sdxl_v"), "eps")).prediction == "epsilon"
    assert family(sampled_as(unet("sd15"), "lcm")).prediction == "lcm"
    assert family(unet("sdxl_edm")).prediction == "edm"
    assert family(unet("sdxl_edm_v")).prediction == "v_prediction_edm"
    assert family(sampled_as(unet("sd21"), "eps")).architecture == "stable-diffusion-v2-512"
