"""A model's text as its text ports read it: MODEL and CLIP together, of every family that has ports.

The counterpart of `TextEncoder` for models whose ports read something else than the text encoder's embeddings, with
the same methods for the closed forms. Features are read where the host's own forward hands them to the port, so that
norms, adapters, padding and concatenation are as the model has them.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, tee

import torch
from comfy import model_management
from torch import Tensor

from ...mace.concepts.concept import Concept
from ...mace.method.moments import Batch, ConceptMoments, Gram, concept_moments, pooled_moments
from ...mace.method.ports import read_features
from ...mace.method.prior import PROBE_PROMPTS, PROBE_TOKENS, Sums
from ...mace.method.span import WIDE, RowMoments, row_moments
from ...mace.method.tokens import Pairing, fill
from ...mace.pipeline.batches import chunks
from ...mace.pipeline.store import LastResult
from .any_text import AnyText
from .kept.content import content_sha256, model_sha256
from .kept.on_disk import kept_moments
from .kept.store import SHARE_OF_MEMORY, ContentStore, MomentStore
from .model.ports import SmallRuns
from .model.unet import weight_key
from .port_layout import as_rows, find_layout, hidden_rows
from .port_pairs import pair_rows, pairs_that_count
from .port_rows import PROBE, PROBED, Rows, Section, find_blocks
from .prompts import tokens_of
from .text import CHANGES_IN_SAMPLING
from .tokenizers import fits_at_once, tokenizer_options

# Of prompts' conditioning that waits for the model at once, and of features that are likely to be asked for again.
WAITING_BYTES, CACHE_BYTES = 2**28, 2**28
FINGERPRINT_BYTES = 16 << 20

_store = MomentStore(int(model_management.get_total_memory(torch.device("cpu")) * SHARE_OF_MEMORY))
# What was found of a MODEL's network with a CLIP, by what both depend on.
_layouts = LastResult()
# By content: a device may give the same rows with other bits the next time, and moments are kept by their fingerprint.
_fingerprints = ContentStore(FINGERPRINT_BYTES)


@dataclass(frozen=True)
class Features:
    """What a model reads of a prompt. texts: the rows of each text that it reads, most models one.  pooled: [c], where
    it reads a pooled text."""

    texts: tuple[Rows, ...]
    pooled: Tensor | None

    @property
    def rows(self) -> Rows:
        """Those of the first text."""
        return self.texts[0]

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        return sum(rows.values.numel() * rows.values.element_size() for rows in self.texts)


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
        # The same encoder may be given another tokenizer.
        tokens = [*map(AnyText(clip).tokenize, PROBE_PROMPTS)]
        key = (self.identity, weakref.ref(clip.cond_stage_model), tokens)
        known = _layouts.get(model.model, key)
        if known is None:
            self.layout = find_layout(model, self._conditioning(prompt))
            blocks = find_blocks(clip, self._sections, lambda text: self._read([text])[0].texts, self._encoded)
            # What no token moves is a text of another kind (a song's words), or of an encoder that is not loaded.
            heard = [place for place, own in enumerate(blocks) if own]
            if len(heard) < len(blocks):
                self.layout = self.layout.of_texts(heard)
            known = (self.layout, [blocks[place] for place in heard], *self._fingerprint())
            _layouts.put(model.model, key, known)
        self.layout, self._blocks, self.fingerprint, self._content = known

    @property
    def width(self) -> int:
        """d of what the tokens' ports read."""
        return self.fingerprint.shape[-1]

    @property
    def widths(self) -> tuple[int, ...]:
        """d of each text, the tokens' first."""
        return self.layout.widths

    @property
    def other_widths(self) -> tuple[int, ...]:
        """d of each further text."""
        return self.widths[1:]

    @property
    def _wide(self) -> bool:
        """Whether moments of its texts would take too much memory, see `mace.method.span`."""
        return sum(width**2 for width in self.widths) > WIDE**2

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
        network, key = self.model.model, self._key(concept, pooled, own_words)
        found = _store.get(network, key)
        if found is not None:
            step(len(concept.readings))
            return found
        vectors: list[tuple[Tensor, Tensor]] = []
        passes = tee(self._batches(concept, step, own_words, vectors), len(self.widths))
        found, *others = (
            self._summed((batch for part in own for batch in part[place]), width)
            for place, (own, width) in enumerate(zip(passes, self.widths, strict=True))
        )
        if others:
            found = replace(found, others=tuple(others))
        if pooled:
            targets, mappings = (torch.stack(side) for side in zip(*vectors, strict=True))
            found = replace(found, pooled=pooled_moments(targets, mappings, self.model.load_device))
        _store.put(network, key, found)
        return found

    def knows(self, concept: Concept, own_words: bool = False) -> bool:
        """As `TextEncoder.knows`."""
        return any(
            _store.get(self.model.model, self._key(concept, own, own_words)) is not None for own in (False, True)
        )

    def _key(self, concept: Concept, pooled: bool, own_words: bool) -> tuple:
        return (self._content, concept, pooled, own_words)

    def read(self, prompts: Sequence[str]) -> None:
        """As `TextEncoder.read`; also of texts that are too wide for a prior."""
        self.features(prompts)[-1].texts[0].values.sum().item()

    def _summed(self, batches: Iterator[Batch], width: int) -> ConceptMoments | RowMoments:
        return row_moments(batches) if self._wide else concept_moments(batches, width, self.model.load_device)

    def _batches(
        self, concept: Concept, step: Callable[[int], None], own_words: bool, vectors: list
    ) -> Iterator[list[list[Batch]]]:
        """By text that the model reads, a concept's prompts, some at a time. vectors: gets their pooled texts."""
        for part in chunks(concept.readings):
            targets = self.features([fill(template, phrase) for template, phrase in part])
            mappings = self.features([fill(template, concept.mapping) for template, _ in part])
            texts: list[list[Batch]] = []
            for place in range(len(self.widths)):
                batches: dict[tuple[int, int], list[tuple[Tensor, Tensor, Pairing]]] = {}
                for (template, phrase), *sides in zip(part, targets, mappings, strict=True):
                    f, g = (side.texts[place] for side in sides)
                    pairing = self.pair(template, phrase, concept.mapping, f, g, place)
                    if own_words:
                        pairing = pairing.with_own_words()
                    own = batches.setdefault((len(f.kept), len(g.kept)), [])
                    own.append((f.kept, g.kept, pairs_that_count(pairing, f, g)))
                stacked = (zip(*own, strict=True) for own in batches.values())
                texts.append([(torch.stack(f), torch.stack(g), list(pairings)) for f, g, pairings in stacked])
            vectors += [(f.pooled, g.pooled) for f, g in zip(targets, mappings, strict=True)]
            yield texts
            step(len(part))

    def pair(self, template: str, target: str, mapping: str, f: Rows, g: Rows, text: int = 0) -> Pairing:
        """Which rows f of the target prompt pair with which rows g of the mapping prompt. text: which one's."""
        return pair_rows(self._blocks[text], self._sections, template, (target, mapping), (f, g))

    def check_holds_prior(self, cure: str) -> None:
        """Raise ValueError where the texts are too wide for a prior. cure: what to do then."""
        if self._wide:
            size = 8e-9 * sum(width**2 for width in self.widths)
            raise ValueError(
                f"this model's text is {' + '.join(map(str, self.widths))} wide and a prior would take {size:.1f} GB: "
                f"it is refined without one; {cure}"
            )

    def gram(self, prompts: Sequence[str], step: Callable[[int], None]) -> Sums:
        """As `TextEncoder.gram`, of what the ports read. Raises ValueError for texts that are too wide."""
        self.check_holds_prior("set mu above 0 in CFR Refine")
        device = self.model.load_device
        totals, pooled = [Gram(width, device) for width in self.widths], None
        for part in chunks(prompts):
            found = self._read(part)
            for total, rows in zip(totals, zip(*(each.texts for each in found), strict=True), strict=True):
                # Together: a product of few rows takes as long as one of many, for all of [d, d] is written.
                total.add(torch.cat([own.kept for own in rows]))
            if self.has_pooled:
                vectors = torch.stack([each.pooled for each in found])
                pooled = pooled or Gram(vectors.shape[1], device)
                pooled.add(vectors)
            step(len(part))
        tokens, *others = (total.matrix for total in totals)
        return tokens, pooled.matrix if pooled else None, *others

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

    def _fingerprint(self) -> tuple[Tensor, str]:
        """The first rows of `PROBE_PROMPTS`, [3, PROBE_TOKENS, d] float32 on the CPU, see `mace.method.prior.probe`;
        and what features depend on, by value."""
        text, model = AnyText(self.clip).content(*PROBE_PROMPTS), self.model.clone()
        # The layers that are edited stand behind what they read.
        for name in (*self.layout.tokens, *self.layout.pooled, *chain(*self.layout.others)):
            model.patches.pop(weight_key(name), None)
        key = content_sha256(text, model_sha256(model))
        found = _fingerprints.get(key)
        if found is None:
            rows = [each.rows.kept[:PROBE_TOKENS].float().cpu() for each in self._read(PROBE_PROMPTS)]
            found = torch.stack([torch.nn.functional.pad(own, (0, 0, 0, PROBE_TOKENS - len(own))) for own in rows])
            _fingerprints.put(key, found, found.nbytes)
        # Of the MODEL not the key: most of what changes it stands behind the ports.
        return found, content_sha256(text, found)

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
        read = read_features(lambda: runs.run(conditioning), self.model.model.diffusion_model, ports)
        pooled = as_rows(read.pop(1))[0].float().cpu() if self.has_pooled else None
        texts = [Rows(values, values.abs().amax(-1) > 0) for values in map(as_rows, read)]
        hidden = hidden_rows(conditioning, len(texts[0].counted))
        if hidden is not None and self.layout.masked:
            texts[0].counted.logical_and_(~hidden.to(texts[0].counted.device))
        return Features(tuple(texts), pooled)
