"""Long lists: pictures and masks lie on the disk, and the process's own memory stays where it was."""

import os
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.measure import resident
from tests.lora_cases import key_of
from tests.lora_node_cases import load, make_set, save
from tests.stages import images, train
from tests.test_refine_node import concepts, refine

pytestmark = pytest.mark.host

SIDE, EACH, MANY = 256, 2, 300
# One float32 batch of all pictures takes 470 MB, and there were two of them, the masks' 157 MB twice, and 118 MB of
# pictures in eight bits. Training held the masks' 157 MB again.
MOST_GROWTH = 100e6
# Of a saved set: concepts, and how wide what they read is.
WITH_MOMENTS, WIDTH = 160, 256


@pytest.fixture(scope="module")
def disk(comfy_host):
    return comfy_host.module("nodes.host.kept.on_disk")


def anonymous() -> int:
    """Bytes of memory that are the process's own, files aside."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def is_on_disk(tensor) -> bool:
    """Whether a tensor's bytes lie in a file of ours, by the process's map of its memory."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= tensor.data_ptr() < end:
                return ".batch" in line
    return False


def test_what_is_written_is_what_torch_joins(disk):
    parts = [torch.rand(n, 5, 7, generator=torch.Generator().manual_seed(n)) for n in (3, 1, 4)]
    assert torch.equal(disk.written(iter(parts)), torch.cat(parts))
    turned = [part.movedim(0, 1) for part in parts]
    assert torch.equal(disk.written([turned[0]]), turned[0])
    small = (parts[0] * 255).to(torch.uint8)
    found = disk.written([small, small])
    assert found.dtype == torch.uint8 and torch.equal(found, torch.cat([small, small]))
    found[0] = 7
    assert (found[0] == 7).all() and torch.equal(found[3:], small)
    assert disk.written([parts[0][:0]]).shape == (0, 5, 7)


def test_what_does_not_join_is_refused_and_leaves_no_file(disk, comfy_host):
    folder = comfy_host.folder_paths.get_temp_directory()
    before = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    for parts in ([torch.zeros(1, 2), torch.zeros(1, 3)], [torch.zeros(1), torch.zeros(1, dtype=torch.uint8)], []):
        with pytest.raises(ValueError):
            disk.written(parts)
    if sys.platform == "linux":
        kept = disk.written([torch.ones(4, 4)])
        assert set(os.listdir(folder)) == before and kept.sum() == 16


