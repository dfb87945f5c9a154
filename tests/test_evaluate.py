"""The measures of an evaluation against slow, obvious sums."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import hmean

from mace.concepts.concept import Concept
from mace.concepts.subjects import Subject, parse_names, parse_synonyms, parse_templates, subjects
from mace.measure import accuracy, distance, statistics

CONCEPTS = (Concept("dog", "sky", "object", ("puppy",)), Concept("ship", "ground", "object"))
ASKED = subjects(CONCEPTS, "dog: canine, hound", "cat, wolf\nrose")


@pytest.fixture
def values():
    """(base, erased) of two templates and five seeds, 0 or 1."""
    generator = np.random.default_rng(3)
    base = (generator.random((len(ASKED), 2, 5)) < 0.8).astype(float)
    erased = (generator.random((len(ASKED), 2, 5)) < 0.4).astype(float)
    return base, erased


def test_the_papers_harmonic_means():
    """H_o of rows of Table 1 from their accuracies: MACE and UCE on airplane, ESD-u on bird."""
    for e, s, g, h in ((9.06, 95.39, 10.03, 92.03), (40.32, 98.79, 49.83, 64.09), (13.17, 86.17, 20.65, 83.98)):
        e, s, g = e / 100, s / 100, g / 100
        assert accuracy.h_objects(e, s, g) == pytest.approx(h / 100, abs=2e-4)
        assert accuracy.h_people(e, s) == pytest.approx(hmean([1 - e, s]))
    assert accuracy.h_objects(1.0, 0.9, 0.1) == 0 and accuracy.h_people(0.1, 0.0) == 0
    assert math.isnan(accuracy.h_objects(0.1, float("nan"), 0.1))
    # Table 3, MACE's row.
    assert accuracy.h_styles(28.58, 22.59) == pytest.approx(5.99)


def test_groups_are_means_by_concept(values):
    base, _ = values
    assert [(s.phrase, s.label, s.group) for s in ASKED] == [
        ("dog", "dog", "erased"),
        ("puppy", "dog", "alias"),
        ("canine", "dog", "synonym"),
        ("hound", "dog", "synonym"),
        ("ship", "ship", "erased"),
        ("cat", "cat", "kept"),
        ("wolf", "wolf", "kept"),
        ("rose", "rose", "kept"),
    ]
    found = accuracy.groups(ASKED, base)
    for seed in range(5):
        assert found.erased[1, seed] == pytest.approx((base[4, 0, seed] + base[4, 1, seed]) / 2)
        assert found.synonyms[0, seed] == pytest.approx(sum(base[n, t, seed] for n in (2, 3) for t in (0, 1)) / 4)
        assert found.aliases[0, seed] == pytest.approx(base[1, :, seed].mean())
        assert found.kept[2, seed] == pytest.approx(base[7, :, seed].mean())
    assert np.isnan(found.synonyms[1]).all() and np.isnan(found.aliases[1]).all()


def slow_samples(drawn, grouped):
    """(Acc_e, Acc_s, Acc_g, H_o) of every resample, by writing each resample out as lists."""
    found = []
    for r in range(len(drawn.seeds)):
        seeds = [s for s in range(drawn.seeds.shape[1]) for _ in range(int(drawn.seeds[r, s]))]
        rows = [c for c in range(drawn.erased.shape[1]) for _ in range(int(drawn.erased[r, c]))]
        kept = [k for k in range(drawn.kept.shape[1]) for _ in range(int(drawn.kept[r, k]))]
        e = np.mean([grouped.erased[c, s] for c in rows for s in seeds])
        s_ = np.mean([grouped.kept[k, s] for k in kept for s in seeds])
        named = [grouped.synonyms[c, s] for c in rows for s in seeds if not np.isnan(grouped.synonyms[c, s])]
        g = np.mean(named) if named else float("nan")
        parts = [1 - e, s_, 1 - g]
        h = float("nan") if np.isnan(g) else 0.0 if min(parts) == 0 else 3 / sum(1 / part for part in parts)
        found.append((e, s_, g, h))
    return np.array(found)


def test_intervals_of_values_and_of_their_change(values):
    base, erased = values
    drawn = statistics.resamples(2, 3, 5, draws=300, seed=1)
    found = accuracy.compare(ASKED, base, erased, accuracy.accuracy_names(True), drawn)
    slow = [slow_samples(drawn, accuracy.groups(ASKED, part)) for part in (base, erased)]
    for column, name in enumerate(("Acc_e", "Acc_s", "Acc_g", "H")):
        for which, samples in (("base", slow[0]), ("erased", slow[1]), ("change", slow[1] - slow[0])):
            clean = samples[:, column][~np.isnan(samples[:, column])]
            low, high = np.percentile(clean, [2.5, 97.5])
            assert found[name][which].low == pytest.approx(low) and found[name][which].high == pytest.approx(high)
    assert found["Acc_e"]["erased"].value == pytest.approx(erased[[0, 4]].mean())
    assert found["Acc_g"]["base"].value == pytest.approx(base[2:4].mean())
    assert found["H"]["erased"].value == pytest.approx(
        hmean([1 - erased[[0, 4]].mean(), erased[5:].mean(), 1 - erased[2:4].mean()])
    )
    assert found["Acc_alias"]["base"].value == pytest.approx(base[1].mean())


def test_resampling_has_both_sources_of_chance():
    """The variance of resampled means of a + b, one by concept and one by seed, is var(a)/N + var(b)/S."""
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=12), generator.normal(size=7)
    drawn = statistics.resamples(12, 0, 7, draws=20_000)
    samples = statistics.resampled_means(a[:, None] + b[None], drawn.erased, drawn.seeds)
    assert samples.var() == pytest.approx(a.var() / 12 + b.var() / 7, rel=0.05)
    again = statistics.resamples(12, 0, 7, draws=20_000)
    assert np.array_equal(again.erased, drawn.erased) and drawn.kept.shape == (20_000, 0)
    assert (drawn.erased.sum(axis=1) == 12).all() and (drawn.seeds.sum(axis=1) == 7).all()
    with pytest.raises(ValueError, match="at least one erased concept and one seed"):
        statistics.resamples(1, 3, 0)


def test_without_synonyms_and_without_kept():
    asked = subjects(CONCEPTS, "", "")
    ones = np.ones((3, 1, 2))
    drawn = accuracy.draws_for(asked, 2)
    found = accuracy.compare(asked, ones, 0 * ones, accuracy.accuracy_names(False), drawn)
    assert found["Acc_e"]["change"] == (-1, -1, -1)
    assert math.isnan(found["Acc_s"]["base"].value) and math.isnan(found["H"]["erased"].value)
    assert json.dumps(found["Acc_g"]["base"].as_dict()) == '{"value": null, "low": null, "high": null}'
    asked = subjects(CONCEPTS, "", "cat")
    found = accuracy.compare(
        asked, np.ones((4, 1, 2)), np.ones((4, 1, 2)) / 2, accuracy.accuracy_names(False), accuracy.draws_for(asked, 2)
    )
    assert found["H"]["erased"].value == pytest.approx(accuracy.h_people(0.5, 0.5)) and found["H"]["base"].value == 0


def test_clip_scores(values):
    base, erased = (part * 30 for part in values)
    found = accuracy.compare(ASKED, base, erased, accuracy.CLIP_NAMES, accuracy.draws_for(ASKED, 5))
    assert found["H_a"]["erased"].value == pytest.approx(erased[5:].mean() - erased[[0, 4]].mean())


def test_detections_are_counted_as_table_2_does():
    pictures = [[("BELLY_EXPOSED", 0.6), ("FACE_FEMALE", 0.9)], [], [("BELLY_EXPOSED", 0.59), ("FEET_EXPOSED", 0.7)]]
    found = accuracy.count_detections(pictures, 0.6)
    assert found["Belly"] == 1 and found["Feet"] == 1 and found["Total"] == 2 and len(found) == 9


def slow_shrinkage(rows):
    centred = rows - rows.mean(axis=0)
    count, width = rows.shape
    covariance = sum(np.outer(x, x) for x in centred) / count
    identity = np.eye(width)
    scale = np.trace(covariance) / width
    noise = sum(((np.outer(x, x) - covariance) ** 2).sum() for x in centred) / count**2
    return min(noise / ((covariance - scale * identity) ** 2).sum(), 1.0), covariance, scale * identity


@pytest.mark.parametrize("count", [4, 60])
def test_frechet_distance(count):
    """Against scipy's matrix square root, with fewer pictures than features and with more."""
    generator = np.random.default_rng(count)
    a = generator.normal(size=(count, 9)) @ np.diag(np.arange(1, 10) ** 0.5)
    b = generator.normal(size=(count + 3, 9)) + 0.3
    (first, c_a, i_a), (second, c_b, i_b) = slow_shrinkage(a), slow_shrinkage(b)
    weight = (first + second) / 2
    c_a, c_b = (1 - weight) * c_a + weight * i_a, (1 - weight) * c_b + weight * i_b
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c_a + c_b - 2 * sqrtm(c_a @ c_b).real)
    found, used = distance.frechet_distance(torch.tensor(a), torch.tensor(b))
    assert used == pytest.approx(weight) and found == pytest.approx(expected, rel=1e-6)
    same, _ = distance.frechet_distance(torch.tensor(a), torch.tensor(a))
    assert same == pytest.approx(0, abs=1e-6)
    assert math.isnan(distance.frechet_distance(torch.tensor(a[:1]), torch.tensor(b))[0])


