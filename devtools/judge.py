"""The demo model's judge: which of its 210 concepts a 64x64 picture shows, and in which style."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

CHANNELS = (3, 24, 48, 96, 160)


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, stride in ((inputs, 2), (outputs, 1)):
        layers += [nn.Conv2d(width, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class Judge(nn.Module):
    """The classifier of assets/demo. names: its concepts, in order; styles: its styles."""

    def __init__(self, path: Path):
        super().__init__()
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
            state = {name: opened.get_tensor(name).float() for name in opened.keys()}
        self.names: list[str] = json.loads(metadata["concepts"])
        self.styles: list[str] = json.loads(metadata["styles"])
        self.f = nn.Sequential(*(_stage(a, b) for a, b in zip(CHANNELS, CHANNELS[1:], strict=False)))
        self.c = nn.Linear(CHANNELS[-1], len(self.names))
        self.s = nn.Linear(CHANNELS[-1], len(self.styles))
        self.load_state_dict(state, strict=False)
        self.eval()

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Probabilities [B, 210] of pictures [B, 3, 64, 64] in 0..1."""
        features = self.f(pictures.clone() * 2 - 1).mean((2, 3))
        return self.c(features).softmax(-1)

    @torch.no_grad()
    def style(self, pictures: Tensor) -> Tensor:
        """Probabilities [B, 2] of the styles."""
        return self.s(self.f(pictures.clone() * 2 - 1).mean((2, 3))).softmax(-1)

    def accuracy(self, pictures: Tensor, name: str) -> float:
        """The share of the pictures that the judge calls `name`."""
        return float((self(pictures).argmax(-1) == self.names.index(name)).float().mean())
