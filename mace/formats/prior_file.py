"""The prior's file: a safetensors file of its moments."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from ..method.moments import packed_width
from ..method.prior import Prior, PriorError

FORMAT = "mace-prior-1"

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
    metadata = {
        "format": FORMAT,
        "captions": str(prior.captions),
        "preserved": json.dumps(prior.preserved, ensure_ascii=False),
        "left_out": json.dumps(prior.left_out, ensure_ascii=False),
        "source": prior.source,
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
    )
