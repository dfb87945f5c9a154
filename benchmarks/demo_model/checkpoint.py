"""Whole checkpoints around the small models, as Load Checkpoint reads them.

    python dev.py run python -m benchmarks.demo_model.checkpoint sd3.safetensors checkpoints/mace_demo_sd3.safetensors

The text encoder and the autoencoder are the demo model's, in the places that the family's own checkpoints have for
them.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .compact import unpacked

WIDTH = 768
CLIP_L, VAE = "cond_stage_model.transformer.text_model.", "first_stage_model."
# SD3's latents: 16 channels, and what the host takes off and multiplies by on their way into the model.
CHANNELS, SHIFT, SCALE = 16, 0.0609, 1.5305


def sd3_checkpoint(transformer: Mapping[str, Tensor], demo: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a whole SD3 checkpoint, fp16.

    transformer: of the small SD3 by their own names.  demo: the demo model's checkpoint. Of 16 channels of latents the
    autoencoder has four; the others are written as zeros and not read.
    """
    found = {f"model.diffusion_model.{name}": tensor for name, tensor in transformer.items()}
    for name, tensor in demo.items():
        if name.startswith(CLIP_L):
            found[f"text_encoders.clip_l.transformer.text_model.{name.removeprefix(CLIP_L)}"] = tensor
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


def write(compact: Path, out: Path) -> None:
    """Write the checkpoint of a small SD3's compact file. Raises ValueError for another file."""
    from safetensors import safe_open

    with safe_open(compact, "np") as file:
        arrays, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    transformer = {name: torch.from_numpy(value) for name, value in unpacked(arrays, metadata).items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(sd3_checkpoint(transformer, load_file(os.environ["MACE_DEMO_CHECKPOINT"])), out, {"format": "pt"})


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