def test_paired_distance():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    erased = base + 0.1 * torch.randn(400, 6, generator=generator, dtype=torch.float64)
    moved = sum(float((e - b) @ (e - b)) for e, b in zip(erased, base, strict=True)) / 400
    apart = sum(float((x - y) @ (x - y)) for x in base for y in base) / 400**2
    assert distance.paired_distance(base, erased) == pytest.approx(moved / apart)
    assert distance.paired_distance(base, base) == 0
    # Pictures of no relation to the base's are as far as the base's are from each other.
    assert distance.paired_distance(base, base.roll(1, 0)) == pytest.approx(1, abs=0.1)
    assert math.isnan(distance.paired_distance(base[:1], base[:1]))
    assert math.isnan(distance.paired_distance(base[:1].repeat(2, 1), base[:2]))


def test_lists_are_read():
    assert parse_names("hot dog, cat # stays\n\nCat,  rose ", "keep") == ["hot dog", "cat", "rose"]
    assert parse_templates("a photo of the {}\n\na {} # here\na {}") == ["a photo of the {}", "a {}"]
    assert parse_synonyms("dog: canine,  hound\nShip : boat # one") == {"dog": ["canine", "hound"], "Ship": ["boat"]}
    # An alias was named: it is no synonym, and stands once.
    asked = subjects(CONCEPTS, "dog: puppy, hound", "")
    assert [(s.phrase, s.group) for s in asked if s.label == "dog"] == [
        ("dog", "erased"),
        ("puppy", "alias"),
        ("hound", "synonym"),
    ]
    assert asked[-1] == Subject("ship", "ship", "erased")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: parse_templates("a dog"), "line 1: 'a dog' needs {}"),
        (lambda: parse_templates("\n# x"), "there is no prompt template"),
        (lambda: parse_templates("{} and {x}"), "no other braces"),
        (lambda: parse_synonyms("cat: kitty\ndog"), "line 2: 'dog' is not a concept and its synonyms"),
        (lambda: parse_synonyms("dog: a, b: c"), "line 1: a synonym holds a colon"),
        (lambda: parse_synonyms("dog: a\nDog: b"), "line 2: 'Dog' has synonyms already"),
        (lambda: subjects(CONCEPTS, "cat: kitty", ""), "synonyms: 'cat' is not among the erased"),
        (lambda: subjects(CONCEPTS, "", "Dog"), r"'Dog' is to be kept and erased \(dog\)"),
        (lambda: subjects(CONCEPTS, "dog: vessel\nship: vessel", ""), r"synonym \(ship\) and synonym \(dog\)"),
    ],
)
def test_lists_that_cannot_be_used(call, message):
    with pytest.raises(ValueError, match=message):
        call()
