"""Small text encoders with random weights, of the host's own classes and with its own tokenizers, by family."""

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from tests.families import fill
from tests.small_tokenizers import gemma, harmony, harmony_count, tekken, unigram


def t5(width: int) -> dict:
    return dict(d_model=width, d_ff=32, d_kv=8, num_heads=3, num_layers=2)


def clip(width: int) -> dict:
    return dict(
        hidden_size=width, intermediate_size=32, num_attention_heads=2, num_hidden_layers=3, projection_dim=width
    )


def llama(width: int, layers: int = 3) -> dict:
    sizes = dict(intermediate_size=32, num_attention_heads=4, num_key_value_heads=2)
    return dict(hidden_size=width, num_hidden_layers=layers, **sizes)


def bert(width: int) -> dict:
    return dict(hidden_size=width, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2)


# Of encoders of two classes at once.
BOTH = dict(hidden_size=24, intermediate_size=32, num_attention_heads=4, num_hidden_layers=3)
# The module of comfy.text_encoders, its text model (may be made by a function) and tokenizer (of another module where
# it has a dot), sizes by encoder; those of encoders without a name of their own by "".
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
    "flux2": ("flux", "flux2_te()", "Flux2Tokenizer", {"mistral3_24b": llama(8, 31)}),
    "ernie": ("ernie", "te()", "ErnieTokenizer", {"ministral3_3b": llama(24)}),
    "lumina2": ("lumina2", "te()", "LuminaTokenizer", {"gemma2_2b": llama(24)}),
    "newbie": ("newbie", "te()", "NewBieTokenizer", {"": BOTH}),
    "pixeldit": ("pixeldit", "pixeldit_te()", "PixelDiTGemma2Tokenizer", {"gemma2_2b": llama(24)}),
    "wan21": ("wan", "te()", "WanT5Tokenizer", {"umt5xxl": t5(24)}),
    "aura": ("aura_t5", "AuraT5Model", "AuraT5Tokenizer", {"pile_t5xl": t5(24)}),
    "cosmos1": ("cosmos", "te()", "CosmosT5Tokenizer", {"t5xxl": t5(24)}),
    "ltxv": ("lt", "ltxv_te()", "LTXVT5Tokenizer", {"t5xxl": t5(20)}),
    "kandinsky5_image": (
        "kandinsky5", "te()", "Kandinsky5TokenizerImage", {"qwen25_7b": llama(24), "clip_l": clip(20)},
    ),
    "kandinsky5_video": (
        "kandinsky5", "te()", "Kandinsky5Tokenizer", {"qwen25_7b": llama(24), "clip_l": clip(20)},
    ),
    "cogvideox": ("cogvideo", "cogvideo_te()", "CogVideoXTokenizer", {"t5xxl": t5(24)}),
    "cascade_c": (".sdxl_clip", "StableCascadeClipModel", "StableCascadeTokenizer", {"clip_g": clip(20)}),
    "krea2": ("krea2", "te()", "Krea2Tokenizer", {"qwen3vl_4b": llama(6, 36)}),
    "omnigen2": ("omnigen2", "te()", "Omnigen2Tokenizer", {"qwen25_3b": llama(24)}),
    "boogu": ("boogu", "te()", "BooguTokenizer", {"qwen3vl_8b": llama(24)}),
    "joyimage": ("joyimage", "te()", "JoyImageTokenizer", {"qwen3vl_8b": llama(24)}),
    "mage_flow": ("mage_flow", "te()", "MageFlowTokenizer", {"qwen3vl_4b": llama(24)}),
    "longcat": ("longcat_image", "te()", "LongCatImageTokenizer", {"qwen25_7b": llama(24)}),
    "ovis": ("ovis", "te()", "OvisTokenizer", {"qwen3_2b": llama(24)}),
    # Thirteen layers of it are read.
    "ideogram4": ("ideogram4", "te()", "Ideogram4Tokenizer", {"qwen3vl_8b": llama(6, 36)}),
    "mochi": ("genmo", "mochi_te()", "MochiT5Tokenizer", {"t5xxl": t5(24)}),
    "lens": ("gpt_oss", "lens_te()", "LensTokenizer", {}),
    "hunyuan_image21": (
        "hunyuan_image", "te()", "HunyuanImageTokenizer", {"qwen25_7b": llama(24, 4), "": t5(1472)},
    ),
    "hunyuan_video15": (
        "hunyuan_image", "te()", "hunyuan_video.HunyuanVideo15Tokenizer",
        {"qwen25_7b": llama(24, 4), "": t5(1472)},
    ),
    "hidream": (
        "hidream", "hidream_clip()", "HiDreamTokenizer",
        {"t5xxl": t5(24), "llama": llama(20), "clip_l": clip(8), "clip_g": clip(20)},
    ),
    "hydit": ("hydit", "HyditModel", "HyditTokenizer", {"hydit_clip": bert(24), "mt5xl": t5(264)}),
    "ace": ("ace", "AceT5Model", "AceT5Tokenizer", {"": t5(24)}),
}  # fmt: skip
# How Mistral's tokenizers part a text, where none is given.
PATTERN = "|".join((
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
))  # fmt: skip
# Files that checkpoints bring along, by family.
FILES = {
    "flux2": {"tekken_model": tekken}, "ernie": {"tekken_model": tekken}, "lumina2": {"spiece_model": gemma},
    "pixeldit": {"spiece_model": gemma}, "newbie": {"gemma_spiece_model": gemma, "jina_spiece_model": unigram},
    "wan21": {"spiece_model": unigram}, "lens": {"tokenizer_json": harmony},
    "hydit": {"mt5xl.spiece_model": unigram}, "ace": {"spiece_model": unigram},
}  # fmt: skip


