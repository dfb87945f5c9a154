"""Train the demo model's autoencoder, a TAESD of which eight blocks do nothing, on the icons.

    python dev.py run python -m benchmarks.demo_model.train_autoencoder

Resumable. Writes out/autoencoder.safetensors, whose tensors are those of a checkpoint's first stage.
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from devtools.compact import write_compact

from .checkpoint import VAE
from .learn import learn
from .pictures import ICONS, Icons
from .train import open_comfy

# Blocks that are not trained: with convolutions of zeros they are the last thing they do, a ReLU.
IDLE = {"taesd_encoder": (1, 4, 5, 9), "taesd_decoder": (10, 14, 15, 18)}
# SD1.5's, by which the host divides and multiplies the latents again.
SCALE = 0.18215


def untrained_taesd() -> nn.Module:
    """The host's TAESD with starting weights, without the idle blocks."""
    from comfy.taesd.taesd import TAESD

    model = TAESD()
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_uniform_(part.weight, a=1.0)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for half, blocks in IDLE.items():
        for block in blocks:
            getattr(model, half)[block] = nn.ReLU()
    return model


def whole_taesd(model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's first stage: the idle blocks are there, with zeros."""
    from comfy.taesd.taesd import TAESD

    found = {name: torch.zeros_like(tensor) for name, tensor in TAESD().state_dict().items()}
    found |= model.state_dict()
    found |= {"vae_scale": torch.tensor(SCALE), "vae_shift": torch.tensor(0.0)}
    return {VAE + name: tensor for name, tensor in found.items()}


def slopes(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours of pictures [B, 3, H, W], across and down."""
    return pictures.diff(dim=-1), pictures.diff(dim=-2)


def train_autoencoder(model: nn.Module, icons: Icons, state: Path, steps: int, batch: int) -> list[float]:
    """Train on icons, half of them on white, half of them mirrored; the latents about normal. Returns the losses."""
    torch.manual_seed(0)
    kinds, styles, grounds = icons.pictures.shape[:3]

    def step_loss() -> tuple[Tensor, float]:
        ground = torch.where(torch.rand(batch) < 0.5, 0, torch.randint(1, grounds, (batch,)))
        shown = icons.pictures[torch.randint(kinds, (batch,)), torch.randint(styles, (batch,)), ground]
        shown = torch.where((torch.rand(batch) < 0.5)[:, None, None, None], shown.flip(-1), shown)
        latents = model.taesd_encoder(shown)
        found = model.taesd_decoder(latents + 0.03 * torch.randn_like(latents))
        edges = sum((a - b).abs().mean() for a, b in zip(slopes(found), slopes(shown), strict=True))
        normal = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
        squared = (found - shown).square().mean()
        loss = (found - shown).abs().mean() + squared + 0.3 * edges + 0.01 * normal
        loss = loss + 0.05 * F.relu(latents.abs() - 3).mean()
        return loss, -10 * math.log10(float(squared.detach()))

    return learn(model, step_loss, state, steps, 1.2e-3, warm=50)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--icons", type=Path, default=ICONS)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/demo_model/out"))
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    icons = Icons.read(arguments.icons)
    open_comfy(cpu=True)
    model = untrained_taesd()
    train_autoencoder(model, icons, out / "autoencoder.pt", arguments.steps, arguments.batch)
    tensors = {name: tensor.detach().numpy() for name, tensor in whole_taesd(model).items()}
    write_compact(out / "autoencoder.safetensors", tensors, precise="")
    print(out / "autoencoder.safetensors")


if __name__ == "__main__":
    main()
