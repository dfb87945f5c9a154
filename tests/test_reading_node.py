"""mu as the model reads, through the nodes of the real host."""

import pytest
import torch

from tests.stages import delta_of, fuse, images, train
from tests.test_refine_node import concepts, refine

pytestmark = pytest.mark.host
READS = dict(mu="100", mu_measures="as the model reads")


@pytest.fixture(scope="module")
def dog(comfy_host):
    return concepts(comfy_host, "dog -> sky")


@pytest.fixture(scope="module")
def stages(comfy_host, demo, dog):
    """(refined MODEL, refinement, LoRAs)."""
    model, clip, _ = demo
    refined, refinement = refine(comfy_host, model, clip, dog, **READS).result
    shown = images(comfy_host, demo, dog)[0]
    return refined, refinement, train(comfy_host, clip, refined, shown)[0]


def metric_of(model):
    """R by its definition, from the host's own weights, layer by layer."""
    weights = {key: patches[0][0] for key, patches in model.get_key_patches("diffusion_model.").items()}
    values = [weight.double() for key, weight in weights.items() if key.endswith("attn2.to_v.weight")]
    read = sum(w.mT @ w / w.square().sum() for w in values) * values[0].shape[1] / len(values)
    return torch.linalg.inv(read + 1e-4 * torch.eye(len(read), dtype=torch.float64))


def unpacked(comfy_host, packed):
    return comfy_host.module("mace.method.moments").unpack(packed)


def test_the_solve_holds_the_metric(comfy_host, demo, stages):
    """(T - I) (G + mu R) = A - G, with R from the definition."""
    refinement = stages[1]
    (moments,) = refinement.moments
    paired = unpacked(comfy_host, moments.paired)
    left = refinement.transform_delta @ (paired + 100 * metric_of(demo[0]))
    torch.testing.assert_close(left, moments.cross - paired, rtol=1e-6, atol=1e-5)


def test_it_differs_from_the_papers(comfy_host, demo, dog, stages):
    model, clip, _ = demo
    paper = refine(comfy_host, model, clip, dog, mu="100").result[1]
    assert paper.weights.metric == "alike" and stages[1].weights.metric == "reading"
    assert not torch.allclose(paper.transform_delta, stages[1].transform_delta, rtol=1e-2)


def test_fusion_without_the_refinement_measures_alike(comfy_host, demo, stages):
    """LoRAs know the measure of their refinement; the metric itself is taken from the model again."""
    model, (_, refinement, loras) = demo[0], stages
    given, own = (fuse(comfy_host, model, loras, **part)[0] for part in ({"refinement": refinement}, {}))
    assert given.patches.keys() == own.patches.keys()
    for key in given.patches:
        assert torch.equal(delta_of(given, key), delta_of(own, key))


def test_a_file_keeps_the_measure(comfy_host, stages):
    loras, files = stages[2], comfy_host.module("mace.formats.lora_set_file")
    found = files.set_from_file(*files.set_to_file(loras, True))
    assert found.recipe.weights == loras.recipe.weights
    assert found.recipe.weights.metric == "reading"


def test_provenance_and_report(comfy_host, stages):
    stage = stages[0].get_attachment("mace_stages")[-1]
    assert stage["metric"] == "reading" and stage["settings"]["mu_measures"] == "as the model reads"
