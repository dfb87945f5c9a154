"""The baselines that train, small, for the tests of their nodes."""

from tests.stages import images
from tests.test_refine_node import concepts

SIZE = dict(width=64, height=64)
ESD = dict(
    method="ESD-x (cross-attention)",
    steps=3,
    learning_rate="3e-4",
    eta=1.0,
    start_guidance=3.0,
    sampling_steps=4,
    batch=2,
    prompt="a photo of the {}",
    seed=0,
    **SIZE,
)
AC = dict(
    train="cross-attention (to_k, to_v)",
    steps=3,
    learning_rate="3e-4",
    batch=2,
    images=3,
    sampling_steps=3,
    guidance=4.0,
    seed=0,
    **SIZE,
)
FMN = dict(train="cross-attention", end_of_text=False, steps=3, learning_rate="3e-5", batch=1, seed=0)
SETTINGS = {"ESD": ESD, "AC": AC, "FMN": FMN}


def runner(host, demo):
    """The baselines' nodes on the demo model, for the concept dog: run("ESD", model=..., steps=...)."""
    listed = concepts(host, "dog -> sky")
    shown = images(host, demo, listed)[0]

    def run(name, **settings):
        given = dict(model=demo[0], clip=demo[1], **SETTINGS[name])
        given |= dict(images=shown) if name == "FMN" else dict(concepts=listed)
        return host.run(f"MACE_Baseline{name}", **{**given, **settings})

    return run
