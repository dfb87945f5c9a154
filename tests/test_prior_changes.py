"""A prior that changes: what steps aside for a list, as if it had never been in it."""

from dataclasses import replace

import pytest
import torch

from mace.method.prior import PriorTexts, make_prior, probe, step_aside

WIDTH, WINDOW = 6, 77
FINGERPRINT = probe(torch.randn(3, WINDOW, WIDTH, generator=torch.Generator().manual_seed(10)))
MOMENTS = ("mean", "preserve", "pooled_mean", "pooled_preserve")
# Of a model that reads two texts: what the second one's tokens are of the first one's.
SECOND = torch.randn(WIDTH, 3, generator=torch.Generator().manual_seed(11)).double()


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))


def sums(width, tokens):
    """Sums of texts, by their names: of their tokens and of their pooled vectors."""

    def of(names):
        found = torch.cat([tokens[name] for name in names]).double()
        second = found @ SECOND
        return found.T @ found, found[::WINDOW, :4].T @ found[::WINDOW, :4], second.T @ second

    return of


def test_what_steps_aside_was_never_in_it():
    """A prior without some captions and concepts is the prior that was made without them, to 1e-9."""
    captions = ("a dog", "a cat", "a dog", "the sky", "two dogs")
    prompts = (("a ship", "the ship"), ("a rose",))
    every = (*captions, *prompts[0], *prompts[1])
    tokens = {name: normal(WINDOW, WIDTH, seed=place) for place, name in enumerate(dict.fromkeys(every))}
    of = sums(WIDTH, tokens)

    def made(captions, preserved, prompts):
        general, pooled, other = of(captions) if captions else (None, None, None)
        kept, pooled_kept, other_kept = of([name for own in prompts for name in own]) if prompts else (None, None, None)
        about = (preserved, FINGERPRINT, "captions", ("bird",), (pooled, pooled_kept))
        return make_prior(general, len(captions), kept, *about, PriorTexts(captions, prompts), [(other, other_kept)])

    whole = made(captions, ("ship", "rose"), prompts)
    out = ("a dog", "a dog", "two dogs")
    less = step_aside(whole, out, of(out), ("ship",), of(prompts[0]))
    anew = made(("a cat", "the sky"), ("rose",), prompts[1:])
    for name in MOMENTS:
        close(getattr(less, name), getattr(anew, name))
    for found, expected in zip(less.text_moments(1), anew.text_moments(1), strict=True):
        close(found, expected)
    assert replace(less, stepped_aside=(0, ())).texts == anew.texts
    assert (less.captions, less.preserved, less.stepped_aside) == (2, ("rose",), (3, ("ship",)))
    nothing = step_aside(less, ("a cat", "the sky"), of(("a cat", "the sky")), ("rose",), of(prompts[1]))
    assert nothing.mean is nothing.preserve is nothing.pooled_mean is nothing.pooled_preserve is None
    assert nothing.others == ((None, None),) and nothing.text_moments(1) == (None, None)
    assert nothing.stepped_aside == (5, ("ship", "rose"))
    assert step_aside(whole, (), (None, None), (), (None, None)).mean is whole.mean
    assert whole.digest == less.digest == nothing.digest != anew.digest
    with pytest.raises(ValueError, match="not all in it"):
        step_aside(whole, ("a dog",), of(("a dog",)), (), (None, None))
    with pytest.raises(ValueError, match="does not hold its texts"):
        step_aside(replace(whole, texts=None), (), (None, None), (), (None, None))
