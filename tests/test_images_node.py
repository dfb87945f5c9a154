"""Concept Images and Mask Concept in the real host, on the trained demo model."""

import pytest
import torch

from tests.stages import IMAGES, images, report
from tests.test_refine_node import concepts

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def two(comfy_host):
    return concepts(comfy_host, "dog -> sky\nship -> ground")


@pytest.fixture(scope="module")
def drawn(comfy_host, demo, two):
    return images(comfy_host, demo, two, steps=8)


def test_images_are_the_hosts_own(comfy_host, demo, drawn):
    """The same picture that the host's sampler and VAE give for the type's prompt, in eight bits."""
    model, clip, vae = demo
    expected = comfy_host.sample(model, clip, "a photo of the ship", seed=0, steps=8, batch=2)
    ship = drawn[0][1]
    torch.testing.assert_close(ship.latents, expected.float(), rtol=1e-4, atol=1e-4)
    decoded = comfy_host.decode(vae, expected).movedim(1, -1)
    torch.testing.assert_close(ship.as_image, decoded.float(), rtol=0, atol=0.5 / 255 + 1e-3)
    assert torch.equal(drawn[1], torch.cat([entry.as_image for entry in drawn[0]]))
    assert [entry.concept.target for entry in drawn[0]] == ["dog", "ship"]
    assert len(drawn.ui["images"]) == 4


def test_a_concepts_images_do_not_depend_on_the_list(comfy_host, demo, drawn):
    comfy_host.module("nodes.stages.images")._store.clear()
    alone = images(comfy_host, demo, concepts(comfy_host, "ship -> ground"), steps=8)[0][0]
    torch.testing.assert_close(alone.latents, drawn[0][1].latents, rtol=1e-4, atol=1e-4)


def test_a_longer_list_draws_only_what_is_new(comfy_host, demo, two, monkeypatch):
    module = comfy_host.module("nodes.stages.images")
    few = dict(steps=2)
    images(comfy_host, demo, two, **few)
    asked = []
    sample = module.Sampling._sample
    monkeypatch.setattr(module.Sampling, "_sample", lambda self, prompt: asked.append(prompt) or sample(self, prompt))
    longer = concepts(comfy_host, "dog -> sky\ncat\nship -> ground")
    found = images(comfy_host, demo, longer, **few)
    assert asked == ["a photo of the cat"]
    assert [entry.concept.target for entry in found[0]] == ["dog", "cat", "ship"]
    # Another seed, prompt, or model is another picture.
    images(comfy_host, demo, two, seed=1, **few)
    images(comfy_host, demo, two, prompt="a drawing of a {}", **few)
    assert len(asked) == 5


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_fewer_are_drawn_at_once_where_memory_runs_out(comfy_host, demo, two, said, monkeypatch, sampler):
    """The same pictures where the sampler draws no noise itself, else it is said; and how many fit is remembered."""
    import comfy.sample

    module = comfy_host.module("nodes.stages.images")
    settings = dict(steps=2, count=5, sampler_name=sampler)
    expected = images(comfy_host, demo, two, **settings)[0]
    module._store.clear()
    tried, sample = [], comfy.sample.sample

    def short_of_memory(model, noise, *rest, **more):
        tried.append((len(noise), more["seed"]))
        found = sample(model, noise, *rest, **more)
        if len(noise) > 2:
            raise torch.OutOfMemoryError("no memory")
        return found

    monkeypatch.setattr(comfy.sample, "sample", short_of_memory)
    found = images(comfy_host, demo, two, **settings)[0]
    # Noise that the sampler draws itself is another for each part.
    assert tried == [(5, 0), *[(2, 0), (2, 2), (1, 4)] * 2]
    notes = [line for line in said if "memory ran out" in line]
    if sampler == "ddim":
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.latents, other.latents, rtol=1e-3, atol=1e-3)
        assert not notes
    else:
        assert len(notes) == 2 and sampler in notes[0]


def test_own_images(comfy_host, demo):
    vae = demo[2]
    pictures = torch.rand(3, 64, 72, 4, generator=torch.Generator().manual_seed(0))
    (entry,) = images(comfy_host, demo, concepts(comfy_host, "ship"), images=pictures)[0]
    assert entry.pictures.shape == (3, 64, 72, 3)
    assert float((entry.as_image - pictures[..., :3]).abs().max()) <= 0.5 / 255 + 1e-6
    with torch.inference_mode():
        torch.testing.assert_close(entry.latents, vae.encode(entry.as_image).float())


def test_own_images_of_other_nodes_are_read_or_refused(comfy_host, demo):
    ship = concepts(comfy_host, "ship")
    grey = torch.rand(2, 64, 64, 1, generator=torch.Generator().manual_seed(1))
    (entry,) = images(comfy_host, demo, ship, images=grey)[0]
    assert float((entry.as_image - grey).abs().max()) <= 0.5 / 255 + 1e-6 and entry.pictures.shape[-1] == 3
    broken = torch.rand(2, 64, 64, 3)
    broken[1, 0, 0, 0] = torch.nan
    for given, message in (
        (broken, "images: picture 2 holds values that are not finite"),
        (torch.rand(1, 64, 64, 3) * 255, "images: picture 1 holds values from"),
        (torch.rand(0, 64, 64, 3), "images: the batch .* holds no picture"),
    ):
        with pytest.raises(ValueError, match=message):
            images(comfy_host, demo, ship, images=given)


