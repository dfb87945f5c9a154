"""OCE: its rotation against other constructions of it, and the node in the real host."""

import json
from pathlib import Path

import pytest
import torch

from mace.baselines.oce import (
    DERIVED,
    OBJECT_TEMPLATES,
    PUBLISHED,
    STYLE_TEMPLATES,
    OceWeights,
    kept_moment,
    objective,
    oce,
    published_templates,
    published_weights,
    rotation,
    span,
)
from mace.method.refine import SingularSystem
from tests.judge import Judge

WIDTH = 8
SETTINGS = dict(preserve="", retention="none", erase_scale="auto", preserve_scale="auto", count=100)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(rows=6, weights=None):
    """(W, erased [2, d], anchors [2, d], kept moment, kept tokens as rows scaled by the roots of their weights)"""
    weights = weights or OceWeights(30.0, 2.0, 3.0, 0.5)
    general, preserve = drawn(20, WIDTH, seed=1), drawn(3, WIDTH, seed=2)
    moment = kept_moment(general.T @ general / 20, preserve.T @ preserve, weights)
    rooted = torch.cat(
        [
            (weights.global_scale / 20) ** 0.5 * general,
            weights.preserve_scale**0.5 * preserve,
            weights.lamb**0.5 * torch.eye(WIDTH, dtype=torch.float64),
        ]
    )
    return drawn(rows, WIDTH), drawn(2, WIDTH, seed=3), drawn(2, WIDTH, seed=4), moment, rooted


def projector(weight, tokens):
    """R written out: V V^+ for the columns V = W c."""
    columns = weight @ tokens.T
    return columns @ torch.linalg.pinv(columns)


def rotations(size, around):
    """Orthogonal matrices: anywhere, and near `around`."""
    for seed in range(40):
        anywhere = torch.linalg.qr(drawn(size, size, seed=100 + seed))[0]
        yield anywhere
        turn = drawn(size, size, seed=200 + seed)
        yield torch.linalg.matrix_exp(0.05 * (turn - turn.T)) @ around


def paper_objective(turned, weight, erased, anchors, rooted, erase_scale):
    """-||Q R - (I - R*)||^2 and ||Q W c - W c||^2 with their weights, summed one by one."""
    eye = torch.eye(len(weight), dtype=torch.float64)
    own, other = projector(weight, erased), eye - projector(weight, anchors)
    total = -erase_scale * (turned @ own - other).square().sum()
    for token in rooted:
        total += (turned @ weight @ token - weight @ token).square().sum()
    return float(total)


def test_the_matrix_is_the_written_out_one():
    weight, erased, anchors, moment, rooted = case()
    eye = torch.eye(6, dtype=torch.float64)
    expected = -30 * projector(weight, erased) @ (eye - projector(weight, anchors))
    expected += sum(torch.outer(weight @ token, weight @ token) for token in rooted)
    torch.testing.assert_close(objective(weight, erased, anchors, moment, 30.0), expected, rtol=1e-9, atol=1e-9)


def test_the_rotation_is_orthogonal_and_the_polar_factor():
    matrix = objective(*case()[:4], 30.0)
    turned = rotation(matrix)
    torch.testing.assert_close(turned.T @ turned, torch.eye(6, dtype=torch.float64))
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    polar = matrix @ (vectors / values.sqrt()) @ vectors.T
    torch.testing.assert_close(turned, polar, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(rotation(matrix, DERIVED), polar.T, rtol=1e-8, atol=1e-8)


def test_no_other_orthogonal_matrix_is_better():
    weight, erased, anchors, moment, rooted = case()
    matrix = objective(weight, erased, anchors, moment, 30.0)
    published, derived = rotation(matrix), rotation(matrix, DERIVED)
    assert not torch.allclose(published, derived, atol=1e-3)
    best = float((published * matrix).sum())
    least = paper_objective(derived, weight, erased, anchors, rooted, 30.0)
    for other in rotations(6, published):
        assert float((other * matrix).sum()) <= best + 1e-9
    for other in [published, *rotations(6, derived)]:
        assert paper_objective(other, weight, erased, anchors, rooted, 30.0) >= least - 1e-8


def test_a_case_by_hand():
    """W = I: a strong erasure turns the erased axis round and leaves the rest, a weak one leaves all."""
    eye = torch.eye(4, dtype=torch.float64)
    kept = kept_moment(torch.zeros(4, 4), None, OceWeights(lamb=1.0))
    turned = eye + oce(eye, eye[:1], eye[1:2], kept, 3.0)
    torch.testing.assert_close(turned, torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64)))
    torch.testing.assert_close(oce(eye, eye[:1], eye[1:2], kept, 0.5), 0 * eye)
    # An anchor that is the concept itself asks for nothing.
    torch.testing.assert_close(oce(eye, eye[:1], eye[:1], kept, 3.0), 0 * eye)


