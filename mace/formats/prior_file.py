"""The prior's file: a safetensors file of its moments."""

import json
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ..method.moments import packed_width
from ..method.prior import Prior, PriorError, PriorTexts

FORMAT = "mace-prior-1"

# The texts, as compressed JSON. A list of a million captions is some 100 MB of text; no file makes us unpack more.
_TEXTS, MOST_TEXT = "texts.zlib", 2**28
_TOKENS, _POOLED = ("general.mean", "preserve.sum"), ("general.pooled_mean", "preserve.pooled_sum")


def prior_to_file(prior: Prior) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a prior's safetensors file."""
    tensors = {"fingerprint": prior.fingerprint}
    if prior.mean is not None:
        tensors["general.mean"] = prior.mean
    if prior.preserve is not None:
        tensors["preserve.sum"] = prior.preserve
    for name, moment in zip(_POOLED, (prior.pooled_mean, prior.pooled_preserve), strict=True):
        if moment is not None:
            tensors[name] = moment
    if prior.texts is not None:
        written = json.dumps([prior.texts.captions, prior.texts.prompts], ensure_ascii=False)
        packed = zlib.compress(written.encode("utf-8", "surrogatepass"))
        tensors[_TEXTS] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    metadata = {
        "format": FORMAT,
        "captions": str(prior.captions),
        "preserved": json.dumps(prior.preserved, ensure_ascii=False),
        "left_out": json.dumps(prior.left_out, ensure_ascii=False),
        "source": prior.source,
        "stepped_aside": json.dumps(prior.stepped_aside, ensure_ascii=False),
    }
    return tensors, metadata


def prior_from_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Prior:
    """A prior from its file's tensors and metadata. Raises PriorError when they are not those of a prior."""
    if metadata.get("format") != FORMAT:
        raise PriorError("this file is not a prior saved by Save Prior (or a later version's)")
    try:
        fingerprint, captions = tensors["fingerprint"], int(metadata["captions"])
        preserved, left_out = (tuple(json.loads(metadata[name])) for name in ("preserved", "left_out"))
    except (KeyError, TypeError, ValueError) as error:
        raise PriorError(f"the prior file is damaged: {error}") from None
    if fingerprint.dim() != 3 or not torch.isfinite(fingerprint).all():
        raise PriorError("the prior file is damaged: its fingerprint is not one of a text encoder")
    for name in _TOKENS + _POOLED:
        moment = tensors.get(name)
        if moment is None:
            continue
        try:
            width = packed_width(moment)
        except ValueError as error:
            raise PriorError(f"the prior file is damaged: {name}: {error}") from None
        fits = width == fingerprint.shape[-1] or name in _POOLED
        if not fits or moment.dtype != torch.float64 or not torch.isfinite(moment).all():
            raise PriorError(f"the prior file is damaged: {name} does not fit its fingerprint")
    return Prior(
        tensors.get("general.mean"),
        captions,
        tensors.get("preserve.sum"),
        preserved,
        fingerprint,
        metadata.get("source", ""),
        left_out,
        *(tensors.get(name) for name in _POOLED),
        _texts(tensors.get(_TEXTS), captions, len(preserved)),
        _stepped_aside(metadata.get("stepped_aside")),
    )


def _texts(packed: Tensor | None, captions: int, preserved: int) -> PriorTexts | None:
    """The texts of a file, None where it has none. Raises PriorError where they are not those of its sums."""
    if packed is None:
        return None
    try:
        unpack = zlib.decompressobj()
        raw = unpack.decompress(packed.contiguous().numpy().tobytes(), MOST_TEXT)
        if not unpack.eof:
            raise ValueError("they do not end")
        own, prompts = json.loads(raw.decode("utf-8", "surrogatepass"))
        found = PriorTexts(tuple(own), tuple(map(tuple, prompts)))
    except (TypeError, ValueError, RuntimeError, RecursionError, zlib.error) as error:
        raise PriorError(f"the prior file is damaged: its texts cannot be read ({error})") from None
    texts = (*found.captions, *(prompt for each in found.prompts for prompt in each))
    if not all(isinstance(text, str) for text in texts):
        raise PriorError("the prior file is damaged: its texts are not all texts")
    if (len(found.captions), len(found.prompts)) != (captions, preserved):
        raise PriorError("the prior file is damaged: its texts are not as many as were summed")
    return found


def _stepped_aside(written: str | None) -> tuple[int, tuple[str, ...]]:
    """What was taken out before. Raises PriorError where that is not a count and phrases."""
    if written is None:
        return 0, ()
    try:
        count, phrases = json.loads(written)
        if isinstance(count, int) and all(isinstance(phrase, str) for phrase in phrases):
            return count, tuple(phrases)
    except (TypeError, ValueError, RecursionError):
        pass
    raise PriorError("the prior file is damaged: what stepped aside is not a count and a list of phrases")
