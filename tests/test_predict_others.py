"""MODELs with other packs' functions, called outside sampling: they read what they read in sampling.

The host's own nodes of the kind, and functions as other packs write them.
"""

from contextlib import nullcontext

import pytest
import torch

from mace.pipeline.attention_loss import Batch
from tests.kinds import conditioning, latents, unet
from tests.test_forward import losses_of
from tests.test_predict import own_sampling

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("one_thread")]

SIGMAS = (0.4, 6.0, 0.4)


def self_attention_guidance(model):
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    return SelfAttentionGuidance.execute(model, 0.5, 2.0)[0]


def deep_shrink(model):
    """Halves the picture inside the model where there is much noise, and not where there is little."""
    from comfy_extras.nodes_model_downscale import PatchModelAddDownscale

    return PatchModelAddDownscale.execute(model, 2, 2.0, 0.0, 0.6, True, "bicubic", "bicubic")[0]


def hyper_tile(model):
    from comfy_extras.nodes_hypertile import HyperTile

    return HyperTile.execute(model, 32, 3, 0, False)[0]


def free_u(model):
    from comfy_extras.nodes_freelunch import FreeU_V2

    return FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)[0]


def around_the_model(model):
    """As a cache or a refiner does: by sigma, for the prompt alone."""
    wrapped = model.clone()

    def function(apply, given):
        assert given["cond_or_uncond"] == given["c"]["transformer_options"]["cond_or_uncond"]
        found = apply(given["input"], given["timestep"], **given["c"])
        return found * (0.5 if float(given["timestep"][0]) > 2 else 0.9)

    wrapped.set_model_unet_function_wrapper(function)
    return wrapped


def adapter(model):
    """As IPAdapter does: in place of a cross-attention, by the sigma of the step and the part of the batch."""
    from comfy.ldm.modules.attention import optimized_attention

    patched = model.clone()
    block = ("output", 5) if ("output", 5) in _blocks(model) else _blocks(model)[-1]

    def attend(q, k, v, options):
        sigma = options["sigmas"].detach().cpu()[0].item()
        out = optimized_attention(q, k, v, options["n_heads"])
        parts = len(options["cond_or_uncond"])
        chunks = [
            chunk * (1.5 if sigma > 2 else 1.1) if which == 0 else chunk
            for chunk, which in zip(out.chunk(parts), options["cond_or_uncond"], strict=True)
        ]
        return torch.cat(chunks)

    patched.set_model_attn2_replace(attend, *block)
    return patched


def step_of_the_schedule(model):
    """As packs do that count steps: the place of sigma in the schedule, and the sigma of the next step."""
    from comfy.patcher_extension import WrappersMP

    patched = model.clone()

    def wrapper(executor, *args, **more):
        options = args[5] if len(args) > 5 else more["transformer_options"]
        schedule = options["sample_sigmas"]
        assert (schedule.diff() < 0).all() and schedule[-1] == 0
        (place,) = (schedule == options["sigmas"][0]).nonzero()[:, 0].tolist()
        # There is a step behind every one.
        return executor(*args, **more) * (1 + 0.01 * float(schedule[place + 1] < schedule[place]))

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "tests", wrapper)
    return patched


def tome(model):
    """Its second function takes from the first what that made of the last step."""
    from comfy_extras.nodes_tomesd import TomePatchModel

    return TomePatchModel.execute(model, 0.3)[0]


def projected_guidance(model):
    """Keeps an average of what it saw."""
    from comfy_extras.nodes_apg import APG

    return APG.execute(model, 1.0, 5.0, -0.5)[0]


