"""What a trained LoRA is found again by, where a device draws the same things with other bits the next time."""

from dataclasses import replace

import pytest
import torch

from tests.stages import images, report, train
from tests.test_refine_node import concepts, refine

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]
pytest_plugins = ["tests.trained"]


@pytest.fixture(scope="module")
def dog(comfy_host):
    return concepts(comfy_host, "dog -> sky")


@pytest.fixture
def key_of(comfy_host, demo):
    """The key of the first one's LoRA: images as their node made them, masks as Mask Concept passes them on."""
    module = comfy_host.module
    options, none = module("mace.pipeline.train_options").TrainOptions(), "skip the image"

    def found(shown, backend="attention", mask=None, clip=demo[1], **settings):
        given = dict(model=demo[0], clip=clip, images=shown, backend=backend, mask=mask, nothing_found=none)
        (mask,) = module("nodes.stages.mask_making").fitted(
            [comfy_host.run("MACE_MaskConcept", **given, **settings)[0]], shown
        )
        entry, mask, _ = module("nodes.stages.mask_making").without_skipped(shown[0], mask)
        return module("nodes.stages.trainer").Trainer(demo[0], clip, options, None, print).key(entry, mask)

    return found


def test_drawn_pictures_and_masks_count_by_what_they_were_made_from(comfy_host, demo, dog, key_of, monkeypatch):
    """Another bit in a latent, in a mask or in the embeddings is the same; what they are made from is not."""
    few = dict(steps=2, count=2)
    first = images(comfy_host, demo, dog, **few)[0]
    keys = [key_of(first)]
    drawing, masking, text = (
        comfy_host.module(f"nodes.{name}") for name in ("stages.images", "stages.mask_making", "host.text")
    )
    sample, attend, probe = drawing.Sampling._sample, masking.attention_masks, text.probe

    def other_bits(tensor):
        changed = tensor.clone()
        changed.flatten()[-1] = 1 - changed.flatten()[-1]
        return changed

    with monkeypatch.context() as patched:
        patched.setattr(drawing.Sampling, "_sample", lambda *given: other_bits(sample(*given)))
        patched.setattr(masking, "attention_masks", lambda *given: other_bits(attend(*given)))
        patched.setattr(text, "probe", lambda given: other_bits(probe(given)))
        drawing._store.clear()
        text._fingerprints.clear()
        again = images(comfy_host, demo, dog, **few)[0]
        assert not torch.equal(again[0].latents, first[0].latents)
        assert again[0].source == first[0].source
        assert key_of(again) == keys[0]
        # One picture in which nothing is found: which ones are left counts.
        patched.setattr(masking, "attention_masks", lambda *given: attend(*given) * torch.tensor([[[1.0]], [[0.0]]]))
        keys.append(key_of(again))
        patched.setattr(masking, "attention_masks", lambda *given: attend(*given) * torch.tensor([[[0.0]], [[1.0]]]))
        keys.append(key_of(again))
    drawing._store.clear()
    text._fingerprints.clear()
    others = (dict(seed=1), dict(prompt="a drawing of a {}"), dict(sampler_name="euler"), dict(steps=3))
    keys += [key_of(images(comfy_host, demo, dog, **{**few, **other})[0], "whole image") for other in others]
    patched = demo[0].clone()
    patched.add_patches({"diffusion_model.out.2.bias": ("diff", (torch.full((4,), 0.01),))})
    keys.append(key_of(images(comfy_host, (patched, *demo[1:]), dog, **few)[0], "whole image"))
    skipped = demo[1].clone()
    skipped.clip_layer(-2)
    keys += [key_of(first, "whole image", clip=skipped), key_of(first, grow=2), key_of(first, "whole image")]
    keys.append(key_of(first, "external mask", torch.ones(2, 64, 64).tril()))
    assert len(set(keys)) == len(keys)


def test_own_pictures_and_masks_count_by_their_bytes(comfy_host, demo, dog, key_of):
    pictures = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 64, 64).tril()
    shown = images(comfy_host, demo, dog, images=pictures)[0]
    given = [(shown, mask.clone()), (images(comfy_host, demo, dog, images=pictures.clone())[0], mask.clone())]
    pictures[0, 0, 0, 0] = 1 - pictures[0, 0, 0, 0]
    mask[0, 0, 0] = 0
    given += [(images(comfy_host, demo, dog, images=pictures)[0], given[1][1]), (shown, mask)]
    one, same, *others = (key_of(entry, "external mask", own) for entry, own in given)
    assert one == same and len({one, *others}) == 3
    # Where nothing tells what they came from, the latents do.
    bare = [replace(shown[0], source="", latents=shown[0].latents + more) for more in (0, 1, 0)]
    first, other, again = (key_of((entry,), "external mask", given[1][1]) for entry in bare)
    assert first == again != other


def test_again_that_is_left_on_goes_on(comfy_host, demo, parts, store, monkeypatch):
    """It forgets what was kept before once, and not what it has trained itself; switched off and on, anew."""
    from comfy import model_management

    _, clip, _ = demo
    train(comfy_host, clip, parts[0], parts[2])
    again = dict(side_by_side="1", again=True)

    def stop(self, names, step, losses, steps):
        if (names, step) == (["ship"], 2):
            raise model_management.InterruptProcessingException

    with monkeypatch.context() as patched, pytest.raises(model_management.InterruptProcessingException):
        patched.setattr(comfy_host.module("nodes.host.progress").LossProgress, "report", stop)
        train(comfy_host, clip, parts[0], parts[2], **again)
    # As in a new process: the first one may have been killed.
    module = comfy_host.module("nodes.stages.trained")
    module._store.clear()
    module._forgotten.clear()
    resumed = report(train(comfy_host, clip, parts[0], parts[2], **again))
    assert "1 LoRAs trained, 1 of 2 kept" in resumed and "1 go on from step 2" in resumed
    assert "0 LoRAs trained, 2 of 2 kept" in report(train(comfy_host, clip, parts[0], parts[2]))
    assert "2 LoRAs trained, 0 of 2 kept" in report(train(comfy_host, clip, parts[0], parts[2], **again))


def test_what_was_begun_on_another_list_says_so(comfy_host, demo, parts, listed, store, monkeypatch):
    """Interrupted on the refinement of one list, finished on that of a longer one: it is of the first."""
    from comfy import model_management

    def stop(self, names, step, losses, steps):
        raise model_management.InterruptProcessingException

    with monkeypatch.context() as patched, pytest.raises(model_management.InterruptProcessingException):
        patched.setattr(comfy_host.module("nodes.host.progress").LossProgress, "report", stop)
        train(comfy_host, demo[1], parts[0], parts[2])
    longer = concepts(comfy_host, "cat", more=listed)
    refined = refine(comfy_host, *demo[:2], longer, mu="10").result[0]
    node = train(comfy_host, demo[1], refined, parts[2])
    assert "2 go on from step 1" in report(node)
    assert "begun when the list was another one, and finished: dog, ship" in report(node)
    assert {lora.refined_on for lora in node[0].loras} == {parts[3].recipe.digest} != {node[0].recipe.digest}
    again = report(train(comfy_host, demo[1], refined, parts[2]))
    assert "trained when the list was another one, and kept: dog, ship" in again and "begun" not in again
