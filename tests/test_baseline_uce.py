"""UCE: its closed form against sums written out for each projection, and the node in the real host."""

import json
from pathlib import Path

import pytest
import torch

from mace.baselines.uce import UceWeights, edited_tokens, uce
from mace.method.moments import concept_moments
from mace.method.refine import SingularSystem
from tests.judge import Judge

WIDTH, WINDOW = 12, 9
SETTINGS = dict(preserve="", retention="none", erase_scale=1.0, preserve_scale=0.1, lamb=0.5)


def least_squares(weight, erased, kept, weights):
    """The minimiser of UCE's objective for one projection, token by token, as one stacked least-squares problem."""
    rows, wanted = [], []
    for c, destination in erased:
        rows.append(weights.erase_scale**0.5 * c)
        wanted.append(weights.erase_scale**0.5 * weight @ destination)
    for c in kept:
        rows.append(weights.preserve_scale**0.5 * c)
        wanted.append(weights.preserve_scale**0.5 * weight @ c)
    identity = weights.lamb**0.5 * torch.eye(weight.shape[1], dtype=weight.dtype)
    left, right = torch.stack(rows), torch.stack(wanted)
    return torch.linalg.lstsq(torch.cat([left, identity]), torch.cat([right, identity @ weight.T])).solution.T


def case(seed=0):
    """Two edits of different lengths: (batches of `concept_moments`, erased pairs, kept tokens)."""
    random = torch.Generator().manual_seed(seed)
    target, destination = (torch.randn(2, WINDOW, WIDTH, generator=random, dtype=torch.float64) for _ in range(2))
    lengths = ((3, 1), (1, 2))
    pairings = [edited_tokens(*pair, WINDOW) for pair in lengths]
    # The last words at 3 and 1 pair, then what follows them, until the longer phrase's window ends.
    written = [(0, 3 + k, 1 + k) for k in range(6)] + [(1, 1 + k, 2 + k) for k in range(7)]
    erased = [(target[i, a], destination[i, b]) for i, a, b in written]
    kept = torch.randn(20, WIDTH, generator=random, dtype=torch.float64)
    return [(target, destination, pairings)], erased, kept


@pytest.mark.parametrize("weights", [UceWeights(), UceWeights(3.0, 2.0, 0.01), UceWeights(0.2, 0.0, 0.1)])
def test_equals_least_squares_per_projection(weights):
    batches, erased, kept = case()
    moments = concept_moments(batches, WIDTH, torch.device("cpu"))
    delta = uce(moments, weights, kept.T @ kept)
    random = torch.Generator().manual_seed(1)
    for rows in (4, 7):
        weight = torch.randn(rows, WIDTH, generator=random, dtype=torch.float64)
        expected = least_squares(weight, erased, kept, weights)
        torch.testing.assert_close(weight + weight @ delta, expected, rtol=1e-9, atol=1e-10)


def test_pairs_start_at_the_last_token_of_both_phrases():
    pairing = edited_tokens(2, 5)
    assert pairing.target == tuple(range(2, 74)) and pairing.mapping == tuple(range(5, 77))
    # The empty prompt has no word: its start-of-text stands for one.
    nothing = edited_tokens(3, 0)
    assert nothing.target == tuple(range(3, 77)) and nothing.mapping == tuple(range(0, 74))


def test_nothing_erased_changes_nothing():
    batches, _, kept = case()
    moments = concept_moments(batches, WIDTH, torch.device("cpu"))
    assert not uce(moments, UceWeights(erase_scale=0.0), kept.T @ kept).any()


def test_a_singular_system_names_lamb():
    batches, _, _ = case()
    short = [(t[:1], d[:1], p[:1]) for t, d, p in batches]
    with pytest.raises(SingularSystem, match="raise lamb"):
        uce(concept_moments(short, WIDTH, torch.device("cpu")), UceWeights(lamb=0.0))
    with pytest.raises(ValueError, match="not negative"):
        UceWeights(lamb=-1.0)


