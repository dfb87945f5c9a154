"""Graphs in the API's form, as the tests queue them."""

import json
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
CHECKPOINT = "mace_demo.safetensors"
# Pictures that a workflow draws at a time where they only have to appear.
FEW = 2


# The templates that every checkpoint runs, and those that draw with the demo model.
TEMPLATES, DEMO_TEMPLATES = REPO / "example_workflows", REPO / "assets/demo/example_workflows"


def workflow(name: str) -> dict:
    """An example workflow as it is shipped."""
    folder = next(folder for folder in (TEMPLATES, DEMO_TEMPLATES) if (folder / f"{name}.json").exists())
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def drawn_quickly(workflow: dict) -> dict:
    """The workflow with hardly any sampling and FEW pictures at a time, where they only have to appear."""
    for node in workflow["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][2] = 2
        if node["type"] == "EmptyLatentImage":
            node["widgets_values"][2] = FEW
    return workflow


def only(workflow: dict, *kinds: str) -> dict:
    """The workflow with its nodes of these types alone, and the links between them."""
    workflow["nodes"] = [node for node in workflow["nodes"] if node["type"] in kinds]
    ids = {node["id"] for node in workflow["nodes"]}
    workflow["links"] = [link for link in workflow["links"] if {link[1], link[3]} <= ids]
    left = {link[0] for link in workflow["links"]}
    for node in workflow["nodes"]:
        for entry in node["inputs"]:
            entry["link"] = entry.get("link") if entry.get("link") in left else None
        for output in node["outputs"]:
            output["links"] = [link for link in output["links"] if link in left]
    return workflow


def asked_for(workflow: dict, kind: str, output: str) -> dict:
    """The workflow with a node of the core's that shows an output of the node of a type, so that it runs."""
    source = next(node for node in workflow["nodes"] if node["type"] == kind)
    slot, own = next((slot, own) for slot, own in enumerate(source["outputs"]) if own["name"] == output)
    own["links"] = [*(own["links"] or []), 90]
    workflow["nodes"].append(
        {
            "id": 90,
            "type": "PreviewAny",
            "pos": [1200, 60],
            "size": [300, 200],
            "inputs": [{"name": "source", "type": "*", "link": 90}],
            "outputs": [{"name": "STRING", "type": "STRING", "links": []}],
            "properties": {},
            "widgets_values": [],
        }
    )
    workflow["links"].append([90, source["id"], slot, 90, 0, own["type"]])
    return workflow


def node(kind: str, **inputs) -> dict:
    """One node. Inputs are values, or (node id, slot) for a link."""
    linked = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
    return {"class_type": kind, "inputs": linked}


def refine(mu: str = "10", concepts: str = "airplane -> ground", **settings) -> dict:
    """Loader 1, concepts 2, refinement 3. Nothing in it is an output."""
    chosen = dict(strength=1.0, lambda1="auto", lambda3="auto", mu=mu, projections="both", lambda1_form="paper")
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "2": node("MACE_Concepts", concepts=concepts, type="object", preset="none", prompt_file="none"),
        "3": node("MACE_CFRRefine", model=("1", 0), clip=("1", 1), concepts=("2", 0), **{**chosen, **settings}),
    }


def sample(graph: dict, first: int, model: tuple, loader: str = "1", prompt: str = "a photo of the airplane") -> dict:
    """The graph with a txt2img chain behind `model`; the latents are saved by node first + 4."""
    a, b, c, d, e = (str(first + i) for i in range(5))
    return {
        **graph,
        a: node("CLIPTextEncode", clip=(loader, 1), text=prompt),
        b: node("CLIPTextEncode", clip=(loader, 1), text=""),
        c: node("EmptyLatentImage", width=64, height=64, batch_size=2),
        d: node(
            "KSampler",
            model=model,
            positive=(a, 0),
            negative=(b, 0),
            latent_image=(c, 0),
            seed=3,
            steps=6,
            cfg=4.0,
            sampler_name="ddim",
            scheduler="normal",
            denoise=1.0,
        ),
        e: node("SaveLatent", samples=(d, 0), filename_prefix="latents/test"),
    }


def save(model: tuple = ("3", 0), prefix: str = "checkpoints/test", dtype: str = "as loaded") -> dict:
    """A Save Erased Model node."""
    return node("MACE_SaveErasedModel", model=model, clip=("1", 1), vae=("1", 2), filename_prefix=prefix, dtype=dtype)