def test_a_folder_that_cannot_be_written_is_named(disk, comfy_host, monkeypatch, tmp_path):
    monkeypatch.setattr(comfy_host.folder_paths, "get_temp_directory", lambda: str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    def parts():
        yield torch.zeros(2)
        full()

    with pytest.raises(OSError, match="No space left"):
        disk.written(parts())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell what is whose memory")
def test_three_hundred_concepts_take_no_more_memory_than_one(comfy_host, demo, monkeypatch):
    """Pictures of 300 concepts through Concept Images, Mask Concept and what Train Erasure LoRA makes of them.

    Of the training itself, whose groups are of one size, nothing runs.
    """
    model, clip, _ = demo
    seen, held = [], []

    def run(self, work):
        held.append(anonymous())
        seen.append([(item.masks.shape, float(item.masks.min()), len(item.images)) for item in work])
        lora = comfy_host.module("mace.formats.lora_set").ErasureLora
        pair = {self.keys[0]: (torch.zeros(320, 1), torch.zeros(1, 768))}
        return {item.key: lora(item.images.concept, pair, torch.ones(1)) for item in work}

    monkeypatch.setattr(comfy_host.module("nodes.stages.trainer").Trainer, "run", run)
    written = comfy_host.module("nodes.host.kept.on_disk").written
    pictures = torch.rand(EACH, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    (entry,) = images(comfy_host, demo, concepts(comfy_host, "dog"), images=pictures)[0]

    def chain_of(count, name):
        """As many nodes' own images; encoding the same pictures each time would take minutes."""
        listed = concepts(comfy_host, "\n".join(f"{name} {place}" for place in range(count)))
        return tuple(replace(entry, concept=concept, pictures=written([entry.pictures])) for concept in listed)

    def through(more):
        node = images(comfy_host, demo, concepts(comfy_host, "dog"), images=pictures, more=more)
        masks = comfy_host.run("MACE_MaskConcept", model=model, clip=clip, images=node[0], backend="whole image")
        train(comfy_host, clip, model, node[0])
        train(comfy_host, clip, model, node[0], masks=masks[0])
        return node, masks

    through(chain_of(32, "first"))
    before = anonymous()
    node, masks = through(chain_of(MANY, "thing"))
    grown = max(anonymous(), *held[-2:]) - before
    count = (MANY + 1) * EACH
    assert len(node[0]) == MANY + 1 and node[1].shape == masks[1].shape == (count, SIDE, SIDE, 3)
    assert masks[0].shape == (count, SIDE, SIDE) and masks[0].min() == 1
    torch.testing.assert_close(node[1][-1], node[1][1])
    assert len(node.ui["images"]) == len(masks.ui["images"]) == 64
    # What was trained without masks is what would be trained with these.
    *_, without, given = seen
    assert [len(work) for work in seen[-2:]] == [MANY + 1] * 2 and without == given
    assert {size for size, *_ in given} == {(EACH, SIDE, SIDE)} and all(least > 0 for _, least, _ in given)
    print(f"{grown / 1e6:.0f} MB more")
    assert grown < MOST_GROWTH


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell where a tensor lies")
def test_pictures_latents_masks_and_batches_are_on_the_disk(comfy_host, demo):
    model, clip, _ = demo
    node = images(comfy_host, demo, concepts(comfy_host, "dog -> sky\nship -> ground"), steps=2)
    masks = comfy_host.run("MACE_MaskConcept", model=model, clip=clip, images=node[0], backend="attention")
    (own,) = images(comfy_host, demo, concepts(comfy_host, "dog"), images=torch.rand(1, 64, 64, 3))[0]
    kept = [tensor for entry in (*node[0], own) for tensor in (entry.latents, entry.pictures)]
    assert all(is_on_disk(tensor) for tensor in (*kept, node[1], masks[0], masks[1]))
    assert not is_on_disk(torch.zeros(4))
    # The host's MASK is of floats; what the stages pass on are bytes, and a whole image's is one.
    making, floats = comfy_host.module("nodes.stages.mask_making"), comfy_host.module("mace.masks.kept").as_floats
    made, *_ = making.make_masks(model, clip, node[0], "attention")
    assert all(own.dtype == torch.uint8 and is_on_disk(own) for own in made)
    assert masks[0].dtype == torch.float32 and torch.equal(torch.cat([floats(own) for own in made]), masks[0])
    assert all(own.dtype == torch.uint8 and is_on_disk(own) for own in making.fitted([masks[0]], node[0]))
    (whole, _), *_ = making.make_masks(model, clip, node[0], "whole image")
    assert whole.untyped_storage().nbytes() == 1 and floats(whole).min() == 1


def test_moments_on_the_disk_give_the_same_model(comfy_host, demo, monkeypatch):
    """CFR Refine of a list that memory does not hold: the same patches, other strengths and a fusion from it too."""
    model, clip, _ = demo
    on_disk, sums = (comfy_host.module(name) for name in ("nodes.host.kept.on_disk", "mace.method.sums"))
    chosen = concepts(comfy_host, "dog -> sky\nship -> sky")
    expected = refine(comfy_host, model, clip, chosen, mu="10")
    # One does not fit, whatever the machine has.
    monkeypatch.setattr(on_disk, "MOST_OF_MOMENTS", expected[1].moments[0].bytes - 1)
    found = refine(comfy_host, model, clip, chosen, mu="10")
    assert isinstance(found[1].moments, sums.StreamedMoments) and isinstance(expected[1].moments, tuple)
    delta = expected[1].transform_delta
    assert float((found[1].transform_delta - delta).norm()) < 1e-9 * float(delta.norm())
    lora_set = comfy_host.module("mace.formats.lora_set")
    fusion = comfy_host.module("mace.pipeline.fusion")
    host, progress = comfy_host.module("nodes.host.pipeline"), comfy_host.module("nodes.host.progress")
    recipe = lora_set.recipe_of(found[1], "x")
    loras = tuple(lora_set.ErasureLora(concept, {}, torch.zeros(0)) for concept in chosen)

    def fused(refinement):
        given = (host.ModelWeights(model), host.text_of(clip), progress.NodeProgress())
        listed = (lora_set.LoraSet(loras, recipe, None), refinement, None, fusion.CLOSED_FORM, "dog = 0.5")
        return fusion.fused_model(*given, *listed, ("auto",) * 3, next(iter(fusion.TOWARDS)))[0].model

    for key, entry in fused(expected[1]).patches.items():
        own, theirs = (part[-1][1][1][0].double() for part in (entry, fused(found[1]).patches[key]))
        # Half precision of weights is 5e-4.
        assert float((own - theirs).norm()) < 3e-4 * float(own.norm())


def test_moments_of_wide_texts_stay_rows(comfy_host, monkeypatch):
    """On the disk too: their sums are of a size that rows are kept for."""
    on_disk, span = (comfy_host.module(name) for name in ("nodes.host.kept.on_disk", "mace.method.span"))
    monkeypatch.setattr(on_disk, "SHARE_OF_MOMENTS", 0.0)
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(3, 5, generator=draw) for _ in range(6)]
    whole = span.RowMoments(*parts[:3], 3, 1, others=(span.RowMoments(*parts[3:], 3, 1),))
    (kept,) = on_disk.kept_moments(iter([whole]))
    assert type(kept) is span.RowMoments and (kept.pairs, kept.prompts, kept.pooled) == (3, 1, None)
    held = [tensor for own in (kept, *kept.others) for tensor in (own.f, own.g, own.rest)]
    assert all(map(is_on_disk, held)) and all(map(torch.equal, held, parts))


@pytest.fixture(scope="module")
def saved(comfy_host, demo):
    """(file of a set of many concepts whose moments take 1 MB each, bytes of memory that saving it took)."""
    module, files = comfy_host.module, comfy_host.module("nodes.host.files")
    sets, draw = module("mace.formats.lora_set"), torch.Generator().manual_seed(0)
    record, place = make_set(comfy_host, demo), key_of("middle_block.1")
    moments, rows = module("mace.method.moments"), torch.randn(WIDTH, WIDTH, generator=draw, dtype=torch.float64)
    gram = moments.pack(rows @ rows.T)

    def own(i):
        return moments.ConceptMoments(rows + i, gram * (1 + i), gram * (2 + i), 3, 1)

    listed = concepts(comfy_host, "\n".join(f"thing {i}" for i in range(WITH_MOMENTS)))
    stored = module("mace.method.sums").StreamedMoments(map(own, range(WITH_MOMENTS)))
    loras = tuple(
        sets.ErasureLora(
            concept, {place: (torch.randn(6, 1, generator=draw), torch.randn(1, WIDTH, generator=draw))},
            torch.zeros(0), {}, stored[i],
        )
        for i, concept in enumerate(listed)
    )  # fmt: skip
    recipe = replace(record.recipe, fingerprint=torch.zeros(3, 12, WIDTH), prior=None, prior_source=None)
    before, write, seen = anonymous(), files.save_file, []

    def looked_at(*given, **named):
        seen.append(anonymous())
        write(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "save_file", looked_at)
        (path,), _ = save(comfy_host, replace(record, loras=loras, recipe=recipe), "mace_loras/many", moments=True)
    return path, seen[0] - before


def test_what_is_read_later_is_what_safetensors_reads(comfy_host, tmp_path):
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.float8_e4m3fn)
    tensors = {str(kind): torch.arange(6).view(2, 3).to(kind) for kind in kinds}
    tensors |= {"one": torch.tensor(3.0), "none": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors", {"a": "b"})
    found = comfy_host.module("mace.formats.file_tensors").FileTensors(str(tmp_path / "x.safetensors"), "x")
    assert found.metadata == {"a": "b"} and set(found) == set(tensors) and len(found) == len(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].double(), tensor.double())


