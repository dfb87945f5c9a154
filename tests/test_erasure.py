"""The harness that measures erasing: its statistics, its records, and a guard on what erasing a dog does."""

import numpy as np
import pytest
import torch

from benchmarks.erasure.bench import Bench
from benchmarks.erasure.methods import BASE, FUSED, Subject
from benchmarks.erasure.questions import TEMPLATES, Answers, Examiner, Question, asked
from benchmarks.erasure.records import Records, told
from benchmarks.erasure.report import write_report
from benchmarks.erasure.statistics import h_o, harmonic_of_objects, mean_of
from benchmarks.erasure.tables import share
from benchmarks.erasure.tasks import Plan, fill, summary


def answers(right, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = len(right)
    features = torch.randn(count, 5, generator=generator)
    return Answers(torch.tensor(right).float(), torch.rand(count, generator=generator), features, torch.zeros(count))


def cell(key, **groups):
    """A cell of the task objects, by the digits of each group."""
    name, method = key.split("/")
    found = {group: told([Question("", name)] * len(bits), answers(bits)) for group, bits in groups.items()}
    for group in found.values():
        group["moved"] = [0.0] * len(group["right"])
    return {"key": key, "erased": name, "method": method, "seconds": {}, "groups": found}


def test_means_and_their_intervals():
    """Against samples drawn one at a time."""
    generator = np.random.default_rng(5)
    clusters = [generator.random(size) for size in (3, 8, 20, 5)]
    found = mean_of(clusters)
    assert found.value == pytest.approx(np.mean([np.mean(cluster) for cluster in clusters]))
    slow = []
    for _ in range(4000):
        taken = [clusters[generator.integers(4)] for _ in range(4)]
        slow.append(np.mean([np.mean(generator.choice(cluster, len(cluster))) for cluster in taken]))
    assert [found.low, found.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.02)
    sure = mean_of([np.ones(10)])
    assert (sure.value, sure.low, sure.high) == (1, 1, 1)


def test_h_o_is_the_mean_over_erasures_with_synonyms():
    cells = [
        cell("dog/fused", erased=[0, 0, 0, 1], classes=[1, 1, 1, 0], synonyms=[0, 1]),
        cell("cat/fused", erased=[0] * 4, classes=[1] * 4, synonyms=[1, 1]),
        cell("owl/fused", erased=[1] * 4, classes=[1] * 4),
    ]
    assert h_o(cells[1]) == 0 and h_o(cells[2]) is None
    assert harmonic_of_objects(cells).value == pytest.approx((3 / (1 / 0.75 + 1 / 0.75 + 1 / 0.5) + 0) / 2)


def test_records_are_kept_line_by_line(tmp_path):
    questions = asked({"hound": "dog", "pooch": "dog"}, ("a {}", "the {}"), seeds=2)
    assert len({(question.prompt, question.seed) for question in questions}) == 8
    base, moved = answers([1] * 8), answers([1, 0] * 4, seed=1)
    records = Records("objects", tmp_path)
    records.add("dog/fused", groups={"synonyms": told(questions, moved, base)})
    again = Records("objects", tmp_path)
    assert again.cells == records.cells and "dog/fused" in again
    found = again.cells["dog/fused"]["groups"]["synonyms"]
    assert found["names"] == ["dog"] * 8 and found["right"] == "10101010"
    spread = torch.stack([(a - b).square().sum() for a in base.features for b in base.features]).mean()
    expected = (moved.features - base.features).square().sum(dim=1) / spread
    assert found["moved"] == pytest.approx(expected.tolist(), abs=1e-3)


def test_the_page_of_results(tmp_path):
    cells = {}
    for name in ("dog", "ship"):
        for method, gone in (("base", 1), ("fused", 0)):
            groups = dict(erased=[gone] * 4, classes=[1, 1, 1, gone], synonyms=[gone, 1], others=[1] * 8)
            cells[f"{name}/{method}"] = cell(f"{name}/{method}", **groups)
    write_report({"objects": cells}, tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| dog | 0 / 75 / 50 / 100 |" in page
    assert "| base model | 2 | 100.0 (100.0-100.0) |" in page and "- ship: " in page
    assert "Ten" not in page


def test_variants_stand_on_the_page_beside_the_methods(tmp_path):
    cells = {}
    for key, more in (("ten/base", {}), ("all, closed", {"variant": "all", "method": "closed form (Eq. 7)"})):
        found = cell("ten/base", erased=[0, 0], synonyms=[0, 1], classes=[1], others=[1, 1], style=[1, 0])
        found["groups"]["style"]["style"] = [0.1, 0.2]
        cells[key] = {**found, **more}
    write_report({"ablations": cells, "unseen": {}}, tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| all | closed form (Eq. 7) | 0 | 50 | 100 | 100 | 0 |" in page and "| base model | - | 0 |" in page
    assert "not recorded here: unseen" in page and "plot_steps" not in page


@pytest.fixture(scope="module")
def bench(comfy_host):
    return Bench(comfy_host)


@pytest.mark.host
@pytest.mark.long
def test_a_dog_is_gone_and_its_neighbours_are_not(bench, tmp_path):
    """A guard with wide margins; the recorded results are in docs/results.md."""
    questions = {
        "erased": asked(["dog"], seeds=2),
        "synonyms": asked({"canine": "dog", "hound": "dog"}),
        "others": asked(["cat", "wolf", "hot dog", "horse", "ship", "rose", "guitar", "house"]),
    }
    records = Records("guard", tmp_path)
    fill(bench, records, Subject(bench, ["dog"]), questions, Plan((FUSED,)), "dog")
    base, fused = (records.cells[f"dog/{method}"] for method in (BASE, FUSED))
    assert share(base, "erased") == 1 and share(base, "others") >= 0.9, summary(base["groups"])
    assert share(fused, "erased") <= 0.25 and share(fused, "synonyms") <= 0.5, summary(fused["groups"])
    assert share(fused, "others") >= share(base, "others") - 0.15, summary(fused["groups"])
    assert share(fused, "others", "moved") < 0.2
    assert set(fused["seconds"]) == {"refine", "images and masks", "train", "fuse"}


@pytest.mark.long
@pytest.mark.host
def test_the_same_noise_whatever_is_drawn_together(bench):
    questions = asked(["dog", "ship", "rose"], TEMPLATES[:1])
    together = bench.examiner.ask(bench.model, questions)
    for i, question in enumerate(questions):
        alone = bench.examiner.ask(bench.model, [question])
        torch.testing.assert_close(alone.features[0], together.features[i], rtol=1e-2, atol=1e-2)
    assert bench.examiner.ask(bench.model, questions[:1], "x").right.shape == (1,)


class Brightness:
    """In place of a CLIP model: what it sees is the mean of a picture, which it weighs by the prompt's length."""

    def see(self, pictures):
        assert pictures.dtype == torch.uint8 and pictures.shape[-1] == 3
        return [{"mean": float(picture.float().mean())} for picture in pictures]

    def scores(self, seen, prompts):
        return torch.tensor([each["mean"] * len(prompt) for each, prompt in zip(seen, prompts, strict=True)])


@pytest.mark.host
def test_pictures_are_scored_with_their_own_prompts(bench):
    examiner = Examiner(bench.studio, "Twemoji", Brightness())
    questions = asked(["cat", "house", "rose"], ("a {}",))
    pictures = bench.studio.draw(bench.model, [q.prompt for q in questions], [q.seed for q in questions])
    expected = (pictures * 255).round().flatten(1).mean(dim=1) * torch.tensor([5.0, 7.0, 6.0])
    first = examiner.ask(bench.model, questions[1:], "base")
    torch.testing.assert_close(first.clip, expected[1:], rtol=1e-3, atol=0.0)
    torch.testing.assert_close(examiner.ask(bench.model, questions, "base").clip, expected, rtol=1e-3, atol=0.0)
    assert told(questions[1:], first)["clip"] == pytest.approx(expected[1:].tolist(), rel=1e-3)
    assert bench.examiner.ask(bench.model, questions).clip is None
