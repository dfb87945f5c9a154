"""What the pipeline asks of a host (mace.pipeline.host), of ComfyUI's models, text encoders and files."""

from ...mace.pipeline.prior import BUILT_IN, CaptionSource
from . import files
from .model.unet import is_unet
from .port_text import PortText
from .text import TextEncoder


def text_of(clip, model=None) -> TextEncoder | PortText:
    """The text of a CLIP as a MODEL reads it: at its text ports; a UNet, and none, read the embeddings themselves."""
    return TextEncoder(clip) if model is None or is_unet(model) else PortText(model, clip)


def captions_of(name: str, count: int, seed: int) -> CaptionSource:
    """The captions of BUILT_IN or of a file of the input folder. Raises ValueError for one that is gone."""
    if name == BUILT_IN:
        return CaptionSource(name, count, seed)
    return CaptionSource(name, count, seed, files.input_path(name) if count else None, files.file_stamp(name))
