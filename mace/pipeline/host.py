"""What the stages ask of a host, as protocols: each member is there because a stage uses it."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..concepts.concept import Concept
from ..method.moments import ConceptMoments
from ..method.prior import Sums
from ..method.refine import Refinement
from ..method.span import RowMoments
from ..method.sums import Moments
from ..method.tokens import Pairing


class Text(Protocol):
    """The text of a prompt as a model reads it: rows of d numbers, and one pooled vector where the model reads one."""

    # Whether the rows are what a model's text ports read, and not the text encoder's own embeddings.
    at_ports: bool

    @property
    def module(self) -> nn.Module:
        """The text encoder. What is kept of it goes when it goes."""
        ...

    @property
    def identity(self) -> Hashable:
        """What the rows depend on besides the module: patches, clip skip, options of the tokenizers."""
        ...

    @property
    def fingerprint(self) -> Tensor:
        """See `mace.method.prior.probe`."""
        ...

    @property
    def width(self) -> int:
        """d."""
        ...

    @property
    def other_widths(self) -> tuple[int, ...]:
        """d of each further text, where the model reads its prompt by several of their own."""
        ...

    @property
    def clip_layer(self) -> int | None:
        """The text encoder's output layer (clip skip), None for its own default."""
        ...

    def fitting(self, texts: Sequence[str], as_prompt: Callable[[str], str]) -> list[str]:
        """The texts whose prompts can be read."""
        ...

    def gram(self, prompts: Sequence[str], step: Callable[[int], None]) -> Sums:
        """(sum e e^T over all rows of the prompts [d, d], the same over their pooled vectors [c, c], and over the rows
        of each further text), float64.

        None in place of the second where no pooled vector is read. step(prompts): progress.
        """
        ...

    def moments(
        self, concept: Concept, step: Callable[[int], None], pooled: bool = False, own_words: bool = False
    ) -> ConceptMoments | RowMoments:
        """A concept's moments. pooled: those of the pooled vectors too.  own_words: the phrase's own tokens are paired
        as well.  step(prompts): progress."""
        ...

    def gather(self, moments: Iterable[ConceptMoments | RowMoments]) -> Moments:
        """A list's moments, in memory or where there is room for them."""
        ...


class Embeddings(Text, Protocol):
    """A text whose rows are the text encoder's own embeddings, one a token, as training needs it."""

    # Rows of every prompt, start, end and padding included.
    window: int

    def pair(self, template: str, target: str, mapping: str) -> Pairing:
        """See `mace.method.tokens.pair`."""
        ...

    def length(self, prompt: str) -> int:
        """The number of the prompt's tokens, start and end not counted."""
        ...

    def encoded(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [P, N, d] of a batch of prompts (see `batches`), float32, of which the last ones are kept."""
        ...

    def pooled(self, prompts: Sequence[str]) -> Tensor:
        """The pooled vectors of prompts, [P, c] float32."""
        ...


@dataclass(frozen=True)
class Edit:
    """What a stage does to a model; nothing by default.

    keys: of the weights that change.  delta: (key, the weight [d_out, d] float32) -> its change, alike.  strength: by
    which changes are multiplied.  record: of the stage, for the provenance, None where nothing was done.  refinement:
    where the stage is one.
    """

    keys: tuple[str, ...] = ()
    delta: Callable[[str, Tensor], Tensor] | None = None
    strength: float = 1.0
    record: dict | None = None
    refinement: Refinement | None = None


class Weights(Protocol):
    """The weights by which a model reads its text."""

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        ...

    @property
    def refinement(self) -> Refinement | None:
        """The last refinement of the model, None where there was none."""
        ...

    @property
    def values(self) -> tuple[str, ...]:
        """The keys of the weights that tell how the model reads its text (see `mace.method.metric`)."""
        ...

    @property
    def pooled(self) -> tuple[str, ...]:
        """The keys of the weights that read the pooled vector."""
        ...

    @property
    def others(self) -> tuple[tuple[str, ...], ...]:
        """The keys of the weights that read each further text's rows."""
        ...

    @property
    def left(self) -> tuple[str, ...]:
        """What reads some prompts and is not edited, by name."""
        ...

    def tokens(self, projections: str = "both") -> tuple[str, ...]:
        """The keys of the weights that read rows. projections: "both", or "keys" or "values" alone.

        Raises ValueError where the model has none of these.
        """
        ...

    def effective(self, keys: Iterable[str]) -> Iterator[Tensor]:
        """The weights of these keys as the model computes with them, [d_out, d] float32 on `device`."""
        ...

    def edited(self, edit: Edit, step: Callable[[int], None]) -> tuple["Weights", list[str]]:
        """(a model with the edit, lines for the artist); this one stays as it is. step(1): after each weight."""
        ...


@dataclass(frozen=True)
class Attention:
    """One cross-attention of a forward pass, before it is computed.

    q [B, pixels, heads * c], k and v [B, N, heads * c].  grid: (height, width) of the pixels.  others: what somebody
    else makes of keys and values here, None where the model's own attention is as it was.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    grid: tuple[int, int]
    others: Callable[[Tensor, Tensor], Tensor] | None = None


# (layer, its attention) -> what comes of it, as q. layer: the start of its projections' keys, up to ".to_k".
Attend = Callable[[str, Attention], Tensor]


class Denoiser(Protocol):
    """A model that predicts pictures from noisy ones, under autograd where that is on."""

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        ...

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(x_t [B, ch, h, w], sigmas [B]) of latents in the VAE's scale at timesteps of 0..999."""
        ...

    def together(self, sigmas: Tensor) -> list[Tensor]:
        """Which of the samples at sigmas [B] can be computed in one call: row numbers."""
        ...

    def predict(self, x: Tensor, sigmas: Tensor, contexts: Tensor, pooled: Tensor | None, attend: Attend) -> Tensor:
        """x_0 of samples of one call, from x at sigmas [B]. contexts: embeddings [B, N, d].  pooled: [B, c], None where
        none is read.  attend: computes every cross-attention."""
        ...


class Judge(Protocol):
    """Who says what a picture shows.

    kind: one of those of `evaluation`.  name: for the results.
    """

    kind: str
    name: str

    def choose_among(self, names: Sequence[str]) -> None:
        """What will be asked for. Raises ValueError for names that the judge does not know."""
        ...

    def answers(self, seen: Sequence[dict], labels: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(whether each picture's label is the first choice, its probability), [n] each. Not asked of NudeNet."""
        ...

    def scores(self, seen: Sequence[dict], prompts: Sequence[str]) -> Tensor:
        """The CLIP score of each picture with its prompt, [n]. Asked of CLIP alone."""
        ...

    def release(self) -> None:
        """Leave the device."""
        ...


class Draws(Protocol):
    """The pictures of one model, for prompts and seeds of the noise, as a judge sees them.

    key: by content, of the model and all that its pictures depend on.  drawn: how many were drawn so far, and not kept
    from before.
    """

    key: str
    drawn: int

    def look(self, asked: Sequence[tuple[str, int]], shown: set[int]) -> tuple[list[dict], dict[int, Tensor]]:
        """What the judge saw in the picture of each (prompt, seed); and the pictures uint8 [H, W, 3] of the places in
        `shown`."""
        ...


class Progress(Protocol):
    """Where a run tells how far it is."""

    def begin(self, total: int) -> Callable[[int], None]:
        """A new bar of `total` steps; calling what comes back advances it by so many."""
        ...
