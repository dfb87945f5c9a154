"""The small denoisers in the layouts of the host's own classes: SD1.5's and SDXL's UNets and SD3's transformer.

All draw 8x8 latents. Blocks that so small a model does not need are there, since the host tells the family by them,
but they are identities, are not trained and take no room in the file (see .compact).
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# One level alone: 8x8 latents leave no room for others.
SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
    "use_checkpoint": False,
}

# KOALA's depths, the least that the host takes for SDXL.
SDXL = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [0, 2, 5],
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "num_heads": -1,
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
    "use_checkpoint": False,
}
# Blocks of it that do nothing: the second and later transformers of a block, the middle, and two outputs.
SDXL_IDLE_TRANSFORMERS = (
    r"(input_blocks\.3\.1|input_blocks\.5\.1)\.transformer_blocks\.[1-9]\.|(output_blocks\.[13]|middle_block)\.1\."
)
SDXL_IDLE_RESIDUALS = r"(middle_block\.[02]|input_blocks\.5\.0|output_blocks\.[13]\.0)\."
SDXL_LIVE_UNITS = 320
# Where parts of the demo model's UNet begin in it.
SDXL_FROM_DEMO = {
    "time_embed": "time_embed", "input_blocks.0": "input_blocks.0", "input_blocks.1.0": "input_blocks.1.0",
    "input_blocks.3.1": "input_blocks.1.1", "input_blocks.5.1": "middle_block.1",
    "output_blocks.0.1": "output_blocks.1.1", "output_blocks.2.1": "output_blocks.0.1",
    "output_blocks.4.0": "output_blocks.0.0", "output_blocks.5.0": "output_blocks.1.0", "out": "out",
}  # fmt: skip

SD3_DEPTH = 5
SD3 = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "depth": SD3_DEPTH,
    "adm_in_channels": 2048,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 64 * SD3_DEPTH},
    },
    "num_patches": 256,
    "pos_embed_max_size": 16,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
}


def _initialise(network: nn.Module) -> None:
    """Torch's usual starting weights; the host's own classes start from whatever is in memory."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.Linear.reset_parameters(module)
        elif isinstance(module, nn.Conv2d):
            nn.Conv2d.reset_parameters(module)
        else:
            for name, parameter in module.named_parameters(recurse=False):
                nn.init.ones_(parameter) if name == "weight" else nn.init.zeros_(parameter)


def _zero(network: nn.Module, pattern: str) -> None:
    for name, parameter in network.named_parameters():
        if re.search(pattern, name):
            nn.init.zeros_(parameter)


def sd15_unet(device: torch.device) -> nn.Module:
    """The demo model's own UNet with starting weights."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(**SD15, dtype=torch.float32, device=device, operations=comfy.ops.disable_weight_init)
    _initialise(unet)
    with torch.no_grad():
        _zero(unet, r"out_layers\.3\.")
    return unet


def sdxl_unet(demo: Mapping[str, Tensor], device: torch.device) -> nn.Module:
    """The UNet with the weights it starts from, the demo model's where it has such a part; identities are frozen.

    demo: the demo model's UNet by its own names. Of its places it has all attention at 8x8, which are none here.
    """
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(**SDXL, dtype=torch.float32, device=device, operations=comfy.ops.disable_weight_init)
    _initialise(unet)
    with torch.no_grad():
        _zero(unet, r"out_layers\.3\.|^label_emb\.0\.2\.")
        for own, theirs in SDXL_FROM_DEMO.items():
            _transplant(unet.get_submodule(own), demo, theirs + ".")
        for name, module in unet.named_modules():
            if re.match(SDXL_IDLE_TRANSFORMERS, name + "."):
                for parameter in module.parameters(recurse=False):
                    nn.init.zeros_(parameter)
                if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                    nn.init.ones_(module.weight)
            elif name.endswith("ff.net.2"):
                module.weight[:, SDXL_LIVE_UNITS:] = 0
                proj = unet.get_submodule(name.removesuffix("net.2") + "net.0.proj")
                half = proj.weight.shape[0] // 2
                for start in (SDXL_LIVE_UNITS, half + SDXL_LIVE_UNITS):
                    proj.weight[start : start + half - SDXL_LIVE_UNITS] = 0
                    proj.bias[start : start + half - SDXL_LIVE_UNITS] = 0
        for name in ("output_blocks.0.0", "output_blocks.2.0"):
            _hand_on(unet.get_submodule(name).skip_connection)
        _idle_residuals(unet)
        _plain_resampling(unet)
        # The sizes are not read; pooled text is.
        unet.label_emb[0][0].weight[:, 1280:] = 0
    for name, parameter in unet.named_parameters():
        idle = re.match(SDXL_IDLE_TRANSFORMERS, name) or re.match(SDXL_IDLE_RESIDUALS, name)
        parameter.requires_grad_(not (idle or re.search(r"^input_blocks\.[24]\.0\.op\.|\.2\.conv\.", name)))
    return unet


def _idle_residuals(unet: nn.Module) -> None:
    """Residual blocks that hand on their input, of what a skip adds to it nothing."""
    for name, module in unet.named_modules():
        if re.fullmatch(SDXL_IDLE_RESIDUALS, name + "."):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
            for norm in (module.in_layers[0], module.out_layers[0]):
                nn.init.ones_(norm.weight)
            if isinstance(module.skip_connection, nn.Conv2d):
                _hand_on(module.skip_connection)


def _hand_on(skip: nn.Conv2d) -> None:
    """Let a 1x1 convolution give its first channels as they are."""
    weight = nn.init.zeros_(skip.weight)
    nn.init.zeros_(skip.bias)
    weight[:, : weight.shape[0], 0, 0] = torch.eye(weight.shape[0], device=weight.device)


def _transplant(module: nn.Module, demo: Mapping[str, Tensor], prefix: str) -> None:
    """Take over the weights that begin with `prefix`; where the module's are wider, the rest is zero."""
    for name, parameter in module.named_parameters():
        if prefix + name in demo:
            own = demo[prefix + name]
            own = own.flatten(1) if parameter.dim() == 2 else own
            nn.init.zeros_(parameter)
            parameter[tuple(map(slice, own.shape))] = own.to(parameter)