def easy_cache(model):
    """Holds what a sampling has seen."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    return EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False)[0]


def lazy_cache(model):
    from comfy_extras.nodes_easycache import LazyCacheNode

    return LazyCacheNode.execute(model, 0.2, 0.15, 0.95, False)[0]


OTHERS = [self_attention_guidance, hyper_tile, around_the_model, adapter]
OTHERS += [pytest.param(make, marks=pytest.mark.long) for make in (deep_shrink, free_u, step_of_the_schedule)]


def _blocks(model):
    import sys

    names = next(name for name in sys.modules if name.endswith("nodes.host.model.unet"))
    forward = next(name for name in sys.modules if name.endswith("nodes.host.model.forward"))
    keys = sys.modules[names].cross_attention_keys(model)
    return list(dict.fromkeys(sys.modules[forward].place(key)[:2] for key in keys))


@pytest.fixture(scope="module")
def modules(comfy_host):
    names = ("predict", "forward", "unet", "recompute", "attention_maps")
    return {name: comfy_host.module(f"nodes.host.model.{name}") for name in names}


@pytest.fixture(scope="module")
def plain(comfy_host):
    return unet("sd15")


@pytest.fixture(params=OTHERS, ids=lambda make: make.__name__)
def other(request, plain):
    """A MODEL with one of them."""
    made = request.param(plain)
    assert made is not plain and made.cached_patcher_init is plain.cached_patcher_init
    return made


def load(model):
    from comfy import model_management

    model_management.load_models_gpu([model], force_full_load=True)


def test_is_what_the_hosts_sampling_computes(modules, other):
    module = modules["predict"]
    contexts, pooled = conditioning(other, 2)
    # The sizes of HyperTile's tiles are drawn anew in every call.
    torch.manual_seed(0)
    schedule = torch.tensor([6.0, 0.4, 0.0])
    for theirs, sigma, expected in own_sampling(other, latents(2), latents(2, seed=2), schedule, contexts, pooled):
        load(other)
        torch.manual_seed(0)
        with torch.inference_mode():
            found = module.predict(other, theirs, sigma, contexts, pooled)
        if other.model_options.get("transformer_options", {}).get("patches", {}).get("attn1_output_patch"):
            assert found.shape == expected.shape and torch.isfinite(found).all()
        else:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_samples_at_several_sigmas_are_each_alone(modules, other):
    module = modules["predict"]
    contexts, pooled = conditioning(other, 3)
    x, sigmas = latents(3), torch.tensor(SIGMAS)
    load(other)
    with torch.inference_mode():
        found = module.predict(other, x, sigmas, contexts, pooled)
        for c in range(3):
            own = slice(c, c + 1)
            alone = module.predict(other, x[own], sigmas[own], contexts[own], pooled)
            if not other.model_options["transformer_options"].get("patches", {}).get("attn1_output_patch"):
                torch.testing.assert_close(found[own], alone, rtol=1e-3, atol=1e-4)


def test_without_them_one_call_is_enough(modules, plain):
    assert [rows.tolist() for rows in modules["predict"].together(plain, torch.tensor(SIGMAS))] == [[0, 1, 2]]
    parted = modules["predict"].together(deep_shrink(plain), torch.tensor(SIGMAS))
    assert [rows.tolist() for rows in parted] == [[0, 2], [1]]


def batch_of(forward, model, rows=(0, 1, 2)):
    contexts, _ = conditioning(model, 3)
    tokens = torch.zeros(3, 77)
    tokens[:, 5] = 1
    masks = torch.zeros(3, 64, 64)
    for place in range(3):
        masks[place, : 16 * (place + 1), :32] = 1
    whole = Batch(latents(3), torch.tensor(SIGMAS), contexts, tokens, masks)
    return whole.only(torch.tensor(rows))


def stack_of(model, keys, rows=(0, 1, 2)):
    generator, state = torch.Generator().manual_seed(1), model.model.state_dict()
    stacked = {}
    for key in keys:
        d_out, d = state[key].shape
        pair = torch.randn(3, d_out, 1, generator=generator), torch.randn(3, 1, d, generator=generator) / d**0.5
        stacked[key] = tuple(part[list(rows)].clone().requires_grad_(True) for part in pair)
    return stacked


def test_training_beside_others_is_training_alone(modules, other):
    """Eq. 3's loss and its gradients of three concepts at two sigmas, each as if it were alone."""
    forward = modules["forward"]
    keys = modules["unet"].cross_attention_keys(other)
    random = bool(other.model_options["transformer_options"].get("patches", {}).get("attn1_output_patch"))
    with forward.trainable_copy(other) as copy:
        stacked = stack_of(copy, keys)
        found = losses_of(forward, copy, batch_of(forward, copy), stacked)
        found.sum().backward()
        assert found.shape == (3,) and torch.isfinite(found).all()
        for c in (0, 1):
            own = stack_of(copy, keys, (c,))
            alone = losses_of(forward, copy, batch_of(forward, copy, (c,)), own)
            alone.sum().backward()
            if random:
                continue
            torch.testing.assert_close(found[c : c + 1], alone, rtol=1e-3, atol=1e-5)
            for key in keys:
                for whole, part in zip(stacked[key], own[key], strict=True):
                    if part.grad is not None:
                        torch.testing.assert_close(whole.grad[c : c + 1], part.grad, rtol=2e-2, atol=1e-4)


