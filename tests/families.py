"""Every family of diffusion models that the host knows, as small as its class allows, with random weights.

families.json has for each: the host's class (comfy.supported_models), the network's configuration, the prompt's
CONDITIONING and the latents. In it {"tuple": [...]} is a tuple, {"dtype": name} a dtype; of a prompt's parts
{"random": shape} are numbers, {"ids": shape, "below": n} tokens, {"ones": shape} a mask. "detected" is a configuration,
and a prompt where it needs another, that the host tells by a file's weights alone, for those families of which it takes
small ones.
"""

import json
import re
from pathlib import Path

import torch

FAMILIES = json.loads((Path(__file__).parent / "families.json").read_text(encoding="utf-8"))
CPU = torch.device("cpu")
NORM = re.compile(r"(^|[._])(norm|ln)", re.IGNORECASE)


def _read(value):
    if isinstance(value, list):
        return [_read(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"tuple"}:
        return tuple(_read(value["tuple"]))
    if set(value) == {"dtype"}:
        return getattr(torch, value["dtype"])
    return {name: _read(item) for name, item in value.items()}


def prompt(name: str, seed: int = 0, detected: bool = False) -> list:
    """The host's CONDITIONING of a prompt of this family, at random. detected: for `load_detected`."""
    generator = torch.Generator().manual_seed(1000 + seed)

    def part(value):
        if not isinstance(value, dict):
            return value
        if "random" in value:
            return torch.randn(value["random"], generator=generator)
        if "ids" in value:
            kind = getattr(torch, value.get("type", "int64"))
            return torch.randint(1, value["below"], value["ids"], generator=generator, dtype=kind)
        return torch.ones(value["ones"], dtype=getattr(torch, value["type"]))

    described = FAMILIES[name]["prompt"]
    if detected:
        described = FAMILIES[name]["detected"].get("prompt", described)
    tokens = described["tokens"]
    embeddings = None if tokens is None else torch.randn(1, *tokens, generator=generator)
    return [[embeddings, {"pooled_output": None, **{key: part(value) for key, value in described["extra"].items()}}]]


def latents(name: str) -> list[list[int]]:
    """The shapes of its latents."""
    return FAMILIES[name]["latents"]


def build(name: str, monkeypatch, dtype: torch.dtype = torch.float32, **sizes):
    """A MODEL of a family: the host's own class and patcher, weights of a dtype filled with random numbers.

    sizes: of the configuration, in place of the file's.
    """
    from comfy import model_management
    from comfy.model_patcher import ModelPatcher

    if name == "anima":
        # Its adapter's size is fixed in the host's code, at 140 M weights.
        import comfy.ldm.anima.model as anima

        whole, small = anima.LLMAdapter, dict(source_dim=20, target_dim=24, model_dim=24, num_layers=2, num_heads=2)
        monkeypatch.setattr(anima, "LLMAdapter", lambda **options: whole(**small, **options))
    network = _network(FAMILIES[name]["class"], FAMILIES[name], dtype, sizes)
    return ModelPatcher(network, load_device=model_management.get_torch_device(), offload_device=CPU)


def load_detected(name: str):
    """A MODEL of a family as the host loads it from a file's weights, which are all that it tells the family by."""
    import comfy.sd

    network = _network(FAMILIES[name]["class"], FAMILIES[name]["detected"], torch.float32, {})
    state = {key: weight.clone() for key, weight in network.diffusion_model.state_dict().items()}
    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})


def _network(kind: str, described: dict, dtype: torch.dtype, sizes: dict):
    import comfy.supported_models

    config = getattr(comfy.supported_models, kind)({**_read(described["config"]), **sizes})
    config.unet_config.update({**_read(described.get("more", {})), **sizes})
    config.set_inference_dtype(dtype, None)
    network = config.get_model({}, "").eval()
    fill(network.diffusion_model)
    return network


def fill(network) -> None:
    """Random weights that keep the size of what passes through: the host leaves them as memory was."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in network.state_dict().items():
            if not weight.is_floating_point() or not weight.numel():
                continue
            values = torch.randn(weight.shape, generator=generator)
            if weight.dim() < 2:
                scale = NORM.search(name) and name.endswith(("weight", "scale", "gamma"))
                values = values * 0.1 + bool(scale)
            elif "embed" not in name or name.endswith("weight") and weight.dim() == 2 and weight.shape[1] < 4096:
                values = values / weight[0].numel() ** 0.5
            weight.copy_(values)
