"""How long an artist waits when a slider of Fuse LoRAs has moved: the node alone, with the demo model.

    python dev.py run python -m benchmarks.live_strengths [--runs 9]

A prompt is shown before and after at 64 pixels, two seeds, the host's usual 20 steps. First the whole of it, as when a
workflow is opened; then one strength moves and the node runs again, as the page has it run: what the base model draws
is kept, the sums too, and nothing is trained. "fusing" is the same without the pictures. Medians; the last line is one
JSON object.
"""

import argparse
import json
import tempfile
from itertools import cycle, islice
from pathlib import Path
from statistics import median

from benchmarks.erasure.bench import CLOSED_FORM, PRIOR, lend
from benchmarks.measure import load, timed
from devtools.inprocess import open_host

LORAS = "mace_demo_loras.safetensors"
PROMPT = "a photo of the dog"
STRENGTHS = (0.2, 0.9, 0.5, 0.7, 0.0, 1.0, 0.4)
SIZE = dict(width=64, height=64)
WEIGHTS = dict(method=CLOSED_FORM, lambda2="auto", lambda3="auto", mu="auto", pull="refined weights (release)")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9, help="moves of a slider")
    runs, busy = parser.parse_args().runs, load()
    with tempfile.TemporaryDirectory() as folder:
        host = open_host(Path(folder))
        for kind, name in (("mace_loras", LORAS), ("mace_priors", PRIOR)):
            lend(host, kind, name)
        model, clip, vae = host.load_checkpoint(host.demo_checkpoint)
        loras = host.run("MACE_LoadLoras", loras_name=LORAS)[0]
        prior = host.run("MACE_LoadPrior", prior_name=PRIOR)[0]
        target = loras.concepts[0].target

        def fused(strength: float, prompt: str = PROMPT):
            given = dict(
                model=model, loras=loras, prior=prior, clip=clip, vae=vae, preview_prompt=prompt, **SIZE, **WEIGHTS
            )
            return host.run("MACE_FuseLoras", strengths=f"{target} = {strength}", **given)

        first, _ = timed(fused, 0.6)
        moves = list(islice(cycle(STRENGTHS), runs))
        moved = [timed(fused, strength)[0] for strength in moves]
        alone = [timed(fused, strength, "")[0] for strength in moves]
    found = {"load at the start": busy, "concepts": len(loras.concepts), "first": round(first, 2)}
    found |= {"moved": round(median(moved), 2), "fusing": round(median(alone), 2), "runs": runs}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
