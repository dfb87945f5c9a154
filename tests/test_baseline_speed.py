"""SPEED: its closed form against the problem with multipliers written out, and the node in the real host."""

import json
from pathlib import Path

import pytest
import torch

from mace.baselines.speed import (
    Edits,
    NoNullSpace,
    Preserved,
    SpeedSettings,
    above_mean,
    all_tokens,
    centres,
    constrained,
    edits_of,
    erasing_alone,
    invariants,
    last_token,
    least_read,
    null_space,
    refined,
    speed,
)
from mace.method.moments import concept_moments
from tests.judge import Judge

WIDTH = 12
PLAIN = SpeedSettings(threshold=1e-9, augment=0, filtered=False)
SETTINGS = dict(preserve="", retention="none", threshold=0.1, retain_scale=1.0)
EXACT = dict(augment=0, filter=False)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case():
    """(W, targets [3, d], destinations [3, d], preserved [4, d], invariants [2, d])"""
    return (
        drawn(5, WIDTH),
        drawn(3, WIDTH, seed=1),
        drawn(3, WIDTH, seed=2),
        drawn(4, WIDTH, seed=3),
        drawn(2, WIDTH, seed=4),
    )


def means(targets, destinations):
    return Edits(destinations.T @ targets / len(targets), targets.T @ targets / len(targets))


def by_multipliers(weight, targets, destinations, fixed, retain_scale):
    """W' - W of Eq. 10, by one system with Lagrange multipliers; what is fixed [n, d] is constrained exactly."""
    count, width = len(fixed), weight.shape[1]
    system = torch.zeros(width + count, width + count, dtype=torch.float64)
    eye = torch.eye(width, dtype=torch.float64)
    system[:width, :width] = targets.T @ targets / len(targets) + retain_scale * eye
    system[:width, width:], system[width:, :width] = fixed.T, fixed
    wanted = targets.T @ (destinations - targets) @ weight.T / len(targets)
    right = torch.cat([wanted, torch.zeros(count, len(weight), dtype=torch.float64)])
    return torch.linalg.solve(system, right)[:width].T