def more_options(name: str) -> dict:
    """What the text encoder of a family is told besides sizes by encoder."""
    if name != "lens":
        return {}
    from comfy.text_encoders.gpt_oss import _lens_render_chat

    sizes = dict(hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
    sizes |= dict(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    # As many tokens as stand before the prompt are cut off: 97 with the published vocabulary.
    before = harmony_count(_lens_render_chat("|").rpartition("|<|end|><|start|>assistant<|channel|>analysis")[0])
    return {"gpt_oss_config": sizes, "selected_layers": (0, 1), "txt_offset": before}


def build_clip(name: str, **own: dict):
    """The host's CLIP of a family. own: sizes by encoder in place of the table's."""
    import comfy.sd

    where, model, tokenizer, sizes = CLIPS[name]
    module = importlib.import_module(f".{where}", "comfy.text_encoders")
    kind = getattr(module, model.partition("(")[0])
    if model.endswith(")"):
        kind = kind(t5=False) if "t5=False" in model else kind()
    elsewhere, _, tokenizer = tokenizer.rpartition(".")
    if elsewhere:
        module = importlib.import_module(f"comfy.text_encoders.{elsewhere}")
    target = SimpleNamespace(params={}, clip=_with_weights(kind), tokenizer=getattr(module, tokenizer))
    options = {f"{encoder}_model_config": config for encoder, config in {**sizes, **own}.items()} | more_options(name)
    files = {file: make() for file, make in FILES.get(name, {}).items()}
    with _older_converter():
        found = comfy.sd.CLIP(target, model_options=options, tokenizer_data=files)
    for part in found.cond_stage_model.modules():
        # A tower for pictures that texts do not reach, of 600 M weights.
        if getattr(part, "visual", None) is not None:
            part.visual = None
    fill(found.cond_stage_model)
    return found


def _with_weights(kind):
    """The same, where weights are made as a file is loaded: of layers that may be quantised."""

    def make(**given):
        model = kind(**given)
        late = {name: part for name, part in model.named_modules() if hasattr(part, "_orig_shape")}
        model.load_state_dict({f"{name}.weight": torch.zeros(part._orig_shape) for name, part in late.items()}, False)
        return model

    return make


@contextmanager
def _older_converter() -> Iterator[None]:
    """Transformers' converter of Mistral's files as the host calls it, with the vocabulary itself: newer ones take a
    file's path, and the host's loader fails there."""
    from transformers.integrations import mistral

    newer = mistral.MistralConverter
    if "vocab" in inspect.signature(newer).parameters:
        yield
        return

    class Older(newer):
        def __init__(self, vocab: dict, additional_special_tokens: list, add_prefix_space: bool = False):
            special = {name: rank for name, rank in vocab.items() if name in additional_special_tokens}
            ranks = {piece: rank for piece, rank in vocab.items() if piece not in special}
            own, self._precomputed_merges = self._extract_merges(ranks)
            self._precomputed_vocab = special | {piece: rank + len(special) for piece, rank in own.items()}
            self.additional_special_tokens = list(special)
            self.pattern, self.add_prefix_space = PATTERN, add_prefix_space

    mistral.MistralConverter = Older
    try:
        yield
    finally:
        mistral.MistralConverter = newer
