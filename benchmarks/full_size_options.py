"""The options of benchmarks/full_size.py, and the settings of its nodes that are the same in every run."""

import argparse
import os
from pathlib import Path

import torch

from devtools import random_models

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
REFINE = dict(strength=1.0, lambda1="1e-4", lambda3="0", mu="0.1", projections="both", lambda1_form="paper")
IMAGES = dict(prompt="auto", negative="", seed=0, cfg=7.0, sampler_name="euler", scheduler="normal")
TRAIN = dict(preset="paper (Table 10)", rank="auto", learning_rate="auto", loss="auto", end_of_text="auto")
TRAIN |= dict(focus="auto", projections="both", cfis=True, t1=200, t2=400, gamma=0.05, seed=0, again=False)
ALIASES = dict(words="", keep="", threshold=0.5, most=8, seed=0, neighbours=8)
FUSE = dict(method="closed form (Eq. 7)", strengths="", lambda2="auto", lambda3="auto", mu="auto")
FUSE |= dict(pull="refined weights (release)")


def read_options(about: str) -> argparse.Namespace:
    """The command line's, paths in full. about: what the program does. Ends the program for wrong ones."""
    parser = argparse.ArgumentParser(description=about)
    add = parser.add_argument
    add("--kind", choices=random_models.KINDS, default="sd15")
    add("--small", action="store_true", help="the small variant of the kind, to try this program out")
    add("--precision", choices=PRECISIONS, default="fp16", help="number format of the file")
    add("--bf16-unet", action="store_true", help="the host's option: the UNet in bf16, whatever it would choose")
    add("--size", type=int, default=512, help="width and height of the images, pixels")
    add("--images", type=int, default=8, help="images a concept")
    add("--draw-steps", type=int, default=20, help="sampling steps of the images")
    add("--words", type=int, default=300, help="other words asked of each concept; 0 for none")
    add("--concepts", type=int, nargs="*", default=[1, 10], help="how many to draw, train and fuse (up to 100)")
    add("--steps", type=int, default=50, help="training steps a concept")
    add("--side-by-side", default="auto", help="concepts in one forward pass of training")
    add("--save-memory", action="store_true", help="recompute blocks in training")
    add("--refine", type=int, nargs="*", default=[1, 10, 100], help="how many concepts to refine (up to 100)")
    add("--fuse", type=int, default=100, help="LoRAs of rank 1 with random values to fuse; 0 for none")
    add("--captions", type=int, default=200, help="captions of the prior")
    add(
        "--dynamic",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="the host's dynamic memory manager",
    )
    add("--ballast", type=float, metavar="GB", help="fill the GPU first, so that only so many GiB are free")
    add("--checkpoint", type=Path, help="the file to use, made where it is not there; default: a temporary one")
    add("--out", type=Path, help="a JSON file to keep up to date after every stage")
    add("--record", action="store_true", help="write benchmarks/results/full_size_<kind>_<device>.json")
    arguments = parser.parse_args()
    if "MACE_COMFYUI" not in os.environ:
        parser.error("MACE_COMFYUI is not set: start this with `python dev.py run python -m benchmarks.full_size`")
    for name in ("checkpoint", "out"):
        if getattr(arguments, name) is not None:
            setattr(arguments, name, getattr(arguments, name).resolve())
    return arguments
