"""The icons' file: pictures with transparency of every thing and scene in two styles.

    npm pack --pack-destination icons @iconify-json/noto@1.2.9 @iconify-json/twemoji@1.2.5
    python dev.py run python -m benchmarks.demo_model.icons icons

The folder holds those two archives, which must be the pinned ones, or folders noto/ and twemoji/ of SVG or PNG files
named like the icons in them (delivery-truck.svg), other pictures as well as those. SVG is drawn by CairoSVG, see
requirements.txt in this folder. Noto Emoji: Google, Apache-2.0. Twemoji: Twitter, Inc and other contributors, CC BY
4.0.
"""

import argparse
import base64
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.pictures import vocabulary

SIZE, LARGE = 64, 256
STYLES = {"Noto": "noto", "Twemoji": "twemoji"}
ARCHIVES = {
    "noto": (
        "iconify-json-noto-1.2.9.tgz",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "twemoji": (
        "iconify-json-twemoji-1.2.5.tgz",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
}
# Icons that are not called what the model calls the thing.
CALLED = {
    "truck": "delivery-truck",
    "cheese": "cheese-wedge",
    "book": "open-book",
    "gift": "wrapped-gift",
    "clown": "clown-face",
}
# Of the scenes, which are put together here: the skies' blue, two browns of the ground, and so on, by style.
SKIES = {"Noto": (80, 160, 235), "Twemoji": (110, 190, 250)}
SOILS = {"Noto": ((150, 110, 70), (95, 65, 40)), "Twemoji": ((165, 120, 75), (105, 70, 40))}
STONES = ((120, 85, 55, 255), (185, 150, 110, 255), (90, 62, 38, 255))
ROADS = {"Noto": (90, 90, 95, 255), "Twemoji": (80, 80, 88, 255)}
MEADOWS = {"Noto": ((175, 215, 150), (70, 120, 60)), "Twemoji": ((160, 210, 160), (60, 115, 70))}
CLOUDS = ((4, 8, 22), (34, 20, 26), (12, 38, 20))
TREES = ((-4, 6, 26), (18, 2, 26), (40, 5, 26), (6, 26, 28), (30, 28, 28), (-8, 32, 26), (46, 30, 24))


def icon_name(thing: str) -> str:
    """What the icon of a thing is called in the sets."""
    return CALLED.get(thing, thing).replace(" ", "-")


def _draw(svg: bytes) -> Image.Image:
    try:
        import cairosvg
    except ImportError:
        raise SystemExit("SVG needs CairoSVG: see requirements.txt in benchmarks/demo_model") from None
    return Image.open(io.BytesIO(cairosvg.svg2png(svg, output_width=LARGE, output_height=LARGE)))


def open_archive(path: Path, digest: str) -> Callable[[str], Image.Image]:
    """What draws an icon of an npm archive of @iconify-json. Raises ValueError unless its SHA-512 is `digest`."""
    content = path.read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != digest:
        raise ValueError(f"{path} is not the pinned archive")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        found = json.load(archive.extractfile("package/icons.json"))

    def draw(name: str) -> Image.Image:
        icon = found["icons"].get(name) or found["icons"][found["aliases"][name]["parent"]]
        across, down = (icon.get(side, found.get(side, 32)) for side in ("width", "height"))
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {across} {down}" width="{LARGE}" height="{LARGE}">{icon["body"]}</svg>'
        )
        return _draw(svg.encode())

    return draw


def open_folder(folder: Path) -> Callable[[str], Image.Image]:
    """What draws an icon of a folder of SVG and PNG files. Raises FileNotFoundError where neither is there."""

    def draw(name: str) -> Image.Image:
        if (folder / f"{name}.svg").exists():
            return _draw((folder / f"{name}.svg").read_bytes())
        return Image.open(folder / f"{name}.png")

    return draw


def open_set(folder: Path, name: str) -> Callable[[str], Image.Image]:
    """What draws an icon of the set `name`: from its folder, else from its archive."""
    if (folder / name).is_dir():
        return open_folder(folder / name)
    return open_archive(folder / ARCHIVES[name][0], ARCHIVES[name][1])


def _sized(picture: Image.Image, size: int) -> Image.Image:
    return picture.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)


