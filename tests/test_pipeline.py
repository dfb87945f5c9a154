"""The pipeline without ComfyUI: its stages over a small host in torch alone, against the objectives written out."""

import ast
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from mace.concepts.concept import Concept
from mace.formats.lora_set import ErasureLora, LoraSet, LoraSetError
from mace.method.metric import RIDGE
from mace.method.moments import pack, unpack
from mace.method.prior import COCO_CAPTIONS, PROBE_PROMPTS, PriorError, PriorTexts, probe, probe_distance
from mace.method.refine import READING, RefineWeights
from mace.pipeline.fusion import CLOSED_FORM, NAIVE, TOWARDS, fused_model
from mace.pipeline.prior import BUILT_IN, CaptionSource, build_prior, step_aside
from mace.pipeline.refine import refine_model
from tests import oracle, oracle_fuse
from tests.torch_only import SHAPES, START, WIDTH, WINDOW, Counted, ReaderWeights, WordText, words_of

MACE = Path(__file__).resolve().parents[1] / "mace"
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview"}
HOST |= {"nodes", "server"}

CONCEPTS = (
    Concept("dog", "sky", "object", ("puppy",), ("a red dog house by the {} road",)),
    Concept("wooden ship", "ground", "object"),
)
KEPT = (Concept("cat", "", "object"), Concept("ship", "", "object"))
CAPTIONS, SHARE = 150, 0.5
WEIGHTS = RefineWeights(lambda1=2e-5, lambda3=0.3, mu=4.0)
AUTO = ("auto",) * 3
REFINED, BASE, HELD = TOWARDS


