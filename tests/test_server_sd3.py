"""A transformer through the real server as an artist has it: load, erase by one node, draw, save, load again, draw."""

import io

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from benchmarks.demo_model.checkpoint import write
from devtools.cache import REPO
from tests.judge import Judge

pytestmark = pytest.mark.server

FILE = "mace_demo_sd3.safetensors"


def drawing(model, clip, vae, prompt, first):
    """Nodes that draw two pictures of a prompt; first: the number of the first node."""
    a, b, c, d, e, f = (str(first + k) for k in range(6))
    sampling = dict(seed=0, steps=10, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0)
    return {
        a: {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": prompt}},
        b: {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}},
        c: {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        d: {
            "class_type": "KSampler",
            "inputs": {"model": model, "positive": [a, 0], "negative": [b, 0], "latent_image": [c, 0], **sampling},
        },
        e: {"class_type": "VAEDecode", "inputs": {"samples": [d, 0], "vae": vae}},
        f: {"class_type": "PreviewImage", "inputs": {"images": [e, 0]}},
    }


def test_a_transformer_is_erased_from_saved_and_drawn_with(server):
    judge = Judge(REPO / "assets/demo/judge.safetensors")
    write(REPO / "assets/demo/demo_sd3.safetensors", server.base_dir / "models/checkpoints" / FILE)

    def named(result, node):
        shown = [server.client.fetch(entry) for entry in result.outputs[node]["images"]]
        pictures = torch.stack([to_tensor(Image.open(io.BytesIO(own)).convert("RGB")) for own in shown])
        return [judge.names[int(place)] for place in judge(pictures).argmax(-1)]

    loader = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": FILE}}}
    model, clip, vae = (["1", k] for k in range(3))
    concepts = {"concepts": "dog -> sky", "type": "object", "preset": "none", "prompt_file": "none"}
    erase = {"clip": clip, "vae": vae, "concepts": ["2", 0], "preset": "paper (Table 10)", "strengths": ""}
    save = {"clip": clip, "vae": vae, "filename_prefix": "checkpoints/sd3_erased", "dtype": "as loaded"}
    result = server.client.queue(
        loader
        | {
            "2": {"class_type": "MACE_Concepts", "inputs": concepts},
            "3": {
                "class_type": "MACE_EraseConcepts",
                "inputs": {"model": model, "width": 0, "height": 0, "seed": 0, **erase},
            },
            "4": {"class_type": "MACE_SaveErasedModel", "inputs": {"model": ["3", 0], **save}},
            # Nothing comes out there, and what is connected is passed over.
            "5": {
                "class_type": "MACE_SaveLoras",
                "inputs": {
                    "loras": ["3", 1],
                    "filename_prefix": "mace_loras/none",
                    "format": "set (MACE)",
                    "moments": False,
                },
            },
        }
        | drawing(model, clip, vae, "a photo of the dog", 10)
        | drawing(["3", 0], clip, vae, "a photo of the dog", 20)
        | drawing(["3", 0], clip, vae, "a photo of the ship", 30)
    )
    assert named(result, "15") == ["dog", "dog"] and named(result, "35") == ["ship", "ship"]
    assert "dog" not in named(result, "25") and "5" not in result.outputs
    assert "No LoRA is trained for this model" in result.outputs["3"]["text"][0]
    saved = result.outputs["4"]["checkpoints"][0]["filename"]
    again = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": saved}}}
    result = server.client.queue(again | drawing(model, clip, vae, "a photo of the dog", 10))
    assert "dog" not in named(result, "15")