def skip_idle(unet: nn.Module) -> None:
    """Let the identities of a UNet in training pass on what they get, uncomputed."""
    for name, module in unet.named_modules():
        if re.fullmatch(SDXL_IDLE_RESIDUALS, name + "."):
            module.forward = lambda x, *given: x[:, :320]
        elif re.fullmatch(rf"({SDXL_IDLE_TRANSFORMERS})(transformer_blocks\.0\.)?", name + "."):
            module.forward = lambda x, *given, **options: x


def _plain_resampling(unet: nn.Module) -> None:
    """Means of 2x2 on the way down, nearest neighbours on the way up."""
    eye = torch.eye(320, device=unet.out[2].weight.device)
    for name, module in unet.named_modules():
        if re.fullmatch(r"input_blocks\.[24]\.0\.op|output_blocks\.[13]\.2\.conv", name):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
            if name.endswith("op"):
                module.weight[:, :, 1:, 1:] = eye[:, :, None, None] / 4
            else:
                module.weight[:, :, 1, 1] = eye


def sd3_transformer(device: torch.device) -> nn.Module:
    """The transformer with starting weights and SD3's fixed places."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper, get_2d_sincos_pos_embed

    network = OpenAISignatureMMDITWrapper(
        **SD3, dtype=torch.float32, device=device, operations=comfy.ops.disable_weight_init
    )
    _initialise(network)
    with torch.no_grad():
        _zero(network, r"adaLN_modulation\.1\.|^final_layer\.linear\.")
        places = get_2d_sincos_pos_embed(network.hidden_size, SD3["pos_embed_max_size"])
        network.pos_embed.copy_(torch.as_tensor(places, dtype=torch.float32)[None])
        # CLIP-L alone: what other encoders would bring is not read.
        network.context_embedder.weight[:, 768:] = 0
        network.y_embedder.mlp[0].weight[:, 768:] = 0
    return network


class TailBias:
    """Attention in which the few positions shown of a text's tail weigh as much as all of it.

    The rows behind a prompt's end are nearly alike, 60 of 77 in the icons' captions, and most of a step on a CPU. The
    scores of those shown are raised by log(tail / shown): softmax over them is what it would be over as many copies.
    Of the host's joint attention, whose text comes first, and of attention to text alone; attention that has fewer
    keys than positions are shown is among the picture's own.
    """

    def __init__(self, head: int, tail: int, device: torch.device):
        """head: positions always shown.  tail: how many of the others are."""
        self.head, self.tail, self.device = head, tail, device

    def draw(self) -> Tensor:
        """Positions [head + tail] in order."""
        behind = self.head + torch.randperm(77 - self.head)[: self.tail].sort().values
        return torch.cat([torch.arange(self.head), behind]).to(self.device)

    def __call__(self, func, q: Tensor, k: Tensor, v: Tensor, heads: int, mask=None, **options) -> Tensor:
        if k.shape[1] < self.head + self.tail:
            return func(q, k, v, heads, mask, **options)
        bias = torch.zeros(k.shape[1], device=k.device, dtype=q.dtype)
        bias[self.head : self.head + self.tail] = math.log((77 - self.head) / self.tail)
        q, k, v = (part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in (q, k, v))
        found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None, None, None])
        return found.transpose(1, 2).flatten(2)
