"""Save Erased Model in the real host: what is in the file, and what is left after a failure."""

import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.lanes import usually
from tests.test_refine_node import concepts, effective, refine

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]
resource = pytest.importorskip("resource", reason="this system has no limit on a file's size to stand for a full disk")


@pytest.fixture(scope="module")
def refined(comfy_host, demo):
    model, clip, _ = demo
    return refine(comfy_host, model, clip, concepts(comfy_host, "airplane -> ground"), mu="10")[0]


def save(host, demo, model, prefix, dtype="as loaded"):
    out = host.run("MACE_SaveErasedModel", model=model, clip=demo[1], vae=demo[2], filename_prefix=prefix, dtype=dtype)
    (saved,) = out.ui["checkpoints"]
    return host.base / "output" / saved["subfolder"] / saved["filename"]


@pytest.mark.parametrize("dtype", usually(("as loaded", "fp16", "bf16", "fp32"), ("as loaded", "bf16")))
def test_only_the_refined_matrices_differ(comfy_host, demo, refined, demo_checkpoint, dtype):
    path = save(comfy_host, demo, refined, f"checkpoints/keys_{dtype.replace(' ', '_')}", dtype)
    saved, base = load_file(path), load_file(demo_checkpoint)
    extra = set(saved) - set(base)
    assert not set(base) - set(saved)
    assert not [name for name in extra if name.startswith("model.diffusion_model.")]
    refined_names = {"model." + name for name in refined.patches}
    for name, tensor in base.items():
        # The file's halves are exact in every format but bf16, and rounding them is one well-defined step.
        same = torch.equal(saved[name].float(), tensor.to(saved[name].dtype).float())
        assert same != (name in refined_names), name
    wanted = {"fp16": {torch.float16}, "bf16": {torch.bfloat16}, "fp32": {torch.float32}}.get(dtype)
    if wanted:
        assert {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()} == wanted


def test_the_saved_weights_are_the_patched_ones(comfy_host, demo, refined):
    saved = load_file(save(comfy_host, demo, refined, "checkpoints/patched", "fp32"))
    for name in refined.patches:
        torch.testing.assert_close(saved["model." + name], effective(refined, name), rtol=1e-6, atol=1e-7)


def test_weights_the_host_left_offloaded_are_saved_patched(comfy_host, demo, refined, monkeypatch):
    """On small devices the host hands out parameters that take their patches only in the move to the CPU."""
    from comfy import model_management

    model_management.unload_all_models()
    monkeypatch.setattr(model_management, "load_models_gpu", lambda *_, **__: None)
    with torch.inference_mode():
        kinds = {type(tensor).__name__ for tensor in refined.state_dict_for_saving().values()}
    assert "LazyCastingParam" in kinds
    saved = load_file(save(comfy_host, demo, refined, "checkpoints/offloaded", "fp32"))
    for name in refined.patches:
        torch.testing.assert_close(saved["model." + name], effective(refined, name), rtol=1e-6, atol=1e-7)


def test_no_hard_links_and_no_rename(comfy_host, monkeypatch):
    """Where a file system can do neither, nothing is left behind, not even the reserved name."""
    files = comfy_host.module("nodes.host.files")

    def refuse(*_):
        raise OSError("not supported")

    tensors = {"a": torch.zeros(2)}
    monkeypatch.setattr(files.os, "link", refuse)
    path = files.save_safetensors("folder/x", tensors, {})
    assert path.name == "x_00001_.safetensors" and load_file(path)["a"].shape == (2,)
    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="not supported"):
        files.save_safetensors("other/x", tensors, {})
    assert not path.parent.with_name("other").exists()
    assert list(path.parent.iterdir()) == [path]


def test_the_reloaded_file_samples_alike(comfy_host, demo, refined):
    path = save(comfy_host, demo, refined, "checkpoints/again", "fp32")
    model, clip, _ = comfy_host.load_checkpoint(path)
    prompt = "a photo of the airplane"
    expected = comfy_host.sample(refined, demo[1], prompt, steps=4)
    torch.testing.assert_close(comfy_host.sample(model, clip, prompt, steps=4), expected, rtol=1e-4, atol=1e-4)


def test_the_cores_own_nodes_take_the_model(comfy_host, demo, refined):
    """A merge with the base at one half, and CheckpointSave."""
    from comfy_extras.nodes_model_merging import CheckpointSave, ModelMergeSimple

    with torch.inference_mode():
        merged = ModelMergeSimple().merge(demo[0], refined, 0.5)[0]
        CheckpointSave().save(refined, demo[1], demo[2], "checkpoints/by_core")
    (path,) = (comfy_host.base / "output/checkpoints").glob("by_core*")
    saved = load_file(path)
    key = next(iter(refined.patches))
    half = (effective(demo[0], key) + effective(refined, key)) / 2
    torch.testing.assert_close(saved["model." + key], effective(refined, key), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(effective(merged, key), half, rtol=1e-4, atol=1e-6)


def test_a_full_disk_is_an_error_and_leaves_nothing(comfy_host, demo, refined):
    """The kernel refuses to let a file grow beyond 1 MB, as a full disk would."""
    folder = comfy_host.base / "output" / "new_folder"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="could not write to .*new_folder"):
            save(comfy_host, demo, refined, "new_folder/erased")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not folder.exists()


def test_outside_the_output_folder(comfy_host, demo, refined):
    before = sorted(comfy_host.base.rglob("*"))
    with pytest.raises(ValueError, match="outside the output folder"):
        save(comfy_host, demo, refined, "../elsewhere/erased")
    assert sorted(comfy_host.base.rglob("*")) == before


def test_a_damaged_model_is_not_saved(comfy_host, demo):
    model = demo[0].clone()
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    shape = model.model.state_dict()[key].shape
    model.add_patches({key: ("diff", (torch.full(shape, float("inf")),))})
    with pytest.raises(ValueError, match=r"to_k\.weight.*not finite"):
        save(comfy_host, demo, model, "checkpoints/damaged")
    assert not list((comfy_host.base / "output").rglob("*damaged*"))


def test_missing_parts_are_named(comfy_host, demo, refined):
    with pytest.raises(ValueError, match="vae input is empty"):
        comfy_host.run(
            "MACE_SaveErasedModel",
            model=refined,
            clip=demo[1],
            vae=None,
            filename_prefix="checkpoints/x",
            dtype="fp16",
        )


def test_readable_by_others_and_no_temporary_left(comfy_host, demo, refined):
    path = save(comfy_host, demo, refined, "checkpoints/mode")
    assert path.stat().st_mode & 0o444 == 0o444
    assert not list(path.parent.glob(".*.tmp"))
    with safe_open(path, framework="pt") as opened:
        assert "mace.provenance" in opened.metadata()
