"""The host's text encoder as the numerics need it: tokens, pairings, batched embeddings, a fingerprint."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from comfy import model_management

from ...mace.concepts.concept import Concept
from ...mace.concepts.text import check_characters
from ...mace.method.moments import ConceptMoments, Gram, concept_moments, pooled_moments
from ...mace.method.prior import PROBE_PROMPTS, probe
from ...mace.method.tokens import PairingError, fill, pair
from ...mace.pipeline.batches import chunks
from ...mace.pipeline.store import LastResult
from .kept.content import text_sha256
from .kept.on_disk import kept_moments
from .kept.store import SHARE_OF_MEMORY, ContentStore, MomentStore
from .model.unet import cross_attention_keys, matrix_shape, pooled_key
from .prompts import check_prompt, parts_of, tokens_of
from .tokenizers import token_name, tokenizer_options, vocabulary

# The encoder whose pooled text models read besides the tokens (CLIP-G: SDXL and its kin).
POOLING = "g"
CHANGES_IN_SAMPLING = (
    "this CLIP changes during sampling (scheduled hooks), and moments belong to one text encoder: connect the CLIP "
    "before the hooks"
)

_memory = model_management.get_total_memory(torch.device("cpu"))
_store = MomentStore(int(_memory * SHARE_OF_MEMORY))
# The prompts' embeddings themselves, 0.24 MB each in SD1.x: training reads what refinement has just encoded.
_embeddings = ContentStore(int(_memory * SHARE_OF_MEMORY / 8))
_fingerprints = LastResult()


class TextEncoder:
    """A CLIP input of a node, at the output layer it is set to (clip skip)."""

    def __init__(self, clip):
        if clip is None:
            raise ValueError(
                "the CLIP input is empty: this checkpoint has no text encoder; load one with a CLIP loader"
            )
        self.clip = clip
        empty = clip.tokenize("")
        unknown = set(empty) - {"l", "g", "h"}
        if unknown or not empty:
            names = ", ".join(sorted(unknown)) or "none"
            raise ValueError(
                f"this reads the CLIP text encoders of SD1.x, SD2.x and SDXL; this CLIP input holds: {names}. For "
                "other models connect the model too, where a node takes it"
            )
        if clip.use_clip_schedule and clip.patcher.forced_hooks is not None:
            raise ValueError(CHANGES_IN_SAMPLING)
        # SDXL tokenises the same text for both encoders; they differ in padding only.
        self._section = next(iter(empty))
        first = empty[self._section][0]
        self.window = len(first)
        self._end = first[1][0]
        self.pads_with_end = all(section[0][-1][0] == self._end for section in empty.values())
        self._known: dict[str, tuple[Hashable, ...]] = {}

    def tokenize(self, text: str) -> tuple[Hashable, ...]:
        """Tokens of a text without weights, without start, end and padding. Textual inversions are hashed."""
        if text not in self._known:
            check_characters(text, "prompt")
            # Weights are off: brackets still here were escaped by the artist and are meant as brackets.
            sections = self.clip.tokenize(text, disable_weights=True, return_word_ids=True)[self._section]
            # Start, end and padding are of no word. An end that stands in the text is.
            words = [token for section in sections for token, _, word in section if word]
            self._known[text] = tuple(map(token_name, words))
        return self._known[text]

    @staticmethod
    def split(prompt: str) -> list[str]:
        """The texts of a prompt's weighted parts, as the host's prompt language divides it."""
        return [text for text, _ in parts_of(prompt)]

    def pair(self, template: str, target: str, mapping: str):
        """`mace.method.tokens.pair` with this encoder's tokens."""
        for phrase in (target, mapping):
            check_prompt(self.clip, fill(template, phrase))
        return pair(template, target, mapping, self.tokenize, self.split, self.window)

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings [B, N, d] of whole prompts, float32, in one forward pass; weights in brackets count.

        Raises PairingError for a prompt that does not fit the encoder's window, and the host's interrupt.
        """
        return self.encode_pooled(prompts)[0]

    def encode_pooled(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(embeddings as of `encode`, pooled texts [B, c] float32 on the CPU) of prompts.

        None in place of the second for encoders without a pooled text that models read. Raises as `encode` does.
        """
        model_management.throw_exception_if_processing_interrupted()
        batch: dict[str, list] = {}
        for prompt in prompts:
            self.check_length(prompt)
            for name, sections in tokens_of(self.clip, prompt).items():
                batch.setdefault(name, []).extend(sections)
        seen: list[torch.Tensor] = []
        # Of the pooled texts the host hands on the first one's alone.
        pooling = getattr(self.clip.cond_stage_model, f"clip_{POOLING}", None)
        hook = pooling.register_forward_hook(lambda module, given, out: seen.append(out[1])) if pooling else None
        try:
            embeddings = self.clip.encode_from_tokens(batch)
        finally:
            if hook is not None:
                hook.remove()
        pooled = seen[0][: len(prompts)].to("cpu", torch.float32) if seen else None
        return embeddings.reshape(len(prompts), -1, embeddings.shape[-1]), pooled

    def encoded(self, prompts: Sequence[str]) -> torch.Tensor:
        """As `encode`, where the prompts are likely to be asked for again, as those of mapping concepts are by every
        concept that is mapped to them: the last ones are kept, on the CPU, and only what is not there is computed."""
        known = {prompt: _embeddings.get((self.identity, prompt)) for prompt in prompts}
        missing = [prompt for prompt, own in known.items() if own is None]
        if missing:
            found = self._encoded_with_pooled(missing)
            for prompt, embedding in zip(missing, found, strict=True):
                _keep((self.identity, prompt), embedding)
            known |= dict(zip(missing, found, strict=True))
            return torch.stack([known[prompt].to(found) for prompt in prompts])
        return torch.stack([known[prompt] for prompt in prompts])

    def has_kept(self, prompts: Sequence[str], pooled: bool) -> bool:
        """Whether `encoded`, and `pooled` where that is asked for, have all of the prompts from before."""
        names = [(self.identity, prompt) for prompt in prompts]
        names += [(*name, "pooled") for name in names] if pooled else []
        return all(_embeddings.get(name) is not None for name in names)

    def _encoded_with_pooled(self, prompts: Sequence[str]) -> torch.Tensor:
        """As `encode`; the pooled texts, which one pass gives too, are kept for `pooled`."""
        found, pooled = self.encode_pooled(prompts)
        if pooled is not None:
            self._keep_pooled(prompts, pooled)
        return found

    def length(self, prompt: str) -> int:
        """The number of the prompt's tokens, start and end not counted; window - 2 fit."""
        check_prompt(self.clip, prompt)
        return sum(len(self.tokenize(part)) for part in self.split(prompt))

    def fitting(self, texts: Sequence[str], as_prompt: Callable[[str], str]) -> list[str]:
        """The texts whose prompts fit the encoder's window."""
        found = []
        for part in chunks(texts):
            model_management.throw_exception_if_processing_interrupted()
            found += [text for text in part if self.length(as_prompt(text)) <= self.window - 2]
        return found

    def check_length(self, prompt: str) -> None:
        """Raise PairingError for a prompt that the host would cut into several sections."""
        count = self.length(prompt)
        if count > self.window - 2:
            raise PairingError(
                f"the prompt {prompt!r} has {count} tokens, the text encoder takes {self.window - 2}; shorten it"
            )

    def vocabulary(self) -> tuple[dict[int, str], torch.Tensor]:
        """`vocabulary` of this encoder."""
        return vocabulary(self.clip, f"clip_{self._section}")

    def phrase_tokens(self, phrase: str) -> list[int]:
        """The tokens of a phrase that have a row in the vocabulary's table."""
        return [token for token in self.tokenize(phrase) if isinstance(token, int)]

    @property
    def device(self) -> torch.device:
        """Where the host computes the encoder."""
        return self.clip.patcher.load_device

    @property
    def fingerprint(self) -> torch.Tensor:
        """See `mace.method.prior.probe`. Kept for the encoder's last state, so that a new solve loads no encoder."""
        found = _fingerprints.get(self.module, self.identity)
        if found is None:
            found = probe(self.encode(PROBE_PROMPTS))
            _fingerprints.put(self.module, self.identity, found)
        return found

    @property
    def width(self) -> int:
        """d, the length of an embedding."""
        return self.fingerprint.shape[-1]

    def check_width(self, model) -> None:
        """Raise ValueError unless the MODEL reads embeddings of this encoder's width."""
        expected = matrix_shape(model, cross_attention_keys(model)[0])[1]
        if self.width != expected:
            raise ValueError(
                f"this CLIP gives embeddings {self.width} wide and the model reads {expected}: connect the text "
                "encoder of the same checkpoint"
            )

    gather = staticmethod(kept_moments)
    at_ports = False

    # Models that read by several texts read them at their ports.
    other_widths = ()

    @property
    def clip_layer(self) -> int | None:
        """The encoder's output layer (clip skip), None for its own default."""
        return self.clip.layer_idx

    @property
    def module(self) -> torch.nn.Module:
        """The host's text encoder."""
        return self.clip.cond_stage_model

    @property
    def identity(self) -> tuple:
        """What embeddings depend on besides the encoder's module: patches, clip skip, tokenizer options."""
        return (self.clip.patcher.patches_uuid, self.clip.layer_idx, tokenizer_options(self.clip))

    def content(self, *phrases: str) -> tuple:
        """What the embeddings of prompts with these phrases depend on, by value, for `content.content_sha256`."""
        _, layer, options = self.identity
        return (self._sha256, layer, options, [self.tokenize(phrase) for phrase in phrases])

    @cached_property
    def _sha256(self) -> str:
        return text_sha256(self.clip)

    @staticmethod
    def has_pooled(model) -> bool:
        """Whether the MODEL reads the pooled text besides the embeddings (SDXL)."""
        return pooled_key(model) is not None

    def pooled(self, prompts: Sequence[str]) -> torch.Tensor:
        """The pooled text of each prompt, [B, c] float32; the last ones are kept, on the CPU, as those of `encoded`."""
        known = {prompt: _embeddings.get((self.identity, prompt, "pooled")) for prompt in prompts}
        for part in chunks([prompt for prompt, own in known.items() if own is None]):
            found = self.encode_pooled(part)[1]
            self._keep_pooled(part, found)
            known |= dict(zip(part, found, strict=True))
        return torch.stack([known[prompt] for prompt in prompts])

    def _keep_pooled(self, prompts: Sequence[str], pooled: torch.Tensor) -> None:
        for prompt, own in zip(prompts, pooled, strict=True):
            _keep((self.identity, prompt, "pooled"), own)

    def moments(
        self, concept: Concept, step: Callable[[int], None], pooled: bool = False, own_words: bool = False
    ) -> ConceptMoments:
        """The concept's moments, from the store of the last ones where it is there. step(prompts): progress.

        pooled: those of the prompts' pooled texts too.  own_words: the phrase's own tokens are paired as well.
        """
        key = self._key(concept, pooled, own_words)
        found = _store.get(self.module, key)
        if found is None:
            found = concept_moments(self._batches(concept, step, own_words), self.width, self.device)
            if pooled:
                targets = [fill(template, phrase) for template, phrase in concept.readings]
                mappings = [fill(template, concept.mapping) for template, _ in concept.readings]
                own = pooled_moments(self.pooled(targets), self.pooled(mappings), self.device)
                found = replace(found, pooled=own)
            _store.put(self.module, key, found)
        else:
            step(len(concept.readings))
        return found

    def knows(self, concept: Concept, own_words: bool = False) -> bool:
        """Whether the concept's moments are kept, with or without those of the pooled texts."""
        return any(_store.get(self.module, self._key(concept, own, own_words)) is not None for own in (False, True))

    def _key(self, concept: Concept, pooled: bool, own_words: bool) -> tuple:
        return (self.identity, concept, pooled, own_words)

    def read(self, prompts: Sequence[str]) -> None:
        """Encode prompts and wait for the device, to be timed."""
        self.gram(prompts, lambda count: None)[0][0, 0].item()

    def _batches(self, concept: Concept, step: Callable[[int], None], own_words: bool) -> Iterator[tuple]:
        for part in chunks(concept.readings):
            pairings = [self.pair(template, phrase, concept.mapping) for template, phrase in part]
            if own_words:
                pairings = [pairing.with_own_words() for pairing in pairings]
            targets = self.encoded([fill(template, phrase) for template, phrase in part])
            mappings = self.encoded([fill(template, concept.mapping) for template, _ in part])
            yield targets, mappings, pairings
            step(len(part))

    def gram(self, prompts: Sequence[str], step: Callable[[int], None]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(sum e e^T over all tokens of the prompts [d, d], the same over their pooled texts [c, c]), float64.

        None in place of the second for encoders without a pooled text that models read.
        """
        total, pooled = Gram(self.width, self.device), None
        for part in chunks(prompts):
            embeddings, own = self.encode_pooled(part)
            total.add(embeddings)
            if own is not None:
                pooled = pooled or Gram(own.shape[-1], self.device)
                pooled.add(own)
            step(len(part))
        return total.matrix, pooled.matrix if pooled else None


def _keep(key: tuple, value: torch.Tensor) -> None:
    own = value.to("cpu", copy=True)
    _embeddings.put(key, own, own.numel() * own.element_size())
