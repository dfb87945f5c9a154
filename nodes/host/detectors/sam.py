"""SAM (vit_b, vit_l, vit_h) by its own package, segment-anything, on the host's device, in float32."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....install import GROUNDED, MASK_PACKAGES, missing_packages
from ..networks import Batches, Held, Network
from .memory import of_places
from .weights import fill_network, read_weights

PATCH, WINDOW = 16, 14
# A batch of boxes takes 16 masks of 1024 x 1024.
MOST_TOGETHER, MOST_BOXES = 2, 16
NAMES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


def missing() -> str | None:
    """What to install, or None when all is there."""
    return missing_packages(GROUNDED)


def encoder_settings(state: Mapping[str, Tensor], name: str) -> dict:
    """The image encoder's settings, told from the weights' shapes. Raises ValueError for another model's weights."""
    try:
        _, grid, _, width = state["image_encoder.pos_embed"].shape
        blocks = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("image_encoder.blocks."))
        rows = [state[f"image_encoder.blocks.{place}.attn.rel_pos_h"].shape for place in range(blocks)]
        state["mask_decoder.iou_token.weight"]
        heads = width // rows[0][1]
        if width not in NAMES:
            raise ValueError(width)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{name} is not SAM's vit_b, vit_l or vit_h: take sam_vit_b_01ec64, sam_vit_l_0b3195 or sam_vit_h_4b8939; "
            "for SAM 2 choose the back-end transformers, and for SAM 3 the node SAM3 Detect"
        ) from error
    # A block that looks at the whole picture has places for all distances in it, the others for those in a window.
    everywhere = [place for place, (distances, _) in enumerate(rows) if distances != 2 * WINDOW - 1]
    return {
        "img_size": grid * PATCH,
        "embed_dim": width,
        "depth": blocks,
        "num_heads": heads,
        "global_attn_indexes": everywhere,
    }


def _build(state: Mapping[str, Tensor], name: str) -> nn.Module:
    """The package's model with these weights."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    settings = encoder_settings(state, name)
    size = settings["img_size"]
    channels = len(state["image_encoder.neck.0.weight"])
    net = Sam(
        ImageEncoderViT(
            **settings,
            out_chans=channels,
            patch_size=PATCH,
            window_size=WINDOW,
            use_rel_pos=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        ),
        PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(size // PATCH, size // PATCH),
            input_image_size=(size, size),
            mask_in_chans=16,
        ),
        MaskDecoder(
            transformer_dim=channels,
            transformer=TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=2048, num_heads=8),
        ),
    ).float()
    unknown = sorted(set(state) - set(net.state_dict()))
    if unknown:
        raise ValueError(
            f"{name} holds more than SAM ({unknown[0]}): it is another model, such as SAM-HQ; take SAM's own"
        )
    fill_network(net, state, name, f"SAM ({NAMES[settings['embed_dim']]})")
    return net


class SamSegmenter:
    """SAM of a file of weights. Raises ValueError for what cannot be read."""

    def __init__(self, path: Path):
        try:
            net = _build(read_weights(path), path.name)
        except ImportError as error:
            advice = missing() or f"install again: {MASK_PACKAGES}"
            raise ValueError(f"SAM cannot be used ({error}): {advice}") from error
        self._network = Network(Held(net))
        self._together = Batches(MOST_TOGETHER)

    def segment(self, pictures: Tensor, boxes: Sequence[Tensor]) -> list[Tensor]:
        """See `Segmenter`. Pictures without boxes are not looked at."""
        height, width = pictures.shape[1:3]
        results = [torch.zeros(0, height, width) for _ in boxes]
        shown = torch.tensor([place for place, own in enumerate(boxes) if len(own)], dtype=torch.long)

        def run(places: Tensor) -> list[Tensor]:
            network, device = self._network.loaded()
            return _masks(network.net, pictures[places].to(device), [boxes[place].to(device) for place in places])

        if len(shown):
            encoder = self._network.module.net.image_encoder
            each = of_places(encoder.img_size / PATCH, encoder.blocks[0].attn.num_heads, torch.float32.itemsize)
            found = self._network.run(self._together, shown, run, each)
            for place, masks in zip(shown.tolist(), found, strict=True):
                results[place] = masks
        return results


def _masks(net: nn.Module, pictures: Tensor, boxes: Sequence[Tensor]) -> list[Tensor]:
    """Masks [k, H, W] on the CPU of the boxes [k, 4] of each of pictures [n, H, W, 3]."""
    height, width = pictures.shape[1:3]
    scale = net.image_encoder.img_size / max(height, width)
    size = tuple(max(1, round(side * scale)) for side in (height, width))
    pixels = pictures[..., :3].movedim(-1, 1).float() * 255
    pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
    embedded = net.image_encoder(net.preprocess(pixels))
    stretch = torch.tensor([size[1] / width, size[0] / height] * 2, device=pixels.device)
    results = []
    for own, seen in zip(boxes, embedded, strict=True):
        parts = []
        for some in (own.float() * stretch).split(MOST_BOXES):
            sparse, dense = net.prompt_encoder(points=None, boxes=some, masks=None)
            low, _ = net.mask_decoder(
                image_embeddings=seen[None],
                image_pe=net.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            large = net.postprocess_masks(low, input_size=size, original_size=(height, width))
            parts.append((large[:, 0] > net.mask_threshold).float().cpu())
        results.append(torch.cat(parts))
    return results
