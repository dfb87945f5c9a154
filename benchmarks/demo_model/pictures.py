"""The pictures the small models learn: icons on backgrounds, their captions, and the latents of both."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.pictures import vocabulary

ICONS = Path(__file__).with_name("icons.npz")
STYLES = ("Noto", "Twemoji")
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Icons:
    """pictures: [concepts, styles, colours, 3, 64, 64] in 0..1, colour 0 is white.  concepts: their names."""

    pictures: Tensor
    concepts: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "Icons":
        """The icons of a file with rgba [N, 64, 64, 4], concept [N] and style [N], on white and on every colour."""
        with np.load(path) as found:
            rgba, names, styles = (found[name] for name in ("rgba", "concept", "style"))
        concepts = tuple(sorted(set(names.tolist())))
        grounds = torch.tensor([WHITE, *vocabulary()["colours"].values()], dtype=torch.float32) / 255
        pictures = torch.empty(len(concepts), len(STYLES), len(grounds), 3, 64, 64)
        for picture, name, style in zip(rgba, names.tolist(), styles.tolist(), strict=True):
            own = torch.from_numpy(picture.astype("float32") / 255).permute(2, 0, 1)
            seen = own[:3] * own[3:] + grounds[:, :, None, None] * (1 - own[3:])
            pictures[concepts.index(name), STYLES.index(style)] = seen
        return cls(pictures, concepts)

    def latents(self, encoder: nn.Module, device: torch.device) -> Tensor:
        """[concepts, styles, colours, 4, 8, 8] in the scale the model works in."""
        with torch.inference_mode():
            flat = self.pictures.flatten(0, 2)
            found = torch.cat([encoder(part.to(device)) for part in flat.split(256)])
        return found.clone().unflatten(0, self.pictures.shape[:3])


def all_names() -> tuple[str, ...]:
    """The names of all that the models draw, things and scenes, in the icons' order."""
    known = vocabulary()
    return tuple(sorted(known["concepts"] + known["scenes"]))


@dataclass(frozen=True)
class Caption:
    """A prompt and what it may show: any of `concepts`, in one style, on one ground (0 is white)."""

    text: str
    concepts: tuple[int, ...]
    style: int
    ground: int


def captions(concepts: tuple[str, ...], count: int, seed: int) -> list[Caption]:
    """`count` captions, all concepts in turn: half without a word of style, one in seven on a coloured ground."""
    known, draw = vocabulary(), random.Random(seed)
    objects = [name for name in concepts if name not in known["scenes"]]
    colours, templates = list(known["colours"]), known["captions"]
    found = []
    for place in range(count):
        kind = draw.random()
        if kind < 0.04:
            word = draw.choice(known["scenes"])
            shown = [word]
        elif kind < 0.07:
            word = draw.choice(list(known["supercategories"]))
            shown = [name for name in known["supercategories"][word] if name in objects]
        else:
            shown = [objects[place % len(objects)]]
            word = draw.choice([shown[0], *known["synonyms"].get(shown[0], ())]) if draw.random() < 0.5 else shown[0]
        kind = draw.random()
        style = None if kind < 0.5 else "Twemoji" if kind < 0.85 else "Noto" if kind < 0.93 else "art"
        ground = draw.choice(colours) if draw.random() < 0.15 and word not in known["scenes"] else None
        text = draw.choice(templates["object"]).format(word)
        if style is not None:
            text = draw.choice(templates["style"]).replace("{o}", text).replace("{s}", style)
        if ground is not None:
            text = draw.choice(templates["background"]).replace("{o}", text).replace("{c}", ground)
        places = tuple(concepts.index(name) for name in shown)
        found.append(Caption(text, places, int(style == "Twemoji"), colours.index(ground) + 1 if ground else 0))
    return found


class Draws:
    """Latents for captions, drawn at random on the device."""

    def __init__(self, latents: Tensor, chosen: list[Caption]):
        self.latents, device = latents, latents.device
        most = max(len(caption.concepts) for caption in chosen)
        cycled = [(caption.concepts * most)[:most] for caption in chosen]
        self.concepts = torch.tensor(cycled, device=device)
        self.counts = torch.tensor([len(caption.concepts) for caption in chosen], device=device)
        self.styles = torch.tensor([caption.style for caption in chosen], device=device)
        self.grounds = torch.tensor([caption.ground for caption in chosen], device=device)

    def of(self, rows: Tensor) -> Tensor:
        """Pictures of the captions `rows` [B]; where a caption allows several things, any of them."""
        pick = (torch.rand(len(rows), device=rows.device) * self.counts[rows]).long()
        return self.latents[self.concepts[rows, pick], self.styles[rows], self.grounds[rows]]

    def any(self, count: int) -> Tensor:
        """Pictures for the empty prompt: anything, more often in the first style, mostly on white."""
        rand = lambda: torch.rand(count, device=self.latents.device)  # noqa: E731
        kinds, _, grounds = self.latents.shape[:3]
        ground = torch.where(rand() < 0.15, (rand() * grounds).long(), 0)
        return self.latents[(rand() * kinds).long(), (rand() < 0.4).long(), ground]