@pytest.mark.parametrize("file", sorted(MACE.rglob("*.py")), ids=lambda path: str(path.relative_to(MACE)))
def test_the_method_knows_no_host(file):
    inside = len(file.relative_to(MACE).parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not HOST & {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= inside
            assert node.level or node.module.partition(".")[0] not in HOST


@cache
def text():
    return WordText()


def rows_of(prompts):
    """All tokens of prompts, one a row, float64."""
    return torch.cat([text().module([prompt])[0] for prompt in prompts]).double()


def pairs_of(concept, strength=1.0):
    """(e_f, e_g) of a concept, word by word: what is before the phrase meets itself, what is behind it comes nearer or
    goes further by the difference of the phrases' lengths. At a strength, e_g is that much of the way from e_f."""
    f, g = [], []
    for template, phrase in concept.readings:
        begin = len(words_of(template[: template.index("{}")])) + 1
        ends = [begin + len(words_of(words)) for words in (phrase, concept.mapping)]
        theirs, ours = (rows_of([template.replace("{}", words)]) for words in (phrase, concept.mapping))
        places = [(i, i) for i in range(begin)]
        places += [(ends[0] + k, ends[1] + k) for k in range(WINDOW - max(ends))]
        f += [theirs[i] for i, _ in places]
        g += [ours[j] for _, j in places]
    f, g = torch.stack(f), torch.stack(g)
    return f, oracle.between(f, g, strength)


def tokens_of(concept):
    """All tokens of all prompts of a concept."""
    return rows_of([template.replace("{}", phrase) for template, phrase in concept.readings])


@cache
def made():
    """(prior, the refined model, Refinement, lines, bars) of the concepts, and the model before it."""
    progress, before = Counted(), ReaderWeights()
    prior, drawn = build_prior(text(), progress, CaptionSource(BUILT_IN, CAPTIONS, 0), KEPT)
    assert len(drawn.kept) == CAPTIONS - drawn.too_long
    found = refine_model(before, text(), progress, CONCEPTS, WEIGHTS, prior)
    return prior, *found, progress.bars, before


def refine_problem(refinement, strengths):
    """The objective of Eq. 1 and 19 for the concepts at their strengths, with the prior as it was refined with."""
    texts = refinement.prior.texts
    f, g = (torch.cat(side) for side in zip(*map(pairs_of, CONCEPTS, strengths), strict=True))
    kept = rows_of([prompt for own in texts.prompts for prompt in own])
    weight = WEIGHTS.lambda1 * COCO_CAPTIONS / len(texts.captions)
    return oracle.Problem(f, g, rows_of(texts.captions), kept, weight, WEIGHTS.lambda3, WEIGHTS.mu)


def close(found, expected, base):
    """Changes agree within float32's rounding of the weights."""
    change = expected - base
    assert change.norm() > 0.05 * base.norm()
    torch.testing.assert_close(found.double() - base, change, rtol=0, atol=2e-5 * float(base.abs().max()))


def test_the_encoder_lets_a_phrase_change_what_follows():
    first, second = (text().module([f"a {words} by night"])[0] for words in ("dog", "cat"))
    assert torch.equal(first[:2], second[:2]) and not torch.isclose(first[3:], second[3:]).all(-1).any()
    assert START not in words_of("a dog")


def test_refining_minimises_the_objective():
    _, refined, result, lines, bars, before = made()
    problem = refine_problem(result, (1.0, 1.0))
    for key in SHAPES:
        base = before.module.weight(key).double()
        close(refined.module.weight(key), oracle.minimiser(base, problem), base)
    assert all(total == done for total, done in bars) and len(bars) == 3
    prompts = sum(len(concept.readings) for concept in CONCEPTS)
    assert f"2 concepts, {prompts} prompts, {len(problem.f)} token pairs" in lines
    assert refined.refinement is result and refined.records[0]["stage"] == "refinement" and not before.records


def test_the_prior_steps_aside_for_the_list():
    prior, _, result, lines, *_ = made()
    kept = result.prior.texts.captions
    assert 0 < len(kept) < prior.captions and not any("dog" in words_of(caption) for caption in kept)
    assert any(line.startswith("taken out of the prior: ") for line in lines)
    erased = (*CONCEPTS, Concept("ship", "sky", "object"))
    _, other, lines = refine_model(ReaderWeights(), text(), Counted(), erased, WEIGHTS, prior)
    assert other.prior.preserved == ("cat",) and any("no longer preserved" in line for line in lines)


def near(much):
    """(a text whose encoder is off by about so much in each number it multiplies by, its distance from the prior's)."""
    other = WordText()
    noise = torch.randn(other.module.value.shape, generator=torch.Generator().manual_seed(1))
    other.module.value.mul_(1 + much * noise)
    other.fingerprint = probe(other.module(list(PROBE_PROMPTS)))
    return other, probe_distance(made()[0].fingerprint, other.fingerprint)


@pytest.mark.parametrize(
    ("much", "names", "said"),
    [(0, 3, False), (1e-6, 3, False), (5e-3, 3, True), (0, 0.9, False), (5e-3, 0.9, True)],
)
def test_an_encoder_that_is_only_near_leaves_no_error_that_outweighs_what_stays(much, names, said):
    """Of the fewer, what is taken out or what stays, the texts are read: the rest is as exact as the encoder is near;
    with the prior's own encoder it is the prior made anew to 1e-9."""
    whole, (other, distance) = made()[0], near(much)
    captions = [caption for caption in whole.texts.captions if "ship" not in caption]
    named = names if names >= 1 else int(names * len(captions))
    marked = [f"quagga, {caption}" if place < named else caption for place, caption in enumerate(captions)]
    total = text().gram(marked, lambda count: None)[0]
    keep = PriorTexts(tuple(marked), whole.texts.prompts)
    prior = replace(whole, mean=pack(total / len(marked)), captions=len(marked), texts=keep)
    lines, erased = [], (Concept("quagga", "sky", "object"), Concept("ship", "sky", "object"))
    found = step_aside(prior, erased, other, True, lines, Counted())
    assert found.captions == len(marked) - named and found.preserved == ("cat",)
    rest = tuple(marked[named:])
    expected = other.gram(rest, lambda count: None)[0] / len(rest)
    off = float((unpack(found.mean) - expected).norm() / expected.norm())
    assert off < (1e-9 if distance == 0 or named > len(rest) and said else 5 * distance)
    kept = other.gram(whole.texts.prompts[0], lambda count: None)[0]
    assert float((unpack(found.preserve) - kept).norm() / kept.norm()) < (5 * distance or 1e-9)
    assert any("near the prior's own" in line for line in lines) == said == (distance > 1e-4)


def test_nothing_is_taken_out_by_another_encoder():
    whole = made()[0]
    with pytest.raises(PriorError, match="another text encoder"):
        step_aside(whole, CONCEPTS, near(0.5)[0], True, [], Counted())
    assert step_aside(whole, (Concept("quagga", "sky", "object"),), near(0.5)[0], True, [], Counted()) is whole


def test_the_metric_is_that_of_the_models_values():
    before = ReaderWeights()
    refined, result, _ = refine_model(before, text(), Counted(), CONCEPTS, RefineWeights(mu=30.0, metric=READING))
    f, g = (torch.cat(side) for side in zip(*map(pairs_of, CONCEPTS), strict=True))
    values = [before.module.weight(key).double() for key in SHAPES if key.endswith("to_v")]
    read = sum(value.T @ value * WIDTH / value.square().sum() for value in values) / len(values)
    metric = torch.linalg.inv(read + RIDGE * torch.eye(WIDTH))
    change = torch.linalg.solve(f.T @ f + 30 * metric, (g - f).T @ f, left=False)
    for key in SHAPES:
        base = before.module.weight(key).double()
        close(refined.module.weight(key), base + base @ change, base)
    assert result.weights.metric == READING


def loras():
    """A LoRA of rank 2 on every projection for the first concept, on values for the second."""

    def drawn(rows, seed):
        generator = torch.Generator().manual_seed(seed)
        up, down = torch.randn(rows, 2, generator=generator), torch.randn(2, WIDTH, generator=generator)
        return 0.3 * up, 0.3 * down

    own = [{key: drawn(rows, 10 * at + place) for at, (key, rows) in enumerate(SHAPES.items())} for place in (0, 1)]
    own[1] = {key: pair for key, pair in own[1].items() if key.endswith("to_v")}
    entries = (ErasureLora(*each, torch.zeros(0)) for each in zip(CONCEPTS, own, strict=True))
    return LoraSet(tuple(entries), None, (2, 2, 2, 2))


def fused(method=CLOSED_FORM, pull=REFINED, strengths=f"dog = {SHARE}"):
    _, _, result, *_, before = made()
    return fused_model(before, text(), Counted(), loras(), result, None, method, strengths, AUTO, pull)


@pytest.mark.parametrize("pull", TOWARDS)
def test_fusing_minimises_the_objective(pull):
    _, _, result, *_, before = made()
    found, lines, listed = fused(pull=pull)
    strengths = (SHARE, 1.0)
    problem = refine_problem(result, strengths)
    for key in SHAPES:
        base = before.module.weight(key).double()
        refined = oracle.minimiser(base, problem)
        parts = []
        for concept, entry, strength in zip(CONCEPTS, loras().loras, strengths, strict=True):
            pair = entry.lora.get(key)
            product = torch.zeros_like(base) if pair is None else oracle_fuse.product(*pair)
            parts.append(oracle_fuse.Part(tokens_of(concept), strength * product))
        whole = oracle_fuse.Problem(
            base,
            refined,
            base if pull == BASE else refined,
            parts,
            problem.prior,
            problem.preserve,
            problem.lambda1,
            problem.lambda3,
            problem.mu,
            refined if pull == HELD else base,
        )
        close(found.module.weight(key), oracle_fuse.minimiser(whole), base)
    assert listed == [["dog", SHARE], ["wooden ship", 1.0]] and "strengths below 1: dog 0.5" in lines
    (record,) = found.records
    assert record["stage"] == "fusion" and record["refinement"]["mu"] == WEIGHTS.mu
    assert found.refinement is None


def test_the_naive_sum():
    _, _, result, *_, before = made()
    found = fused(NAIVE)[0]
    problem = refine_problem(result, (SHARE, 1.0))
    for key in SHAPES:
        base = before.module.weight(key).double()
        refined = oracle.minimiser(base, problem)
        products = [oracle_fuse.product(*entry.lora[key]) for entry in loras().loras if key in entry.lora]
        expected = oracle_fuse.weighted_sum(refined, products, (SHARE / 2, 1 / 2)[: len(products)])
        close(found.module.weight(key), expected, base)


def test_nothing_happens_at_strength_0():
    *_, before = made()
    still, lines, _ = fused(strengths="* = 0")
    assert not still.records and "all strengths are 0: the model is as it was" in lines
    refined, result, _ = refine_model(before, text(), Counted(), CONCEPTS, WEIGHTS, made()[0], strength=0.0)
    assert refined.refinement is result and not refined.records
    for key in SHAPES:
        assert torch.equal(still.module.weight(key), before.module.weight(key))
        assert torch.equal(refined.module.weight(key), before.module.weight(key))


def test_a_refined_model_is_not_fused():
    refined = made()[1]
    with pytest.raises(LoraSetError, match="starts from the original model"):
        fused_model(refined, text(), Counted(), loras(), None, None, CLOSED_FORM, "", AUTO, REFINED)
