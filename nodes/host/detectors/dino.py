"""GroundingDINO by its own package, groundingdino-py, on the host's device.

The package was written for older transformers: its wrapper of BERT calls what BERT no longer has. Here BERT is read
part by part, which every version allows; nothing of either package is changed. All runs in float32, in PyTorch alone.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....install import GROUNDED, MASK_PACKAGES, missing_packages
from ....mace.concepts.phrases import caption_of
from ....mace.masks.boxes import ordered
from ..networks import Batches, Held, Network
from .found import Found
from .memory import of_queries
from .weights import fill_network, read_weights

# What the model was trained on: pictures with a shorter side of 800, the longer at most 1333; ImageNet's colours.
SHORTEST, LONGEST = 800, 1333
# Thin pictures get a margin: fewer cells than queries cannot be ranked.
LEAST_SIDE = 64
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST_TOGETHER = 4
# The published backbones by (width of the first layer, entries of a bias table): 7 x 7 and 12 x 12 windows.
BACKBONES = {(96, 169): "swin_T_224_1k", (128, 529): "swin_B_384_22k"}


def missing() -> str | None:
    """What to install, or None when all is there."""
    return missing_packages(GROUNDED)


def settings_of(state: Mapping[str, Tensor], name: str) -> dict:
    """The settings that both published models (SwinT, SwinB) share, and those that the weights themselves tell.

    Raises ValueError, with the file's name, for weights of another model.
    """

    def layers(prefix: str) -> int:
        return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})

    try:
        patches = state["backbone.0.patch_embed.proj.weight"]
        table = state["backbone.0.layers.0.blocks.0.attn.relative_position_bias_table"]
        levels, width = state["transformer.level_embed"].shape
        queries = len(state["transformer.tgt_embed.weight"])
        inner = len(state["transformer.encoder.layers.0.linear1.weight"])
        backbone = BACKBONES[len(patches), len(table)]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{name} is not GroundingDINO with a SwinT or SwinB backbone: take groundingdino_swint_ogc or "
            "groundingdino_swinb_cogcoor; for other models choose the back-end transformers"
        ) from error
    return {
        "backbone": backbone,
        "return_interm_indices": [1, 2, 3],
        "backbone_freeze_keywords": None,
        "position_embedding": "sine",
        "pe_temperatureH": 20,
        "pe_temperatureW": 20,
        "hidden_dim": width,
        "dim_feedforward": inner,
        "nheads": 8,
        "enc_layers": layers("transformer.encoder.layers."),
        "dec_layers": layers("transformer.decoder.layers."),
        "enc_n_points": 4,
        "dec_n_points": 4,
        "num_feature_levels": levels,
        "num_queries": queries,
        "num_patterns": 0,
        "query_dim": 4,
        "pre_norm": False,
        "transformer_activation": "relu",
        "two_stage_type": "standard",
        "embed_init_tgt": True,
        "use_text_enhancer": True,
        "use_fusion_layer": True,
        "use_text_cross_attention": True,
        "use_checkpoint": False,
        "use_transformer_ckpt": False,
        "dropout": 0.0,
        "text_dropout": 0.0,
        "fusion_dropout": 0.0,
        "fusion_droppath": 0.1,
    }


class _TextEncoder(nn.Module):
    """BERT with a mask between any two tokens: each thing of a caption is read by itself."""

    # The package's wrapper takes hold of these when it is made, and is not used.
    get_extended_attention_mask = invert_attention_mask = get_head_mask = None

    def __init__(self, bert: nn.Module):
        super().__init__()
        self.config = bert.config
        self.embeddings, self.encoder, self.pooler = bert.embeddings, bert.encoder, bert.pooler

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Embeddings [B, N, d] of tokens [B, N]. attention_mask: True where one may look at the other, [B, N, N]."""
        embedded = self.embeddings(input_ids=input_ids, position_ids=position_ids, token_type_ids=token_type_ids)
        closed = torch.zeros(attention_mask.shape, dtype=embedded.dtype, device=embedded.device)
        closed = closed.masked_fill(~attention_mask.bool(), torch.finfo(embedded.dtype).min)
        return {"last_hidden_state": self.encoder(embedded, attention_mask=closed[:, None])[0]}


def _build(state: Mapping[str, Tensor], name: str, bert: Path) -> nn.Module:
    """The package's model with these weights."""
    from groundingdino.models.GroundingDINO import groundingdino as package

    class GroundingDino(package.GroundingDINO):
        """The package's model with our reading of BERT in the place of its wrapper."""

        def __setattr__(self, key: str, value: object) -> None:
            if key == "bert":
                if "bert" in self._modules:
                    return
                value = _TextEncoder(value)
            super().__setattr__(key, value)

    settings = SimpleNamespace(**settings_of(state, name))
    net = GroundingDino(
        package.build_backbone(settings),
        package.build_transformer(settings),
        num_queries=settings.num_queries,
        iter_update=True,
        query_dim=settings.query_dim,
        num_feature_levels=settings.num_feature_levels,
        nheads=settings.nheads,
        two_stage_type=settings.two_stage_type,
        two_stage_bbox_embed_share=False,
        two_stage_class_embed_share=False,
        text_encoder_type=str(bert),
    ).float()
    fill_network(net, state, name, f"GroundingDINO ({settings.backbone})")
    return net


