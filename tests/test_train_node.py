"""Train Erasure LoRA in the real host, on the trained demo model."""

import os

import pytest
import torch

from tests.stages import fuse, images, report, train
from tests.test_refine_node import concepts, refine
from tests.trained import same

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]
pytest_plugins = ["tests.trained"]

LAST_VALUES = "diffusion_model.output_blocks.1.1.transformer_blocks.0.attn2.to_v.weight"


@pytest.fixture
def untrained(comfy_host, monkeypatch):
    """How many concepts each run of the node would have trained; none is."""
    module = comfy_host.module("nodes.stages.trainer")
    counts = []

    def run(self, work):
        counts.append(len(work))
        lora = comfy_host.module("mace.formats.lora_set").ErasureLora
        pair = {self.keys[0]: (torch.zeros(320, 1), torch.zeros(1, 768))}
        return {item.key: lora(item.images.concept, pair, torch.ones(1)) for item in work}

    monkeypatch.setattr(module.Trainer, "run", run)
    return counts


def test_what_is_trained(comfy_host, demo, parts, listed):
    model, _, _ = demo
    refined, refinement, _, loras = parts
    keys = set(comfy_host.module("nodes.host.model.unet").cross_attention_keys(model))
    assert loras.concepts == tuple(listed) and loras.blocks == (1,)
    for entry, moments in zip(loras.loras, refinement.moments, strict=True):
        assert set(entry.lora) == keys and entry.losses.shape == (3,)
        assert torch.isfinite(entry.losses).all() and entry.moments is moments
        moved = {key for key, (up, _) in entry.lora.items() if up.abs().max() > 0}
        # No attention comes after the last layer's values: Eq. 3 cannot train them.
        assert moved == keys - {LAST_VALUES}
        assert all(up.shape[1] == down.shape[0] == 2 for up, down in entry.lora.values())
    assert loras.recipe.weights == refinement.weights and loras.loras[0].refined_on == loras.recipe.digest


def test_side_by_side_equals_alone(comfy_host, demo, parts, store):
    """Whole batches of the host's forward against one concept at a time; float32 sets the tolerance."""
    _, clip, _ = demo
    refined, _, shown, loras = parts
    alone = train(comfy_host, clip, refined, shown, side_by_side="1")[0]
    assert len(store) == 2
    for one, other in zip(alone.loras, loras.loras, strict=True):
        same(one, other, rtol=2e-2, atol=2e-4)
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-3, atol=0)


def test_recomputing_changes_nothing(comfy_host, demo, parts, store):
    _, clip, _ = demo
    refined, _, shown, loras = parts
    saved = train(comfy_host, clip, refined, shown, save_memory=True)[0]
    for one, other in zip(saved.loras, loras.loras, strict=True):
        same(one, other, rtol=2e-2, atol=2e-4)


def test_a_longer_list_trains_only_what_is_new(comfy_host, demo, parts, listed):
    """Also though the refinement of the longer list is another one; the node says so."""
    model, clip, _ = demo
    longer = concepts(comfy_host, "cat", more=listed)
    refined, _ = refine(comfy_host, model, clip, longer, mu="10").result
    shown = images(comfy_host, demo, longer)[0]
    node = train(comfy_host, clip, refined, shown)
    assert "1 LoRAs trained, 2 of 3 kept from before" in report(node)
    assert "trained when the list was another one, and kept: dog, ship" in report(node)
    for one, other in zip(node[0].loras, parts[3].loras, strict=False):
        same(one, other, rtol=0, atol=0)
    again = train(comfy_host, clip, refined, shown)
    assert "0 LoRAs trained, 3 of 3 kept" in report(again)


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": "4"},
        {"rank": "1"},
        {"seed": 1},
        {"learning_rate": "1e-3"},
        {"end_of_text": "no"},
        {"loss": "sum of norms (release)"},
        {"cfis": False},
        {"t2": 500},
        {"projections": "keys"},
        {"masks": torch.ones(4, 64, 64).tril()},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_changed_setting_trains_again(comfy_host, demo, parts, untrained, changed):
    train(comfy_host, demo[1], parts[0], parts[2], **changed)
    train(comfy_host, demo[1], parts[0], parts[2], side_by_side="1", save_memory=True)
    assert untrained == [2, 0]