def test_recomputed_blocks_have_the_same_gradients(modules, other):
    forward, recompute = modules["forward"], modules["recompute"]
    keys = modules["unet"].cross_attention_keys(other)
    gradients = []
    with forward.trainable_copy(other) as copy:
        for around in (nullcontext(), recompute.recomputed_blocks(copy.model.diffusion_model)):
            stacked = stack_of(copy, keys)
            torch.manual_seed(3)
            with around:
                losses_of(forward, copy, batch_of(forward, copy), stacked).sum().backward()
            gradients.append([part.grad for pair in stacked.values() for part in pair if part.grad is not None])
    assert gradients[0]
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_attention_maps(modules, other):
    contexts, _ = conditioning(other)
    with torch.inference_mode():
        maps = modules["attention_maps"].concept_maps(other, latents(2), contexts[0], [4, 5], None, "dog")
    assert maps.shape[0] == 2 and torch.isfinite(maps).all() and maps.std() > 0


def test_attention_maps_of_fewer_at_once_where_memory_runs_out(modules, plain, monkeypatch):
    """The same maps, and room is made for the pictures that are looked at."""
    from comfy import model_management

    module, tried, asked = modules["attention_maps"], [], []
    contexts, _ = conditioning(plain)
    load, predict = model_management.load_models_gpu, module.ModelDenoiser.predict

    def short_of_memory(self, x, *rest):
        tried.append(len(x))
        if len(x) > 1:
            raise torch.cuda.OutOfMemoryError("no memory")
        return predict(self, x, *rest)

    def loading(*args, memory_required=0, **more):
        asked.append(memory_required)
        return load(*args, memory_required=memory_required, **more)

    monkeypatch.setattr(model_management, "load_models_gpu", loading)

    def maps():
        with torch.inference_mode():
            return module.concept_maps(plain, latents(3), contexts[0], [4, 5], None, "dog")

    whole = maps()
    monkeypatch.setattr(module.ModelDenoiser, "predict", short_of_memory)
    torch.testing.assert_close(maps(), whole, rtol=1e-4, atol=1e-6)
    assert tried == [3, *[1] * 9]
    assert asked[0] == 3 * plain.memory_required([1, *latents().shape[1:]]) > 0


HOLD = [tome, easy_cache, lazy_cache, self_attention_guidance, projected_guidance]


@pytest.mark.parametrize("make", HOLD)
def test_what_they_hold_of_a_run_is_no_part_of_the_model(comfy_host, modules, plain, make):
    """Its key stays through a sampling, masks and training: what was trained on it is found again."""
    content, forward = comfy_host.module("nodes.host.kept.content"), modules["forward"]
    other = make(plain)
    key = content.model_sha256(other)
    contexts, pooled = conditioning(other, 2)
    list(own_sampling(other, latents(2), latents(2, seed=2), torch.tensor([6.0, 0.4, 0.0]), contexts, pooled))
    assert content.model_sha256(other) == key
    with torch.inference_mode():
        modules["attention_maps"].concept_maps(other, latents(2), contexts[0], [4, 5], None, "dog")
    assert content.model_sha256(other) == key
    with forward.trainable_copy(other) as copy:
        stacked = stack_of(copy, modules["unet"].cross_attention_keys(other))
        losses_of(forward, copy, batch_of(forward, copy), stacked).sum().backward()
    assert content.model_sha256(other) == key != content.model_sha256(plain)