def fused_from(comfy_host, loras):
    fusion, refine_module, fuse_module = (
        comfy_host.module(name) for name in ("mace.pipeline.fusion", "mace.method.refine", "mace.method.fuse")
    )
    parts = fusion.gather(loras, None, None, [], comfy_host.module("nodes.host.progress").NodeProgress())
    strengths = [1 - i % 3 / 4 for i in range(len(parts.concepts))]
    weights = refine_module.RefineWeights(mu=10.0), fuse_module.FuseWeights(mu=0.1)
    return fuse_module.fuse(parts.moments, parts.loras, *weights, strengths=strengths)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell what is whose memory")
def test_a_saved_sets_moments_are_never_in_memory_together(comfy_host, saved):
    path, written = saved
    assert path.stat().st_size > WITH_MOMENTS * 16 * WIDTH * WIDTH and written < path.stat().st_size / 4
    before = resident("VmRSS")
    found, report = load(comfy_host, path)
    fusion = fused_from(comfy_host, found)
    grown = resident("VmRSS") - before
    print(f"{written / 1e6:.0f} MB more to save, {grown / 1e6:.0f} MB more to load and fuse")
    assert f"moments of {WITH_MOMENTS} of {WITH_MOMENTS}" in report and grown < path.stat().st_size / 4
    files, sets = comfy_host.module("nodes.host.files"), comfy_host.module("mace.formats.lora_set_file")
    whole = sets.set_from_file(*files.read_safetensors(str(path), path.name))
    assert type(whole.loras[0].moments) is comfy_host.module("mace.method.moments").ConceptMoments
    expected = fused_from(comfy_host, whole)
    weight = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
    assert torch.equal(*(own.delta(key_of("middle_block.1"), weight) for own in (fusion, expected)))
    (again,), _ = save(comfy_host, found, "mace_loras/many", moments=True)
    known, found = (files.read_safetensors(str(own), own.name)[0] for own in (path, again))
    assert known.keys() == found.keys() and all(torch.equal(known[name], found[name]) for name in known)


def test_a_set_whose_file_changed_is_not_fused(comfy_host, saved):
    path, _ = saved
    copied = path.with_name("changed.safetensors")
    copied.write_bytes(path.read_bytes())
    found, _ = load(comfy_host, copied)
    lora = found.loras[-1].lora[key_of("middle_block.1")][0].clone()
    with open(copied, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"changed!")
    os.utime(copied, (1, 1))
    with pytest.raises(ValueError, match="changed.safetensors has changed since it was loaded; queue again"):
        fused_from(comfy_host, found)
    assert torch.equal(found.loras[-1].lora[key_of("middle_block.1")][0], lora)
    copied.unlink()
    with pytest.raises(ValueError, match="changed.safetensors cannot be read any more .*; load it again"):
        fused_from(comfy_host, found)
