"""ESD, Concept Ablation and Forget-Me-Not in the real host, on the trained demo model."""

import pytest
import torch

from tests.baselines import SETTINGS, runner
from tests.stages import delta_of, report
from tests.test_refine_node import concepts, refine, weights_hash

pytestmark = pytest.mark.host

CASES = tuple(SETTINGS)
# They share what trains them: one each time, all when asked for.
ONE = [CASES[0], *(pytest.param(name, marks=pytest.mark.long) for name in CASES[1:])]
LAST = "diffusion_model.output_blocks.1.1.transformer_blocks.0.attn2."


@pytest.fixture(scope="module")
def run(comfy_host, demo):
    return runner(comfy_host, demo)


@pytest.fixture(scope="module")
def first_runs(run):
    return {name: run(name) for name in CASES}


def names_by_module(model):
    """The UNet's parameter names by what module holds them, told by classes and shapes and not by names."""
    from comfy.ldm.modules.attention import CrossAttention

    unet = model.model.diffusion_model
    every = {f"diffusion_model.{name}" for name, _ in unet.named_parameters()}
    cross, keys_values = set(), set()
    for path, module in unet.named_modules():
        # Self-attention reads the picture's own channels.
        if isinstance(module, CrossAttention) and module.to_k.in_features != module.to_q.in_features:
            cross |= {f"diffusion_model.{path}.{name}" for name, _ in module.named_parameters()}
            keys_values |= {f"diffusion_model.{path}.{name}.weight" for name in ("to_k", "to_v")}
    aside = set()
    for attribute in ("time_embed", "out", "label_emb"):
        module = getattr(unet, attribute, None)
        if module is not None:
            aside |= {f"diffusion_model.{attribute}.{name}" for name, _ in module.named_parameters()}
    return every, cross, keys_values, aside


def test_which_weights_are_trained(comfy_host, demo):
    parts = comfy_host.module("mace.baselines.parts")
    every, cross, keys_values, aside = names_by_module(demo[0])
    assert len(cross) == 20 and len(keys_values) == 8 and len(aside) == 8

    def chosen(part):
        return {name for name, _ in demo[0].model.named_parameters() if part(name)}

    assert chosen(parts.cross_attention) == cross
    assert chosen(parts.keys_and_values) == keys_values
    assert chosen(parts.unconditional) == every - cross - aside
    assert chosen(parts.whole) == every


@pytest.mark.parametrize(
    "name, settings, what",
    [
        ("ESD", {}, "cross"),
        ("ESD", {"method": "ESD-u (all but cross-attention)"}, "rest"),
        ("AC", {}, "keys and values"),
        ("AC", {"train": "full"}, "whole"),
        ("FMN", {}, "cross"),
        ("FMN", {"train": "keys and values"}, "keys and values"),
        ("FMN", {"train": "full"}, "whole"),
    ],
)
def test_what_moves(comfy_host, demo, run, name, settings, what):
    """Patches on the trained weights alone, each of them moved; all others are what they were, to the bit."""
    model = demo[0]
    every, cross, keys_values, aside = names_by_module(model)
    expected = {"cross": cross, "rest": every - cross - aside, "keys and values": keys_values, "whole": every}[what]
    if name == "FMN":
        # Nothing after the last cross-attention's queries and keys can change an attention.
        behind = {key for key in every if key.startswith("diffusion_model.out.") or key.startswith(LAST)}
        behind |= {key for key in every if key.startswith(LAST.replace("attn2.", "ff."))}
        behind |= {key for key in every if key.startswith(LAST.replace("attn2.", "norm3."))}
        behind |= {key for key in every if key.startswith("diffusion_model.output_blocks.1.1.proj_out.")}
        behind -= {f"{LAST}to_q.weight", f"{LAST}to_k.weight"}
        expected = expected - behind
    before = weights_hash(model)
    done = run(name, steps=1, **settings)[0]
    assert set(done.patches) == expected
    assert not model.patches and weights_hash(model) == before


@pytest.mark.long
def test_the_loss_falls(run):
    """Against the same draws without learning. (ESD's samples change as it learns: see the tests of the losses.)"""
    for name, settings in {"AC": dict(steps=12, batch=3), "FMN": dict(steps=8)}.items():
        learnt, idle = (
            torch.tensor(run(name, learning_rate=rate, **settings)[1]["loss"]) for rate in ("3e-4", "1e-12")
        )
        assert learnt[0] == pytest.approx(float(idle[0]), rel=1e-5)
        half = settings["steps"] // 2
        assert learnt[half:].mean() < 0.8 * idle[half:].mean(), name


