"""One call of the diffusion model (nodes.host.model.predict) against the host's own sampling, every kind."""

import pytest
import torch

from tests.kinds import PATCHED, conditioning, latents, unet

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("one_thread")]

KINDS = ["sd15", "sd15_inpaint", "sd21", "sdxl", "sdxl_v", "sdxl_edm", "sdxl_edm_v", *PATCHED]
CONTINUOUS = ("sdxl_edm", "sdxl_edm_v")


@pytest.fixture(scope="module")
def module(comfy_host):
    return comfy_host.module("nodes.host.model.predict")


@pytest.fixture(scope="module", params=KINDS)
def each(request, comfy_host):
    """(kind, MODEL) of every kind."""
    return request.param, unet(request.param)


@pytest.fixture(scope="module")
def model(comfy_host):
    return unet("sd15")


@pytest.fixture(scope="module")
def sdxl(comfy_host):
    return unet("sdxl")


def own_sampling(model, start, noise, sigmas, contexts, pooled, count=1):
    """(x, sigma, x_0) of each call in the host's own sampling by Euler at cfg 1."""
    import comfy.sample
    import comfy.samplers

    calls = []

    def seen(args):
        calls.append((args["input"].clone(), args["sigma"].clone(), args["cond_denoised"].clone()))
        return args["denoised"]

    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(seen)
    cond = [[contexts, {} if pooled is None else {"pooled_output": pooled}]]
    with torch.inference_mode():
        comfy.sample.sample_custom(
            watched, noise, 1.0, comfy.samplers.sampler_object("euler"), sigmas, cond, cond, start, disable_pbar=True
        )
    return calls


def called(module, model, sigma=2.0, count=1, grad=False, **more):
    """x_0 of a call on a loaded MODEL."""
    from comfy import model_management

    contexts, pooled = conditioning(model, count)
    model_management.load_models_gpu([model], force_full_load=True)
    with torch.enable_grad() if grad else torch.inference_mode():
        return module.predict(model, latents(count), torch.full((count,), sigma), contexts, pooled, **more)


def test_is_what_the_hosts_sampling_computes(module, each):
    """Of two samples with texts of their own, from a picture with noise in it, at two levels of noise."""
    from comfy import model_management

    _, model = each
    contexts, pooled = conditioning(model, 2)
    start, noise = latents(2), latents(2, seed=2)
    model_management.load_models_gpu([model])
    with torch.inference_mode():
        x, sigmas = module.noisy(model, start, noise, [600, 600])
        schedule = torch.tensor([float(sigmas[0]), float(module.sigmas_at(model, [200])[0]), 0.0])
    first, second = own_sampling(model, start, noise, schedule, contexts, pooled)
    torch.testing.assert_close(x, first[0], rtol=1e-6, atol=1e-6)
    for theirs, sigma, expected in (first, second):
        model_management.load_models_gpu([model], force_full_load=True)
        with torch.inference_mode():
            found = module.predict(model, theirs, sigma, contexts, pooled)
        assert found.dtype == torch.float32 and torch.isfinite(found).all()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    other = module.predict(model, first[0], first[1], contexts.flip(0), None if pooled is None else pooled.flip(0))
    assert not torch.allclose(other, first[2], rtol=1e-3)


def test_pooled_text_counts_in_sdxl(module, sdxl):
    contexts, pooled = conditioning(sdxl)
    plain = called(module, sdxl)
    with torch.inference_mode():
        other = module.predict(sdxl, latents(), torch.tensor([2.0]), contexts, pooled + 1)
    assert not torch.allclose(plain, other, rtol=1e-3)


def test_every_sample_has_its_own_timestep(module, sdxl):
    """A batch at several levels of noise is each sample alone."""
    contexts, pooled = conditioning(sdxl, 3)
    x, sigmas = latents(3), torch.tensor([0.1, 2.0, 12.0])
    called(module, sdxl)
    with torch.inference_mode():
        together = module.predict(sdxl, x, sigmas, contexts, pooled)
        for c in range(3):
            own = slice(c, c + 1)
            alone = module.predict(sdxl, x[own], sigmas[own], contexts[own], pooled[own])
            torch.testing.assert_close(together[own], alone, rtol=1e-4, atol=1e-4)


def test_noise_at_every_timestep(module, each):
    """sigma grows with t; in the discrete schedules it is the host's own sigma(t), else it stays in its range."""
    kind, model = each
    sampling = model.get_model_object("model_sampling")
    steps = torch.arange(1000)
    sigmas = module.sigmas_at(model, steps)
    assert sigmas.dtype == torch.float32 and sigmas.shape == (1000,)
    distilled = kind == "lcm"
    rise = sigmas.diff()
    assert (rise >= 0).all() if distilled else (rise > 0).all()
    least, most = float(sampling.sigma_min), float(sampling.sigma_max)
    assert least * (1 - 1e-3) <= float(sigmas[0]) and float(sigmas[-1]) <= most * (1 + 1e-6)
    assert float(sigmas[-1]) > 0.95 * most and float(sigmas[0]) < 1.05 * least
    if kind not in CONTINUOUS:
        chosen = torch.tensor([0, 1, 200, 999])
        expected = sampling.sigma(chosen.float())
        # The ends are a millionth of the way off, where the host would say "before all noise".
        torch.testing.assert_close(sigmas[chosen][1:3], expected[1:3], rtol=1e-4, atol=0)
        torch.testing.assert_close(sigmas[chosen], expected, rtol=5e-2 if kind == "v_zsnr" else 1e-2, atol=0)
    assert torch.equal(module.sigmas_at(model, [200, 0]), sigmas[[200, 0]])


