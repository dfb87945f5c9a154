"""Pictures, masks and boxes as lists, as batches and as both: one node, one run, in order."""

import asyncio

import pytest
import torch

from tests.test_refine_node import concepts

pytestmark = pytest.mark.host
SIDE, COUNT = 64, 4


@pytest.fixture(scope="module")
def two(comfy_host):
    return concepts(comfy_host, "dog -> sky\nship -> sky")


@pytest.fixture(scope="module")
def images(comfy_host, demo, two):
    """COUNT pictures of two concepts."""
    model, clip, vae = demo
    chained = None
    for concept, seed in zip(two, (0, 1), strict=True):
        pictures = torch.rand(COUNT // 2, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(seed))
        more = {} if chained is None else {"more": chained}
        chained = execute(
            comfy_host, "MACE_ConceptImages", drawing(demo, [concept]), images=[pictures], **listed(more)
        )[0][0]
    return chained


def listed(inputs):
    return {name: [value] for name, value in inputs.items()}


def drawing(demo, wanted):
    model, clip, vae = demo
    settings = dict(count=2, width=0, height=0, seed=0, steps=2, cfg=4.0, sampler_name="euler", scheduler="normal")
    return dict(model=model, clip=clip, vae=vae, concepts=tuple(wanted), prompt="auto", negative="", **settings)


def execute(host, node, inputs, **lists):
    """The outputs of a node as the host's own executor runs it. lists: inputs that other nodes give as lists."""
    import execution

    cls = host.node_classes[node]
    constants = {name: value for name, value in inputs.items() if isinstance(value, str | int | float)}
    given, _, about = execution.get_input_data(constants, cls, "1")
    given |= listed({name: value for name, value in inputs.items() if name not in constants}) | lists

    async def run():
        results, *_ = await execution.get_output_data("prompt", "1", cls, given, v3_data=about)
        return results

    with torch.inference_mode():
        return asyncio.run(run())


def masked(host, demo, images, backend, **lists):
    """The MASK batch that Mask Concept gives."""
    inputs = {"model": demo[0], "clip": demo[1], "images": images, "backend": backend}
    if backend == "boxes":
        inputs |= {"backend.choice": "all", "backend.combine": "union"}
    masks, _ = execute(host, "MACE_MaskConcept", inputs, **lists)
    (joined,) = masks  # one run
    return joined


def squares():
    """COUNT different masks."""
    masks = torch.zeros(COUNT, SIDE, SIDE)
    for place in range(COUNT):
        masks[place, place * 8 : place * 8 + 16, 4:20] = 1
    return masks


CUTS = {"batch": [4], "single": [1, 1, 1, 1], "two": [2, 2], "mixed": [1, 3], "three": [1, 2, 1]}


@pytest.mark.parametrize("cut", CUTS)
def test_masks(comfy_host, demo, images, cut):
    parts = list(squares().split(CUTS[cut]))
    assert torch.equal(masked(comfy_host, demo, images, "external mask", mask=parts), squares())


def test_masks_without_a_batch_and_of_several_sizes(comfy_host, demo, images):
    parts = [squares()[0], squares()[1:2], squares()[2:].repeat_interleave(2, 1).repeat_interleave(2, 2)]
    torch.testing.assert_close(masked(comfy_host, demo, images, "external mask", mask=parts), squares())


def test_one_mask_for_all(comfy_host, demo, images):
    made = masked(comfy_host, demo, images, "external mask", mask=[squares()[:1]])
    assert torch.equal(made, squares()[:1].expand(COUNT, -1, -1))


@pytest.mark.parametrize("cut", [[2], [1, 1], [4, 1], [1] * 5])
def test_another_number_of_masks_is_refused(comfy_host, demo, images, cut):
    parts = [torch.ones(count, SIDE, SIDE) for count in cut]
    with pytest.raises(ValueError, match=f"there are {sum(cut)} masks for 4 images"):
        masked(comfy_host, demo, images, "external mask", mask=parts)


def box(place):
    return {"x": 4, "y": place * 8, "width": 16, "height": 16}


BOXES = {
    "lists of a picture": [[[box(place)] for place in range(COUNT)]],
    "one a picture": [box(place) for place in range(COUNT)],
    "a list a picture": [[box(place)] for place in range(COUNT)],
    "two pictures an entry": [[[box(0)], [box(1)]], [[box(2)], [box(3)]]],
    "mixed": [box(0), [box(1)], [[box(2)], [box(3)]]],
}


@pytest.mark.parametrize("case", BOXES)
def test_boxes(comfy_host, demo, images, case):
    assert torch.equal(masked(comfy_host, demo, images, "boxes", boxes=BOXES[case]), squares())


def test_boxes_of_pictures_without_any(comfy_host, demo, images):
    for parts in ([None, box(1), [], [box(3)]], [[None, [box(1)]], [[], [box(3)]]]):
        made = masked(comfy_host, demo, images, "boxes", boxes=parts)
        assert torch.equal(made[[1, 3]], squares()[[1, 3]])
        assert made[[0, 2]].min() == 1  # nothing found: the whole image


@pytest.mark.parametrize("cut", [[3], [1, 1, 1], [1, 2]])
def test_own_pictures(comfy_host, demo, two, cut):
    pictures = torch.rand(3, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(7))
    made, shown = execute(comfy_host, "MACE_ConceptImages", drawing(demo, two[:1]), images=list(pictures.split(cut)))
    ((entry,),) = made
    assert len(entry) == 3
    assert torch.equal(entry.pictures, (pictures * 255).round().to(torch.uint8))
    assert torch.equal(shown[0], entry.as_image)


def test_pictures_of_several_sizes_are_named(comfy_host, demo, two):
    with pytest.raises(ValueError, match="several sizes .64x64, 32x64.|several sizes .32x64, 64x64."):
        parts = [torch.rand(1, SIDE, SIDE, 3), torch.rand(1, SIDE, 32, 3)]
        execute(comfy_host, "MACE_ConceptImages", drawing(demo, two[:1]), images=parts)


def test_images_of_several_nodes(comfy_host, demo, images):
    parts = [images[:1], images[1:]]
    inputs = {"model": demo[0], "clip": demo[1], "backend": "external mask"}
    masks, _ = execute(comfy_host, "MACE_MaskConcept", inputs, images=parts, mask=[squares()])
    assert len(masks) == 1 and torch.equal(masks[0], squares())


def test_training_takes_lists(comfy_host, demo, images, monkeypatch):
    seen = []
    train = comfy_host.module("nodes.erase.train")
    own = train.train_loras

    def watch(model, clip, entries, masks, options):
        seen.append([mask.clone() for mask in masks])
        return own(model, clip, entries, masks, options)

    monkeypatch.setattr(train, "train_loras", watch)
    inputs = dict(
        model=demo[0], clip=demo[1], preset="paper (Table 10)", rank="1", steps="1", learning_rate="auto", loss="auto",
        end_of_text="auto", focus="auto", projections="both", cfis=True, t1=200, t2=400, gamma=0.05, seed=0,
        side_by_side="auto", save_memory=False,
    )  # fmt: skip
    loras, models, _, names = execute(
        comfy_host,
        "MACE_TrainErasureLora",
        inputs,
        images=[images[:1], images[1:]],
        masks=list(squares().split([1, 3])),
    )
    assert len(loras) == 1 and len(loras[0].loras) == len(models) == len(names) == 2
    ((first, second),) = seen
    assert torch.equal(torch.cat([first, second]), squares().to(torch.uint8) * 255)


def test_lists_of_anything_else_are_refused_by_name(comfy_host, demo, two):
    with pytest.raises(ValueError, match="seed: a list of 2"):
        execute(comfy_host, "MACE_ConceptImages", {**drawing(demo, two), "steps": 1}, seed=[0, 1])


def test_checks_before_the_run(comfy_host):
    """As the host's own validation asks: every input is a list there too, and what is linked is not there yet."""
    assert comfy_host.node_classes["MACE_ConceptImages"].validate_inputs(prompt=(None,)) is True
    assert "needs {}" in comfy_host.node_classes["MACE_ConceptImages"].validate_inputs(prompt=["no place"])
    train = comfy_host.node_classes["MACE_TrainErasureLora"].validate_inputs
    assert train(rank=(None,), steps=["auto"], cfis=[True], t1=[100], t2=(None,)) is True
    assert "rank" in train(rank=["none"], steps=["auto"])