class DinoDetector:
    """GroundingDINO of a file of weights and a BERT folder. Raises ValueError for what cannot be read."""

    shortest, longest = SHORTEST, LONGEST

    def __init__(self, path: Path, bert: Path):
        try:
            net = _build(read_weights(path), path.name, bert)
        except (ImportError, OSError) as error:
            reason = str(error).strip().split("\n")[0]
            advice = missing() or f"install again: {MASK_PACKAGES}; BERT is read from {bert}"
            raise ValueError(f"GroundingDINO cannot be used ({reason}): {advice}") from error
        self._tokenizer = net.tokenizer
        self._special = set(net.specical_tokens)
        self._window = net.max_text_len
        self._network = Network(Held(net))
        self._together = Batches(MOST_TOGETHER)

    def detect(self, pictures: Tensor, phrase: str, box_threshold: float, text_threshold: float) -> list[Found]:
        """See `Detector`. Raises ValueError for a phrase that is empty or too long."""
        caption = caption_of(phrase)
        tokens = self._tokenizer(caption)["input_ids"]
        if not caption or len(tokens) > self._window:
            raise ValueError(
                f"phrase: {phrase[:40]!r} has {len(tokens)} tokens; GroundingDINO reads up to {self._window}"
            )
        height, width = pictures.shape[1:3]

        def found(part: Tensor) -> list[Found]:
            probabilities, boxes = self._forward(part, caption)
            results = []
            for own, where in zip(probabilities, boxes, strict=True):
                scores = own.amax(dim=-1)
                kept = scores > box_threshold
                middle, half = where[kept, :2], where[kept, 2:] / 2
                corners = torch.cat([middle - half, middle + half], dim=1)
                corners = corners * torch.tensor([width, height, width, height])
                labels = [self._label(row, tokens, text_threshold) for row in own[kept]]
                results.append(Found(*ordered(corners, scores[kept], labels, height, width)))
            return results

        return self._network.run(self._together, pictures, found, self._bytes(height, width))

    def _bytes(self, height: int, width: int) -> float:
        """About what one picture takes."""
        transformer = self._network.module.net.transformer
        layer = transformer.encoder.layers[0].self_attn
        scale = _scale(height, width, self.shortest, self.longest)
        pixels = max(LEAST_SIDE, height * scale) * max(LEAST_SIDE, width * scale)
        return of_queries(pixels, layer.embed_dim, layer.num_levels, layer.num_points, torch.float32.itemsize)

    def _forward(self, pictures: Tensor, caption: str) -> tuple[Tensor, Tensor]:
        """Each query's probability of each token [n, q, 256] and its box [n, q, 4] (middle and size, as shares)."""
        from groundingdino.util.misc import NestedTensor

        network, device = self._network.loaded()
        pixels = prepared(pictures.to(device), self.shortest, self.longest)
        height, width = pixels.shape[-2:]
        margin = (0, max(0, LEAST_SIDE - width), 0, max(0, LEAST_SIDE - height))
        outside = F.pad(torch.zeros(len(pixels), height, width, dtype=torch.bool, device=device), margin, value=True)
        output = network.net(NestedTensor(F.pad(pixels, margin), outside), captions=[caption] * len(pixels))
        return output["pred_logits"].float().sigmoid().cpu(), output["pred_boxes"].float().cpu()

    def _label(self, probabilities: Tensor, tokens: list[int], threshold: float) -> str:
        spoken = [token for token, p in zip(tokens, probabilities.tolist(), strict=False) if p > threshold]
        return self._tokenizer.decode([token for token in spoken if token not in self._special]).strip()


def _scale(height: int, width: int, shortest: int, longest: int) -> float:
    return min(shortest / min(height, width), longest / max(height, width))


def prepared(pictures: Tensor, shortest: int, longest: int) -> Tensor:
    """Pictures [n, H, W, 3 or 4] in 0..1 as the model takes them, [n, 3, h, w]: scaled, with ImageNet's colours."""
    height, width = pictures.shape[1:3]
    scale = _scale(height, width, shortest, longest)
    size = tuple(max(1, round(side * scale)) for side in (height, width))
    pixels = pictures[..., :3].movedim(-1, 1).float()
    pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
    mean, deviation = (torch.tensor(row, device=pixels.device).view(3, 1, 1) for row in (MEAN, DEVIATION))
    return (pixels - mean) / deviation