def edit_of(weight, edits, kept, fixed, settings, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return speed(weight, edits, Preserved(kept, fixed), erasing_alone(edits), settings, generator)


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_equals_the_constrained_problem(scale):
    weight, targets, destinations, kept, fixed = case()
    settings = SpeedSettings(1e-9, scale, 0, False)
    done = edit_of(weight, means(targets, destinations), kept, fixed, settings)
    expected = by_multipliers(weight, targets, destinations, torch.cat([kept, fixed]), scale)
    torch.testing.assert_close(done.change, expected, rtol=1e-9, atol=1e-11)
    assert (done.kept, done.copies, done.free) == (4, 0, WIDTH - 4)
    # What is preserved and the invariants are read as before, what is erased is not.
    assert float((done.change @ torch.cat([kept, fixed]).T).abs().max()) < 1e-12
    assert float((done.change @ targets.T).norm()) > 0.1


@pytest.mark.parametrize("lamb", [0.0, 0.5, 20.0])
def test_equals_the_published_closed_form(lamb):
    weight, targets, destinations, kept, fixed = case()
    edits = means(targets, destinations)
    basis = null_space(kept.T @ kept / 4, 0.3)
    projector, rows = basis @ basis.T, fixed.T
    eye = torch.eye(WIDTH, dtype=torch.float64)
    inner = torch.linalg.inv(edits.gram @ projector + 0.7 * eye)
    multiplier = torch.linalg.inv(rows.T @ projector @ inner @ rows + lamb * torch.eye(2, dtype=torch.float64))
    constraint = eye - inner @ rows @ multiplier @ rows.T @ projector
    expected = weight @ (edits.cross - edits.gram) @ projector @ constraint @ inner
    found = constrained(weight, edits, basis, fixed, SpeedSettings(retain_scale=0.7, lamb=lamb))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_an_invariant_that_is_preserved_already_is_no_singular_system():
    weight, targets, destinations, kept, _ = case()
    edits = means(targets, destinations)
    twice = edit_of(weight, edits, kept, kept[:2], PLAIN).change
    torch.testing.assert_close(twice, by_multipliers(weight, targets, destinations, kept, 1.0), rtol=1e-9, atol=1e-11)


def test_the_threshold_is_on_the_mean_moment():
    kept = torch.diag(torch.tensor([3.0, 1.0, 0.1], dtype=torch.float64))
    assert [null_space(kept.T @ kept / 3, limit).shape[1] for limit in (0.001, 0.1, 1.0, 9.0)] == [0, 1, 2, 3]


@pytest.mark.parametrize(("filtered", "rows"), [(True, 5), (False, 5), (True, WIDTH + 4)])
def test_refining_equals_copies_that_are_made(filtered, rows):
    """IPF and DPA with every copy in memory: filtered by the length of what erasing alone makes of each."""
    weight, (_, targets, destinations, _, _) = drawn(rows, WIDTH, seed=5), case()
    kept = drawn(9, WIDTH, seed=6)
    alone = erasing_alone(means(targets, destinations))
    update = by_multipliers(weight, targets, destinations, torch.zeros(0, WIDTH, dtype=torch.float64), 1.0)
    torch.testing.assert_close(weight @ alone, update, rtol=1e-9, atol=1e-11)

    def influential(tokens):
        shifts = torch.stack([(update @ token).norm() for token in tokens])
        return tokens[shifts > shifts.mean()]

    own = influential(kept) if filtered else kept
    direction = torch.linalg.eigh(weight.T @ weight)[1][:, max(WIDTH - rows, 0)]
    direction = direction * torch.sign(direction[direction.abs().argmax()])
    z = torch.randn(len(own), 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    copies = influential(
        torch.stack([token + scale * direction for token, draws in zip(own, z, strict=True) for scale in draws])
    )
    everything = torch.cat([own, copies])
    settings = SpeedSettings(augment=7, filtered=filtered)
    moment, count, made = refined(weight, kept, alone, settings, torch.Generator().manual_seed(3))
    assert (count, made) == (len(own), len(copies)) and 0 < made < 7 * len(own)
    torch.testing.assert_close(moment, everything.T @ everything / len(everything), rtol=1e-9, atol=1e-9)
    alike, _, none = refined(weight, kept, alone, SpeedSettings(augment=0, filtered=filtered), torch.Generator())
    torch.testing.assert_close(alike, own.T @ own / len(own), rtol=1e-9, atol=1e-9)
    assert none == 0


def test_the_direction_read_least_is_of_the_smallest_singular_value():
    weight = torch.diag(torch.tensor([3.0, 0.5, 2.0], dtype=torch.float64))
    assert torch.equal(least_read(-weight), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


def test_one_preserved_token_is_never_filtered_out():
    assert above_mean(torch.tensor([0.3])).tolist() == [True]
    assert above_mean(torch.tensor([1.0, 2.0, 6.0])).tolist() == [False, False, True]


def test_centres_are_the_means_of_what_is_nearest():
    tokens = torch.cat([drawn(6, 3, seed=i) * 0.01 + 5 * i for i in range(3)])
    found = [centres(tokens, torch.Generator().manual_seed(seed)) for seed in (1, 1)]
    assert torch.equal(*found)
    nearest = (tokens[:, None] - found[0]).norm(dim=2).argmin(dim=1)
    for i, centre in enumerate(found[0]):
        torch.testing.assert_close(centre, tokens[nearest == i].mean(dim=0))
    rows = invariants(tokens, torch.Generator())
    assert torch.equal(rows[0], tokens[0]) and rows.shape == (4, 3)


def test_pairs():
    assert last_token(3, 1).target == (3,) and last_token(3, 1).mapping == (1,)
    # The empty prompt has no word: its start-of-text stands for one.
    assert last_token(2, 0).mapping == (0,)
    assert all_tokens(2).target == all_tokens(2).mapping == tuple(range(1, 77))
    targets, destinations = drawn(2, 6, WIDTH, seed=1), drawn(2, 6, WIDTH, seed=2)
    moments = concept_moments(
        [(targets, destinations, [last_token(2, 1), last_token(1, 0)])], WIDTH, torch.device("cpu")
    )
    expected = means(torch.stack([targets[0, 2], targets[1, 1]]), torch.stack([destinations[0, 1], destinations[1, 0]]))
    torch.testing.assert_close(edits_of(moments).cross, expected.cross)
    torch.testing.assert_close(edits_of(moments).gram, expected.gram)


def test_settings_and_systems_that_cannot_be():
    for wrong in (dict(threshold=0.0), dict(retain_scale=0.0), dict(augment=-1), dict(lamb=-1.0)):
        with pytest.raises(ValueError, match="finite and"):
            SpeedSettings(**wrong)
    weight, targets, destinations, _, fixed = case()
    with pytest.raises(NoNullSpace, match="raise threshold"):
        edit_of(weight, means(targets, destinations), drawn(30, WIDTH), fixed, PLAIN)


def concepts(host, text, type="object"):
    return host.run("MACE_Concepts", concepts=text, type=type, preset="none", prompt_file="none")[0]


def run(host, demo, chosen, **settings):
    return host.run("MACE_BaselineSPEED", model=demo[0], clip=demo[1], concepts=chosen, **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def without_dog(comfy_host, demo):
    return run(comfy_host, demo, concepts(comfy_host, "dog -> sky"), preserve="cat\nhorse\nwolf\nhot dog")


@pytest.mark.host
def test_node_equals_the_written_out_problem(comfy_host, demo):
    """A patched matrix against multipliers over the host's own embeddings: last tokens, and the empty prompt's."""
    model, clip, _ = demo
    done = run(comfy_host, demo, concepts(comfy_host, "dog | hot dog -> sky"), preserve="cat\nwild horse", **EXACT)[0]
    read = {
        text: comfy_host.encode(clip, text)[0][0][0].double()
        for text in ("dog", "hot dog", "sky", "cat", "wild horse", "")
    }
    kept = torch.stack([read["cat"][1], read["wild horse"][2]])
    fixed = torch.cat([kept, invariants(read[""], torch.Generator().manual_seed(0))])
    targets, destinations = torch.stack([read["dog"][1], read["hot dog"][2]]), torch.stack([read["sky"][1]] * 2)
    names = sorted(done.patches)
    assert len(names) == 4 and all(name.endswith("attn2.to_v.weight") for name in names)
    weight = model.get_key_patches()[names[0]][0][0].double()
    expected = by_multipliers(weight, targets, destinations, fixed, 1.0)
    (_, (kind, (change,)), _, _, _) = done.patches[names[0]][0]
    assert kind == "diff"
    torch.testing.assert_close(change.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


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
    assert stage["preserved"] == ["cat", "horse", "wolf"] and stage["concepts"][0]["destination"] == "sky"
    assert stage["settings"]["threshold"] == 0.1 and json.loads(json.dumps(stage)) == stage
    assert "not preserved, for they name what is erased: hot dog" in without_dog.ui.as_dict()["text"][0]


@pytest.mark.host
def test_types_destinations_and_matrices(comfy_host, demo):
    """Explicit content: all tokens to the empty prompt. Nothing preserved: the empty prompt. A seed fixes the draws."""
    chosen = concepts(comfy_host, "nudity", type="explicit")
    first, again, other = (run(comfy_host, demo, chosen, lamb=0.5, projections="keys", seed=seed) for seed in (0, 0, 1))
    assert "nudity -> the empty prompt" in first.ui.as_dict()["text"][0]
    assert "the empty prompt preserved" in first.ui.as_dict()["text"][0]
    names = sorted(first[0].patches)
    assert len(names) == 4 and all("to_k" in name for name in names)

    def changes(done):
        return torch.stack([done[0].patches[name][0][1][1][0] for name in names])

    assert torch.equal(changes(first), changes(again)) and not torch.equal(changes(first), changes(other))


@pytest.mark.host
def test_errors_name_the_cure(comfy_host, demo):
    with pytest.raises(ValueError, match="both to be erased and to be preserved"):
        run(comfy_host, demo, concepts(comfy_host, "dog -> sky"), preserve="Dog")
    assert "line 1" in comfy_host.validate("MACE_BaselineSPEED", preserve="cat -> dog")
    assert comfy_host.validate("MACE_BaselineSPEED", preserve="cat") is True
