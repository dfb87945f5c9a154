"""The text ports of every family that the host knows: the table, the finding, and that an edit there is exact."""

import pytest
import torch

from devtools.cache import REPO
from tests.families import FAMILIES, build, latents, load_detected, prompt
from tests.lanes import usually

pytestmark = pytest.mark.host

# No port: prompt and picture share every map from the first on.
WITHOUT = {"hidream_o1"}
# One row for one dimension is the most that T can be exact for: LTX-2's registers are 1024 rows of these 20.
NOT_EXACT = {"ltxav"}
# Their ports depend on the checkpoint (which Llama layer a block reads) or stand in every block: found each time.
UNKNOWN = {"hidream", "hydit", "hydit12", "ace"}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def ports_module(comfy_host):
    return comfy_host.module("nodes.host.model.ports")


# How a family is made: by its class with sizes of ours, or by the host from a file's weights, with larger networks.
DETECTED = ("flux", "sd3")
# Of each family one is tested each time; here what is another size of it, or has more inputs, and what takes longest.
VARIANTS = {"flux_schnell", "flux2_klein", "sdxl_vega", "sdxl_koala", "sdxl_refiner", "sd3_ctxproc", "sd35m", "wan22"}
VARIANTS |= {"wan21_i2v", "pixart_alpha", "hunyuan_image21_nobyt5", "hunyuan_image21_distilled", "hydit", "mochi"}
VARIANTS |= {"ltxav"}
USUAL = [name for name in FAMILIES if name not in VARIANTS]
WAYS = usually(
    [(name, False) for name in FAMILIES] + [(name, True) for name in FAMILIES if "detected" in FAMILIES[name]],
    [(name, False) for name in USUAL] + [(name, True) for name in DETECTED],
)


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way[0] + " detected" * way[1])
def family(request, comfy_host, ports_module):
    """(name, MODEL, the ports found, PromptRuns)."""
    name, detected = request.param
    with pytest.MonkeyPatch.context() as patched, torch.inference_mode():
        model = load_detected(name) if detected else build(name, patched)
        assert type(model.model.model_config).__name__ == FAMILIES[name]["class"]
        shapes, given = latents(name), prompt(name, detected=detected)
        # The sizes of latents are those of the smaller networks.
        shapes = None if detected and len(shapes) == 1 else shapes
        found = ports_module.ports_by_running(model, given, shapes)
        side = ports_module.running_side(model, given, shapes)
        yield name, model, found, ports_module.PromptRuns(model, given, side, shapes)


def transform(ours, theirs):
    """T with T f = g for the rows f, g of two prompts, nearest to the identity; float64."""
    f, g = (torch.cat([call.reshape(-1, call.shape[-1]) for call in calls]).double() for calls in (ours, theirs))
    return torch.eye(f.shape[1], dtype=torch.float64) + (torch.linalg.pinv(f, rcond=1e-10) @ (g - f)).mT


def test_what_is_known_is_what_is_found(family, ports_module):
    name, model, found, _ = family
    if name in WITHOUT:
        assert found is None and ports_module.known_ports(model) is None
        return
    known = ports_module.known_ports(model)
    assert (known is None) == (name in UNKNOWN)
    if known is None:
        return
    assert {name for group in known for name in group} >= set(found.names)
    # What is known and not found is of a part that this prompt does not use.
    assert set(map(frozenset, found.groups)) <= set(map(frozenset, known))


def test_an_edit_at_the_ports_is_another_prompt(comfy_host, family):
    """Prompt f through W T gives what prompt g gives through W: at the ports to rounding, and so in the output."""
    name, model, found, runs = family
    if name in WITHOUT:
        return
    read = comfy_host.module("mace.method.ports").read_features
    network = model.model.diffusion_model
    ours, theirs = (read(lambda text=text: runs(text, 0), network, found) for text in (0, 1))
    plain, wanted = runs(0, 0), runs(1, 0)
    saved = {}
    for group, one, two in zip(found.groups, ours, theirs, strict=True):
        change = transform(one, two)
        for port in group:
            weight = network.get_submodule(port).weight
            saved[port] = weight.data.clone()
            weight.data.copy_((weight.data.double() @ change).to(weight.dtype))
    edited = runs(0, 0)
    for port, weight in saved.items():
        network.get_submodule(port).weight.data.copy_(weight)
    between = (plain - wanted).abs().max()
    assert between > 0
    if name not in NOT_EXACT:
        assert (edited - wanted).abs().max() < TOLERANCE * between
    assert torch.equal(runs(0, 0), plain)


