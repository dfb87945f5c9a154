"""Detectors and segmenters at their true layouts with random weights, as files: few layers, few queries."""

import importlib
import json
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from transformers import BertConfig, BertModel

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    ".",
    "?",
    "dog",
    "cat",
    "hot",
    "air",
    "##plane",
    "face",
    "a",
    "tall",
]


def bert_folder(folder: Path) -> Path:
    """A small BERT with its words, as bert-base-uncased is laid out."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=300,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    about = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


class OldBert(BertModel):
    """BERT with the methods that the package's wrapper takes hold of, so that the package's own builder runs."""

    get_extended_attention_mask = invert_attention_mask = get_head_mask = None


DINO_SETTINGS = {"swin_T_224_1k": "GroundingDINO_SwinT_OGC.py", "swin_B_384_22k": "GroundingDINO_SwinB_cfg.py"}


def dino_net(bert: Path, monkeypatch, queries: int = 30, backbone: str = "swin_T_224_1k") -> nn.Module:
    """The package's own GroundingDINO as its published settings make it, with one layer in encoder and decoder.

    Its reading of BERT is that of older transformers: put another in its place before it is run.
    """
    import groundingdino
    from groundingdino.models import build_model
    from groundingdino.util import get_tokenlizer
    from groundingdino.util.slconfig import SLConfig

    settings = SLConfig.fromfile(str(Path(groundingdino.__file__).parent / "config" / DINO_SETTINGS[backbone]))
    assert settings.backbone == backbone
    settings.enc_layers = settings.dec_layers = 1
    settings.dim_feedforward, settings.num_queries = 64, queries
    settings.text_encoder_type = str(bert)
    # They save memory in training.
    settings.use_checkpoint = settings.use_transformer_ckpt = False
    monkeypatch.setattr(get_tokenlizer, "get_pretrained_language_model", OldBert.from_pretrained)
    torch.manual_seed(1)
    net = build_model(settings).eval()
    monkeypatch.undo()
    # Where it looks, the sizes of its boxes and what words and picture tell each other start as nothing or next to it.
    for key, parameter in net.named_parameters():
        if "gamma" in key or parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    # And scores so near 0 or 1 that many are equal.
    nn.init.constant_(net.transformer.decoder.norm.weight, 0.1)
    nn.init.normal_(net.bbox_embed[0].layers[-1].weight, std=0.5)
    return net


def dino_weights(bert: Path, monkeypatch, queries: int = 30) -> dict[str, torch.Tensor]:
    """The weights of that, each a tensor of its own, as the safetensors format asks for."""
    return {key: value.clone() for key, value in dino_net(bert, monkeypatch, queries).state_dict().items()}


def sam_net(name: str = "vit_b", size: int = 256, depth: int = 2, global_blocks: tuple[int, ...] = (1,)) -> nn.Module:
    """The package's own SAM of that name with fewer blocks, of which these look at the whole picture.

    size: of the pictures it looks at.
    """
    # `from segment_anything import build_sam` is a function of that name.
    package = importlib.import_module("segment_anything.build_sam")
    encoder, prompts, grid = package.ImageEncoderViT, package.PromptEncoder, size // 16
    looks = {"img_size": size, "depth": depth, "global_attn_indexes": global_blocks}
    asked = {"image_embedding_size": (grid, grid), "input_image_size": (size, size)}
    torch.manual_seed(2)
    with mock.patch.multiple(
        package,
        ImageEncoderViT=lambda **own: encoder(**{**own, **looks}),
        PromptEncoder=lambda **own: prompts(**{**own, **asked}),
    ):
        net = package.sam_model_registry[name]()
    # They start as zeros.
    for key, parameter in net.image_encoder.named_parameters():
        if "rel_pos" in key or key == "pos_embed":
            nn.init.normal_(parameter, std=0.02)
    return net


def sam_weights() -> dict[str, torch.Tensor]:
    return sam_net().state_dict()