@pytest.mark.parametrize("rows", [6, WIDTH, 13])
@pytest.mark.parametrize("solution", [PUBLISHED, DERIVED])
def test_lengths_and_angles_stay(rows, solution):
    """W'^T W' = W^T W, of matrices lower and taller than they are wide; tall ones by the part of M that is not 0."""
    weight, erased, anchors, moment, _ = case(rows)
    change = oce(weight, erased, anchors, moment, 30.0, solution)
    edited = weight + change
    torch.testing.assert_close(edited.T @ edited, weight.T @ weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.linalg.svdvals(edited), torch.linalg.svdvals(weight), rtol=1e-9, atol=1e-9)
    left, _, right = torch.linalg.svd(objective(weight, erased, anchors, moment, 30.0))
    rank = min(rows, WIDTH)
    turned = left[:, :rank] @ right[:rank]
    expected = (turned if solution == PUBLISHED else turned.T) @ weight - weight
    torch.testing.assert_close(change, expected, rtol=1e-8, atol=1e-8)
    assert float(change.norm()) > 0.1


def test_a_space_counts_what_is_in_it_once():
    weight, token = drawn(6, WIDTH), drawn(1, WIDTH, seed=9)
    basis = span(weight, torch.cat([token, 2 * token, token]))
    assert basis.shape == (6, 1)
    torch.testing.assert_close(basis @ basis.T, projector(weight, token))
    with pytest.raises(ValueError, match="makes nothing of it"):
        span(0 * weight, token)


def test_published_settings():
    assert published_weights("object", 1) == OceWeights() == OceWeights(2000.0, 0.0, 10.0, 10.0)
    assert published_weights("style", 3).erase_scale == 500 and published_weights("explicit", 1).global_scale == 20
    assert [published_weights("celebrity", n).erase_scale for n in (1, 10, 11, 50, 51)] == [3500, 3500, 1500, 1500, 800]
    assert published_templates("object") == published_templates("explicit") == OBJECT_TEMPLATES
    assert published_templates("style") == STYLE_TEMPLATES and published_templates("celebrity") == ()


def test_what_cannot_be():
    weight, erased, anchors, moment, _ = case()
    assert not oce(weight, erased, anchors, moment, 0.0).any()
    with pytest.raises(SingularSystem, match="raise lamb"):
        oce(weight, erased, anchors, 0 * moment, 1.0)
    with pytest.raises(ValueError, match="not negative"):
        OceWeights(lamb=-1.0)
    with pytest.raises(ValueError, match="the solution is"):
        rotation(torch.eye(2), "best")


def concepts(host, text, type="object"):
    return host.run("MACE_Concepts", concepts=text, type=type, preset="none", prompt_file="none")[0]


