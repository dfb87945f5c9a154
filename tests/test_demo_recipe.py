"""The recipe of the demo model: each stage runs on a little of what it is made for, and learns."""

import argparse
import json
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.demo_model.denoisers import sd15_unet
from benchmarks.demo_model.icons import ARCHIVES, icon_name, make_icons, open_set
from benchmarks.demo_model.noise import Diffusion
from benchmarks.demo_model.pictures import Caption, Draws, Icons
from benchmarks.demo_model.shrink import round_matrix
from benchmarks.demo_model.text import TEXT, Texts, Tokenizer, clip_l
from benchmarks.demo_model.train import OWN_UNET, autoencoder, own_weights, train
from benchmarks.demo_model.train_autoencoder import train_autoencoder, untrained_taesd, whole_taesd
from benchmarks.demo_model.train_judge import disturbed, given_back, shares, train_judge
from benchmarks.demo_model.train_text import spoken, teach, train_text, whole_text
from benchmarks.pictures import vocabulary
from devtools.compact import steps_of
from mace.measure.judge import Judge, JudgeNetwork

THINGS = ["cloud", "evergreen tree", "house", "school", "truck"]
COLOURS = ((200, 30, 30), (30, 160, 40), (40, 60, 200), (220, 200, 60), (120, 40, 140))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sets of made-up icons: discs, and squares with a hole."""
    base = tmp_path_factory.mktemp("icons")
    down, across = np.mgrid[-1:1:48j, -1:1:48j]
    shapes = {"noto": np.hypot(down, across) < 0.9, "twemoji": np.hypot(down, across) > 0.4}
    for name, shape in shapes.items():
        (base / name).mkdir()
        for thing, colour in zip(THINGS, COLOURS, strict=True):
            rgba = np.zeros((48, 48, 4), dtype=np.uint8)
            rgba[shape] = (*colour, 255)
            Image.fromarray(rgba).save(base / name / f"{icon_name(thing)}.png")
    return base


@pytest.fixture(scope="module")
def icons(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "icons.npz"
    np.savez_compressed(path, **make_icons(folder, THINGS))
    return Icons.read(path)


@pytest.fixture(scope="module")
def tokenize(comfy_host):
    import comfy.sd1_clip

    return Tokenizer(f"{comfy.sd1_clip.__file__.removesuffix('sd1_clip.py')}sd1_tokenizer")


def falls(losses) -> bool:
    part = len(losses) // 4
    return np.mean(losses[-part:]) < 0.9 * np.mean(losses[:part])


def test_icons_and_scenes_come_from_a_folder(folder, icons):
    arrays = make_icons(folder, THINGS)
    assert (folder / "noto/delivery-truck.png").exists()
    assert sorted(set(arrays["concept"])) == sorted([*THINGS, "sky", "ground", "street", "forest"])
    assert arrays["rgba"].shape == (18, 64, 64, 4) and arrays["rgba"].dtype == np.uint8
    of = {(c, s): picture for picture, c, s in zip(arrays["rgba"], arrays["concept"], arrays["style"], strict=True)}
    assert tuple(of["truck", "Noto"][32, 32]) == (*COLOURS[4], 255) and of["truck", "Twemoji"][32, 32, 3] == 0
    assert (of["sky", "Noto"][..., 3] == 255).all() and (of["sky", "Noto"] != of["sky", "Twemoji"]).any()
    # Of the forest, the lowest tree's middle.
    assert np.abs(of["forest", "Noto"][42, 44, :3].astype(int) - COLOURS[1]).max() < 3
    assert icons.pictures.shape == (9, 2, 9, 3, 64, 64)


def test_without_the_scenes_things_there_are_no_scenes(folder):
    assert set(make_icons(folder, ["truck"])["concept"]) == {"truck"}


def test_another_archive_is_refused(tmp_path):
    (tmp_path / ARCHIVES["noto"][0]).write_bytes(b"another archive")
    with pytest.raises(ValueError, match="not the pinned archive"):
        open_set(tmp_path, "noto")


@pytest.mark.host
def test_the_words_of_the_captions_are_the_vocabularys(tokenize):
    texts = spoken(60)
    known = torch.cat([tokenize(text).padded_l for text in texts]).unique()
    assert tokenize.words(known) == vocabulary()["known_words"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A BERT with random weights that knows the letters."""
    from transformers import BertConfig, BertModel, BertTokenizer

    path = tmp_path_factory.mktemp("teacher")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(0)
    size = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(BertConfig(vocab_size=len(words), initializer_range=0.3, **size)).save_pretrained(path)
    return path


@pytest.mark.host
@pytest.mark.long
def test_the_text_encoder_learns_and_goes_on(tokenize, teacher, tmp_path):
    texts = sorted({f"a photo of the {thing}" for thing in vocabulary()["concepts"][:40]})
    told = teach(texts, teacher)
    assert told.shape == (40, 32)
    torch.testing.assert_close(told.norm(dim=1), torch.ones(40))
    state = tmp_path / "text.pt"
    train_text(texts, told, tokenize, state, 4, 16)
    model, known = train_text(texts, told, tokenize, state, 12, 16)
    assert torch.load(state, weights_only=True)["steps"] == 12
    whole = whole_text(model, known)
    assert len(whole) == 2 + 12 * 16 + 2
    assert not whole[f"{TEXT}encoder.layers.7.mlp.fc2.weight"].any()
    assert (whole[f"{TEXT}encoder.layers.11.layer_norm1.weight"] == 1).all()
    assert whole[f"{TEXT}embeddings.token_embedding.weight"].any(1).sum() == len(known)
    tokens = tokenize(texts[0]).padded_l[None]
    with torch.no_grad():
        own = model(torch.searchsorted(known, tokens))[1]
        torch.testing.assert_close(clip_l(whole)(tokens)[1], own, rtol=0, atol=1e-5)


