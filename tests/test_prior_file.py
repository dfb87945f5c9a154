"""The prior's file: what it holds, earlier versions, and files that are damaged."""

import json
import zlib
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mace.formats.prior_file import prior_from_file, prior_to_file
from mace.method.moments import pack
from mace.method.prior import PriorError
from tests.prior_cases import CAPTIONS, WIDTH, small_prior


@pytest.fixture
def prior():
    return small_prior()


def equal(a, b):
    for name in ("mean", "preserve", "fingerprint"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None and y is None) or torch.equal(x, y), name
    for name in ("captions", "preserved", "source", "left_out", "texts", "stepped_aside", "made_of", "digest"):
        assert getattr(a, name) == getattr(b, name), name
    for one, two in zip(a.others, b.others, strict=True):
        assert all(x is y is None or torch.equal(x, y) for x, y in zip(one, two, strict=True))


def test_round_trip(prior):
    tensors, metadata = prior_to_file(prior)
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items())
    equal(prior_from_file(tensors, metadata), prior)


def test_what_no_file_may_hold_is_refused_when_it_is_saved(prior, monkeypatch):
    """By the texts' length in bytes: the longest that is written is read."""
    texts = replace(prior.texts, captions=("\u00eb" * 1000, *prior.texts.captions[1:]))
    length = len(json.dumps([texts.captions, texts.prompts], ensure_ascii=False).encode())
    monkeypatch.setattr("mace.formats.prior_file.MOST_TEXT", length)
    whole = replace(prior, texts=texts)
    equal(prior_from_file(*prior_to_file(whole)), whole)
    monkeypatch.setattr("mace.formats.prior_file.MOST_TEXT", length - 1)
    with pytest.raises(PriorError, match=f"captions and prompts take {length} bytes, and a file holds {length - 1}"):
        prior_to_file(whole)


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


def more_texts_than_a_model_reads(tensors, metadata):
    metadata["others"] = "1001"


def texts_counted_in_words(tensors, metadata):
    metadata["others"] = "two"


def another_text_of_odd_length(tensors, metadata):
    tensors["general.other_mean.1"] = tensors["general.other_mean.1"][:-1].clone()


def another_text_is_not_finite(tensors, metadata):
    tensors["preserve.other_sum.0"][0] = float("nan")


def stepped_aside_is_a_word(tensors, metadata):
    metadata["stepped_aside"] = '"many"'


DAMAGES = [
    no_format, later_format, no_fingerprint, fingerprint_is_a_number, fingerprint_nan, no_captions,
    captions_in_words, no_preserved, no_left_out, preserved_is_no_json, preserved_is_a_number, odd_length, not_packed,
    another_width, preserve_of_another_width, nan, infinity, single_precision, integers,
    texts_cut, texts_not_compressed, texts_of_another_type, one_text_less, prompts_of_one_concept_more,
    texts_are_numbers, texts_are_no_pair, texts_nested_deeply, texts_without_end, stepped_aside_is_a_word,
    more_texts_than_a_model_reads, texts_counted_in_words, another_text_of_odd_length, another_text_is_not_finite,
]  # fmt: skip


@pytest.mark.parametrize("change", map(damage, DAMAGES))
def test_damaged_file(prior, change):
    tensors, metadata = (dict(part) for part in prior_to_file(prior))
    change(tensors, metadata)
    with pytest.raises(PriorError, match="prior"):
        prior_from_file(tensors, metadata)


def test_metadata_is_json_that_keeps_every_letter(prior):
    assert json.loads(prior_to_file(prior)[1]["preserved"]) == ["a field", "Zo\u00eb"]


def test_a_file_of_an_earlier_version_has_no_texts(prior):
    tensors, metadata = (dict(part) for part in prior_to_file(prior))
    del tensors["texts.zlib"], metadata["stepped_aside"]
    equal(prior_from_file(tensors, metadata), replace(prior, texts=None))
