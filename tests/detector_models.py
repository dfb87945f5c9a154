"""Detectors and segmenters at their true layouts with random weights, as files: few layers, few queries."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
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


def dino_weights(
    bert: Path, monkeypatch, queries: int = 30, backbone: str = "swin_T_224_1k"
) -> dict[str, torch.Tensor]:
    """The weights of the package's own GroundingDINO with one layer in encoder and decoder."""
    from groundingdino.models import build_model
    from groundingdino.util import get_tokenlizer

    monkeypatch.setattr(get_tokenlizer, "get_pretrained_language_model", OldBert.from_pretrained)
    torch.manual_seed(1)
    settings = SimpleNamespace(
        modelname="groundingdino",
        backbone=backbone,
        position_embedding="sine",
        pe_temperatureH=20,
        pe_temperatureW=20,
        return_interm_indices=[1, 2, 3],
        backbone_freeze_keywords=None,
        enc_layers=1,
        dec_layers=1,
        pre_norm=False,
        dim_feedforward=64,
        hidden_dim=256,
        dropout=0.0,
        nheads=8,
        num_queries=queries,
        query_dim=4,
        num_patterns=0,
        num_feature_levels=4,
        enc_n_points=4,
        dec_n_points=4,
        two_stage_type="standard",
        two_stage_bbox_embed_share=False,
        two_stage_class_embed_share=False,
        transformer_activation="relu",
        dec_pred_bbox_embed_share=True,
        dn_box_noise_scale=1.0,
        dn_label_noise_ratio=0.5,
        dn_labelbook_size=2000,
        embed_init_tgt=True,
        max_text_len=256,
        text_encoder_type=str(bert),
        use_text_enhancer=True,
        use_fusion_layer=True,
        use_checkpoint=True,
        use_transformer_ckpt=True,
        use_text_cross_attention=True,
        text_dropout=0.0,
        fusion_dropout=0.0,
        fusion_droppath=0.1,
        sub_sentence_present=True,
    )
    net = build_model(settings)
    # Its boxes start with no size of their own; trained ones have.
    torch.nn.init.normal_(net.bbox_embed[0].layers[-1].weight, std=0.1)
    monkeypatch.undo()
    return {key: value.clone() for key, value in net.state_dict().items()}


def sam_weights(
    size: int = 256, depth: int = 2, global_blocks: tuple[int, ...] = (1,), width: int = 768
) -> dict[str, torch.Tensor]:
    """The weights of the package's own SAM with the blocks of vit_b, vit_l (1024 wide) or vit_h (1280), fewer of them.

    size: of the pictures it looks at.
    """
    from segment_anything.build_sam import build_sam_vit_b
    from segment_anything.modeling import ImageEncoderViT, PromptEncoder

    torch.manual_seed(2)
    net = build_sam_vit_b()
    norm = type(net.image_encoder.blocks[0].norm1)
    net.image_encoder = ImageEncoderViT(
        img_size=size,
        embed_dim=width,
        depth=depth,
        num_heads=12 if width == 768 else 16,
        norm_layer=norm,
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=global_blocks,
    )
    net.prompt_encoder = PromptEncoder(256, (size // 16, size // 16), (size, size), 16)
    for name, parameter in net.image_encoder.named_parameters():
        if "rel_pos" in name or name == "pos_embed":
            torch.nn.init.normal_(parameter, std=0.02)
    return net.state_dict()
