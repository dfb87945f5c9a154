"""How far words nearby moved: against sums written out, in words, and on the nodes that erase."""

import math

import pytest
import torch

from mace.measure.nearby import LIMITS, in_words, moved
from tests.stages import fuse, report, stages
from tests.test_refine_node import concepts, refine

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]


def written_out(words, empty, weights):
    """The measure by loops over numbers."""
    found = []
    for word in words.double().tolist():
        shares = []
        for before, after in weights:
            change = said = 0.0
            # The first token is that of the start.
            for token, nothing in list(zip(word, empty.double().tolist(), strict=True))[1:]:
                for old, new in zip(before.double().tolist(), after.double().tolist(), strict=True):
                    change += sum((n - o) * e for n, o, e in zip(new, old, token, strict=True)) ** 2
                    said += sum(o * (e - z) for o, e, z in zip(old, token, nothing, strict=True)) ** 2
            if said > 0:
                shares.append(change / said)
        found.append(math.sqrt(sum(shares) / len(shares)) if shares else 0.0)
    return found


def test_the_measure_is_what_it_says():
    generator = torch.Generator().manual_seed(4)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    words, empty = random(3, 5, 4), random(5, 4)
    words[2] = empty
    weights = [(own := random(6, 4), own + 0.1 * random(6, 4)), (other := random(2, 4), other)]
    weights.append((torch.zeros(3, 4), random(3, 4)))
    found = moved(words, empty, weights)
    assert found.dtype == torch.float64 and found[2] == 0
    torch.testing.assert_close(found, torch.tensor(written_out(words, empty, weights), dtype=torch.float64))
    # The start does not count, and a reading of nothing but zeros moved by the whole of it.
    words[:, 0] = 100
    torch.testing.assert_close(moved(words, empty, weights), found)
    gone = moved(random(2, 5, 4), torch.zeros(5, 4), [(own, torch.zeros(6, 4))])
    torch.testing.assert_close(gone, torch.ones(2, dtype=torch.float64))


def test_in_words():
    limits = [limit for limit, _ in LIMITS]
    assert limits == sorted(limits)
    said = [in_words(value) for value in (0.0, *limits)]
    assert len(set(said)) == len(said) and said[0] == LIMITS[0][1]


def test_refinement_and_fusion_say_it(comfy_host, demo, monkeypatch):
    """What is next to a concept moves with a small mu and hardly at all with a large one; what is kept is named too."""
    nearby = comfy_host.module("nodes.stages.nearby")
    model, clip, _ = demo
    chosen = concepts(comfy_host, "dog | puppy -> sky")
    said = {mu: report(refine(comfy_host, model, clip, chosen, mu=mu)).splitlines()[-1] for mu in ("0.01", "1e9")}
    assert all(line.startswith("of 12 words nearby, moved most: ") for line in said.values())
    assert said["1e9"].endswith(" not at all") and "not at all" not in said["0.01"] and "puppy" not in said["0.01"]
    refined = refine(comfy_host, model, clip, chosen, mu="1")[0]
    encoder = comfy_host.module("nodes.host.text").TextEncoder(clip)
    words = nearby.words_nearby(encoder, chosen, None)
    assert len(words) == 12 and not {"dog", "puppy", "sky"} & set(words)
    keys = comfy_host.module("nodes.host.model.unet").cross_attention_keys(model)
    effective = comfy_host.module("nodes.host.model.unet").effective_weight
    with torch.inference_mode():
        read = encoder.encode(["a photo of the " + words[0], ""]).cpu()
        pairs = [
            [
                effective(own.get_key_patches("diffusion_model.")[key], key, torch.device("cpu"))
                for own in (model, refined)
            ]
            for key in keys
        ]
        share = float(moved(read[:1].double(), read[1].double(), pairs))
    monkeypatch.setattr(nearby, "words_nearby", lambda *a: words[:1])
    assert nearby.moved_lines(model, refined, clip, chosen, None) == [
        f"of 1 words nearby, moved most: {words[0]} {in_words(share)}"
    ]
    monkeypatch.undo()
    _, refinement, _, loras = stages(comfy_host, demo, chosen, steps="1")
    node = fuse(comfy_host, model, loras, refinement=refinement, clip=clip)
    assert "words nearby, moved most: " in report(node)
    assert "words nearby" not in report(fuse(comfy_host, model, loras, refinement=refinement))


def test_what_a_prior_preserves_comes_first(comfy_host, demo):
    model, clip, _ = demo
    nearby, text = (comfy_host.module(name) for name in ("nodes.stages.nearby", "nodes.host.text"))
    chosen = concepts(comfy_host, "dog -> sky\nship -> sky")
    settings = dict(captions="built-in", count=0, seed=0, preserve_type="object", retention="none")
    prior = comfy_host.run("MACE_Prior", clip=clip, preserve="rose\nWolf\nDog", **settings)[0]
    words = nearby.words_nearby(text.TextEncoder(clip), chosen, prior)
    assert words[:2] == ["rose", "Wolf"] and len(words) == 12 and "wolf" not in words
    # They have a line of their own, however little they moved.
    *_, near, kept = report(refine(comfy_host, model, clip, chosen, prior=prior, mu="0.1", lambda3="1e6")).splitlines()
    assert near.startswith("of 10 words nearby, moved most: ") and "rose" not in near
    assert kept.startswith("kept: ") and "rose" in kept and "Wolf" in kept and " not at all" in kept
    many = concepts(comfy_host, "\n".join(f"{name} -> sky" for name in "cat ant bee owl fox cow pig".split()))
    assert len(nearby.words_nearby(text.TextEncoder(clip), many * 3, None)) <= 12