def test_the_host_takes_a_lora_of_the_ports(comfy_host, family, ports_module):
    """In the layouts that Export Change as LoRA writes of them."""
    import comfy.sd

    name, model, found, _ = family
    if name in WITHOUT or comfy_host.module("nodes.host.model.unet").is_unet(model):
        return
    layouts = comfy_host.module("mace.formats.lora_layouts")
    state = model.model.state_dict()
    groups = ports_module.known_ports(model) or found.groups
    keys = [f"diffusion_model.{name}.weight" for group in groups for name in group]
    lora = {key: (torch.ones(len(state[key]), 1), torch.ones(1, state[key].shape[1])) for key in keys}
    for tensors in (layouts.to_comfyui(lora, False), layouts.to_kohya(lora, None, None, "title")[0]):
        loaded, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
        assert sorted(loaded.patches) == sorted(keys)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "sd3_ctxproc", "zimage"])
def test_half_precision_finds_the_same(ports_module, monkeypatch, name, dtype):
    with torch.inference_mode():
        full, half = (
            ports_module.ports_by_running(build(name, monkeypatch, kind), prompt(name), latents(name))
            for kind in (torch.float32, dtype)
        )
    assert half == full


def test_all_that_a_model_is_run_with_lies_on_its_device(ports_module, monkeypatch):
    """Distilled models compare the schedule with the place in it."""
    model, seen = build("hunyuan_image21_distilled", monkeypatch), []
    model.load_device = torch.device("meta")
    monkeypatch.setattr(ports_module, "call", lambda model, *given, **more: seen.extend(given))
    ports_module.SmallRuns(model, 16).run(prompt("hunyuan_image21_distilled"))
    x, sigmas, _, options = seen
    schedule = options["transformer_options"]["sample_sigmas"]
    assert {each.device for each in (x, sigmas, schedule)} == {torch.device("meta")}
    assert sigmas.shape == (1,) and schedule.shape == (3,)


def test_the_page_of_models_names_every_family(comfy_host):
    page = (REPO / "docs/models.md").read_text(encoding="utf-8")
    known = set(comfy_host.module("nodes.host.model.port_table").KNOWN) | {each["class"] for each in FAMILIES.values()}
    import comfy.supported_models

    assert all(hasattr(comfy.supported_models, name) for name in known)
    # SD's own are named as artists name them.
    known -= {"SD15", "SD20", "SDXL", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B", "SDXLRefiner", "FluxInpaint"}
    assert [name for name in sorted(known) if name not in page] == []


@pytest.mark.parametrize(
    ("name", "said"), [("flux", "through txt_in and vector_in.in_layer: CFR Refine"), ("hidream_o1", "works on.$")]
)
def test_other_families_are_refused_with_what_is_known(comfy_host, monkeypatch, name, said):
    with torch.inference_mode():
        model = build(name, monkeypatch)
    with pytest.raises(ValueError, match=f"no cross-attention layers of.*{said}"):
        comfy_host.module("nodes.host.model.unet").cross_attention_keys(model)


# What the nodes do not edit, and why: LTX-2's and MiniMax-H3's latents are two, whose sizes are not to be guessed.
NOT_OFFERED = {
    "hidream_o1": "does not run",
    "ltxav": "does not run",
    "minimax_h3": "does not run",
}


@pytest.mark.parametrize(
    "name", usually([name for name in FAMILIES if not name.startswith("sd")] + ["sd3", "sd35m"], USUAL)
)
def test_what_the_nodes_edit(comfy_host, ports_module, monkeypatch, name):
    """All that reads this prompt, or a refusal: nothing is edited by halves."""
    find_layout = comfy_host.module("nodes.host.port_layout").find_layout
    with torch.inference_mode():
        model = build(name, monkeypatch)
        if name in NOT_OFFERED:
            with pytest.raises(ValueError, match=NOT_OFFERED[name]):
                find_layout(model, prompt(name))
            return
        given = prompt(name)
        # Only prompts with quoted text have it.
        given[0][1].pop("conditioning_byt5small", None)
        layout = find_layout(model, given)
        found = ports_module.ports_by_running(model, given)
        known = ports_module.known_ports(model) or found.groups
        edited = {*layout.tokens, *layout.pooled, *(port for text in layout.others for port in text)}
        assert {*edited, *layout.left} == {port for group in known for port in group}
        assert edited == set(found.names)
