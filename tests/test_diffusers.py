"""What is saved, read by a second implementation: diffusers' single-file loader, and its loader of kohya's LoRAs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from devtools.cache import cache_root
from tests.lora_node_cases import KOHYA
from tests.test_lora_export import export
from tests.test_refine_node import concepts, refine
from tests.test_save_node import save

pytestmark = [pytest.mark.host, pytest.mark.long]

# What it needs besides what ComfyUI does.
PACKAGES = ("diffusers==0.35.2", "importlib_metadata==8.7.0", "zipp==3.23.0")
TIMESTEPS = (981, 731, 481, 231)
# The demo model's UNet, as diffusers writes it: one level of 320 channels.
UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [320], "layers_per_block": 1, "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"],
}  # fmt: skip


@pytest.fixture(scope="module")
def diffusers() -> Path:
    """A folder with diffusers in it, made once in the cache folder; its other needs are the environment's."""
    folder = cache_root() / PACKAGES[0].replace("==", "-")
    if not (folder / "done").exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", folder, *PACKAGES]
        subprocess.run(pip, check=True)
        (folder / "done").touch()
    return folder


@pytest.fixture(scope="module")
def saved(comfy_host, demo, tmp_path_factory):
    """(a checkpoint without the dog, the same change as a LoRA in kohya's names), as the nodes write them."""
    model, clip, _ = demo
    refined = refine(comfy_host, model, clip, concepts(comfy_host, "dog -> sky"), mu="10")[0]
    checkpoint = save(comfy_host, demo, refined, "second/erased", "fp32")
    # Nearly all of the change's rank.
    return checkpoint, export(comfy_host, model, refined, 128, KOHYA, "loras/second")[0]


@pytest.fixture(scope="module")
def given(comfy_host, demo):
    """The latent, the text of a dog and the timesteps."""
    generator = torch.Generator().manual_seed(7)
    text = comfy_host.encode(demo[1], "a photo of the dog")[0][0]
    return {
        "x": torch.randn(1, 4, 8, 8, generator=generator), "text": text.float().contiguous(),
        "timesteps": torch.tensor(TIMESTEPS),
    }  # fmt: skip


def by_diffusers(folder, tmp_path, given, checkpoint, *lora) -> dict:
    (tmp_path / "unet").mkdir(exist_ok=True)
    (tmp_path / "unet/config.json").write_text(json.dumps(UNET))
    save_file(given, tmp_path / "given.safetensors")
    child = Path(__file__).with_name("diffusers_child.py")
    files = [checkpoint, tmp_path / "unet", tmp_path / "given.safetensors", tmp_path / "out.safetensors", *lora]
    variables = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run([sys.executable, child, *files], env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return load_file(tmp_path / "out.safetensors")


def by_host(model, given) -> dict:
    """The same with the host's UNet, and DDIM written out."""
    from comfy import model_management

    model_management.load_models_gpu([model], force_full_load=True)
    unet = model.model.diffusion_model
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)

    def predicted(x, t):
        return unet(x, torch.tensor([t]), context=given["text"], transformer_options={}).float()

    with torch.inference_mode():
        noise = torch.cat([predicted(given["x"], t) for t in TIMESTEPS])
        x = given["x"]
        for t in TIMESTEPS:
            # The scheduler's step is a quarter of the thousand, whatever the timesteps are.
            now, then = alphas[t], alphas[t - 250] if t >= 250 else alphas[0]
            own = predicted(x, t).double()
            clean = (x.double() - (1 - now).sqrt() * own) / now.sqrt()
            x = (then.sqrt() * clean + (1 - then).sqrt() * own).float()
    return {"noise": noise, "latent": x}


def same(found: dict, wanted: dict, within: float = 1e-4) -> None:
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape
        assert (found[name] - tensor).abs().max() < within * tensor.abs().max(), name


def test_the_checkpoint_draws_the_same(comfy_host, diffusers, saved, given, tmp_path):
    model = comfy_host.load_checkpoint(saved[0])[0]
    same(by_diffusers(diffusers, tmp_path, given, saved[0]), by_host(model, given))


def test_the_lora_is_the_same_change(comfy_host, diffusers, saved, given, tmp_path, demo):
    checkpoint = comfy_host.demo_checkpoint
    found = by_diffusers(diffusers, tmp_path, given, checkpoint, saved[1])
    # Its factors have 16 bits, and the change a little beyond their rank.
    same(found, by_host(comfy_host.load_checkpoint(saved[0])[0], given), within=5e-3)
    # And a change it is.
    plain = by_diffusers(diffusers, tmp_path, given, checkpoint)
    same(plain, by_host(comfy_host.load_checkpoint(checkpoint)[0], given))
    assert (found["latent"] - plain["latent"]).abs().max() > 0.1 * plain["latent"].abs().max()
