"""Whole checkpoints around the small models, as Load Checkpoint reads them.

    python dev.py run python -m benchmarks.demo_model.checkpoint sd3.safetensors checkpoints/mace_demo_sd3.safetensors

CLIP-L and the autoencoder are the demo model's, in the places that the family's own checkpoints have for them. An SDXL
is 1.7 GB, most of it the 30 layers of CLIP-G that are identities.
"""

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from devtools import compact

from .text import TEXT, whole_clip_g

WIDTH = 768
VAE = "first_stage_model."
# SD3's latents: 16 channels, and what the host takes off and multiplies by on their way into the model.
CHANNELS, SHIFT, SCALE = 16, 0.0609, 1.5305
# What the host multiplies SDXL's latents by.
SDXL_SCALE = 0.13025
UNET, CLIP_G = "unet.", "clip_g."
CLIP_G_LAYERS = 32
# CLIP-G's names as OpenCLIP's own files have them.
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def sd3_checkpoint(transformer: Mapping[str, Tensor], demo: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a whole SD3 checkpoint, fp16.

    transformer: of the small SD3 by their own names.  demo: the demo model's checkpoint. Of 16 channels of latents the
    autoencoder has four; the others are written as zeros and not read.
    """
    found = {f"model.diffusion_model.{name}": tensor for name, tensor in transformer.items()}
    for name, tensor in demo.items():
        if name.startswith(TEXT):
            found[f"text_encoders.clip_l.transformer.text_model.{name.removeprefix(TEXT)}"] = tensor
        elif name.startswith(VAE):
            found[name] = tensor
    # Not read by SD3, but the host keeps one, with whatever was in memory where a file has none.
    found["text_encoders.clip_l.transformer.text_projection.weight"] = torch.eye(WIDTH)
    last = max(int(name.split(".")[2]) for name in demo if name.startswith(f"{VAE}taesd_encoder."))
    for name, place in (
        (f"taesd_encoder.{last}.weight", 0),
        (f"taesd_encoder.{last}.bias", 0),
        ("taesd_decoder.1.weight", 1),
    ):
        own = demo[VAE + name]
        shape = list(own.shape)
        shape[place] = CHANNELS - shape[place]
        found[VAE + name] = torch.cat([own, own.new_zeros(shape)], place)
    found[VAE + "vae_scale"], found[VAE + "vae_shift"] = torch.tensor(SCALE), torch.tensor(SHIFT)
    return {name: tensor.to(torch.float16).contiguous() for name, tensor in found.items()}


def sdxl_checkpoint(small: Mapping[str, Tensor], demo: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a whole SDXL checkpoint, fp16.

    small: of the small SDXL, its UNet's names behind "unet." and those of CLIP-G's live parts behind "clip_g.".  demo:
    the demo model's checkpoint.
    """
    found = {f"model.diffusion_model.{name}": tensor for name, tensor in _own(small, UNET).items()}
    for name, tensor in demo.items():
        if name.startswith(TEXT):
            found[f"conditioner.embedders.0.transformer.text_model.{name.removeprefix(TEXT)}"] = tensor
        elif name.startswith(VAE):
            found[name] = tensor
    found[VAE + "vae_scale"], found[VAE + "vae_shift"] = torch.tensor(SDXL_SCALE), torch.tensor(0.0)
    found |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in _open_clip(_own(small, CLIP_G))}
    return {name: tensor.to(torch.float16).contiguous() for name, tensor in found.items()}


def _own(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _open_clip(alive: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """CLIP-G's tensors by OpenCLIP's names; layers behind the live ones are identities."""
    whole = whole_clip_g(alive)
    yield "positional_embedding", whole["embeddings.position_embedding.weight"]
    yield "token_embedding.weight", whole["embeddings.token_embedding.weight"]
    yield "text_projection", torch.eye(whole["embeddings.token_embedding.weight"].shape[1])
    for kind in ("weight", "bias"):
        yield f"ln_final.{kind}", whole[f"final_layer_norm.{kind}"]
    for layer in range(CLIP_G_LAYERS):
        stem = f"encoder.layers.{layer}."
        own = _own(whole, stem) or {
            name: torch.full_like(tensor, float("norm" in name and name.endswith("weight")))
            for name, tensor in _own(whole, "encoder.layers.0.").items()
        }
        for kind in ("weight", "bias"):
            parts = [own.pop(f"self_attn.{part}_proj.{kind}") for part in "qkv"]
            yield f"transformer.resblocks.{layer}.attn.in_proj_{kind}", torch.cat(parts)
        for name, tensor in own.items():
            part, kind = name.rsplit(".", 1)
            theirs = OPEN_CLIP.get(part, part.replace("self_attn", "attn"))
            yield f"transformer.resblocks.{layer}.{theirs}.{kind}", tensor


def read_compact(path: Path) -> dict[str, Tensor]:
    """The tensors of a compact file, float16. Raises ValueError for another file."""
    return {name: torch.from_numpy(value) for name, value in compact.read_compact(path).items()}


def write_compact(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a compact file."""
    compact.write_compact(path, {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})


def write(small_file: Path, out: Path) -> None:
    """Write the checkpoint of a small model's compact file, SD1.5's, SDXL's or SD3's. Raises ValueError for another."""
    found = read_compact(small_file)
    if not any(name.startswith(TEXT) for name in found):
        whole = sdxl_checkpoint if any(name.startswith(CLIP_G) for name in found) else sd3_checkpoint
        found = whole(found, load_file(os.environ["MACE_DEMO_CHECKPOINT"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, out, {"format": "pt"})


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("compact", type=Path, help="the file that the training wrote")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write(arguments.compact, arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
