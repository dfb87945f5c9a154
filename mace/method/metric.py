"""The reading metric: how dear a direction of the text embeddings is to change, by how little the model reads of it.

mu ||W' - W||^2 (Appendix C.2) holds every direction of the embeddings alike, and a change made for "horse" then reaches
another word as far as its embedding resembles that of "horse". What a model draws for a word is decided by what its
values make of the embedding: words that are drawn alike can lie far apart as embeddings ("steed"), and words that lie
close can be drawn apart. With

    N = mean over the layers of W_v^T W_v d / ||W_v||^2,        R = N^-1,

mu tr((T - I) R (T - I)^T) takes the place of mu ||T - I||^2: writing T - I = C N^(1/2), a function of what is read, it
is mu ||C||^2. N's trace is d, so mu means the same, and for a model that reads all directions alike R is I. This is
ours, not the paper's.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from .moments import in_float64, working_device

# Of N's mean eigenvalue. Directions that are hardly read at all would have no bound otherwise.
RIDGE = 1e-4


def reading_metric(values: Iterable[Tensor], device: torch.device | None = None) -> Tensor:
    """R [d, d] float64 of a model's value projections W_v [d_out, d].

    device: where to compute, default the CPU. Projections of zeros read nothing, as those of layers that were taken out
    of a model, and do not count. Raises ValueError without any other, and for values that are not finite.
    """
    where = working_device(device or torch.device("cpu"))
    total, count = None, 0
    for weight in values:
        rows = in_float64(weight, where)
        size = rows.square().sum()
        if size == 0:
            continue
        if not torch.isfinite(size):
            raise ValueError("a value projection holds values that are not finite (NaN or infinity)")
        product = rows.mT @ rows * (rows.shape[1] / size)
        total = product if total is None else total.add_(product)
        count += 1
    if total is None:
        raise ValueError("there is no value projection that reads anything to take the reading metric from")
    total /= count
    total.diagonal().add_(RIDGE)
    return torch.cholesky_inverse(torch.linalg.cholesky(total))
