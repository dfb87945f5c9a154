"""How a model reads a prompt: which of its layers the closed forms edit, and which rows of text it hears."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...mace.method.ports import TextPorts, output_with, read_inputs
from .model.ports import SmallRuns, known_ports, ports_by_running, running_side
from .port_rows import MOVED

# Rows that differ by less, of the tokens' mean, are the same.
MEAN_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Layout:
    """How a MODEL reads its text.

    ports: groups of layers that are read, the tokens' first, the pooled text's second where there is one, then further
    texts'.  tokens: all layers that the tokens' T serves.  pooled: those of the pooled text.  others: by further text,
    where the model reads its prompt by several of their own (another encoder's, another layer's), all layers that its T
    serves.  left: layers that read other prompts than the one this was found with, and are not edited.  side: of the
    latents it is run with.  masked: whether rows of the tokens that the attention mask hides are not read.
    """

    ports: TextPorts
    tokens: tuple[str, ...]
    pooled: tuple[str, ...]
    others: tuple[tuple[str, ...], ...]
    left: tuple[str, ...]
    side: int
    masked: bool

    @property
    def _columns(self) -> list[int]:
        """The place of each text among the groups, in which the pooled text may stand behind the first."""
        return [0, *range(len(self.ports.groups) - len(self.others), len(self.ports.groups))]

    @property
    def widths(self) -> tuple[int, ...]:
        """d of each text, the tokens' first."""
        return tuple(self.ports.widths[column] for column in self._columns)

    def of_texts(self, places: Sequence[int]) -> "Layout":
        """The same with only some of the texts, the others' layers left as they are. places: in order, not empty."""
        texts, kept = (self.tokens, *self.others), self.ports
        pooled = [1] if self.pooled else []
        first, *others = (self._columns[place] for place in places)
        parts = (
            tuple(part[column] for column in (first, *pooled, *others))
            for part in (kept.groups, kept.rows, kept.widths)
        )
        dropped = [name for place, text in enumerate(texts) if place not in places for name in text]
        return replace(
            self,
            ports=TextPorts(*parts),
            tokens=texts[places[0]],
            others=tuple(texts[place] for place in places[1:]),
            left=(*self.left, *dropped),
            masked=self.masked and places[0] == 0,
        )


def find_layout(model, conditioning: list) -> Layout:
    """How a MODEL reads a prompt of this CONDITIONING. Raises ValueError for one that has no ports to edit."""
    network = model.model.diffusion_model
    kind = type(model.model).__name__
    try:
        side, groups = running_side(model, conditioning), known_ports(model)
        if groups is None:
            found = ports_by_running(model, conditioning)
            groups = found.groups if found else ()
    except Exception as error:
        # Whatever a family's forward raises for a text that is not its own.
        raise ValueError(
            f"{kind} does not run with what this CLIP gives: connect the text encoder that belongs to it ({error})"
        ) from error
    if not groups:
        raise ValueError(
            f"{kind} has no map that reads its prompt alone, and closed forms need one: MACE cannot edit it"
        )
    runs = SmallRuns(model, side)
    seen, output = read_inputs(lambda: runs.run(conditioning), network, [group[0] for group in groups])
    read = {group: as_rows(seen[group[0]]) for group in groups if group[0] in seen}
    tokens = next((group for group, rows in read.items() if len(rows) > 1), None)
    if tokens is None:
        raise ValueError(f"{kind} reads nothing of this CLIP: connect the text encoder that belongs to it")
    hidden, pooled = hidden_rows(conditioning, len(read[tokens])), ()
    # By the group that each text is read at: all layers that its T serves.
    texts = {tokens: list(tokens)}
    for group, rows in read.items():
        if group in texts:
            continue
        serving = next((text for text in texts if _are_served(rows, read[text], hidden)), None)
        if serving is not None:
            texts[serving] += group
        elif len(rows) == 1:
            if pooled:
                raise ValueError(f"{kind} reads two pooled texts, and MACE edits one: it would be edited by halves")
            pooled = group
        else:
            texts[group] = list(group)
    # Such as a second encoder's for quoted text.
    left = tuple(name for group in groups if group not in read for name in group)
    edited = (tokens, *((pooled,) if pooled else ()), *list(texts)[1:])
    rows = tuple(read[group] for group in edited)
    ports = TextPorts(edited, tuple(map(len, rows)), tuple(each.shape[-1] for each in rows))
    masked = False
    if hidden is not None and hidden.any():
        other = [_with_noise(call, hidden) for call in seen[tokens[0]]]
        fed = output_with(lambda: runs.run(conditioning), network, dict.fromkeys(tokens, other))
        masked = bool((fed - output).abs().max() <= MOVED * output.abs().max())
    served, *others = map(tuple, texts.values())
    return Layout(ports, served, pooled, tuple(others), left, side, masked)


def _are_served(rows: Tensor, tokens: Tensor, hidden: Tensor | None) -> bool:
    """Whether rows are tokens' rows and their mean, in any number: what maps the tokens maps these too.

    hidden: bool [n], the rows that the attention mask hides. The mean may be without them.
    """
    if rows.shape[-1] != tokens.shape[-1]:
        return False
    tokens = tokens.float()
    means = [tokens.mean(0)]
    if hidden is not None and len(hidden) == len(tokens) and not hidden.all():
        means.append(tokens[~hidden.to(tokens.device)].mean(0))
    nearest = torch.cdist(rows.float(), torch.stack([*means, *tokens])).amin(1)
    return bool((nearest <= MEAN_TOLERANCE * means[0].norm()).all())


def hidden_rows(conditioning: list, count: int) -> Tensor | None:
    """Which of a port's rows [count] the attention mask hides, bool on the CPU; None without a mask of the rows."""
    mask = conditioning[0][1].get("attention_mask")
    if mask is None or mask.shape[-1] > count:
        return None
    # What is put in front of the text encoder's rows has no mask.
    own = mask.reshape(-1, mask.shape[-1])[0].cpu() == 0
    return torch.nn.functional.pad(own, (count - len(own), 0))


def _with_noise(call: Tensor, at: Tensor) -> Tensor:
    """A layer's input with other numbers in some of its rows."""
    changed = call.clone()
    changed.view(-1, call.shape[-1])[at.to(call.device)] += call.float().std().to(call.dtype)
    return changed


def as_rows(calls: list[Tensor]) -> Tensor:
    """What a layer reads in all its calls, as rows [n, d]."""
    return torch.cat([call.reshape(-1, call.shape[-1]) for call in calls])
