"""A model's text as its text ports read it: MODEL and CLIP together, of every family that has ports.

The counterpart of `TextEncoder` for models whose ports read something else than the text encoder's embeddings, with
the same methods for the closed forms. Features are read where the host's own forward hands them to the port, so that
norms, adapters, padding and concatenation are as the model has them.
"""

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from comfy import model_management
from torch import Tensor

from ...mace.concepts.concept import Concept
from ...mace.method.moments import ConceptMoments, Gram, concept_moments, pooled_moments
from ...mace.method.ports import read_features
from ...mace.method.prior import PROBE_PROMPTS, PROBE_TOKENS
from ...mace.method.span import WIDE, RowMoments, row_moments
from ...mace.method.tokens import Pairing, PairingError, fill, pair_located
from ...mace.pipeline.batches import chunks
from .kept.on_disk import kept_moments
from .kept.store import SHARE_OF_MEMORY, MomentStore
from .model.ports import SmallRuns
from .port_layout import as_rows, find_layout, hidden_rows
from .port_rows import PROBE, PROBED, Rows, Section, find_blocks
from .prompts import tokens_of
from .text import CHANGES_IN_SAMPLING
from .tokenizers import fits_at_once, tokenizer_options

# Of prompts' conditioning that waits for the model at once, and of features that are likely to be asked for again.
WAITING_BYTES, CACHE_BYTES = 2**28, 2**28

_store = MomentStore(int(model_management.get_total_memory(torch.device("cpu")) * SHARE_OF_MEMORY))
# What was found of a MODEL's network with a CLIP, by what both depend on.
_layouts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Features:
    """What a model reads of a prompt: the tokens' rows, and the pooled text [c] where it reads one."""

    rows: Rows
    pooled: Tensor | None

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        return self.rows.values.numel() * self.rows.values.element_size()


