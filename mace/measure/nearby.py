"""How far an edit moves what a model reads of words that are to stay, told without drawing anything.

A projection W reads a prompt's token embeddings E [N, d] as E W^T, and what the prompt says is what it adds to the
empty prompt's E_0. An edit W* moves the reading by E (W* - W)^T. Over the projections of a model,

    moved = sqrt(mean_W  ||E (W* - W)^T||^2 / ||(E - E_0) W^T||^2),

the share of what the word says to the model that is no longer read as before: 0 nothing, 1 as much as the word itself.
The first row, in most encoders the start-of-text token of every prompt, is left out. Closed form; this is ours, not the
paper's.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

# Up to where a word's reading has moved how far, in words. By the demo model's judge, over refinements of one and ten
# concepts at several mu: it recognises 11 of 12 things up to 0.25, whose pictures move by 1 to 3 % of the range of
# values, 13 of 14 up to 0.4, 4 of 12 up to 0.55, and 1 of 27 above.
# On the small SD3, with one and eight concepts: 29 of 29, 67 of 73, 49 of 76 and 6 of 23.
LIMITS = ((0.1, "not at all"), (0.25, "barely"), (0.4, "a little"), (0.55, "much"))
BEYOND = "beyond recognition"


def moved(words: Tensor, empty: Tensor, weights: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """How far each word's reading moved, float64 [B].

    words: token embeddings [B, N, d] of a prompt with each word.  empty: those of the empty prompt [N, d].  weights:
    (W, W*) of each projection, [d_out, d]; one that reads nothing of a word does not count for it.
    """
    said, all_of_it = (words - empty)[:, 1:], words[:, 1:]
    total = torch.zeros(len(words), dtype=torch.float64)
    count = torch.zeros_like(total)
    for before, after in weights:
        change = all_of_it.to(before) @ (after - before).mT
        read = (said.to(before) @ before.mT).square().sum((1, 2)).cpu().double()
        total += torch.where(read > 0, change.square().sum((1, 2)).cpu().double() / read.clamp_min(1e-300), 0)
        count += read > 0
    return (total / count.clamp_min(1)).sqrt()


def in_words(value: float) -> str:
    """A share of `moved` as an artist reads it."""
    return next((words for limit, words in LIMITS if value < limit), BEYOND)
