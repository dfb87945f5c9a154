"""Safe latent diffusion: its equations written out number by number, and the node in the real host."""

from pathlib import Path

import pytest
import torch

from mace.baselines.sld import CONFIGURATIONS, SafetyGuidance, SafetySettings, step_at
from tests.judge import Judge

STEPS, CFG = 6, 4.0
EVERY = SafetySettings(3.0, 2, 0.1, 0.5, 0.7)


def written_out(plain, prompt, safety, nu, settings):
    """(gamma, the next nu) of one number each."""
    phi = settings.scale * (prompt - safety)
    mu = min(1.0, abs(phi)) if prompt - safety < settings.threshold else 0.0
    gamma = mu * (safety - plain) + settings.momentum * nu
    return gamma, settings.beta * nu + (1 - settings.beta) * gamma


def predictions(steps, size=40):
    random = torch.Generator().manual_seed(0)
    return torch.randn(steps, 3, size, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("settings", [*CONFIGURATIONS.values(), EVERY])
def test_every_number_follows_the_equations(settings):
    guidance, momentum = SafetyGuidance(settings), [0.0] * 40
    for step, (plain, prompt, safety) in enumerate(predictions(18)):
        rows = zip(plain.tolist(), prompt.tolist(), safety.tolist(), momentum, strict=True)
        expected, momentum = zip(*(written_out(*row, settings) for row in rows), strict=True)
        found = guidance(step, plain, prompt, safety)
        wanted = torch.tensor(expected, dtype=torch.float64) if step >= settings.warmup else torch.zeros(40)
        torch.testing.assert_close(found, wanted.to(found), rtol=1e-12, atol=1e-13)


def test_a_second_prediction_in_a_step_leaves_the_momentum():
    once, twice = SafetyGuidance(EVERY), SafetyGuidance(EVERY)
    for step, rows in enumerate(predictions(6)):
        first = once(step, *rows)
        torch.testing.assert_close(twice(step, *rows), first, rtol=0, atol=0)
        twice(step, *(5 * rows.flip(0)))


def test_steps_of_a_schedule():
    levels = [14.6, 7.0, 3.0, 1.0, 0.0]
    assert [step_at(level, levels) for level in levels[:-1]] == [0, 1, 2, 3]
    assert step_at(5.0, levels) == 1 and step_at(0.4, levels) == 3
    # Raised above the schedule by a sampler's noise, or a rounding off it.
    assert step_at(15.0, levels) == 0 and step_at(7.0 * (1 + 1e-6), levels) == 1


def guided(host, demo, text="dog", preset="custom", **settings):
    return host.run("MACE_BaselineSLD", model=demo[0], clip=demo[1], preset=preset, text=text, **settings)[0]


def drawn(host, demo, model, seed=3, **how):
    how = {**dict(steps=STEPS, cfg=CFG, sampler="euler", batch=2), **how}
    return host.sample(model, demo[1], "a photo of the dog", seed=seed, **how)


@pytest.mark.host
def test_off_and_warming_up_are_plain_sampling_to_the_bit(comfy_host, demo):
    plain = drawn(comfy_host, demo, demo[0])
    assert torch.equal(drawn(comfy_host, demo, guided(comfy_host, demo, scale=0.0)), plain)
    for off in (dict(warmup=50.0), dict(warmup=float(STEPS), scale_warmup=False)):
        assert torch.equal(drawn(comfy_host, demo, guided(comfy_host, demo, **off)), plain)
    last = guided(comfy_host, demo, warmup=float(STEPS - 1), scale_warmup=False)
    assert not torch.equal(drawn(comfy_host, demo, last), plain)


@pytest.mark.host
@pytest.mark.parametrize("cfg", [CFG, 1.0])
def test_sampling_equals_the_equations_in_noise(comfy_host, demo, cfg):
    """Euler's method on the noise, written out with the model alone; at a guidance of 1 too."""
    model, clip, _ = demo
    node = guided(comfy_host, demo, **{**vars(EVERY), "warmup": 20.0})
    import comfy.model_management
    import comfy.sample
    import comfy.samplers

    latents = torch.zeros(1, 4, 8, 8)
    sampling = model.get_model_object("model_sampling")
    levels = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS).tolist()
    comfy.model_management.load_models_gpu([model])
    texts = [comfy_host.encode(clip, text)[0][0] for text in ("", "a photo of the dog", "dog")]
    with torch.inference_mode():
        x = sampling.noise_scaling(
            torch.tensor([levels[0]]), comfy.sample.prepare_noise(latents, 3), latents, True
        ).double()
        nu = torch.zeros_like(x)
        for step, (level, following) in enumerate(zip(levels, levels[1:], strict=False)):
            sigma = torch.tensor([level])
            found = [model.model.apply_model(x.float(), sigma, c_crossattn=text).double() for text in texts]
            plain, prompt, safety = ((x - clean) / level for clean in found)
            phi = EVERY.scale * (prompt - safety)
            mu = torch.where(prompt - safety < EVERY.threshold, torch.clamp(phi.abs(), max=1.0), 0.0)
            gamma = mu * (safety - plain) + EVERY.momentum * nu
            nu = EVERY.beta * nu + (1 - EVERY.beta) * gamma
            # 20 of the published 50 steps are 2.4 of these 6.
            active = step >= 3
            noise = plain + cfg * (prompt - plain - (gamma if active else 0))
            x = x + (following - level) * noise
        expected = model.model.process_latent_out(x.float())
    found = drawn(comfy_host, demo, node, batch=1, cfg=cfg)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))
    assert (found - drawn(comfy_host, demo, model, batch=1, cfg=cfg)).abs().max() > 0.05 * expected.abs().max()