@pytest.mark.host
@pytest.mark.long
def test_the_autoencoder_learns(comfy_host, icons, tmp_path):
    from comfy.taesd.taesd import TAESD

    model = untrained_taesd()
    losses = train_autoencoder(model, icons, tmp_path / "autoencoder.pt", 24, 4)
    assert len(losses) == 24 and falls(losses)
    assert train_autoencoder(model, icons, tmp_path / "autoencoder.pt", 24, 4) == []
    whole = TAESD()
    own = {name.removeprefix("first_stage_model."): tensor for name, tensor in whole_taesd(model).items()}
    whole.load_state_dict(own)
    pictures = icons.pictures[:, 0, 0]
    with torch.no_grad():
        latents = model.taesd_encoder(pictures)
        torch.testing.assert_close(whole.taesd_encoder(pictures), latents)
        torch.testing.assert_close(whole.taesd_decoder(latents), model.taesd_decoder(latents))


@pytest.mark.host
@pytest.mark.long
def test_the_judge_learns(comfy_host, demo_checkpoint, icons, tmp_path):
    icons = Icons(icons.pictures[:, :, :3], icons.concepts)
    shown = given_back(icons, autoencoder(load_file(demo_checkpoint), torch.device("cpu")))
    assert shown.shape == (4, 9, 2, 3, 3, 64, 64) and shown.dtype == torch.uint8
    assert (shown[0].float() / 255 - icons.pictures).abs().max() < 0.003
    assert disturbed(icons.pictures[:, 0, 0]).shape == (9, 3, 64, 64)
    torch.manual_seed(0)
    network = JudgeNetwork(9, 2).train()
    assert falls(train_judge(network, shown, tmp_path / "judge.pt", 32, 16))
    found = shares(network, shown)
    assert list(found) == ["clean", "given back", "with noise 0.15", "with noise 0.3"] and found["clean"] > 0.5
    names = {"concepts": json.dumps(icons.concepts), "styles": json.dumps(["Noto", "Twemoji"])}
    save_file(network.state_dict(), tmp_path / "judge.safetensors", names)
    judge = Judge(tmp_path / "judge.safetensors")
    assert tuple(judge.names) == icons.concepts
    with torch.no_grad():
        expected = network.c(network.features(icons.pictures[:, 0, 0])).softmax(-1)
    torch.testing.assert_close(judge(icons.pictures[:, 0, 0]), expected)


@pytest.mark.host
@pytest.mark.long
def test_the_unet_has_the_demo_models_layout_and_learns(
    comfy_host, demo_checkpoint, icons, tokenize, tmp_path, monkeypatch
):
    cpu, state = torch.device("cpu"), load_file(demo_checkpoint)
    torch.manual_seed(0)
    unet = sd15_unet(cpu)
    own = own_weights(state, OWN_UNET)
    assert {name: tensor.shape for name, tensor in unet.state_dict().items()} == {
        name: tensor.shape for name, tensor in own.items()
    }
    asked = [Caption(f"a photo of the {name}", (place,), 0, 0) for place, name in enumerate(icons.concepts)]
    texts = Texts([caption.text for caption in asked], tokenize, clip_l(state), None, cpu, plain=True)
    # As the host gives them, with the last norm.
    clip = comfy_host.load_checkpoint(demo_checkpoint)[1]
    expected = comfy_host.encode(clip, asked[1].text)[0][0][0]
    torch.testing.assert_close(texts.whole(torch.tensor([2]))[0], expected, rtol=0, atol=0.02)
    assert texts.mixed(torch.tensor([1, 2, 3]))[1] is None
    draws = Draws(icons.latents(autoencoder(state, cpu).taesd_encoder, cpu), asked)
    way = Diffusion(unet, cpu)
    given = way.context(texts.whole(torch.arange(1, 5)), None)
    latents = draws.of(torch.arange(4))

    def error(network) -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            return float(np.mean([float(way.loss(latents, given, network)) for _ in range(4)]))

    before = error(unet)
    # A second goes by whenever the clock is looked at, so that its steps are as many on every machine.
    seconds = count()
    monkeypatch.setattr("benchmarks.demo_model.train.time", SimpleNamespace(time=lambda: next(seconds)))
    arguments = argparse.Namespace(out=tmp_path, kind="sd15", minutes=0.4, rate=3e-3, head=0, batch=4)
    average, steps = train(way, unet, texts, draws, arguments, cpu, lambda: torch.autocast("cpu", enabled=False))
    assert steps > 5 and (tmp_path / "sd15.pt").exists()
    assert error(average) < before


def test_rounding_by_the_inputs_is_closer_and_on_the_same_grid():
    torch.manual_seed(0)
    weight = torch.randn(20, 100)
    # Inputs in a third of the directions, as captions are.
    inputs = torch.randn(1000, 33) @ torch.randn(33, 100)
    rounded = round_matrix(weight, inputs.T @ inputs)
    step = torch.from_numpy(steps_of(weight.numpy())).float()[:, None]
    assert np.array_equal(steps_of(rounded.numpy()), steps_of(weight.numpy()))
    torch.testing.assert_close(rounded / step, (rounded / step).round(), rtol=0, atol=1e-3)
    plain = (weight / step).round() * step

    def off(found) -> float:
        return float((inputs @ (found - weight).T).norm())

    assert off(rounded) < 0.6 * off(plain)
