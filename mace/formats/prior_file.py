"""The prior's file: a safetensors file of its moments."""

import json
import zlib
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor

from ..method.moments import packed_width
from ..method.prior import Prior, PriorError, PriorTexts
from .records import COUNT, NAMES, STEPPED_ASIDE, TEXTS, read_record

FORMAT = "mace-prior-1"

# The texts, as compressed JSON. A list of a million captions is some 100 MB of text; no file makes us unpack more.
_TEXTS, MOST_TEXT = "texts.zlib", 2**28
MOST_OTHERS = 1000
_TOKENS, _POOLED = ("general.mean", "preserve.sum"), ("general.pooled_mean", "preserve.pooled_sum")
# Of a model's further texts: how the names of their two moments begin, the text's number behind.
_OTHERS = ("general.other_mean.", "preserve.other_sum.")


def prior_to_file(prior: Prior) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a prior's safetensors file. Raises PriorError for texts that no file may hold."""
    tensors = {"fingerprint": prior.fingerprint}
    if prior.mean is not None:
        tensors["general.mean"] = prior.mean
    if prior.preserve is not None:
        tensors["preserve.sum"] = prior.preserve
    for name, moment in zip(_POOLED, (prior.pooled_mean, prior.pooled_preserve), strict=True):
        if moment is not None:
            tensors[name] = moment
    for number, own in enumerate(prior.others):
        tensors |= {f"{name}{number}": moment for name, moment in zip(_OTHERS, own, strict=True) if moment is not None}
    if prior.texts is not None:
        written = json.dumps([prior.texts.captions, prior.texts.prompts], ensure_ascii=False).encode("utf-8")
        if len(written) > MOST_TEXT:
            raise PriorError(
                f"the prior's captions and prompts take {len(written)} bytes, and a file holds {MOST_TEXT}: make the "
                "prior of fewer captions"
            )
        packed = zlib.compress(written)
        tensors[_TEXTS] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    metadata = {
        "format": FORMAT,
        "captions": str(prior.captions),
        "preserved": json.dumps(prior.preserved, ensure_ascii=False),
        "left_out": json.dumps(prior.left_out, ensure_ascii=False),
        "source": prior.source,
        "stepped_aside": json.dumps(prior.stepped_aside, ensure_ascii=False),
    }
    if prior.others:
        metadata["others"] = str(len(prior.others))
    if prior.made_of:
        metadata["made_of"] = prior.made_of
    return tensors, metadata


def prior_from_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Prior:
    """A prior from its file's tensors and metadata. Raises PriorError when they are not those of a prior."""
    if metadata.get("format") != FORMAT:
        raise PriorError("this file is not a prior saved by Save Prior (or a later version's)")
    try:
        return _read(tensors, metadata)
    # KeyError: a tensor or an entry that is not there.
    except (KeyError, ValueError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise PriorError(f"the prior file is damaged: {what}") from None


def _read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Prior:
    fingerprint = tensors["fingerprint"]
    captions = read_record(COUNT, metadata["captions"], "captions")
    preserved, left_out = (read_record(NAMES, metadata[name], name) for name in ("preserved", "left_out"))
    # The dtype first: eight-bit floats cannot be asked whether they are finite.
    if fingerprint.dim() != 3 or fingerprint.dtype != torch.float32 or not torch.isfinite(fingerprint).all():
        raise PriorError("its fingerprint is not one of a text encoder")
    names = [tuple(f"{name}{number}" for name in _OTHERS) for number in range(_others(metadata))]
    for name in (*_TOKENS, *_POOLED, *chain(*names)):
        moment = tensors.get(name)
        if moment is None:
            continue
        try:
            fits = packed_width(moment) == fingerprint.shape[-1] or name not in _TOKENS
        except ValueError as error:
            raise PriorError(f"{name}: {error}") from None
        if not fits or moment.dtype != torch.float64 or not torch.isfinite(moment).all():
            raise PriorError(f"{name} does not fit its fingerprint")
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
        read_record(STEPPED_ASIDE, metadata.get("stepped_aside", "[0, []]"), "stepped_aside"),
        tuple((tensors.get(mean), tensors.get(preserve)) for mean, preserve in names),
        metadata.get("made_of", ""),
    )


def _others(metadata: Mapping[str, str]) -> int:
    """How many further texts a file has the moments of. Raises ValueError for a number that cannot be."""
    count = read_record(COUNT, metadata.get("others", "0"), "others")
    if count > MOST_OTHERS:
        raise PriorError(f"it says that it holds {count} further texts")
    return count


def _texts(packed: Tensor | None, captions: int, preserved: int) -> PriorTexts | None:
    """The texts of a file, None where it has none. Raises PriorError where they are not those of its sums."""
    if packed is None:
        return None
    try:
        unpack = zlib.decompressobj()
        raw = unpack.decompress(packed.contiguous().numpy().tobytes(), MOST_TEXT + 1)
    except (TypeError, RuntimeError, zlib.error) as error:
        raise PriorError(f"its texts cannot be unpacked ({error})") from None
    if not unpack.eof or len(raw) > MOST_TEXT:
        raise PriorError("its texts do not end")
    found = PriorTexts(*read_record(TEXTS, raw, "texts"))
    if (len(found.captions), len(found.prompts)) != (captions, preserved):
        raise PriorError("its texts are not as many as were summed")
    return found