def test_another_model_trains_again(comfy_host, demo, parts, listed, untrained):
    """A patch before, another refinement, another text encoder; but not the same patches put on anew."""
    model, clip, _ = demo
    shown = parts[2]
    train(comfy_host, clip, refine(comfy_host, model, clip, listed, mu="10")[0], shown)
    train(comfy_host, clip, refine(comfy_host, model, clip, listed, mu="20")[0], shown)
    changed = model.clone()
    changed.add_patches({"diffusion_model.out.2.bias": ("diff", (torch.full((4,), 0.01),))})
    train(comfy_host, clip, refine(comfy_host, changed, clip, listed, mu="10")[0], shown)
    key = next(key for key in clip.patcher.model_state_dict() if key.endswith("layers.0.mlp.fc1.bias"))
    other = clip.clone()
    other.add_patches({key: ("diff", (torch.full_like(clip.patcher.model_state_dict()[key], 1e-3),))})
    train(comfy_host, other, refine(comfy_host, model, other, listed, mu="10")[0], shown)
    assert untrained == [0, 2, 2, 2]


def test_what_stands_between_refinement_and_training_counts(comfy_host, demo, parts, listed, untrained):
    """A LoRA or a wrapper put there; the same put there anew does not train again, nor does a longer list."""
    model, clip, _ = demo
    key = comfy_host.module("nodes.host.model.unet").cross_attention_keys(model)[0]

    def between(refined, value):
        changed = refined.clone()
        changed.add_patches({key: ("diff", (torch.full((320, 768), value),))})
        return changed

    refined = refine(comfy_host, model, clip, listed, mu="10")[0]
    longer = refine(comfy_host, model, clip, concepts(comfy_host, "cat", more=listed), mu="10")[0]
    train(comfy_host, clip, between(refined, 0.01), parts[2])
    assert untrained == [2]
    trainer = comfy_host.module("nodes.stages.trainer").Trainer
    options = comfy_host.module("mace.pipeline.train_options").TrainOptions()
    masks = torch.ones(2, 64, 64)

    def key_of(chosen):
        return trainer(chosen, clip, options, None, print).key(parts[2][0], masks)

    wrapped = between(refined, 0.01)
    wrapped.set_model_unet_function_wrapper(lambda apply, inputs: apply(inputs["input"], inputs["timestep"]))
    assert key_of(between(refined, 0.01)) == key_of(between(longer, 0.01))
    assert len({key_of(m) for m in (refined, between(refined, 0.01), between(refined, 0.02), wrapped)}) == 4


def test_a_stage_of_another_kind_between_is_no_error(comfy_host, demo, parts, listed):
    """UCE leaves a record without a prior."""
    _, clip, _ = demo
    settings = dict(preserve="", retention="none", erase_scale=1.0, preserve_scale=0.1, lamb=0.5)
    chosen = concepts(comfy_host, "cat")
    edited = comfy_host.run("MACE_BaselineUCE", model=parts[0], clip=clip, concepts=chosen, **settings)[0]
    assert "2 LoRAs trained" in report(train(comfy_host, clip, edited, parts[2], steps="1"))


