"""Tokens and embeddings of the real text encoder."""

import pytest
import torch

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def encoder(comfy_host, demo):
    with torch.inference_mode():
        yield comfy_host.module("nodes.host.text").TextEncoder(demo[1])


def ids(encoder, text):
    """Token ids as the tokenizer itself gives them."""
    return tuple(encoder.clip.tokenizer.clip_l.tokenizer(text)["input_ids"][1:-1])


def phrase_tokens(encoder, template, phrase, mapping="sky"):
    pairing = encoder.pair(template, phrase, mapping)
    row = [token for token, _ in encoder.clip.tokenize(template.replace("{}", phrase))["l"][0]]
    other = [token for token, _ in encoder.clip.tokenize(template.replace("{}", mapping))["l"][0]]
    assert [row[i] for i in pairing.target] == [other[i] for i in pairing.mapping]
    return tuple(row[i] for i in pairing.phrase)


@pytest.mark.parametrize(
    "template", ["a photo of the {}", "{} in the park", "the {}, at night", 'the "{}"', "{}'s home"]
)
@pytest.mark.parametrize("phrase", ["airplane", "hot dog", "Arnold Schwarzenegger", "Adolf Hirémy-Hirschl"])
def test_the_phrase_is_found_in_context(encoder, template, phrase):
    assert phrase_tokens(encoder, template, phrase) == ids(encoder, phrase)


def test_a_phrase_that_tokenises_differently_in_context(encoder):
    assert phrase_tokens(encoder, "two {}s on a mat", "cat") == ids(encoder, "cats")
    assert ids(encoder, "cats") != ids(encoder, "cat s")


@pytest.mark.parametrize(
    "template, phrase, expected",
    [
        ("a photo of the ({}:1.3) at night", "hot dog", "hot dog"),
        ("(a photo of the {}:0.7) at night", "hot dog", "hot dog"),
        ("((a photo)) of {}, (at night)", "cat", "cat"),
        ("the (({})) here", "cat", "cat"),
        ("the {} here", "red (cat:1.4)", "red cat"),
        (r"the {} \(real\) here", "cat", "cat"),
    ],
)
def test_brackets(encoder, template, phrase, expected):
    assert phrase_tokens(encoder, template, phrase) == ids(encoder, expected)


def test_a_batch_equals_single_prompts(encoder, comfy_host):
    prompts = ["a photo of the airplane", "the (cat:1.3) and the dog", "", "(a drawing:0.6) of a rose"]
    with torch.inference_mode():
        batch = encoder.encode(prompts)
    for prompt, row in zip(prompts, batch, strict=True):
        expected = comfy_host.encode(encoder.clip, prompt)[0][0][0]
        torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-3)


def test_weights_change_the_embedding(encoder):
    with torch.inference_mode():
        plain, weighted = encoder.encode(["the cat", "the (cat:1.3)"])
    assert not torch.allclose(plain, weighted, atol=1e-2)


def test_too_long(encoder):
    long = " ".join(["house"] * 76)
    with pytest.raises(ValueError, match="has 76 tokens.*takes 75"), torch.inference_mode():
        encoder.encode([long])
    with torch.inference_mode():
        assert encoder.encode([" ".join(["house"] * 75)]).shape == (1, 77, 768)


def test_textual_inversions_are_tokens(encoder, comfy_host, demo, tmp_path):
    torch.save({"a": torch.randn(2, 768)}, tmp_path / "thing.pt")
    tokenizer = encoder.clip.tokenizer.clip_l
    before, tokenizer.embedding_directory = tokenizer.embedding_directory, [str(tmp_path)]
    try:
        encoder = comfy_host.module("nodes.host.text").TextEncoder(demo[1])
        with torch.inference_mode():
            pairing = encoder.pair("a photo of embedding:thing , {} here", "cat", "sky")
            assert len(pairing.phrase) == 1
            pairing = encoder.pair("a photo of {} here", "embedding:thing", "sky")
            assert len(pairing.phrase) == 2
    finally:
        tokenizer.embedding_directory = before