def test_patches_and_wrappers_read_what_they_read_in_sampling(module, model):
    import comfy.patcher_extension

    seen = {}

    def attn1(q, k, v, options):
        seen["patch"] = dict(options)
        return q, k, v

    def wrapper(executor, *args, **kwargs):
        seen["wrapper"] = dict(args[-1] if isinstance(args[-1], dict) else kwargs["transformer_options"])
        return executor(*args, **kwargs)

    patched = model.clone()
    patched.set_model_attn1_patch(attn1)
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "tests", wrapper)
    before = repr(patched.model_options)
    plain = called(module, model, count=2)
    assert torch.equal(called(module, patched, count=2), plain)
    assert repr(patched.model_options) == before
    for options in seen.values():
        assert options["cond_or_uncond"] == [0] and len(options["uuids"]) == 1
        assert torch.equal(options["sigmas"], torch.full((2,), 2.0))
        assert torch.equal(options["sample_sigmas"], torch.tensor([2.0, 0.0]))
    assert seen["patch"]["block"][0] == "output" and seen["patch"]["block_index"] == 0


def test_another_packs_function_around_the_model_counts(module, model):
    def halved(apply, given):
        return 0.5 * apply(1.0 * given["input"], given["timestep"], **given["c"])

    wrapped = model.clone()
    wrapped.set_model_unet_function_wrapper(halved)
    before = dict(wrapped.model_options)
    torch.testing.assert_close(called(module, wrapped), 0.5 * called(module, model), rtol=1e-5, atol=1e-6)
    assert wrapped.model_options == before


def test_replaced_attention_is_of_this_call_alone(module, model):
    """Another pack's patch is handed over, ours stands in its place for this call, and the MODEL keeps theirs."""
    theirs, found = [], []
    patched = model.clone()

    def pack(q, k, v, options):
        theirs.append(options["block"])
        return torch.zeros_like(q)

    patched.set_model_attn2_replace(pack, "middle", 0)
    options = patched.model_options["transformer_options"]["patches_replace"]

    def replace(attn2):
        found.append(dict(attn2))
        attn2["middle", 0] = lambda q, k, v, options: torch.ones_like(q)

    plain = called(module, model)
    ours = called(module, patched, replace=replace)
    assert not theirs and list(found[0].values()) == [pack] and options["attn2"] == {("middle", 0): pack}
    kept = called(module, patched)
    assert theirs == [("middle", 0)]
    assert not torch.allclose(plain, ours) and not torch.allclose(kept, ours)


def test_training_attends_in_pytorch_whatever_another_pack_has(module, model):
    calls = []

    def override(func, *args, **kwargs):
        calls.append(1)
        if torch.is_grad_enabled():
            raise RuntimeError("no backward")
        return func(*args, **kwargs)

    overridden = model.clone()
    overridden.model_options["transformer_options"]["optimized_attention_override"] = override
    forward = called(module, overridden)
    assert calls and torch.equal(forward, called(module, model))
    calls.clear()
    trained = called(module, overridden, grad=True)
    # What it is trained towards needs no gradient, and attends in the same way.
    with torch.no_grad():
        taught = module.predict(overridden, latents(1), torch.tensor([2.0]), conditioning(overridden)[0])
    torch.testing.assert_close(taught, trained.detach(), rtol=1e-5, atol=1e-5)
    assert not calls and overridden.model_options["transformer_options"]["optimized_attention_override"] is override
    torch.testing.assert_close(trained.detach(), forward, rtol=1e-3, atol=1e-4)


def test_training_attends_in_pytorch_whatever_the_host_chose(module, model, monkeypatch):
    """Where the host was started with a kernel that has no backward, in every attention."""
    from comfy.ldm.modules import attention

    calls, pytorchs, in_pytorch = [], [], module.attention_pytorch

    @attention.wrap_attn
    def chosen(*args, **kwargs):
        calls.append(1)
        if torch.is_grad_enabled():
            raise RuntimeError("no backward")
        return attention.attention_pytorch(*args, **kwargs)

    monkeypatch.setattr(attention, "optimized_attention", chosen)
    monkeypatch.setattr(attention, "optimized_attention_masked", chosen)
    monkeypatch.setattr(module, "attention_pytorch", lambda *a, **k: pytorchs.append(1) or in_pytorch(*a, **k))
    forward = called(module, model)
    count = len(calls)
    assert count and not pytorchs
    trained = called(module, model, grad=True)
    assert len(calls) == count and len(pytorchs) == count
    torch.testing.assert_close(trained.detach(), forward, rtol=1e-4, atol=1e-5)


def test_the_host_is_left_as_it_was_when_a_patch_fails(module, model):
    broken = model.clone()

    def fails(q, k, v, options):
        raise ZeroDivisionError

    broken.set_model_attn1_replace(fails, "middle", 0)
    plain = called(module, model)
    with pytest.raises(ZeroDivisionError):
        called(module, broken)
    assert torch.equal(called(module, model), plain)