def _shade(top: tuple, bottom: tuple) -> Image.Image:
    shares = np.arange(SIZE)[:, None, None] / (SIZE - 1)
    rows = (np.array(top) * (1 - shares) + np.array(bottom) * shares).astype(np.uint8)
    return Image.fromarray(np.repeat(rows, SIZE, 1)).convert("RGBA")


def draw_scenes(style: str, icon: Callable[[str], Image.Image]) -> dict[str, Image.Image]:
    """Sky, ground, street and forest of a style, put together from its icons. icon: one of them, SIZE across."""
    places = random.Random(list(STYLES).index(style))
    sky = _shade(SKIES[style], (215, 238, 252))
    for x, y, size in CLOUDS:
        at = (x + places.randint(-3, 3), y + places.randint(-3, 3))
        sky.alpha_composite(_sized(icon("cloud"), size), at)
    ground = _shade(*SOILS[style])
    brush = ImageDraw.Draw(ground)
    for _ in range(26):
        x, y, across = places.randint(0, 60), places.randint(0, 60), places.randint(2, 6)
        brush.ellipse([x, y, x + across, y + across // 2 + 1], fill=places.choice(STONES))
    street = _shade((190, 215, 235), (225, 235, 240))
    brush = ImageDraw.Draw(street)
    brush.rectangle([0, 40, SIZE - 1, SIZE - 1], fill=ROADS[style])
    for x in range(2, SIZE, 14):
        brush.rectangle([x, 50, x + 7, 52], fill=(240, 220, 120, 255))
    for x, name in ((0, "house"), (22, "school"), (42, "house")):
        street.alpha_composite(_sized(icon(name), 22), (x, 19))
    forest = _shade(*MEADOWS[style])
    for x, y, size in TREES:
        layer = Image.new("RGBA", (SIZE, SIZE))
        layer.paste(_sized(icon("evergreen tree"), size), (x, y))
        forest.alpha_composite(layer)
    return {"sky": sky, "ground": ground, "street": street, "forest": forest}


def make_icons(folder: Path, things: list[str]) -> dict[str, np.ndarray]:
    """The arrays of an icons' file, in order of names: rgba [N, 64, 64, 4] uint8, concept [N] and style [N].

    The scenes are there when what they are made from is.
    """
    found = {}
    for style, name in STYLES.items():
        draw = open_set(folder, name)
        icons = {thing: _sized(draw(icon_name(thing)), SIZE) for thing in things}
        found |= {(thing, style): picture for thing, picture in icons.items()}
        if {"cloud", "house", "school", "evergreen tree"} <= set(things):
            found |= {(scene, style): picture for scene, picture in draw_scenes(style, icons.__getitem__).items()}
    keys = sorted(found)
    rgba = np.stack([np.asarray(found[key]) for key in keys])
    return {"rgba": rgba, "concept": np.array([key[0] for key in keys]), "style": np.array([key[1] for key in keys])}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with the two archives, or with folders noto/ and twemoji/")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/demo_model/out/icons.npz"))
    parser.add_argument("--outlines", type=Path, help="write the things in the style Noto here too")
    arguments = parser.parse_args()
    words = vocabulary()
    arrays = make_icons(arguments.folder, words["concepts"])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out, **arrays)
    if arguments.outlines:
        own = (arrays["style"] == "Noto") & ~np.isin(arrays["concept"], words["scenes"])
        rgba = arrays["rgba"][own]
        # What is not seen has no colour, which takes less room.
        rgba = np.where(rgba[..., 3:] > 0, rgba, 0)
        np.savez_compressed(arguments.outlines, rgba=rgba, concept=arrays["concept"][own])
    print(f"{arguments.out}: {len(arrays['rgba'])} pictures")


if __name__ == "__main__":
    main()
