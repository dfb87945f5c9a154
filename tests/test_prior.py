"""The prior: its scale, and the text encoder it belongs to."""

import pytest
import torch

from mace.method.prior import COCO_CAPTIONS, PROBE_TOKENS, PriorError, make_prior, probe
from tests.oracle import outer_sum
from tests.prior_cases import CAPTIONS, WIDTH, WINDOW, encoder, gram, normal, small_prior


@pytest.fixture
def prior():
    return small_prior()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))


def test_scale():
    """P is the sum over all tokens of all captions, scaled by 616767 / n; D is not scaled."""
    captions = normal(CAPTIONS, 3, WIDTH, seed=1).double()
    kept = normal(2, 3, WIDTH, seed=2).double()
    made = make_prior(gram(captions), CAPTIONS, gram(kept), ("a", "b"), probe(encoder()), "")
    assert COCO_CAPTIONS == 616_767
    expected = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for caption in captions:
        expected += outer_sum(caption, caption, WIDTH) * (616_767 / CAPTIONS)
    close(made.general_moment(), expected)
    close(made.preserve_moment(), outer_sum(kept.reshape(-1, WIDTH), kept.reshape(-1, WIDTH), WIDTH))
    assert made.width == WIDTH
    assert made.mean.shape == made.preserve.shape == (WIDTH * (WIDTH + 1) // 2,)


def test_the_same_captions_twice_are_the_same_prior():
    captions = normal(CAPTIONS, WINDOW, WIDTH, seed=1)
    once = make_prior(gram(captions), CAPTIONS, None, (), probe(encoder()), "")
    twice = make_prior(gram(torch.cat([captions, captions])), 2 * CAPTIONS, None, (), probe(encoder()), "")
    close(twice.general_moment(), once.general_moment())


def test_parts_that_are_not_there():
    general, preserve = gram(normal(3, 4, WIDTH)), gram(normal(2, 4, WIDTH))
    only_captions = make_prior(general, 3, None, (), probe(encoder()), "")
    assert only_captions.preserve is None and only_captions.preserve_moment() is None
    only_preserve = make_prior(None, 0, preserve, ("a",), probe(encoder()), "")
    assert only_preserve.mean is None and only_preserve.general_moment() is None
    nothing = make_prior(torch.zeros_like(general), 0, torch.zeros_like(preserve), (), probe(encoder()), "")
    assert nothing.mean is None and nothing.preserve is None


def test_probe_is_a_copy_of_the_first_tokens():
    embeddings = encoder().half()
    fingerprint = probe(embeddings)
    assert fingerprint.shape == (3, PROBE_TOKENS, WIDTH)
    assert fingerprint.dtype == torch.float32 and fingerprint.is_contiguous()
    assert torch.equal(fingerprint, embeddings[:, :PROBE_TOKENS].float())
    assert fingerprint.untyped_storage().nbytes() == fingerprint.numel() * 4


def test_same_encoder_in_another_precision(prior):
    prior.check(probe(encoder()), (3, 4))
    prior.check(probe(encoder().half()), (3, 4))
    prior.check(probe(encoder().bfloat16()), (3, 4))
    prior.check(probe(encoder() * (1 + 1e-3 * normal(3, WINDOW, WIDTH, seed=5))), (3, 4))


@pytest.mark.parametrize("widths", [(), (3,), (3, 5), (3, 4, 4)], ids=str)
def test_a_model_that_reads_other_texts(prior, widths):
    with pytest.raises(PriorError, match="does not hold all texts"):
        prior.check(probe(encoder()), widths)


def test_another_encoder(prior):
    with pytest.raises(PriorError, match="another text encoder.*the CLIP"):
        prior.check(probe(encoder(seed=11)))


def test_another_width(prior):
    with pytest.raises(PriorError, match=f"{WIDTH} and {WIDTH + 2} wide"):
        prior.check(probe(encoder(width=WIDTH + 2)))


def test_another_layer(prior):
    """With clip skip another layer's embeddings come: near, but not the same."""
    with pytest.raises(PriorError, match="clip skip"):
        prior.check(probe(encoder() + 0.3 * normal(3, WINDOW, WIDTH, seed=12)))


def test_the_start_token_hides_no_difference():
    """Start-of-text is alike in many encoders and far larger than the words."""
    one, other = encoder(seed=20), encoder(seed=21)
    one[:, 0] = other[:, 0] = 1e5
    made = make_prior(gram(one), 3, None, (), probe(one), "")
    with pytest.raises(PriorError):
        made.check(probe(other))


def test_an_encoder_that_gives_nan(prior):
    broken = encoder()
    broken[1, 3, 2] = float("nan")
    with pytest.raises(PriorError):
        prior.check(probe(broken))