def test_chains_and_their_errors(comfy_host, demo, two, drawn):
    ship = concepts(comfy_host, "horse")
    pictures = torch.rand(1, 64, 64, 3)
    chained = images(comfy_host, demo, ship, images=pictures, more=drawn[0])
    assert [entry.concept.target for entry in chained[0]] == ["dog", "ship", "horse"] and len(chained[1]) == 5
    with pytest.raises(ValueError, match="own images are for one concept and the list holds 2"):
        images(comfy_host, demo, two, images=pictures)
    with pytest.raises(ValueError, match=r"'horse' are 72x64 and those of 'dog' 64x64"):
        images(comfy_host, demo, ship, images=torch.rand(1, 64, 72, 3), more=drawn[0])
    with pytest.raises(ValueError, match="'dog' has images of two nodes"):
        images(comfy_host, demo, concepts(comfy_host, "dog"), images=pictures, more=drawn[0])


def test_bad_inputs(comfy_host, demo, two):
    assert "needs {}" in comfy_host.validate("MACE_ConceptImages", prompt="a dog")
    assert "no other braces" in comfy_host.validate("MACE_ConceptImages", prompt="a {} {x}")
    assert comfy_host.validate("MACE_ConceptImages", prompt="auto") is True
    model, clip, _ = demo
    with pytest.raises(ValueError, match="the vae input is empty"):
        comfy_host.run("MACE_ConceptImages", model=model, clip=clip, vae=None, concepts=two, **IMAGES)


def test_an_interrupt_keeps_what_is_drawn(comfy_host, demo, monkeypatch):
    from comfy import model_management

    module = comfy_host.module("nodes.stages.images")
    module._store.clear()
    sample = module.Sampling._sample

    def interrupted(self, prompt):
        if "ship" in prompt:
            raise model_management.InterruptProcessingException
        return sample(self, prompt)

    monkeypatch.setattr(module.Sampling, "_sample", interrupted)
    with pytest.raises(model_management.InterruptProcessingException):
        images(comfy_host, demo, concepts(comfy_host, "horse\nship"))
    assert len(module._store) == 1


def mask(host, demo, shown, backend="attention", **more):
    model, clip, _ = demo
    return host.run("MACE_MaskConcept", model=model, clip=clip, images=shown, backend=backend, **more)


def test_attention_finds_the_thing(comfy_host, demo, drawn):
    """Against what is not white in a picture of one thing on white: far better than the whole image is."""
    node = mask(comfy_host, demo, drawn[0])
    masks, shown = node.result
    assert masks.shape == (4, 64, 64) and set(masks.unique().tolist()) <= {0.0, 1.0}
    thing = (drawn[1].amin(dim=-1) < 0.93).float()
    overlap = (masks * thing).sum((1, 2)) / ((masks + thing) > 0).float().sum((1, 2))
    whole = thing.mean(dim=(1, 2))
    assert (overlap > whole + 0.5 * (0.85 - whole)).all(), (overlap, whole)
    assert shown.shape == drawn[1].shape and "dog:" in report(node)
    # Deterministic, and each concept's own.
    again = mask(comfy_host, demo, drawn[0][1:])[0]
    torch.testing.assert_close(again, masks[2:])


def test_styles_take_the_whole_image(comfy_host, demo, drawn):
    style = concepts(comfy_host, "Twemoji -> art", type="style")
    shown = images(comfy_host, demo, style, more=drawn[0])[0]
    masks = mask(comfy_host, demo, shown)[0]
    assert masks[4:].all() and not masks[:4].all()
    assert mask(comfy_host, demo, shown, "whole image")[0].all()


def test_external_masks(comfy_host, demo, drawn):
    given = torch.zeros(4, 32, 32)
    given[:, 8:24, 8:24] = 1
    node = mask(comfy_host, demo, drawn[0], "external mask", mask=given)
    assert node[0].shape == (4, 64, 64) and float(node[0][0, 32, 32]) == 1 and float(node[0][0, 2, 2]) == 0
    one = mask(comfy_host, demo, drawn[0], "external mask", mask=given[:1])[0]
    assert torch.equal(one, node[0])
    with pytest.raises(ValueError, match="there are 3 masks for 4 images"):
        mask(comfy_host, demo, drawn[0], "external mask", mask=given[:3])
    with pytest.raises(ValueError, match="the mask input is empty"):
        mask(comfy_host, demo, drawn[0], "external mask")


def test_an_empty_mask_becomes_the_whole_image_with_a_warning(comfy_host, demo, drawn):
    given = torch.zeros(4, 64, 64)
    given[1:, :8] = 1
    node = mask(comfy_host, demo, drawn[0], "external mask", mask=given)
    assert node[0][0].all() and torch.equal(node[0][1:], given[1:])
    assert "dog: 1 of 2 masks were empty" in report(node)