def test_a_trained_lora_outlives_the_process(comfy_host, demo, parts, store):
    """Read from disk where memory has nothing, unless it is to be trained again; a damaged file is trained anew."""
    _, clip, _ = demo
    first = train(comfy_host, clip, parts[0], parts[2])[0]
    store.clear()
    node = train(comfy_host, clip, parts[0], parts[2])
    assert "0 LoRAs trained, 2 of 2 kept" in report(node) and "2 of them read from disk" in report(node)
    for one, other in zip(node[0].loras, first.loras, strict=True):
        same(one, other, rtol=0, atol=0)
        assert torch.equal(one.losses, other.losses) and one.concept == other.concept and one.settings == other.settings
    assert "2 LoRAs trained, 0 of 2 kept" in report(train(comfy_host, clip, parts[0], parts[2], again=True))
    store.clear()
    folder = comfy_host.module("nodes.host.kept.lora_store").store().folder
    damaged = sorted(folder.glob("*.lora.safetensors"))[0]
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert "1 LoRAs trained, 1 of 2 kept" in report(train(comfy_host, clip, parts[0], parts[2]))
    assert sorted(path.suffix for path in folder.iterdir()) == [".safetensors"] * 2


def test_what_only_memory_holds_is_put_on_disk(comfy_host, demo, parts, store):
    """After the folder was emptied; and what is used from memory counts as read."""
    train(comfy_host, demo[1], parts[0], parts[2])
    folder = comfy_host.module("nodes.host.kept.lora_store").store().folder
    first, second = sorted(folder.iterdir())
    first.unlink()
    os.utime(second, (0, 0))
    assert "0 LoRAs trained, 2 of 2 kept" in report(train(comfy_host, demo[1], parts[0], parts[2]))
    assert first.exists() and second.stat().st_mtime > 0
    store.clear()
    assert "2 of them read from disk" in report(train(comfy_host, demo[1], parts[0], parts[2]))


def test_the_folder_of_loras_is_bounded_and_may_be_missing(comfy_host, demo, parts, tmp_path):
    disk = comfy_host.module("nodes.host.kept.lora_store")
    lora = parts[3].loras[0]
    for number in range(3):
        kept = disk.LoraStore(tmp_path / "loras", limit=1)
        kept.put_lora(f"{number:064x}", lora, (1,))
    assert [path.name[:64] for path in kept.folder.iterdir()] == [f"{2:064x}"] and kept.removed == {f"{1:064x}"}
    # A state that cannot be removed: it lies beside the LoRA, which is kept all the same.
    stuck = kept.folder / f"{3:064x}.state.safetensors"
    stuck.mkdir()
    kept.put_lora(f"{3:064x}", lora, (1,))
    assert stuck.exists() and kept.lora(f"{3:064x}") is not None
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    nowhere = disk.LoraStore(blocked / "loras")
    nowhere.put_lora("0" * 64, lora, (1,))
    assert "cannot be kept" in nowhere.problem and nowhere.lora("0" * 64) is None


def test_a_run_removes_nothing_of_its_own(comfy_host, demo, parts, store, monkeypatch, tmp_path):
    """Beyond the limit: what it trains and what it has from before stay, others go, and the node says so."""
    disk, limited = comfy_host.module("nodes.host.kept.lora_store"), []

    def small():
        limited.append(disk.LoraStore(tmp_path / "loras", limit=1))
        return limited[-1]

    monkeypatch.setattr(disk, "store", small)
    other = f"{1:064x}"
    small().put_lora(other, parts[3].loras[0], (1,))
    node = train(comfy_host, demo[1], parts[0], parts[2], side_by_side="1")
    assert "1 of other runs, longest not used, removed from disk for room" in report(node)
    names = sorted(path.name for path in (tmp_path / "loras").iterdir())
    assert len(names) == 2 and limited[-1].removed == {other}
    store.clear()
    assert "2 of them read from disk" in report(train(comfy_host, demo[1], parts[0], parts[2]))
    longer = images(comfy_host, demo, concepts(comfy_host, "dog | pooch -> sky\nship -> ground\ncat"))[0]
    node = train(comfy_host, demo[1], parts[0], longer)
    assert "1 LoRAs trained, 2 of 3 kept" in report(node) and "removed from disk" not in report(node)
    assert set(names) < {path.name for path in (tmp_path / "loras").iterdir()}
    # Nor for the plans of Erase Concepts, which are written before it trains.
    store.clear()
    plans, options = [f"{n:064x}" for n in (2, 3)], comfy_host.module("mace.pipeline.train_options").TrainOptions
    masks = [torch.ones(2, 64, 64)] * 2
    given = (parts[0], demo[1], parts[2], masks, options(rank=2, steps=1), plans)
    trained = comfy_host.module("nodes.stages.train").train_loras
    assert trained(*given)[1][0].startswith("2 LoRAs trained")
    store.clear()
    _, lines = trained(*given[:-1], [f"{n:064x}" for n in (4, 5)])
    assert lines[1] == "2 of them read from disk"
    assert {limited[-1].planned(f"{n:064x}") is None for n in (4, 5)} == {False}