@pytest.mark.long
@pytest.mark.host
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_runs_do_not_know_each_other(comfy_host, demo, sampler):
    """The same seed gives the same latents, whatever was drawn between, in a batch of another size too."""
    node = guided(comfy_host, demo, preset="strong")
    first = drawn(comfy_host, demo, node, sampler=sampler)
    drawn(comfy_host, demo, node, seed=8, batch=1, sampler=sampler)
    assert torch.equal(drawn(comfy_host, demo, node, sampler=sampler), first)


@pytest.mark.host
def test_an_interrupted_run_leaves_nothing(comfy_host, demo):
    import comfy.sample

    node = guided(comfy_host, demo, preset="max")
    first = drawn(comfy_host, demo, node, batch=1)
    empty = comfy_host.encode(demo[1], "")

    def stop(step, *_):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), torch.inference_mode():
        latents = torch.zeros(1, 4, 8, 8)
        comfy.sample.sample(
            node, latents + 1, STEPS, CFG, "euler", "normal", empty, empty, latents, callback=stop, disable_pbar=True
        )
    assert torch.equal(drawn(comfy_host, demo, node, batch=1), first)


@pytest.mark.long
@pytest.mark.host
def test_two_nodes_guide_one_run(comfy_host, demo):
    """Two halves of one safety concept's guidance: what both add is what each adds."""
    model, clip, vae = demo
    only = dict(scale=5000.0, warmup=float(STEPS - 1), threshold=1.0, momentum=0.0, scale_warmup=False)
    plain = drawn(comfy_host, demo, model)
    dog, cat = (drawn(comfy_host, demo, guided(comfy_host, demo, text, **only)) for text in ("dog", "cat"))
    both = guided(comfy_host, (guided(comfy_host, demo, "dog", **only), clip, vae), "cat", **only)
    torch.testing.assert_close(drawn(comfy_host, demo, both) - plain, (dog - plain) + (cat - plain), rtol=0, atol=1e-4)


@pytest.mark.host
def test_the_dog_goes_and_the_model_stays(comfy_host, demo):
    model, clip, vae = demo
    chosen = comfy_host.run("MACE_Concepts", concepts="dog -> sky", type="object", preset="none", prompt_file="none")[0]
    node = comfy_host.run("MACE_BaselineSLD", model=model, clip=clip, preset="max", concepts=chosen)[0]
    assert not node.patches and not model.wrappers and "sampler_post_cfg_function" not in model.model_options
    judge = Judge(Path(__file__).parent.parent / "assets/demo/judge.safetensors")
    shown = [judge.accuracy(comfy_host.decode(vae, drawn(comfy_host, demo, m, batch=4)), "dog") for m in (model, node)]
    assert shown[0] >= 0.75 and shown[1] <= 0.25


@pytest.mark.host
def test_errors_name_the_cure(comfy_host, demo):
    with pytest.raises(ValueError, match="nothing to guide away from"):
        guided(comfy_host, demo, text=" ")
    with pytest.raises(ValueError, match="negative input"):
        import comfy.samplers

        node = guided(comfy_host, demo, preset="max")
        guider = comfy.samplers.CFGGuider(node)
        guider.inner_set_conds({"positive": comfy_host.encode(demo[1], "a photo of the dog")})
        with torch.inference_mode():
            latents = torch.zeros(1, 4, 8, 8)
            guider.sample(latents + 1, latents, comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.0]))