@pytest.mark.long
@pytest.mark.parametrize("name", ONE)
def test_the_seed_decides(run, first_runs, name):
    done, losses = first_runs[name].result
    again, same_losses = run(name).result
    assert losses == same_losses and set(done.patches) == set(again.patches)
    for key in done.patches:
        assert torch.equal(delta_of(done, key), delta_of(again, key))
    other = run(name, seed=1, steps=1)
    assert other[1]["loss"][0] != losses["loss"][0]


def test_the_record_and_the_report(first_runs):
    for name in CASES:
        node = first_runs[name]
        (record,) = node[0].get_attachment("mace_stages")
        assert record["stage"] == f"baseline {name}" and record["concepts"][0]["target"] == "dog"
        assert record["settings"]["steps"] == 3 and record["settings"]["learning_rate"] < 1e-3
        assert "clip_layer" in record
        assert "dog: " in report(node) and "in 3 steps" in report(node)


@pytest.mark.parametrize("name", ONE)
def test_an_interrupt_leaves_the_host_as_it_was(comfy_host, demo, run, first_runs, name, monkeypatch):
    from comfy import model_management

    model, clip, _ = demo
    before = weights_hash(model)
    picture = comfy_host.sample(model, clip, "a photo of the dog", steps=2)
    module, seen = comfy_host.module("nodes.host.progress"), []

    def report_and_interrupt(self, names, step, losses, steps):
        seen.append((names, step))
        if step == 2:
            model_management.interrupt_current_processing()

    monkeypatch.setattr(module.LossProgress, "report", report_and_interrupt)
    with pytest.raises(model_management.InterruptProcessingException):
        run(name, steps=50)
    monkeypatch.undo()
    assert len(seen) <= 3 and seen[1] == (["dog"], 2)
    assert not model_management.processing_interrupted() and not model_management.in_training
    assert weights_hash(model) == before
    assert torch.equal(comfy_host.sample(model, clip, "a photo of the dog", steps=2), picture)
    assert run(name)[1]["loss"] == first_runs[name][1]["loss"]


def test_on_a_patched_and_refined_model(comfy_host, demo, run):
    """What is there already is trained on and kept; the result counts as a new original."""
    model, clip, _ = demo
    refined = refine(comfy_host, model, clip, concepts(comfy_host, "dog -> sky"), mu="10")[0]
    node = run("AC", model=refined, steps=1)
    key = next(iter(refined.patches))
    assert node[0].patches[key][:1] == refined.patches[key] and len(node[0].patches[key]) == 2
    assert [stage["stage"] for stage in node[0].get_attachment("mace_stages")] == ["refinement", "baseline AC"]
    assert node[1]["loss"][0] != run("AC", steps=1)[1]["loss"][0]
    assert node[0].get_attachment("mace_base") is None and node[0].get_attachment("mace_refinement") is None
    assert refined.get_attachment("mace_base") is not None


@pytest.mark.long
def test_half_precision(comfy_host, demo, demo_checkpoint, run):
    """A model kept in fp16: float32 masters, patches in fp16. The same of one that computes in fp16."""
    import comfy.sd

    with torch.inference_mode():
        half = comfy.sd.load_checkpoint_guess_config(
            str(demo_checkpoint), output_vae=False, model_options={"dtype": torch.float16}
        )[0]
    assert half.model.get_dtype() == torch.float16
    few = dict(learning_rate="1e-3", steps=2, batch=1, images=1, sampling_steps=1)
    done, losses = run("AC", model=half, **few).result
    assert all(patch[0][1][1][0].dtype == torch.float16 for patch in done.patches.values())
    full = run("AC", **few)
    for key in full[0].patches:
        # Adam's first step is the rate in the gradient's direction, which rounding turns for the smallest ones.
        one, other = delta_of(done, key), delta_of(full[0], key)
        assert float((one - other).norm() / other.norm()) < 0.2
    # One that computes in fp16 too: its loss is scaled, and no change is lost.
    computing = demo[0].clone()
    computing.set_model_compute_dtype(torch.float16)
    found = run("AC", model=computing, **few)
    assert computing.get_model_object("manual_cast_dtype") == torch.float16
    for key in full[0].patches:
        one, other = delta_of(found[0], key), delta_of(full[0], key)
        assert float((one - other).norm() / other.norm()) < 0.2


def test_bad_settings(comfy_host):
    for name in CASES:
        node = f"MACE_Baseline{name}"
        assert comfy_host.validate(node, learning_rate="auto") is True
        assert "learning_rate: 'fast'" in comfy_host.validate(node, learning_rate="fast")
    assert "needs {}" in comfy_host.validate("MACE_BaselineESD", prompt="a dog")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), RuntimeError("MPS backend out of memory")])
def test_out_of_memory_says_what_to_do(comfy_host, run, monkeypatch, error):
    def fit(*given):
        raise error

    monkeypatch.setattr(comfy_host.module("nodes.baselines.trainee"), "fit", fit)
    with pytest.raises(RuntimeError, match="out of memory: use smaller pictures"):
        run("FMN")
