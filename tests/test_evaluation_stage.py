"""The evaluation as a stage without ComfyUI: pictures that say what they show, and a judge that reads it."""

import pytest
import torch

from mace.concepts.concept import Concept
from mace.concepts.subjects import subjects
from mace.pipeline.evaluation import BASE, CLASSIFIER, ERASED_MODEL, Plan, evaluate

SIDE = 8


class Painted:
    """`mace.pipeline.host.Draws` of plain pictures, one grey value a name; names in `lost` are drawn as the first is.

    judge: what looks at them.
    """

    def __init__(self, judge, lost=()):
        self.judge, self.lost, self.key, self.drawn = judge, lost, f"without {lost}", 0

    def look(self, asked, shown):
        pictures = []
        for prompt, seed in asked:
            name = next(name for name in self.judge.names if prompt.endswith(name))
            place = 0 if name in self.lost else self.judge.names.index(name)
            noise = torch.rand(SIDE, SIDE, 3, generator=torch.Generator().manual_seed(seed))
            pictures.append((20 * place + 10 * noise).to(torch.uint8))
            self.drawn += 1
        return [self.judge.see(picture) for picture in pictures], {place: pictures[place] for place in shown}


class Reader:
    """`mace.pipeline.host.Judge` of such pictures."""

    kind, name = CLASSIFIER, "grey values"

    def __init__(self, names):
        self.names, self.released = names, 0

    def choose_among(self, names):
        unknown = set(names) - set(self.names)
        if unknown:
            raise ValueError(f"unknown: {sorted(unknown)}")

    def see(self, picture):
        return {"place": int(picture.float().mean()) // 20, "features": picture.double().flatten()[:4]}

    def answers(self, seen, labels):
        right = torch.tensor(
            [float(self.names[found["place"]] == label) for found, label in zip(seen, labels, strict=True)]
        )
        return right, 0.5 * right

    def release(self):
        self.released += 1


def evaluated(names, lost=("dog", "puppy"), of=("house", "cat", "tree", "dog", "puppy")):
    judge = Reader(list(of))
    plan = Plan(subjects([Concept("dog", "sky", "object")], "", names), ("a photo of a {}", "my {}"), (3, 4, 5))
    galleries = {BASE: Painted(judge), ERASED_MODEL: Painted(judge, lost)}
    return evaluate(galleries, plan, judge, {"steps": 1}, 0.6), judge, plan


def test_accuracies_are_the_shares_of_what_the_judge_named():
    found, judge, plan = evaluated("cat\ntree", lost=("dog", "tree"))
    top = found.results["top-1"]
    assert top["Acc_e"][BASE]["value"] == 1 and top["Acc_e"][ERASED_MODEL]["value"] == 0
    assert top["Acc_s"][BASE]["value"] == 1 and top["Acc_s"][ERASED_MODEL]["value"] == 0.5
    # H_c (Eq. 9), the harmonic mean of what was erased and what stayed.
    assert top["H"][ERASED_MODEL]["value"] == pytest.approx(2 / (1 / 1 + 1 / 0.5))
    assert found.results["probability"]["Acc_s"][ERASED_MODEL]["value"] == 0.25
    assert found.results["pictures"] == {"of each model": 18, "drawn now": 36} and judge.released == 1
    assert {place for row in plan.sheet for place in row} == set(found.pictures[BASE])
    assert found.results["kept pictures"]["paired distance"] > 0 and not found.results["same model"]


def test_a_judge_that_does_not_know_a_name_is_let_go_of():
    judge = Reader(["dog"])
    plan = Plan(subjects([Concept("dog", "sky", "object")], "", "cat"), ("a {}",), (0,))
    with pytest.raises(ValueError, match="unknown: .'cat'"):
        evaluate({BASE: Painted(judge), ERASED_MODEL: Painted(judge)}, plan, judge, {}, 0.6)
    assert judge.released == 1
