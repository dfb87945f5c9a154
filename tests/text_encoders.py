"""Small text encoders with random weights, of the host's own classes and with its own tokenizers, by family."""

import importlib
from types import SimpleNamespace

from tests.families import fill


def t5(width: int) -> dict:
    return dict(d_model=width, d_ff=32, d_kv=8, num_heads=3, num_layers=2)


def clip(width: int) -> dict:
    return dict(
        hidden_size=width, intermediate_size=32, num_attention_heads=2, num_hidden_layers=3, projection_dim=width
    )


def llama(width: int, layers: int = 3) -> dict:
    sizes = dict(intermediate_size=32, num_attention_heads=4, num_key_value_heads=2)
    return dict(hidden_size=width, num_hidden_layers=layers, **sizes)


# The module of comfy.text_encoders, its text model and tokenizer (both may be made by a function), sizes by encoder.
CLIPS = {
    "flux": ("flux", "flux_clip()", "FluxTokenizer", {"t5xxl": t5(24), "clip_l": clip(20)}),
    "chroma": ("pixart_t5", "pixart_te()", "PixArtTokenizer", {"t5xxl": t5(24)}),
    "sd3": (
        "sd3_clip", "sd3_clip()", "SD3Tokenizer", {"t5xxl": t5(4096), "clip_l": clip(8), "clip_g": clip(12)},
    ),
    "sd3_clips": ("sd3_clip", "sd3_clip(t5=False)", "SD3Tokenizer", {"clip_l": clip(8), "clip_g": clip(12)}),
    "qwen": ("qwen_image", "te()", "QwenImageTokenizer", {"qwen25_7b": llama(24)}),
    "zimage": ("z_image", "te()", "ZImageTokenizer", {"qwen3_4b": llama(24)}),
    "flux2_klein": ("flux", "klein_te()", "KleinTokenizer", {"qwen3_4b": llama(8, 28)}),
    "hunyuan_video": (
        "hunyuan_video", "hunyuan_video_clip()", "HunyuanVideoTokenizer", {"llama": llama(24, 4), "clip_l": clip(20)},
    ),
    "anima": ("anima", "te()", "AnimaTokenizer", {"qwen3_06b": llama(20)}),
}  # fmt: skip


def build_clip(name: str, **own: dict):
    """The host's CLIP of a family. own: sizes by encoder in place of the table's."""
    import comfy.sd

    where, model, tokenizer, sizes = CLIPS[name]
    module = importlib.import_module(f"comfy.text_encoders.{where}")
    kind = getattr(module, model.partition("(")[0])
    if model.endswith(")"):
        kind = kind(t5=False) if "t5=False" in model else kind()
    target = SimpleNamespace(params={}, clip=kind, tokenizer=getattr(module, tokenizer))
    options = {f"{encoder}_model_config": config for encoder, config in {**sizes, **own}.items()}
    found = comfy.sd.CLIP(target, model_options=options)
    for part in found.cond_stage_model.modules():
        # A tower for pictures that texts do not reach, of 600 M weights.
        if getattr(part, "visual", None) is not None:
            part.visual = None
    fill(found.cond_stage_model)
    return found