def concepts(host, text, type="object"):
    return host.run("MACE_Concepts", concepts=text, type=type, preset="none", prompt_file="none")[0]


def edit(host, demo, chosen, **settings):
    return host.run("MACE_BaselineUCE", model=demo[0], clip=demo[1], concepts=chosen, **{**SETTINGS, **settings})[0]


@pytest.fixture(scope="module")
def without_dog(comfy_host, demo):
    return edit(comfy_host, demo, concepts(comfy_host, "dog | hot dog -> sky"), preserve="cat\nwolf")


@pytest.mark.host
def test_node_equals_the_written_out_objective(comfy_host, demo, without_dog):
    """Two patched matrices against least squares over the host's own embeddings of the bare phrases."""
    model, clip, _ = demo
    read = {text: comfy_host.encode(clip, text)[0][0][0].double() for text in ("dog", "hot dog", "sky", "cat", "wolf")}
    erased = [(read["dog"][i], read["sky"][i]) for i in range(1, 77)]
    erased += [(read["hot dog"][i + 1], read["sky"][i]) for i in range(1, 76)]
    kept = [*read["cat"], *read["wolf"]]
    names = sorted(without_dog.patches)
    assert len(names) == 8
    # Without the patches of a clone that was drawn with.
    state = {name: own[0][0] for name, own in model.get_key_patches().items()}
    for name in (names[0], names[-1]):
        weight = state[name].double()
        change = least_squares(weight, erased, kept, UceWeights()) - weight
        (_, (kind, (delta,)), _, _, _) = without_dog.patches[name][0]
        assert kind == "diff"
        torch.testing.assert_close(delta.double(), change, rtol=0, atol=2e-3 * float(change.abs().max()))


@pytest.mark.host
def test_the_dog_goes_and_others_stay(comfy_host, demo, without_dog):
    model, clip, vae = demo
    judge = Judge(Path(__file__).parent.parent / "assets/demo/judge.safetensors")

    def accuracy(patched, name):
        latents = comfy_host.sample(patched, clip, f"a photo of the {name}", seed=7, steps=8, batch=4)
        return judge.accuracy(comfy_host.decode(vae, latents), name)

    assert accuracy(model, "dog") >= 0.75
    assert accuracy(without_dog, "dog") <= 0.25
    assert accuracy(without_dog, "cat") >= 0.75


@pytest.mark.host
def test_patches_and_record_only(comfy_host, demo, without_dog):
    model, _, _ = demo
    assert not model.patches and model.get_attachment("mace_stages") is None
    (stage,) = without_dog.get_attachment("mace_stages")
    assert stage["preserved"] == ["cat", "wolf"] and stage["concepts"][0]["destination"] == "sky"
    assert json.loads(json.dumps(stage)) == stage
    off = edit(comfy_host, demo, concepts(comfy_host, "dog -> sky"), erase_scale=0.0)
    assert not off.patches and off.get_attachment("mace_stages") is None


@pytest.mark.host
def test_destinations(comfy_host):
    become = comfy_host.module("nodes.baselines.closed_form").destination_of
    (explicit,) = concepts(comfy_host, "nudity", type="explicit")
    assert become(explicit, "by type") == "" and become(explicit, "mappings") == "a person wearing clothes"
    (artist,) = concepts(comfy_host, "Claude Monet", type="style")
    assert become(artist, "by type") == "art" and become(artist, "nothing") == ""


@pytest.mark.host
def test_errors_name_the_cure(comfy_host, demo):
    with pytest.raises(ValueError, match="both to be erased and to be preserved"):
        edit(comfy_host, demo, concepts(comfy_host, "dog -> sky"), preserve="Dog")
    assert "line 1" in comfy_host.validate("MACE_BaselineUCE", preserve="cat -> dog")
    assert comfy_host.validate("MACE_BaselineUCE", preserve="cat") is True