class PortText:
    """The text of a MODEL with a CLIP at its ports."""

    def __init__(self, model, clip):
        if clip is None:
            raise ValueError("the CLIP input is empty: connect the text encoder that belongs to the model")
        if not hasattr(model.model, "diffusion_model"):
            raise ValueError(f"{type(model.model).__name__} is no diffusion model: connect a MODEL")
        if clip.use_clip_schedule and clip.patcher.forced_hooks is not None:
            raise ValueError(CHANGES_IN_SAMPLING)
        self.clip, self.model = clip, model
        self._cache: OrderedDict[str, Features] = OrderedDict()
        prompt = PROBE.replace("{}", PROBED)
        self._sections = {name: Section(clip, name) for name in clip.tokenize(prompt)}
        key = (self.identity, weakref.ref(clip.cond_stage_model))
        known = _layouts.get(model.model)
        if known is None or known[0] != key:
            self.layout = find_layout(model, self._conditioning(prompt))
            blocks = find_blocks(clip, self._sections, lambda text: self._read([text])[0].rows, self._encoded)
            known = (key, self.layout, blocks, self._fingerprint())
            _layouts[model.model] = known
        _, self.layout, self._blocks, self.fingerprint = known

    @property
    def width(self) -> int:
        """d of what the tokens' ports read."""
        return self.fingerprint.shape[-1]

    @property
    def has_pooled(self) -> bool:
        """Whether the model reads a pooled text besides the tokens."""
        return bool(self.layout.pooled)

    def fitting(self, texts: Sequence[str], as_prompt: Callable[[str], str]) -> list[str]:
        """The texts whose prompts the text encoder takes at once."""
        found = []
        for part in chunks(texts):
            model_management.throw_exception_if_processing_interrupted()
            found += [text for text in part if fits_at_once(self.clip, as_prompt(text))]
        return found

    def features(self, prompts: Sequence[str]) -> list[Features]:
        """What the model reads of each prompt; the last ones are kept."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        found = {prompt: self._cache[prompt] for prompt in prompts if prompt in self._cache}
        found |= dict(zip(missing, self._read(missing), strict=True))
        for prompt in prompts:
            self._cache[prompt] = found[prompt]
            self._cache.move_to_end(prompt)
        while len(self._cache) > 1 and sum(each.bytes for each in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return [found[prompt] for prompt in prompts]

    def moments(
        self, concept: Concept, step: Callable[[int], None], pooled: bool = False, own_words: bool = False
    ) -> ConceptMoments | RowMoments:
        """As `TextEncoder.moments`, of what the ports read; of very wide texts the rows."""
        digest = hashlib.sha256(self.fingerprint.numpy().tobytes()).hexdigest()
        network, key = self.model.model, (digest, concept, pooled, own_words)
        found = _store.get(network, key)
        if found is not None:
            step(len(concept.readings))
            return found
        vectors: list[tuple[Tensor, Tensor]] = []
        batches = self._batches(concept, step, own_words, vectors)
        if self.width > WIDE:
            found = row_moments(batches)
        else:
            found = concept_moments(batches, self.width, self.model.load_device)
        if pooled:
            targets, mappings = (torch.stack(side) for side in zip(*vectors, strict=True))
            found = replace(found, pooled=pooled_moments(targets, mappings, self.model.load_device))
        _store.put(network, key, found)
        return found

    def _batches(
        self, concept: Concept, step: Callable[[int], None], own_words: bool, vectors: list
    ) -> Iterator[tuple[Tensor, Tensor, list[Pairing]]]:
        for part in chunks(concept.readings):
            targets = self.features([fill(template, phrase) for template, phrase in part])
            mappings = self.features([fill(template, concept.mapping) for template, _ in part])
            batches: dict[tuple[int, int], list[tuple[Tensor, Tensor, Pairing]]] = {}
            for (template, phrase), f, g in zip(part, targets, mappings, strict=True):
                pairing = self.pair(template, phrase, concept.mapping, f.rows, g.rows)
                if own_words:
                    pairing = pairing.with_own_words()
                ours, theirs = f.rows.kept, g.rows.kept
                own = batches.setdefault((len(ours), len(theirs)), [])
                own.append((ours, theirs, _counted(pairing, f.rows, g.rows)))
                vectors.append((f.pooled, g.pooled))
            for own in batches.values():
                ours, theirs, pairings = zip(*own, strict=True)
                yield torch.stack(ours), torch.stack(theirs), list(pairings)
            step(len(part))

    def pair(self, template: str, target: str, mapping: str, f: Rows, g: Rows) -> Pairing:
        """Which rows f of the target prompt pair with which rows g of the mapping prompt."""
        parts = []
        for number, block in enumerate(self._blocks):
            starts, counts = [], []
            for rows in (f, g):
                begins = [each.start + rows.empty_in_front for each in self._blocks] + [len(rows.values)]
                starts.append(begins[number])
                counts.append(begins[number + 1] - begins[number])
            located = (self._sections[block.section].locate(template, phrase) for phrase in (target, mapping))
            found = pair_located(*located, (block.lead, block.lead), tuple(counts))
            parts.append(_shifted(found, *starts))
        if not any(part.phrase for part in parts):
            raise PairingError(f"the model reads no token of {target!r} in the prompt {fill(template, target)!r}")
        return Pairing(*(sum((getattr(part, side) for part in parts), ()) for side in Pairing.__dataclass_fields__))

    def gram(self, prompts: Sequence[str], step: Callable[[int], None]) -> tuple[Tensor, Tensor | None]:
        """As `TextEncoder.gram`, of what the ports read. Raises ValueError for texts that are too wide."""
        if self.width > WIDE:
            size = 8e-9 * self.width**2
            raise ValueError(
                f"this model's text is {self.width} wide and a prior would take {size:.1f} GB: it is refined without "
                "one; set mu above 0 in CFR Refine"
            )
        device = self.model.load_device
        total, pooled = Gram(self.width, device), None
        for part in chunks(prompts):
            found = self._read(part)
            # Together: a product of few rows takes as long as one of many, for all of [d, d] is written.
            total.add(torch.cat([each.rows.kept for each in found]))
            if self.has_pooled:
                vectors = torch.stack([each.pooled for each in found])
                pooled = pooled or Gram(vectors.shape[1], device)
                pooled.add(vectors)
            step(len(part))
        return total.matrix, pooled.matrix if pooled else None

    gather = staticmethod(kept_moments)
    at_ports = True

    @property
    def clip_layer(self) -> int | None:
        """As of `TextEncoder`."""
        return self.clip.layer_idx

    @property
    def module(self) -> torch.nn.Module:
        """The host's text encoder."""
        return self.clip.cond_stage_model

    @property
    def identity(self) -> tuple:
        """What features depend on besides the modules."""
        clip = self.clip
        return (clip.patcher.patches_uuid, clip.layer_idx, tokenizer_options(clip), self.model.patches_uuid)

    def _fingerprint(self) -> Tensor:
        """The first rows of `PROBE_PROMPTS`, [3, PROBE_TOKENS, d] float32 on the CPU; see `mace.method.prior.probe`."""
        found = []
        for each in self._read(PROBE_PROMPTS):
            rows = each.rows.kept[:PROBE_TOKENS].float().cpu()
            found.append(torch.nn.functional.pad(rows, (0, 0, 0, PROBE_TOKENS - len(rows))))
        return torch.stack(found)

    def _conditioning(self, prompt: str) -> list:
        """The host's CONDITIONING of a prompt."""
        model_management.throw_exception_if_processing_interrupted()
        return self.clip.encode_from_tokens_scheduled(tokens_of(self.clip, prompt))

    def _encoded(self, prompt: str) -> Tensor | None:
        """What the text encoder gives for a prompt, [n, d]."""
        tokens = self._conditioning(prompt)[0][0]
        return None if tokens is None else tokens.reshape(-1, tokens.shape[-1])

    def _read(self, prompts: Sequence[str]) -> list[Features]:
        """The features of prompts, on the model's device. Many wait for the model at once: it may not fit beside the
        text encoder."""
        found: list[Features] = []
        waiting: list[list] = []
        for number, prompt in enumerate(prompts):
            waiting.append(self._conditioning(prompt))
            tokens = waiting[-1][0][0]
            size = 0 if tokens is None else tokens.numel() * tokens.element_size()
            if number + 1 == len(prompts) or (len(waiting) + 1) * size > WAITING_BYTES:
                model_management.load_models_gpu([self.model])
                found += map(self._at_ports, waiting)
                waiting.clear()
        return found

    def _at_ports(self, conditioning: list) -> Features:
        model_management.throw_exception_if_processing_interrupted()
        runs, ports = SmallRuns(self.model, self.layout.side), self.layout.ports
        tokens, *others = read_features(lambda: runs.run(conditioning), self.model.model.diffusion_model, ports)
        values = as_rows(tokens)
        counted = values.abs().amax(-1) > 0
        hidden = hidden_rows(conditioning, len(counted))
        if hidden is not None and self.layout.masked:
            counted &= ~hidden.to(counted.device)
        return Features(Rows(values, counted), as_rows(others[0])[0].float().cpu() if others else None)


def _counted(pairing: Pairing, f: Rows, g: Rows) -> Pairing:
    """The pairs of rows that both count, as places among those that count."""
    left, right = (
        {place: number for number, place in enumerate(rows.counted.nonzero()[:, 0].tolist())} for rows in (f, g)
    )
    pairs = zip(pairing.target, pairing.mapping, strict=True)
    kept = [(left[i], right[j]) for i, j in pairs if i in left and j in right]
    return Pairing(tuple(i for i, _ in kept), tuple(j for _, j in kept), ())


def _shifted(pairing: Pairing, f: int, g: int) -> Pairing:
    """The same pairs in rows that begin f and g further on."""
    target, phrase = (tuple(i + f for i in side) for side in (pairing.target, pairing.phrase))
    mapping, own = (tuple(i + g for i in side) for side in (pairing.mapping, pairing.own))
    return Pairing(target, mapping, phrase, own)
