"""Checkpoints with random weights (devtools.random_models): the host takes each for what it is meant to be."""

import pytest
import torch
from safetensors import safe_open

from devtools import random_models
from tests.lanes import usually

pytestmark = pytest.mark.host

# kind: (the host's model class, its configuration, width of text embeddings, width of pooled text and sizes)
EXPECTED = {
    "sd15": ("BaseModel", "SD15", 768, None),
    "sd15_inpaint": ("BaseModel", "SD15", 768, None),
    "sd21": ("BaseModel", "SD20", 1024, None),
    "sdxl": ("SDXL", "KOALA_700M", 2048, 2816),
    "ssd1b": ("SDXL", "SSD1B", 2048, 2816),
    "vega": ("SDXL", "Segmind_Vega", 2048, 2816),
    "koala": ("SDXL", "KOALA_700M", 2048, 2816),
    "sdxl_refiner": ("SDXLRefiner", "SDXLRefiner", 1280, 2560),
    "sdxl_v": ("SDXL", "KOALA_700M", 2048, 2816),
    "sdxl_edm": ("SDXL", "KOALA_700M", 2048, 2816),
    "sdxl_edm_v": ("SDXL", "KOALA_700M", 2048, 2816),
}
FULL_SIZE = {"sd15": 1.066e9, "sd21": 1.3036e9, "sdxl": 3.468e9}


# The others cross these, or are the refiner.
USUAL = ("sd15", "sd15_inpaint", "sd21", "sdxl", "sdxl_edm_v")


@pytest.fixture(scope="module", params=usually(random_models.KINDS, USUAL))
def loaded(request, comfy_host, tmp_path_factory):
    """(kind, the file, MODEL, CLIP, VAE) of each small kind."""
    path = tmp_path_factory.mktemp("random") / "model.safetensors"
    random_models.make_checkpoint(path, request.param, small=True)
    threads = torch.get_num_threads()
    # What is this small takes longer when threads wait for each other on a busy machine.
    torch.set_num_threads(1)
    yield request.param, path, *random_models.load(path, small=True)
    torch.set_num_threads(threads)
    path.unlink()


def test_detected(loaded):
    kind, _, model, clip, vae = loaded
    chosen, (cls, family, width, adm) = random_models.KINDS[kind], EXPECTED[kind]
    found = model.model.model_config
    assert (type(model.model).__name__, type(found).__name__) == (cls, family)
    assert model.model.model_type.name == chosen.model_type
    config = random_models.unet_config(kind, small=True)
    assert {key: found.unet_config[key] for key in config if key in found.unet_config} == config
    assert found.unet_config["in_channels"] == chosen.in_channels
    assert found.unet_config["adm_in_channels"] == adm and found.unet_config["context_dim"] == width
    assert (model.model.concat_keys == ("mask", "masked_image")) == (chosen.in_channels == 9)
    assert type(vae.first_stage_model).__name__ == "TAESD"


def test_draws_finite_pictures(loaded, comfy_host):
    kind, _, model, clip, vae = loaded
    encoded = comfy_host.encode(clip, "a photo of a cat")[0]
    assert torch.isfinite(encoded[0]).all() and 0.1 < encoded[0].std() < 10
    latents = comfy_host.sample(model, clip, [encoded], steps=2, sampler="euler")
    assert latents.shape == (1, 4, 8, 8) and torch.isfinite(latents).all()
    if kind == "sd15":
        assert not torch.equal(latents, comfy_host.sample(model, clip, "a photo of a dog", steps=2, sampler="euler"))
    assert torch.isfinite(comfy_host.decode(vae, latents)).all()


def test_nothing_is_missing(loaded):
    """Every weight of the host's modules is in the file, but for what true files lack too."""
    kind, path, model, clip, _ = loaded
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        assert {file.get_tensor(name).dtype for name in names if name.startswith("model.")} == {torch.float16}
    layout = random_models.layout(kind, small=True)
    assert names == set(layout)
    prefix = "model.diffusion_model."
    unet = {name[len(prefix) :] for name in names if name.startswith(prefix)}
    assert unet == set(model.model.diffusion_model.state_dict())
    saved = model.model.model_config.process_clip_state_dict_for_saving(clip.cond_stage_model.state_dict())
    assert set(saved) <= names


def test_always_the_same(comfy_host, tmp_path):
    first, second = (
        random_models.make_checkpoint(tmp_path / name, "sd15", True, torch.bfloat16, seed=3).read_bytes()
        for name in ("a", "b")
    )
    assert first == second
    key, shape = "model.diffusion_model.input_blocks.0.0.weight", torch.Size((320, 4, 3, 3))
    assert not torch.equal(random_models.filled(key, shape, 3), random_models.filled(key, shape, 4))


@pytest.mark.parametrize("kind", FULL_SIZE)
def test_full_sizes(comfy_host, kind):
    """Parameters of the published checkpoints (UNet, text encoders and VAE), from the layout alone."""
    count = sum(tensor.numel() for tensor in random_models.layout(kind, small=False).values())
    assert count == pytest.approx(FULL_SIZE[kind], rel=0.01)
