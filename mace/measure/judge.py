"""A small classifier that says what a picture shows: the layout of the demo model's judge (assets/demo)."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..formats.records import NAMES, SOME_NAMES, RecordError, read_record

CHANNELS = (3, 24, 48, 96, 160)
SIZE = 64


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, stride in ((inputs, 2), (outputs, 1)):
        layers += [nn.Conv2d(width, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class JudgeNetwork(nn.Module):
    """The layers of a judge of so many concepts and styles, with torch's starting weights."""

    def __init__(self, concepts: int, styles: int):
        super().__init__()
        self.f = nn.Sequential(*(_stage(a, b) for a, b in zip(CHANNELS, CHANNELS[1:], strict=False)))
        self.c = nn.Linear(CHANNELS[-1], concepts)
        self.s = nn.Linear(CHANNELS[-1], styles)

    def features(self, pictures: Tensor) -> Tensor:
        """Features [B, 160] of pictures [B, 3, SIZE, SIZE] in 0..1."""
        # What the host gives are inference tensors, which a layer that may keep its input does not take.
        return self.f(pictures.clone() * 2 - 1).mean((2, 3))


class Judge(JudgeNetwork):
    """The classifier of a safetensors file, in float32 on the CPU.

    names: its concepts, in order, from the file's metadata "concepts"; styles: its styles, from "styles".
    Raises ValueError for a file of another layout, with what is missing.
    """

    def __init__(self, path: Path):
        try:
            with safe_open(path, framework="pt") as opened:
                metadata = opened.metadata() or {}
                state = {name: opened.get_tensor(name) for name in opened.keys()}
        except SafetensorError as error:
            raise ValueError(f"{Path(path).name} is not a safetensors file or is damaged: {error}") from None
        missing = {"concepts", "styles"} - set(metadata)
        if missing:
            raise ValueError(
                f"{Path(path).name} is not a judge's file: its metadata lacks {', '.join(sorted(missing))}"
            )
        try:
            names = list(read_record(SOME_NAMES, metadata["concepts"], "concepts"))
            styles = list(read_record(NAMES, metadata["styles"], "styles"))
        except RecordError as error:
            raise ValueError(f"{Path(path).name} is not a judge's file: {error}") from None
        super().__init__(len(names), len(styles))
        self.names: list[str] = names
        self.styles: list[str] = styles
        try:
            self.load_state_dict({name: value.float() for name, value in state.items()})
        except RuntimeError as error:
            raise ValueError(f"{Path(path).name} is not a judge's file: {error}") from None
        self.eval()

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Probabilities [B, concepts] of pictures [B, 3, SIZE, SIZE] in 0..1."""
        return self.c(self.features(pictures)).softmax(-1)

    @torch.no_grad()
    def style(self, pictures: Tensor) -> Tensor:
        """Probabilities [B, styles] of the styles."""
        return self.s(self.features(pictures)).softmax(-1)

    def accuracy(self, pictures: Tensor, name: str) -> float:
        """The share of the pictures that the judge calls `name`."""
        return float((self(pictures).argmax(-1) == self.names.index(name)).float().mean())
