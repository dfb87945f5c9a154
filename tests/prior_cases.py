"""A small prior, and the text encoder that it is of."""

import torch

from mace.method.prior import PriorTexts, make_prior, probe, texts_digest

WIDTH = 6
WINDOW = 77
CAPTIONS = 5


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoder(seed=10, width=WIDTH):
    """The probe prompts' embeddings of one text encoder: a large common start-of-text token, then words."""
    embeddings = normal(3, WINDOW, width, seed=seed)
    embeddings[:, 0] = 30.0
    return embeddings


def gram(embeddings):
    tokens = embeddings.double().reshape(-1, embeddings.shape[-1])
    return tokens.T @ tokens


def small_prior():
    """A prior with everything that one can hold: of a model that reads two further texts, one in captions alone."""
    further = [gram(normal(CAPTIONS, WINDOW, width, seed=width)) for width in (3, 4)]
    return make_prior(
        gram(normal(CAPTIONS, WINDOW, WIDTH, seed=1)),
        CAPTIONS,
        gram(normal(2, WINDOW, WIDTH, seed=2)),
        ("a field", "Zo\u00eb"),
        probe(encoder()),
        "built-in captions",
        ("dog", "Zo\u00eb"),
        texts=PriorTexts(tuple(f"caption {i}" for i in range(CAPTIONS)), (("a field", "the field"), ("Zo\u00eb",))),
        others=[(further[0], further[0] / 2), (further[1], None)],
        made_of=texts_digest(("a caption that was left out",), ()),
    )
