"""The demo model: expanded the same everywhere, refused when damaged, loaded and drawn by the real host."""

import hashlib
import json
import logging
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.demo_model.checkpoint import write
from devtools import cli
from devtools.cache import DevError
from devtools.compact import read_compact
from devtools.demo_model import COMPACT_SHA256, METADATA, DamagedModelError, expand
from devtools.environment import Environment

COMPACT = Path(__file__).resolve().parent.parent / "assets" / "demo" / "demo_sd.safetensors"
EXPANDED_BYTES = 302_658_134
MOST_BYTES = 45_000_000
TEXT = "cond_stage_model.transformer.text_model."

# Latents of seed 0, 12 steps of ddim/normal, guidance 4: mean, standard deviation, and some elements.
ELEMENTS = ((0, 0, 0), (1, 3, 4), (2, 5, 2), (3, 7, 7), (0, 4, 4))
RECORDED = {
    "a photo of the airplane": (-2.2488, 5.7557, (-3.8952, -0.9110, -3.5237, 6.4103, -4.7976)),
    "a drawing of a rose on a red background": (5.5668, 4.5236, (3.3629, 14.3429, 6.8844, -0.7060, 7.2100)),
}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_header(path: Path) -> dict:
    with open(path, "rb") as file:
        return json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))


def test_the_shipped_file_is_the_recorded_one():
    assert digest(COMPACT) == COMPACT_SHA256
    assert COMPACT.stat().st_size <= MOST_BYTES


def test_ten_text_layers_and_eight_autoencoder_blocks_change_nothing():
    tensors = read_compact(COMPACT)
    idle = {n: t for n, t in tensors.items() if re.match(rf"{re.escape(TEXT)}encoder\.layers\.([2-9]|1[01])\.", n)}
    assert len(idle) == 10 * 16
    for name, tensor in idle.items():
        assert (tensor == ("norm" in name and name.endswith("weight"))).all(), name
    blocks = {"taesd_encoder": (1, 4, 5, 9), "taesd_decoder": (10, 14, 15, 18)}
    stems = [f"first_stage_model.{half}.{index}.conv." for half, indices in blocks.items() for index in indices]
    found = [tensor for name, tensor in tensors.items() if name.startswith(tuple(stems))]
    assert len(found) == 8 * 6 and not any(tensor.any() for tensor in found)


def test_what_is_precise_is_not_in_eight_bits():
    """The embeddings, and what the cross-attention reads of text, have more values in a row than 8 bits have."""
    tensors = read_compact(COMPACT)
    table = tensors[f"{TEXT}embeddings.token_embedding.weight"]
    rows = table[table.any(1)]
    assert rows.shape == (311, 768)
    read = [tensor for name, tensor in tensors.items() if re.search(r"attn2\.to_[kv]\.weight", name)]
    assert len(read) == 8
    for matrix in (rows, *read):
        assert max(len(np.unique(np.abs(row))) for row in matrix) > 256
    assert max(len(np.unique(np.abs(row))) for row in tensors[f"{TEXT}encoder.layers.0.mlp.fc1.weight"]) <= 128
    assert tensors["first_stage_model.vae_scale"] == np.float32(0.18215)


def test_expanding_twice_gives_the_same_bytes(tmp_path, demo_checkpoint):
    first, second = expand(COMPACT, tmp_path / "a.safetensors"), expand(COMPACT, tmp_path / "deep/b.safetensors")
    assert first.stat().st_size == EXPANDED_BYTES
    assert digest(first) == digest(second) == digest(demo_checkpoint)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.safetensors", "b.safetensors"]


def test_the_header_is_sorted_and_says_what_it_is(demo_checkpoint):
    header = read_header(demo_checkpoint)
    assert header.pop("__metadata__") == METADATA
    ends = [0] + [entry["data_offsets"][1] for entry in header.values()]
    assert [entry["data_offsets"][0] for entry in header.values()] == ends[:-1]
    halves = [name for name, entry in header.items() if entry["dtype"] == "F16"]
    assert halves == sorted(halves)


def test_the_target_is_replaced_whole(tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"an older file")
    expand(COMPACT, target)
    assert target.stat().st_size == EXPANDED_BYTES
    assert list(tmp_path.iterdir()) == [target]


def flip(content: bytearray, position: int) -> bytearray:
    content[position] ^= 1
    return content


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1], id="one byte short"),
        pytest.param(lambda content: content[: len(content) // 2], id="half"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content + b"\0", id="one byte more"),
        pytest.param(lambda content: flip(content, 4), id="a bit of the length"),
        pytest.param(lambda content: flip(content, 200), id="a bit of the header"),
        pytest.param(lambda content: flip(content, 30_000_000), id="a bit of a tensor"),
        pytest.param(lambda content: flip(content, len(content) - 1), id="the last bit"),
    ],
)
def test_a_damaged_file_is_refused_and_nothing_is_left(tmp_path, damage):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(damage(bytearray(COMPACT.read_bytes())))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DamagedModelError, match=r"broken\.safetensors is damaged"):
        expand(broken, out / "model.safetensors")
    assert list(out.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(OSError):
        expand(COMPACT, tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_cache_is_by_the_files_checksum_and_a_damaged_file_is_told(tmp_path, monkeypatch, demo_checkpoint, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = Environment(Path(sys.executable), tmp_path, pinned=False)
    made = cli.demo_checkpoint(here)
    assert made.parent.name == f"demo-{COMPACT_SHA256[:12]}" and digest(made) == digest(demo_checkpoint)
    made.unlink()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(COMPACT.read_bytes() + b"\0")
    monkeypatch.setattr(cli, "COMPACT_MODEL", broken)
    with pytest.raises(DevError, match="cannot be expanded"):
        cli.demo_checkpoint(here)
    assert "broken.safetensors is damaged" in capfd.readouterr().err
    assert not list(tmp_path.rglob("mace_demo.safetensors"))


def test_the_small_models_command_writes_the_same_tensors(tmp_path, demo_checkpoint):
    write(COMPACT, tmp_path / "model.safetensors")
    found, expected = load_file(tmp_path / "model.safetensors"), load_file(demo_checkpoint)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.host
def test_the_host_loads_it_without_a_warning(comfy_host, caplog, recwarn):
    with caplog.at_level(logging.WARNING):
        model, clip, vae = comfy_host.nodes.CheckpointLoaderSimple().load_checkpoint("mace_demo.safetensors")
    assert [record.getMessage() for record in caplog.records] == []
    assert [str(warning.message) for warning in recwarn] == []
    assert model is not None and clip is not None and vae is not None


@pytest.mark.host
@pytest.mark.parametrize("prompt", RECORDED)
def test_the_host_draws_what_it_drew(comfy_host, demo_checkpoint, prompt):
    model, clip, _ = comfy_host.load_checkpoint(demo_checkpoint)
    latent = comfy_host.sample(model, clip, prompt, seed=0)
    mean, deviation, elements = RECORDED[prompt]
    assert latent.shape == (1, 4, 8, 8)
    assert latent.mean().item() == pytest.approx(mean, abs=0.02)
    assert latent.std().item() == pytest.approx(deviation, abs=0.02)
    assert [latent[0][place].item() for place in ELEMENTS] == pytest.approx(elements, abs=0.05)
