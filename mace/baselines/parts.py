"""Which weights of a Stable Diffusion UNet each baseline trains, by the names ComfyUI has for them."""

from collections.abc import Callable

Part = Callable[[str], bool]

PREFIX = "diffusion_model."

# ESD-u leaves out, besides cross-attention, the last convolution and the embeddings of the timestep (as released), and
# the embedding of SDXL's pooled text and size, which stands beside the timestep's.
_OUTSIDE = ("out.", "time_embed.", "label_emb.")


def cross_attention(name: str) -> bool:
    """All weights and biases of the cross-attentions (ESD-x as released; Forget-Me-Not)."""
    return name.startswith(PREFIX) and ".attn2." in name


def keys_and_values(name: str) -> bool:
    """to_k and to_v of the cross-attentions (Concept Ablation)."""
    return cross_attention(name) and (".to_k." in name or ".to_v." in name)


def unconditional(name: str) -> bool:
    """All but the cross-attentions, the embeddings and the last convolution (ESD-u as released)."""
    inner = name.removeprefix(PREFIX)
    return name.startswith(PREFIX) and ".attn2." not in name and not inner.startswith(_OUTSIDE)


def whole(name: str) -> bool:
    """The whole UNet."""
    return name.startswith(PREFIX)
