"""The prior: its scale, its file, and the text encoder it belongs to."""

import json
import zlib
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mace.formats.prior_file import prior_from_file, prior_to_file
from mace.method.moments import pack
from mace.method.prior import COCO_CAPTIONS, PROBE_TOKENS, PriorError, PriorTexts, make_prior, probe
from tests.oracle import outer_sum

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


@pytest.fixture
def prior():
    return make_prior(
        gram(normal(CAPTIONS, WINDOW, WIDTH, seed=1)),
        CAPTIONS,
        gram(normal(2, WINDOW, WIDTH, seed=2)),
        ("a field", "Zo\u00eb"),
        probe(encoder()),
        "built-in captions",
        ("dog", "Zo\u00eb"),
        texts=PriorTexts(tuple(f"caption {i}" for i in range(CAPTIONS)), (("a field", "the field"), ("Zo\u00eb",))),
    )


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))


def equal(a, b):
    for name in ("mean", "preserve", "fingerprint"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None and y is None) or torch.equal(x, y), name
    for name in ("captions", "preserved", "source", "left_out", "texts", "stepped_aside"):
        assert getattr(a, name) == getattr(b, name), name


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


def test_round_trip(prior):
    tensors, metadata = prior_to_file(prior)
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items())
    equal(prior_from_file(tensors, metadata), prior)


@pytest.mark.parametrize("without", [(), ("mean",), ("preserve",)])
def test_round_trip_through_a_file(prior, tmp_path, without):
    empty = {"mean": {"mean": None, "captions": 0}, "preserve": {"preserve": None, "preserved": ()}}
    gone = {"mean": "captions", "preserve": "prompts"}
    for name in without:
        prior = replace(prior, **empty[name], texts=replace(prior.texts, **{gone[name]: ()}))
    tensors, metadata = prior_to_file(prior)
    save_file(tensors, tmp_path / "prior.safetensors", metadata=metadata)
    with safe_open(tmp_path / "prior.safetensors", "pt") as file:
        read = file.metadata()
    equal(prior_from_file(load_file(tmp_path / "prior.safetensors"), read), prior)


def test_another_file_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "lora.safetensors", metadata={"format": "pt"})
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        metadata = file.metadata()
    with pytest.raises(PriorError, match="not a prior"):
        prior_from_file(load_file(tmp_path / "lora.safetensors"), metadata)


def damage(change):
    """A test of one damage: change(tensors, metadata) in place; it must be refused."""
    return pytest.param(change, id=change.__name__)


def no_format(tensors, metadata):
    del metadata["format"]


def later_format(tensors, metadata):
    metadata["format"] = "mace-prior-99"


def no_fingerprint(tensors, metadata):
    del tensors["fingerprint"]


def fingerprint_is_a_number(tensors, metadata):
    tensors["fingerprint"] = torch.tensor(1.0)


def fingerprint_nan(tensors, metadata):
    tensors["fingerprint"] = torch.full_like(tensors["fingerprint"], float("nan"))


def no_captions(tensors, metadata):
    del metadata["captions"]


def captions_in_words(tensors, metadata):
    metadata["captions"] = "many"


def no_preserved(tensors, metadata):
    del metadata["preserved"]


def no_left_out(tensors, metadata):
    del metadata["left_out"]


def preserved_is_no_json(tensors, metadata):
    metadata["preserved"] = "['a'"


def preserved_is_a_number(tensors, metadata):
    metadata["preserved"] = "3"


def odd_length(tensors, metadata):
    tensors["general.mean"] = tensors["general.mean"][:-1]


def not_packed(tensors, metadata):
    tensors["preserve.sum"] = torch.eye(WIDTH, dtype=torch.float64)


def another_width(tensors, metadata):
    tensors["general.mean"] = pack(torch.eye(WIDTH + 1, dtype=torch.float64))


def preserve_of_another_width(tensors, metadata):
    tensors["preserve.sum"] = pack(torch.eye(WIDTH - 1, dtype=torch.float64))


def nan(tensors, metadata):
    tensors["general.mean"] = torch.full_like(tensors["general.mean"], float("nan"))


def infinity(tensors, metadata):
    tensors["preserve.sum"] = tensors["preserve.sum"].index_fill(0, torch.tensor([2]), float("inf"))


def single_precision(tensors, metadata):
    tensors["general.mean"] = tensors["general.mean"].float()


def integers(tensors, metadata):
    tensors["preserve.sum"] = tensors["preserve.sum"].long()


def texts(written):
    packed = zlib.compress(written if isinstance(written, bytes) else json.dumps(written).encode())
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def texts_cut(tensors, metadata):
    tensors["texts.zlib"] = tensors["texts.zlib"][:-9]


def texts_not_compressed(tensors, metadata):
    tensors["texts.zlib"] = torch.arange(40, dtype=torch.uint8)


def texts_of_another_type(tensors, metadata):
    tensors["texts.zlib"] = tensors["texts.zlib"].float()


def one_text_less(tensors, metadata):
    tensors["texts.zlib"] = texts([["a"] * (CAPTIONS - 1), [["b"], ["c"]]])


def prompts_of_one_concept_more(tensors, metadata):
    tensors["texts.zlib"] = texts([["a"] * CAPTIONS, [["b"], ["c"], ["d"]]])


def texts_are_numbers(tensors, metadata):
    tensors["texts.zlib"] = texts([list(range(CAPTIONS)), [["b"], ["c"]]])


def texts_are_no_pair(tensors, metadata):
    tensors["texts.zlib"] = texts({"captions": []})


def texts_nested_deeply(tensors, metadata):
    tensors["texts.zlib"] = texts(b"[" * 100_000)


def texts_without_end(tensors, metadata):
    tensors["texts.zlib"] = texts(b" " * (2**28 + 1))


def stepped_aside_is_a_word(tensors, metadata):
    metadata["stepped_aside"] = '"many"'


DAMAGES = [
    no_format, later_format, no_fingerprint, fingerprint_is_a_number, fingerprint_nan, no_captions,
    captions_in_words, no_preserved, no_left_out, preserved_is_no_json, preserved_is_a_number, odd_length, not_packed,
    another_width, preserve_of_another_width, nan, infinity, single_precision, integers,
    texts_cut, texts_not_compressed, texts_of_another_type, one_text_less, prompts_of_one_concept_more,
    texts_are_numbers, texts_are_no_pair, texts_nested_deeply, texts_without_end, stepped_aside_is_a_word,
]  # fmt: skip


@pytest.mark.parametrize("change", map(damage, DAMAGES))
def test_damaged_file(prior, change):
    tensors, metadata = (dict(part) for part in prior_to_file(prior))
    change(tensors, metadata)
    with pytest.raises(PriorError, match="prior"):
        prior_from_file(tensors, metadata)


def test_metadata_is_json_that_keeps_every_letter(prior):
    assert json.loads(prior_to_file(prior)[1]["preserved"]) == ["a field", "Zo\u00eb"]


def test_same_encoder_in_another_precision(prior):
    prior.check(probe(encoder()))
    prior.check(probe(encoder().half()))
    prior.check(probe(encoder().bfloat16()))
    prior.check(probe(encoder() * (1 + 1e-3 * normal(3, WINDOW, WIDTH, seed=5))))


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


def test_a_file_of_an_earlier_version_has_no_texts(prior):
    tensors, metadata = (dict(part) for part in prior_to_file(prior))
    del tensors["texts.zlib"], metadata["stepped_aside"]
    equal(prior_from_file(tensors, metadata), replace(prior, texts=None))