def test_another_clip_than_the_refinements_is_refused(comfy_host, demo, parts):
    skipped = demo[1].clone()
    skipped.clip_layer(-12)
    with pytest.raises(ValueError, match="not the one CFR Refine has, or its clip skip is another"):
        train(comfy_host, skipped, parts[0], parts[2])


def test_a_model_fused_before_can_be_trained_on(comfy_host, demo, parts, untrained):
    """A second erasure on top of a first: provenance of any stage is no obstacle, and is part of the model."""
    model, clip, _ = demo
    fused = fuse(comfy_host, model, parts[3])[0]
    again = refine(comfy_host, fused, clip, concepts(comfy_host, "horse"), mu="10")[0]
    train(comfy_host, clip, again, images(comfy_host, demo, concepts(comfy_host, "horse"))[0])
    assert untrained == [1]


def test_the_hosts_own_lora_nodes_take_the_outputs(comfy_host, demo, parts):
    """Each concept's LORA_MODEL through LoraModelLoader, SaveLoRA and LossGraphNode."""
    import comfy_extras.nodes_train as theirs
    from safetensors.torch import load_file

    _, clip, _ = demo
    refined, _, shown, loras = parts
    node = train(comfy_host, clip, refined, shown)
    _, models, losses, names = node.result
    assert names == ["loras/mace_dog", "loras/mace_ship"] and len(models) == len(losses) == 2
    loaded = theirs.LoraModelLoader.execute(refined, models[1], 1.0, False).result[0]
    for key, (up, down) in loras.loras[1].lora.items():
        ours = [patch for patch in loaded.patches[key] if not isinstance(patch[1], tuple)]
        assert len(ours) == 1
        weight = torch.zeros(up.shape[0], down.shape[1])
        from comfy.lora import calculate_weight

        torch.testing.assert_close(calculate_weight(ours, weight, key), up @ down, rtol=1e-4, atol=1e-6)
    theirs.SaveLoRA.execute(models[0], names[0])
    (path,) = (comfy_host.base / "output/loras").glob("mace_dog_*.safetensors")
    assert set(load_file(path)) == set(models[0])
    assert losses[0]["loss"] == [float(value) for value in loras.loras[0].losses]
    theirs.LossGraphNode.PREPARE_CLASS_CLONE(None).execute(losses[0], "graph")


def test_without_a_refinement_it_says_so(comfy_host, demo, parts):
    model, clip, _ = demo
    node = train(comfy_host, clip, model, parts[2][:1], steps="1")
    assert "the model is not refined" in report(node) and node[0].recipe is None


def test_bad_settings(comfy_host, demo, parts):
    check = lambda **inputs: comfy_host.validate("MACE_TrainErasureLora", **inputs)  # noqa: E731
    assert check(rank="auto", steps="50", learning_rate="1e-4", side_by_side="auto", t1=200, t2=400) is True
    assert "rank: '0' is neither auto nor a whole number" in check(rank="0")
    assert "steps: '1.5'" in check(steps="1.5")
    assert "learning_rate: 'fast'" in check(learning_rate="fast")
    assert "t1 must be" in check(cfis=True, t1=400, t2=300)
    with pytest.raises(ValueError, match="there are 3 masks for 4 images"):
        train(comfy_host, demo[1], parts[0], parts[2], masks=torch.ones(3, 64, 64))