def run(host, demo, chosen, **settings):
    return host.run("MACE_BaselineOCE", model=demo[0], clip=demo[1], concepts=chosen, **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def without_dog(comfy_host, demo):
    return run(comfy_host, demo, concepts(comfy_host, "dog -> sky"), preserve="cat\nwolf")


@pytest.mark.host
def test_node_equals_the_numerics_on_the_hosts_embeddings(comfy_host, demo):
    """Last tokens of the phrase in its prompts, and of captions all tokens up to the first end-of-text."""
    model, clip, _ = demo
    settings = dict(preserve="cat\nwild horse", preserve_scale="1", count=3)
    done = run(comfy_host, demo, concepts(comfy_host, "hot dog -> sky"), **settings)[0]

    def token(text, at):
        return comfy_host.encode(clip, text)[0][0][0][at].double()

    prompts = ["{}", *OBJECT_TEMPLATES]
    erased = torch.stack([token(prompt.format("hot dog"), len(prompt.split()) + 1) for prompt in prompts])
    anchors = torch.stack([token(prompt.format("sky"), len(prompt.split())) for prompt in prompts])
    preserved = torch.stack([token("cat", 1), token("wild horse", 2)])
    captions = comfy_host.module("mace.concepts.captions").builtin_captions(3, 0)
    encoder = comfy_host.module("nodes.host.text").TextEncoder(clip)
    read = torch.cat([token(caption, slice(0, encoder.length(caption) + 2)) for caption in captions])
    moment = kept_moment(read.T @ read / len(read), preserved.T @ preserved, OceWeights(2000.0, 1.0, 10.0, 10.0))
    names = sorted(done.patches)
    assert len(names) == 4 and all(name.endswith("attn2.to_v.weight") for name in names)
    weight = model.get_key_patches()[names[0]][0][0].double()
    expected = oce(weight, erased, anchors, moment, 2000.0)
    (_, (kind, (change,)), _, _, _) = done.patches[names[0]][0]
    assert kind == "diff"
    torch.testing.assert_close(change.double(), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.host
@pytest.mark.long
def test_the_dog_goes_and_others_stay(comfy_host, demo, without_dog):
    model, clip, vae = demo
    judge = Judge(Path(__file__).parent.parent / "assets/demo/judge.safetensors")

    def accuracy(patched, name):
        latents = comfy_host.sample(patched, clip, f"a photo of the {name}", seed=7, steps=8, batch=4)
        return judge.accuracy(comfy_host.decode(vae, latents), name)

    assert accuracy(model, "dog") >= 0.75
    assert accuracy(without_dog[0], "dog") <= 0.25
    assert accuracy(without_dog[0], "cat") >= 0.75


@pytest.mark.host
def test_patches_record_and_report(comfy_host, demo, without_dog):
    model, _, _ = demo
    assert not model.patches and model.get_attachment("mace_stages") is None
    (stage,) = without_dog[0].get_attachment("mace_stages")
    assert stage["preserved"] == ["cat", "wolf"] and stage["settings"]["erase_scale"] == 2000
    assert json.loads(json.dumps(stage)) == stage
    text = without_dog.ui.as_dict()["text"][0]
    assert "what is preserved does not count: preserve_scale is 0" in text and "erase_scale 2000 (auto)" in text
    off = run(comfy_host, demo, concepts(comfy_host, "dog -> sky"), erase_scale="0")[0]
    assert not off.patches and off.get_attachment("mace_stages") is None


@pytest.mark.host
def test_templates_and_matrices(comfy_host, demo):
    read_in = comfy_host.module("nodes.baselines.oce").read_in
    assert read_in("celebrity", "auto") == read_in("object", "no") == ()
    assert read_in("celebrity", "yes") == OBJECT_TEMPLATES and read_in("style", "auto") == STYLE_TEMPLATES
    keys = run(comfy_host, demo, concepts(comfy_host, "dog -> sky"), count=2, projections="keys")[0]
    assert len(keys.patches) == 4 and all("to_k" in name for name in keys.patches)


@pytest.mark.host
def test_errors_name_the_cure(comfy_host, demo):
    with pytest.raises(ValueError, match="both to be erased and to be preserved"):
        run(comfy_host, demo, concepts(comfy_host, "dog -> sky"), preserve="Dog")
    with pytest.raises(ValueError, match="raise lamb or global_scale"):
        run(comfy_host, demo, concepts(comfy_host, "dog -> sky"), global_scale="0", lamb="0")
    assert "line 1" in comfy_host.validate("MACE_BaselineOCE", preserve="cat -> dog")
    assert "lamb" in comfy_host.validate("MACE_BaselineOCE", preserve="cat", lamb="-1")
    assert comfy_host.validate("MACE_BaselineOCE", preserve="cat", erase_scale="auto", lamb="10") is True
