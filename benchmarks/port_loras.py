"""LoRAs at the text ports of the small SD3 as it runs, and what its attention gives to text: for port_training.py."""

from contextlib import contextmanager

from torch import Tensor

from mace.method.lora import per_sample
from mace.method.loss import token_attention

# Numbers of CLIP-L in the texts, and rows of text.
WIDTH, WINDOW = 768, 77


class Attention:
    """A host's attention override that keeps what picture rows give to text rows, [B, heads, pixels, 77]."""

    def __init__(self):
        self.seen: list[Tensor] = []

    def __call__(self, func, q, k, v, heads, *args, **options):
        from comfy.ldm.modules.attention import attention_pytorch

        self.seen.append(token_attention(q[:, WINDOW:], k, heads)[..., :WINDOW])
        return attention_pytorch(q, k, v, heads, *args, **options)


@contextmanager
def with_loras(network, stacked):
    """Each sample's own LoRA at the ports. stacked: (B [C, d_out, r], A [C, r, d]) by weight."""

    def adding(pair):
        def hook(module, given, out):
            x = given[0] if given[0].dim() == 3 else given[0][:, None]
            return out + per_sample(x[..., :WIDTH], *pair).view_as(out)

        return hook

    handles = [
        network.get_submodule(key.removeprefix("diffusion_model.").removesuffix(".weight")).register_forward_hook(
            adding(pair)
        )
        for key, pair in stacked.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
