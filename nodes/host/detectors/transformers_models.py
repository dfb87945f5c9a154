"""Grounding DINO, MM-Grounding-DINO, SAM and SAM 2 by the package transformers, from folders as it saves them.

Nothing is downloaded: a folder lies where the artist put it. Weights are read from safetensors only.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from comfy import model_management
from torch import Tensor, nn

from ....install import CONFIG, DINO_FILES, SAM_FILES, TRANSFORMERS, lacking_files, missing_packages, read_config
from ....mace.concepts.phrases import caption_of
from ....mace.messages import MessageError
from ..networks import Batches, Held, Network
from .found import Found
from .memory import of_places, of_queries

# By the model_type in config.json: the classes of transformers that read it. Published SAM 2 folders are the video
# model's, whose image part the plain model is.
DETECTORS = {
    "grounding-dino": ("GroundingDinoForObjectDetection", "GroundingDinoProcessor"),
    "mm-grounding-dino": ("MMGroundingDinoForObjectDetection", "GroundingDinoProcessor"),
}
SEGMENTERS = {
    "sam": ("SamModel", "SamProcessor"),
    "sam2": ("Sam2Model", "Sam2Processor"),
    "sam2_video": ("Sam2Model", "Sam2Processor"),
}
MOST_PICTURES, MOST_BOXES = 8, 32


def missing() -> str | None:
    """What to install so that this module works, or None."""
    advice = missing_packages(TRANSFORMERS)
    if advice:
        return advice
    try:
        find_spec("transformers.models")
    except Exception as error:  # what importing a damaged or ill-matched package raises
        return f"the package transformers cannot be imported ({error}): install it again, and restart ComfyUI"
    return None


def load_detector(folder: Path, dtype: torch.dtype = torch.float32) -> "Detector":
    """Grounding DINO or MM-Grounding-DINO of a folder. dtype: of the weights.

    Float32 wherever it runs: transformers 4.56 to 5.0 mix dtypes in this model and fail when it is in half precision,
    which would round its coordinates too. Raises ValueError when transformers, the folder or a file in it is missing,
    or the folder is another model's.
    """
    return Detector(*_read(folder, DETECTORS, dtype, DINO_FILES))


def load_segmenter(folder: Path, dtype: torch.dtype | None = None) -> "Segmenter":
    """SAM or SAM 2 of a folder. dtype: of the weights; None: half where the host would.

    Raises ValueError when transformers, the folder or a file in it is missing, or the folder is another model's.
    """
    if dtype is None:
        half = model_management.should_use_fp16(model_management.get_torch_device())
        dtype = torch.float16 if half else torch.float32
    return Segmenter(*_read(folder, SEGMENTERS, dtype, SAM_FILES))


def prompt_of(phrase: str) -> str:
    """A phrase as Grounding DINO reads it: "Red Car, dog" is "red car. dog.". Commas and dots part categories.

    Raises ValueError for a phrase without any word.
    """
    prompt = caption_of(phrase)
    if not prompt:
        raise MessageError(f"the phrase {phrase!r} holds no word to look for")
    return prompt


def _check(folder: Path, needed: Sequence[tuple]) -> None:
    """Raises ValueError unless the folder has one file of each choice."""
    lacking = lacking_files(folder, needed)
    if lacking:
        raise ValueError(
            f"{folder.name} lacks {lacking[0]}: put all files of the model as transformers saves it "
            f"({', '.join(choice[0] for choice in needed)}) into {folder}"
        )


def _kind(folder: Path, kinds: dict) -> str:
    """The model_type of a folder, if it is one of `kinds`. Raises ValueError."""
    try:
        kind = read_config(folder / CONFIG[0]).get("model_type")
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG[0]} cannot be read: {error}") from error
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{folder.name} is a model of the type {kind}: choose a folder of the type {', '.join(kinds)}")
    return kind


def _read(folder: Path, kinds: dict, dtype: torch.dtype, needed: Sequence[tuple]) -> tuple:
    """(network, processor) of a folder."""
    problem = missing()
    if problem:
        raise ValueError(problem)
    import transformers

    _check(folder, needed[:1])
    # A model of another type is told before what it lacks of this one.
    kind = _kind(folder, kinds)
    _check(folder, needed)
    make, process = (getattr(transformers, name) for name in kinds[kind])
    try:
        processor = process.from_pretrained(str(folder), local_files_only=True)
        model, about = make.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # OSError, ValueError, RuntimeError, KeyError ...: by what is wrong with the folder
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{folder.name} cannot be read as {kind}: {reason}") from error
    lacking = sorted(about["missing_keys"])
    if lacking:
        raise ValueError(f"{folder.name} lacks weights of {kind}: {lacking[0]} and {len(lacking) - 1} others")
    return _Network(model.to(dtype)), processor


class _Network(Network):
    """A model of transformers."""

    def __init__(self, net: nn.Module):
        super().__init__(Held(net))
        self.config, self.dtype = net.config, net.dtype


def _channels_first(pictures: Tensor) -> Tensor:
    """Pictures [n, H, W, 3 or 4] in 0..1 as files hold them, uint8 [n, 3, H, W], without alpha."""
    return (pictures[..., :3].float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).movedim(-1, 1)


class Detector:
    """Boxes of what a phrase names. Made by `load_detector`."""

    def __init__(self, network: _Network, processor):
        self._network, self._processor = network, processor
        self._together = Batches(MOST_PICTURES)

    def _bytes(self, height: int, width: int) -> float:
        """About what one picture takes."""
        config, size = self._network.config, self._processor.image_processor.size
        short, long = size.get("shortest_edge") or 800, size.get("longest_edge") or 1333
        scale = min(short / min(height, width), long / max(height, width))
        levels, points = config.num_feature_levels, config.encoder_n_points
        return of_queries(height * width * scale**2, config.d_model, levels, points, self._network.dtype.itemsize)

    @torch.no_grad()
    def detect(self, pictures: Tensor, phrase: str, box_threshold: float, text_threshold: float) -> list[Found]:
        """What is found in each of the pictures [n, H, W, 3 or 4] in 0..1, which may be nothing.

        phrase: see `prompt_of`.  box_threshold: boxes with a higher score count.  text_threshold: words with a higher
        score are a box's label. Raises ValueError for a phrase without words or with more than the model reads.
        """
        prompt = prompt_of(phrase)
        config, (height, width) = self._network.config, pictures.shape[1:3]
        tokens = self._processor.tokenizer(prompt)["input_ids"]
        if len(tokens) > config.max_text_len:
            raise ValueError(
                f"the phrase has {len(tokens)} tokens and the model reads {config.max_text_len}: shorten it"
            )

        def run(part: Tensor) -> list[Found]:
            network, device = self._network.loaded()
            inputs = self._processor(
                images=list(part), text=[prompt] * len(part), input_data_format="channels_first", return_tensors="pt"
            ).to(device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self._network.dtype)
            outputs = network.net(**inputs)
            # In float32 before boxes become pixels, which half precision would round to half a pixel.
            scores = outputs.logits.float().sigmoid().cpu()
            boxes = _corners(outputs.pred_boxes.float().cpu(), height, width)
            found = []
            for own_scores, own_boxes in zip(scores, boxes, strict=True):
                best, order = own_scores.amax(dim=-1).sort(descending=True, stable=True)
                order = order[best > box_threshold]
                labels = (self._label(tokens, row > text_threshold) for row in own_scores[order])
                found.append(Found(own_boxes[order], best[: len(order)], tuple(labels)))
            return found

        return self._network.run(self._together, _channels_first(pictures), run, self._bytes(height, width))

    def _label(self, tokens: Sequence[int], chosen: Tensor) -> str:
        """The chosen words of the prompt. tokens: its own.  chosen: bool [at least as many]."""
        tokenizer = self._processor.tokenizer
        silent = {*tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids(".")}
        words = [token for token, own in zip(tokens, chosen.tolist(), strict=False) if own and token not in silent]
        return tokenizer.decode(words).strip()


def _corners(boxes: Tensor, height: int, width: int) -> Tensor:
    """x0 y0 x1 y1 in pixels, inside the picture, of boxes [..., 4]: centre x, y, width, height in 0..1."""
    centres, sides = boxes[..., :2], boxes[..., 2:]
    corners = torch.cat([centres - sides / 2, centres + sides / 2], dim=-1).clamp(0, 1)
    return corners * torch.tensor([width, height] * 2)


class Segmenter:
    """Masks of what stands in boxes. Made by `load_segmenter`."""

    def __init__(self, network: _Network, processor):
        self._network, self._images = network, processor.image_processor
        self._together = Batches(MOST_PICTURES)
        # SAM scales both sides alike and pads, SAM 2 scales each side to the model's.
        self._pads = network.config.model_type == "sam"

    def _bytes(self) -> float:
        """About what one picture takes: SAM's attention of all places to all, or SAM 2's first, finest stage."""
        vision, itemsize = self._network.config.vision_config, self._network.dtype.itemsize
        if hasattr(vision, "backbone_config"):
            side, stride = vision.backbone_config.image_size[0], vision.backbone_config.patch_stride[0]
            return 24 * (side / stride) ** 2 * vision.backbone_config.embed_dim_per_stage[0] * itemsize
        return of_places(vision.image_size / vision.patch_size, vision.num_attention_heads, itemsize)

    @torch.no_grad()
    def segment(self, pictures: Tensor, boxes: Sequence[Tensor]) -> list[Tensor]:
        """Masks float32 [k, H, W] of 0 and 1 on the CPU, one for each of a picture's boxes [k, 4]; k may be 0.

        pictures: [n, H, W, 3 or 4] in 0..1.  boxes: for each picture, x0 y0 x1 y1 in its pixels. Raises ValueError
        for another number of boxes' lists than pictures.
        """
        if len(boxes) != len(pictures):
            raise ValueError(f"there are {len(boxes)} lists of boxes for {len(pictures)} pictures")
        height, width = pictures.shape[1:3]
        masks = [torch.zeros(0, height, width)] * len(pictures)
        wanted = torch.tensor([place for place, own in enumerate(boxes) if len(own)], dtype=torch.long)
        if not len(wanted):
            return masks
        eight_bit = _channels_first(pictures)

        def run(part: Tensor) -> list[Tensor]:
            network, device = self._network.loaded()
            inputs = self._images(list(eight_bit[part]), input_data_format="channels_first", return_tensors="pt")
            pixels = inputs["pixel_values"].to(device, self._network.dtype)
            reshaped = tuple(map(int, inputs["reshaped_input_sizes"][0] if self._pads else pixels.shape[-2:]))
            levels = network.net.get_image_embeddings(pixels)
            made = []
            for index, place in enumerate(part.tolist()):
                own = [x[index : index + 1] for x in levels] if isinstance(levels, list) else levels[index : index + 1]
                made.append(self._masks(network.net, own, boxes[place], (height, width), reshaped))
            return made

        found = self._network.run(self._together, wanted, run, self._bytes())
        for place, made in zip(wanted.tolist(), found, strict=True):
            masks[place] = made
        return masks

    def _masks(self, net, embedding, boxes: Tensor, size: tuple[int, int], reshaped: tuple[int, int]) -> Tensor:
        """Masks [k, H, W] of one picture. size: its H, W.  reshaped: as the model sees it, without padding."""
        scale = torch.tensor([reshaped[1] / size[1], reshaped[0] / size[0]] * 2)
        undo = [[size], [reshaped]] if self._pads else [[size]]
        made = []
        for part in (boxes.to("cpu", torch.float32) * scale).split(MOST_BOXES):
            prompts = part[None].to(self._network.device)
            low = net(input_boxes=prompts, image_embeddings=embedding, multimask_output=False).pred_masks.float()
            made.append(self._images.post_process_masks(low, *undo)[0][:, 0].float().cpu())
        return torch.cat(made)