def test_other_encoders_are_refused(comfy_host):
    import comfy.sd
    from comfy.text_encoders.sd3_clip import SD3Tokenizer

    text = comfy_host.module("nodes.host.text")
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = SD3Tokenizer(), {}
    with pytest.raises(ValueError, match="t5xxl"):
        text.TextEncoder(clip)
    with pytest.raises(ValueError, match="CLIP input is empty"):
        text.TextEncoder(None)


def test_clip_skip_changes_identity_and_fingerprint(comfy_host, demo):
    text = comfy_host.module("nodes.host.text")
    skipped = demo[1].clone()
    skipped.clip_layer(-12)
    with torch.inference_mode():
        a, b = text.TextEncoder(demo[1]), text.TextEncoder(skipped)
        assert a.identity != b.identity
        # Layers 2..11 of the demo encoder are identities: only a skip into its two live layers shows.
        assert comfy_host.module("mace.method.prior").probe_distance(a.fingerprint, b.fingerprint) > 0.02


def test_an_end_of_text_inside_a_text_counts_as_the_host_counts_it(encoder):
    """The tokenizer gives its own end there and reads on."""
    text = "a dog <|endoftext|> and a cat"
    assert encoder.tokenize(text) == ids(encoder, text) and encoder.length(text) == 6
    long = "<|endoftext|> " + "dog " * 80
    assert encoder.length(long) == 81 and encoder.fitting([long, text], str) == [text]
    row = [token for token, _ in encoder.clip.tokenize(text)["l"][0]]
    assert tuple(row[1:7]) == encoder.tokenize(text)


@pytest.fixture
def inversions(encoder, monkeypatch, tmp_path):
    """The folder of textual inversions, which loaders name; "sks" is in it."""
    torch.save({"string_to_param": {"*": torch.ones(2, encoder.width)}}, tmp_path / "sks.pt")
    monkeypatch.setattr(encoder.clip.tokenizer.clip_l, "embedding_directory", str(tmp_path))


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("a photo of embedding:nope dog", "names the textual inversion 'nope', which is not among models/embeddings"),
        ("embedding:nope", "names the textual inversion 'nope'"),
        ("a (embedding:nope:1.2) dog", "names the textual inversion 'nope'"),
        ("a dog, embedding:", "names the textual inversion ''"),
        ("a (dog:nan) in fog", "gives 'dog' the weight nan; write a number"),
        ("a (hot (dog:1e999)) in fog", "gives 'dog' the weight inf"),
        ("a d\ud83dog", r"line 1: .*U\+D83D, half of a character"),
        ("a \ue000 dog", r"line 1: .*U\+E000, of private use"),
    ],
)
def test_what_the_host_would_leave_out_is_named(encoder, comfy_host, prompt, message, inversions):
    with pytest.raises(ValueError, match=f"^prompt: .*{message}"):
        encoder.encode([prompt])
    tokens_of = comfy_host.module("nodes.host.prompts").tokens_of
    with pytest.raises(ValueError, match=f"^negative: .*{message}"):
        tokens_of(encoder.clip, prompt, "negative")


def test_a_phrase_with_a_missing_inversion_is_refused_when_it_is_paired(encoder, inversions):
    from mace.concepts.concept import Concept

    for target, message in (("embedding:nope dog", "'nope'"), ("(dog:nan)", "weight nan"), ("d\udc00g", "DC00")):
        with pytest.raises(ValueError, match=message):
            encoder.moments(Concept(target, "sky", "object"), lambda count: None)


def test_brackets_and_letters_that_say_nothing_stay(encoder, comfy_host, inversions):
    assert len(encoder.tokenize("a embedding:sks, dog")) == 5
    tokens_of = comfy_host.module("nodes.host.prompts").tokens_of
    assert len(tokens_of(encoder.clip, "a (embedding:sks:1.2) dog")["l"]) == 1
    for prompt in (r"a \(dog:nan\)", "a (dog:-0.5)", "the embeddings: of dogs", "caf\u00e9 \U0001f469\u200d\U0001f680"):
        assert tokens_of(encoder.clip, prompt) == encoder.clip.tokenize(prompt)
