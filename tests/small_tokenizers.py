"""Tokenizers that checkpoints bring along in their own files, made small: trained on captions by the same libraries."""

import base64
import io
import json
from functools import cache

import torch
from torch import Tensor

from devtools.demo_prior import captions

# Whole words of the tests, as a large vocabulary has them; "at night" and brackets stay in pieces.
SAID = ["a photo of the dog, the cat and the hot dog", "a large green tree"] * 200
# As Mistral's: the place is the token.
TEKKEN_SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
PIECES = 520
TURNS = ("start", "end", "message", "channel", "endoftext")


@cache
def corpus() -> tuple[str, ...]:
    """What they are trained on."""
    return (*captions(), *SAID)


def _bytes(data: bytes) -> Tensor:
    """As a checkpoint holds a file: uint8 [n]."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _trained(**options) -> Tensor:
    """A SentencePiece model."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=out, vocab_size=PIECES, minloglevel=2, byte_fallback=True,
        **options,
    )  # fmt: skip
    return _bytes(out.getvalue())


@cache
def gemma() -> Tensor:
    """Gemma's kind: byte pairs, spaces kept, none put in front."""
    kept = dict(add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity")
    return _trained(model_type="bpe", pad_id=0, eos_id=1, bos_id=2, unk_id=3, **kept)


@cache
def unigram() -> Tensor:
    """umT5's kind, and XLM-RoBERTa's: unigrams, a space in front of the text, several made one."""
    return _trained(model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=3)


def _byte_pairs():
    """A byte-level tokenizer of the tokenizers library, trained."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=PIECES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    found.train_from_iterator(corpus(), trainer)
    return found


@cache
def tekken() -> Tensor:
    """Mistral's file: byte-level pieces by rank, and the special tokens before them."""
    pieces = sorted(_byte_pairs().get_vocab().items(), key=lambda piece: piece[1])
    alphabet = {letter: byte for byte, letter in _letters().items()}
    ranked = [bytes(alphabet[letter] for letter in piece) for piece, _ in pieces]
    special = [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(TEKKEN_SPECIAL)]
    vocab = [{"rank": rank, "token_bytes": base64.b64encode(own).decode()} for rank, own in enumerate(ranked)]
    config = {"default_vocab_size": len(vocab) + len(special), "pattern": r"[^\s\p{L}]|\s?\p{L}+|\s+"}
    return _bytes(json.dumps({"config": config, "vocab": vocab, "special_tokens": special}).encode())


@cache
def harmony() -> Tensor:
    """GPT-OSS's file: the tokenizers library's own, with the marks of its turns."""
    from tokenizers import AddedToken

    found = _byte_pairs()
    found.add_special_tokens([AddedToken(f"<|{name}|>", special=True) for name in TURNS])
    return _bytes(found.to_str().encode())


def harmony_count(text: str) -> int:
    """How many tokens a text has in it."""
    from tokenizers import Tokenizer

    return len(Tokenizer.from_str(bytes(harmony().tolist()).decode()).encode(text, add_special_tokens=False).ids)


def _letters() -> dict[int, str]:
    """The letter that stands for each byte in byte-level vocabularies: GPT-2's."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}
