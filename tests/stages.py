"""The stages of an erasure on the demo model, small, for the tests of the nodes."""

import torch

from tests.test_refine_node import refine

IMAGES = dict(
    prompt="auto",
    negative="",
    count=2,
    width=64,
    height=64,
    seed=0,
    steps=4,
    cfg=4.0,
    sampler_name="ddim",
    scheduler="normal",
)
TRAIN = dict(
    preset="paper (Table 10)",
    rank="2",
    steps="3",
    learning_rate="3e-3",
    loss="auto",
    end_of_text="auto",
    focus="auto",
    projections="both",
    cfis=True,
    t1=200,
    t2=400,
    gamma=0.05,
    seed=0,
    side_by_side="auto",
    save_memory=False,
)
FUSE = dict(
    method="closed form (Eq. 7)",
    strengths="",
    lambda2="auto",
    lambda3="auto",
    mu="auto",
    pull="refined weights (release)",
)


def images(host, demo, chosen, **settings):
    """The images of a list of concepts, by its node."""
    model, clip, vae = demo
    return host.run("MACE_ConceptImages", model=model, clip=clip, vae=vae, concepts=chosen, **{**IMAGES, **settings})


def train(host, clip, refined, shown, **settings):
    """The erasure LoRAs of images, by their node."""
    return host.run("MACE_TrainErasureLora", model=refined, clip=clip, images=shown, **{**TRAIN, **settings})


def fuse(host, model, loras, **settings):
    """The fused model, by its node."""
    return host.run("MACE_FuseLoras", model=model, loras=loras, **{**FUSE, **settings})


def stages(host, demo, chosen, **settings):
    """(refined MODEL, refinement, images, LoraSet) of a list of concepts."""
    model, clip, _ = demo
    refined, refinement = refine(host, model, clip, chosen, mu="10").result
    shown = images(host, demo, chosen)[0]
    return refined, refinement, shown, train(host, clip, refined, shown, **settings)[0]


def delta_of(model, key):
    """The sum of a MODEL's own patches on a weight, float32."""
    found = [strength * patch[1][0].float() for strength, patch, *_ in model.patches[key]]
    return torch.stack(found).sum(dim=0)


def report(node) -> str:
    """What a node says of its run."""
    ui = node.ui if isinstance(node.ui, dict) else node.ui.as_dict()
    return "\n".join(ui["text"])


def short_of_memory(model, fits: int):
    """(a MODEL that runs out of memory with more than `fits` latents at once, how many it was asked for each time)."""
    made, asked = model.clone(), []

    def wrapper(apply, given):
        asked.append(len(given["input"]))
        if asked[-1] > fits:
            raise torch.cuda.OutOfMemoryError("no memory")
        return apply(given["input"], given["timestep"], **given["c"])

    made.set_model_unet_function_wrapper(wrapper)
    return made, asked
