"""Train the demo model's judge on the icons, as they are and as the autoencoder gives them back.

    python dev.py run python -m benchmarks.demo_model.train_judge

Resumable. Writes out/judge.safetensors. The last line is one JSON object: the share it names right of all icons on
white, by how they are given.
"""

import argparse
import json
import os
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mace.measure.judge import SIZE, JudgeNetwork

from .learn import learn
from .pictures import ICONS, STYLES, Icons
from .train import autoencoder, open_comfy, with_parts

NOISES = {"clean": None, "given back": 0.0, "with noise 0.15": 0.15, "with noise 0.3": 0.3}


def _in_bytes(pictures: Tensor) -> Tensor:
    return (pictures * 255).round().to(torch.uint8)


@torch.no_grad()
def given_back(icons: Icons, vae: nn.Module) -> Tensor:
    """Pictures [4, concepts, styles, colours, 3, 64, 64] in 8 bits: the icons, and what comes of their latents by
    NOISES."""
    flat, found = icons.pictures.flatten(0, 2), [_in_bytes(icons.pictures)]
    latents = torch.cat([vae.taesd_encoder(part) for part in flat.split(32)])
    for noise in list(NOISES.values())[1:]:
        parts = (latents + noise * torch.randn_like(latents)).split(32)
        shown = torch.cat([_in_bytes(vae.taesd_decoder(part).clamp(0, 1)) for part in parts])
        found.append(shown.unflatten(0, icons.pictures.shape[:3]))
    return torch.stack(found)


def disturbed(pictures: Tensor) -> Tensor:
    """A batch [B, 3, 64, 64] with noise, moved, recoloured, and now and then small, blurred or partly covered."""
    count = len(pictures)
    found = pictures + 0.06 * torch.randn_like(pictures) * torch.rand(count, 1, 1, 1)
    found = torch.roll(found, (random.randint(-4, 4), random.randint(-4, 4)), (2, 3))
    found = found * (0.85 + 0.3 * torch.rand(count, 3, 1, 1))
    if random.random() < 0.3:
        small = F.interpolate(found, scale_factor=random.choice((0.5, 0.75)), mode="bilinear")
        found = F.interpolate(small, size=SIZE, mode="bilinear")
    if random.random() < 0.3:
        found = F.avg_pool2d(F.pad(found, (1, 1, 1, 1), mode="replicate"), 3, 1)
    if random.random() < 0.3:
        top, left = random.randint(0, SIZE - 16), random.randint(0, SIZE - 16)
        found[:, :, top : top + 16, left : left + 16] = torch.rand(1)
    return found


def train_judge(network: JudgeNetwork, shown: Tensor, state: Path, steps: int, batch: int) -> list[float]:
    """Train on pictures as `given_back` gives them, about half of them on white. Returns the losses."""
    torch.manual_seed(1)
    random.seed(1)
    ways, kinds, styles, grounds = shown.shape[:4]

    def step_loss() -> tuple[Tensor, float]:
        ground = torch.where(torch.rand(batch) < 0.47, 0, torch.randint(grounds, (batch,)))
        kind, style = torch.randint(kinds, (batch,)), torch.randint(styles, (batch,))
        pictures = shown[torch.randint(ways, (batch,)), kind, style, ground] / 255
        features = network.features(disturbed(pictures))
        named = network.c(features)
        loss = F.cross_entropy(named, kind, label_smoothing=0.05)
        loss = loss + 0.5 * F.cross_entropy(network.s(features), style)
        return loss, float((named.argmax(-1) == kind).float().mean())

    return learn(network, step_loss, state, steps, 2e-3, decay=0.05, warm=50)


@torch.no_grad()
def shares(network: JudgeNetwork, shown: Tensor) -> dict[str, float]:
    """How many of the icons on white it names right, by how they are given."""
    wanted = torch.arange(shown.shape[1]).repeat_interleave(shown.shape[2])
    found = {}
    for name, pictures in zip(NOISES, shown[:, :, :, 0], strict=True):
        named = network.c(network.features(pictures.flatten(0, 1) / 255)).argmax(-1)
        found[name] = round(float((named == wanted).float().mean()), 4)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--icons", type=Path, default=ICONS)
    parser.add_argument("--parts", type=Path, help="take autoencoder.safetensors from here, not the demo model's")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/demo_model/out"))
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    icons = Icons.read(arguments.icons)
    state = with_parts(load_file(os.environ["MACE_DEMO_CHECKPOINT"]), arguments.parts)
    open_comfy(cpu=True)
    shown = given_back(icons, autoencoder(state, torch.device("cpu")))
    network = JudgeNetwork(len(icons.concepts), len(STYLES)).train()
    train_judge(network, shown, out / "judge.pt", arguments.steps, arguments.batch)
    names = {"concepts": json.dumps(icons.concepts), "styles": json.dumps(STYLES)}
    save_file(network.state_dict(), out / "judge.safetensors", names)
    print(json.dumps(shares(network, shown)))


if __name__ == "__main__":
    main()
