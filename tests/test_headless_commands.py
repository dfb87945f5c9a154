"""Each headless command on the demo model: its file, its report, what it refuses."""

import pytest
import torch

from devtools.cache import REPO
from tests.headless_runs import FEW, SMALL, same, settings_of, stage_of, tensors

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]

pytest_plugins = ["tests.headless_runs"]


def test_a_prior_a_refinement_a_training_and_a_fusion(comfy_host, headless, loaded_once, lines_of, tmp_path):
    """Each command reads what another wrote."""
    (tmp_path / "captions.txt").write_text("a cat on a mat\na red rose\na dog in a park\n")
    model = ("--model", comfy_host.demo_checkpoint)
    prior, loras, out = (tmp_path / f"{name}.safetensors" for name in ("prior", "set", "out"))
    report = headless(
        "prior",
        *model,
        "--captions",
        tmp_path / "captions.txt",
        "--preserve",
        lines_of("wolf", "keep.txt"),
        "--out",
        prior,
    )
    assert report["status"] == "done" and "3 captions (captions.txt)" in stage_of(report, "MACE_Prior")["text"][0]
    report = headless(
        "refine", *model, "--concepts", lines_of("dog -> sky"), "--prior", prior, "--lambda1", "1e-4",
        "--strength", 0.5, "--out", tmp_path / "refined.safetensors",
    )  # fmt: skip
    assert report["status"] == "done" and report["stages"][0]["node"] == "MACE_LoadPrior"
    assert settings_of(tmp_path / "refined.safetensors")["stages"][0]["strength"] == 0.5
    report = headless(
        "train", *model, "--concepts", lines_of("dog -> sky"), *FEW, "--steps", 2, "--prior", prior, "--masks", "whole",
        "--moments", "--preset", "demo model", "--out", loras,
    )  # fmt: skip
    assert report["status"] == "done", report.get("error")
    assert stage_of(report, "MACE_CFRRefine")["text"][0] == "auto: demo model (mace_demo)"
    report = headless("fuse", *model, "--loras", loras, "--strengths", "dog = 0.5", "--out", out, "--verbose")
    assert report["status"] == "done", report.get("error")

    said = "\n".join(stage_of(report, "MACE_FuseLoras")["text"])
    assert "1 concepts, 1 LoRAs" in said and "strengths below 1: dog 0.5" in said
    assert not same(out, tmp_path / "refined.safetensors")


def test_an_evaluation(comfy_host, headless, lines_of, tmp_path):
    report = headless(
        "evaluate", "--model", comfy_host.demo_checkpoint, "--erased", comfy_host.demo_checkpoint,
        "--concepts", lines_of("dog"), "--keep", lines_of("cat", "keep.txt"), *SMALL, "--steps", 2, "--seeds", 1,
        "--judge", "classifier", "--judge-file", REPO / "assets/demo/judge.safetensors", "--sheet", tmp_path / "s.png",
    )  # fmt: skip
    assert report["status"] == "done", report.get("error")
    assert report["results"]["same model"] and report["results"]["top-1"]["Acc_s"]
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG" and report["table"][0].startswith("judge: ")


@pytest.mark.parametrize(
    "more, said",
    [
        (("--model", "nowhere.safetensors"), "--model: there is no file nowhere.safetensors, and none of that name in"),
        (("--preset", "mace"), "preset: 'mace' is "),
        (("--gentle-strong", 2), "gentle_strong: 2.0 is not within -1.0 and 1.0"),
        (("--clip-type", "sd9"), "--clip-type: 'sd9' is none of stable_diffusion"),
        (("--lora-format", "PEFT"), "--lora-format: PEFT is a folder"),
    ],
)
def test_settings_are_checked_before_a_model_is_opened(
    comfy_host, headless, lines_of, tmp_path, monkeypatch, more, said
):
    monkeypatch.setattr("headless.session.load", None)
    given = ("--model", comfy_host.demo_checkpoint, "--concepts", lines_of("dog"), "--out", tmp_path / "o.safetensors")
    report = headless("erase", *given, *more)
    assert report["exit_code"] == 2 and said in report["error"]


def test_an_estimate_alone(comfy_host, headless, short, lines_of, tmp_path):
    report = headless(
        "erase", "--model", comfy_host.demo_checkpoint, "--concepts", lines_of("a teapot"), *SMALL, "--estimate-only",
        "--out", tmp_path / "o.safetensors", "--json-progress",
    )  # fmt: skip
    assert report["status"] == "done" and report["files"] == {} and report["native_side"] == 512
    assert "1 of 1 concepts are to be trained" in report["estimate"]["lines"][0]
    estimate = next(line for line in headless.lines if line["event"] == "estimate")
    assert estimate["seconds"] == report["estimate"]["seconds"] and estimate["seconds"]["training"] > 0
    assert "MACE_EraseConcepts" not in [stage["node"] for stage in report["stages"]]


def test_a_file_that_is_no_model(comfy_host, headless, lines_of, tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "no.safetensors")
    report = headless(
        "refine",
        "--model",
        tmp_path / "no.safetensors",
        "--concepts",
        lines_of("dog"),
        "--out",
        tmp_path / "o.safetensors",
    )
    assert report["exit_code"] == 2 and report["error"].startswith("no.safetensors: ")


@pytest.mark.long
def test_a_diffusion_model_with_a_text_encoder_beside_it(comfy_host, headless, lines_of, tmp_path):
    """What is read as a diffusion model is written as one, refined as in its checkpoint; a missing --clip is said."""
    from safetensors.torch import save_file

    whole = tensors(comfy_host.demo_checkpoint)
    for name, prefix in (("unet", "model.diffusion_model."), ("clip", "cond_stage_model.transformer.")):
        own = {key.removeprefix(prefix): tensor for key, tensor in whole.items() if key.startswith(prefix)}
        save_file(own, tmp_path / f"{name}.safetensors")
    out, checkpoint = tmp_path / "out.safetensors", tmp_path / "checkpoint.safetensors"
    given = ("--concepts", lines_of("dog -> sky"), "--dtype", "fp32")
    alone = ("refine", "--model", tmp_path / "unet.safetensors", *given, "--out", out)
    report = headless(*alone)
    assert report["exit_code"] == 2
    assert report["error"].startswith("unet.safetensors holds no text encoder: name its files with --clip")
    report = headless(*alone, "--clip", tmp_path / "clip.safetensors")
    assert report["status"] == "done", report.get("error")
    assert headless("refine", "--model", comfy_host.demo_checkpoint, *given, "--out", checkpoint)["status"] == "done"
    found, expected = tensors(out), tensors(checkpoint)
    changed = 0
    for key, tensor in found.items():
        assert torch.allclose(tensor, expected[f"model.diffusion_model.{key}"], rtol=0, atol=1e-4), key
        changed += not torch.equal(tensor, whole[f"model.diffusion_model.{key}"].float())
    assert changed == 8
