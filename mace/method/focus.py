"""Focus: erasure LoRAs that read what tells a concept's tokens from everyday captions, and nothing else.

A LoRA of rank r starts with a random A [r, d] and turns it little in some tens of steps. B A then also moves what every
prompt holds (start of text, the mean of the padding, common words), and fusion has to choose between erasing the
concept and keeping the rest. With S the second moment of the tokens that Eq. 3 trains away (the set S there) and P' the
mean second moment of a caption, the rows of A are here the r directions a that maximise

    (a^T S a) / (a^T (P' + floor R) a)

(Fisher's criterion without a mean; R is I or the metric of `reading`), and only B is trained. This is ours, not the
paper's: without a focus training is the paper's. The result is an ordinary LoRA.
"""

import torch
from torch import Tensor

from .moments import unpack, working_device
from .refine import add_scaled_metric

# In units of P'. Smaller floors favour directions that captions never take, which synonyms do not share either; the
# values, for I and for the reading metric, were found on the demo model (see docs/search.md).
FLOOR, READING_FLOOR = 0.5, 50.0


def selected_moment(embeddings: Tensor, phrase: Tensor, end: Tensor | None = None) -> tuple[Tensor, float]:
    """S [d, d] float64 of a concept's tokens, and the sum of their weights.

    embeddings: [P, N, d].  phrase: 1 at the concept's own tokens, [P, N].  end: 1 at end-of-text and padding, [P, N];
    they count as one token a prompt together, or they would outweigh the concept's own.
    """
    weights = phrase.double()
    if end is not None:
        weights = weights + end.double() / end.double().sum(dim=1, keepdim=True).clamp_min(1)
    rows = embeddings.double().flatten(0, 1)
    flat = weights.flatten()
    return rows.mT @ (rows * flat[:, None]), float(flat.sum())


def directions(
    selected: Tensor,
    weight: float,
    caption: Tensor,
    rank: int,
    device: torch.device | None = None,
    metric: Tensor | None = None,
) -> Tensor:
    """A [rank, d] float32 on the CPU, its rows by falling criterion.

    selected, weight: of `selected_moment`.  caption: P', packed (see `Prior.mean`).  Each row answers the tokens as a
    random A does on average, by |e| / rank, so that learning rates mean the same. device: where to solve.  metric: R
    [d, d] of `reading`, None for I.
    Raises ValueError for a rank beyond d or below 1.
    """
    width = len(selected)
    if not 1 <= rank <= width:
        raise ValueError(f"the rank must lie between 1 and {width}, not {rank}")
    where = working_device(device or torch.device("cpu"))
    own = selected.to(where, torch.float64)
    system = unpack(caption.to(where, torch.float64))
    add_scaled_metric(system, FLOOR if metric is None else READING_FLOOR, metric)
    factor = torch.linalg.cholesky(system)
    half = torch.linalg.solve_triangular(factor, own, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    _, vectors = torch.linalg.eigh((whitened + whitened.mT) / 2)
    found = torch.linalg.solve_triangular(factor.mT, vectors[:, -rank:].flip(1), upper=True).mT
    answers = ((found @ own) * found).sum(dim=1) / weight
    size = (own.trace() / weight).sqrt() / rank
    # A direction's sign is the solver's choice; the largest entry decides, so that every machine trains the same.
    largest = found.gather(1, found.abs().argmax(dim=1, keepdim=True)).sign()
    return (found * largest * (size / answers.sqrt())[:, None]).float().cpu()
