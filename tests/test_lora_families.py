"""LoRAs of each family of UNets in each layout: written by the export node, read back by the host and by the import."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families import build
from tests.kinds import unet
from tests.lanes import usually
from tests.lora_node_cases import COMFYUI, KOHYA, PEFT, imported
from tests.test_refine_node import concepts, effective

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]

RANK = 3
# By kind: what kohya's files call the first and the last of its projections, in diffusers' names.
KINDS = {
    "sd15_inpaint": ("sd_v1", "epsilon"),
    "sd21": ("sd_v2_v", "v"),
    "sdxl": ("sdxl_base_v1-0", "epsilon"),
    "sdxl_refiner": (None, None),
}


# The others' layouts are crossed by these.
USUAL = ("sd15_inpaint", "sdxl")


@pytest.fixture(scope="module", params=usually(KINDS, USUAL))
def changed(request, comfy_host):
    """(kind, MODEL, the same with a change of rank RANK in all that reads its prompt, the weights' names)."""
    comfy_host.folder_paths.add_model_folder_path("loras", str(comfy_host.base / "output/loras"))
    model = unet(request.param)
    generator = torch.Generator().manual_seed(5)
    own = comfy_host.module("nodes.host.model.unet")
    state = model.model.state_dict()
    keys = own.cross_attention_keys(model)
    edited, patches = model.clone(), {}
    for key in keys:
        d_out, d = state[key].shape
        up, down = (torch.randn(*shape, generator=generator) for shape in ((d_out, RANK), (RANK, d)))
        patches[key] = ("diff", (0.1 * up @ down / d**0.5,))
    assert set(edited.add_patches(patches)) == set(keys)
    return request.param, model, edited, keys


def exported(host, base, edited, format, name) -> Path:
    """The file that the node writes."""
    out = host.run(
        "MACE_ExportLora", base=base, edited=edited, rank=RANK, format=format, filename_prefix=f"loras/{name}"
    )
    return Path(out.ui.as_dict()["text"][0].split("\n")[0])


@pytest.mark.parametrize("format", [COMFYUI, KOHYA])
def test_the_host_reads_it_back(comfy_host, changed, format):
    kind, model, edited, keys = changed
    path = exported(comfy_host, model, edited, format, f"{kind}_{format[:3]}")
    with torch.inference_mode():
        loaded, _ = comfy_host.nodes.LoraLoader().load_lora(model, None, path.name, 1.0, 0)
    assert sorted(loaded.patches) == sorted(keys)
    for key in keys:
        torch.testing.assert_close(effective(loaded, key), effective(edited, key), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", [COMFYUI, KOHYA, PEFT])
def test_the_import_reads_it_back(comfy_host, changed, format):
    kind, model, edited, keys = changed
    path = exported(comfy_host, model, edited, format, f"{kind}_again_{format[:3]}")
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    found, _ = imported(comfy_host, model, file, concepts=concepts(comfy_host, "dog -> sky"))
    lora = found.loras[0].lora
    assert sorted(lora) == sorted(keys)
    for key, (up, down) in lora.items():
        torch.testing.assert_close(up @ down, effective(edited, key) - effective(model, key), rtol=1e-4, atol=1e-5)


def test_names_and_metadata_of_kohyas_file(comfy_host, changed):
    from safetensors import safe_open

    kind, model, edited, _ = changed
    path = exported(comfy_host, model, edited, KOHYA, f"{kind}_said")
    version, predicts = KINDS[kind]
    with safe_open(path, "pt") as file:
        metadata, names = file.metadata(), list(file.keys())
    assert metadata.get("ss_base_model_version") == version
    assert metadata.get("modelspec.prediction_type") == predicts
    assert all(name.startswith(("lora_unet_down_", "lora_unet_mid_", "lora_unet_up_")) for name in names)


# Names that other programs give the first layers of SD3 and FLUX, of which they are plain linear layers.
FOREIGN = {
    "sd3": ("transformer.context_embedder", "lora_unet_context_embedder", "diffusion_model.context_embedder"),
    "flux": ("transformer.context_embedder", "lora_unet_txt_in", "diffusion_model.txt_in"),
}


@pytest.mark.parametrize("family", FOREIGN)
def test_loras_of_transformers_are_for_load_lora(comfy_host, family, tmp_path):
    """The host's loader takes them; the import says so."""
    import comfy.sd

    with pytest.MonkeyPatch.context() as patched, torch.inference_mode():
        model = build(family, patched)
    port = FOREIGN[family][2] + ".weight"
    d_out, d = model.model.state_dict()[port].shape
    folder = comfy_host.base / "output/loras"
    folder.mkdir(parents=True, exist_ok=True)
    comfy_host.folder_paths.add_model_folder_path("loras", str(folder))
    for number, name in enumerate(FOREIGN[family]):
        path = folder / f"foreign_{family}_{number}.safetensors"
        save_file({f"{name}.lora_up.weight": torch.ones(d_out, 1), f"{name}.lora_down.weight": torch.ones(1, d)}, path)
        loaded, _ = comfy.sd.load_lora_for_models(model, None, load_file(path), 1.0, 0.0)
        assert list(loaded.patches) == [port]
        with pytest.raises(ValueError, match="Load LoRA puts a LoRA of another family on its model"):
            imported(comfy_host, model, path, concepts=concepts(comfy_host, "dog -> sky"))
