"""The baselines' first losses through the real host, against what the host's own sampler and attention give."""

import pytest
import torch

from tests.baselines import runner
from tests.kinds import conditioning, latents, unet
from tests.stages import images
from tests.test_refine_node import concepts

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def run(comfy_host, demo):
    return runner(comfy_host, demo)


@pytest.fixture
def trainee(comfy_host, demo):
    """A Trainee of the demo model's cross-attentions with the texts "", "a photo of the dog", "a photo of the sky"."""
    module, forward = comfy_host.module("nodes.baselines.trainee"), comfy_host.module("nodes.host.model.forward")
    prompts = ["", "a photo of the dog", "a photo of the sky"]
    with torch.inference_mode():
        texts = module.Texts.of(comfy_host.module("nodes.host.text").TextEncoder(demo[1]), demo[0], prompts)
    with forward.trainable_copy(demo[0]) as copy:
        yield module.Trainee(copy, comfy_host.module("mace.baselines.parts").cross_attention, texts)


def host_sample(host, model, clip, prompts, noise, sigmas, guidance):
    """What the host's own sampler makes of the noise at the last sigma, in the model's own scale."""
    import comfy.sample
    import comfy.samplers

    positive, negative = (
        [[torch.cat([host.encode(clip, prompt)[0][0] for prompt in row]), {}]] for row in (prompts, [""] * len(prompts))
    )
    with torch.inference_mode():
        made = comfy.sample.sample_custom(
            model,
            noise,
            guidance,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            positive,
            negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )
        return model.model.process_latent_in(made).clone()


def eps_of(host, model, clip, x, sigma, prompt):
    from comfy import model_management

    model_management.load_models_gpu([model])
    with torch.inference_mode():
        context = host.encode(clip, prompt)[0][0].expand(len(x), -1, -1)
        clean = model.model.apply_model(x, sigma, c_crossattn=context)
        return ((x - clean) / sigma.view(-1, 1, 1, 1)).double()


@pytest.mark.long
def test_esds_first_loss(comfy_host, demo, run):
    """The partial sample by the host's own sampler, and the objective written out."""
    model, clip, _ = demo
    generator = comfy_host.module("mace.method.train").stream(0, "baseline", "draws")
    torch.randint(1, (), generator=generator)
    timestep = int(comfy_host.module("mace.method.schedule").Uniform().sample(1, generator))
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    steps = [t for t in (999, 749, 499, 249) if t > timestep] + [timestep]
    assert len(steps) > 2
    sigmas = model.model.model_sampling.sigma(torch.tensor(steps, dtype=torch.float32))
    prompt = "a photo of the dog"
    x = host_sample(comfy_host, model, clip, [prompt] * 2, noise, sigmas, 3.0)
    level = sigmas[-1].expand(2)
    named, bare = (eps_of(comfy_host, model, clip, x, level, text) for text in (prompt, ""))
    wanted = bare - 1.0 * (named - bare)
    expected = float(((named - wanted) ** 2).mean())
    assert run("ESD", steps=1)[1]["loss"][0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.long
def test_esds_loss_falls(comfy_host, trainee):
    """On samples that stay as they are. The node's own change as it learns, and their loss may rise at first."""
    objectives, fitting = (comfy_host.module(f"mace.baselines.{name}") for name in ("objectives", "fitting"))
    sigmas = trainee.sigmas([900, 600])
    noise = trainee.noise(2, (64, 64), torch.Generator().manual_seed(0))
    x = torch.cat([trainee.start(noise[row : row + 1], sigmas[row]) for row in range(2)])
    concept, nothing = trainee.rows([1, 1]), trainee.rows([0, 0])

    def loss_of(generator):
        return objectives.esd_loss(trainee.predict, trainee.original, x, sigmas, concept, nothing, 1.0)

    losses = fitting.fit(trainee.masters, loss_of, fitting.Fit(20, 1e-4))
    assert losses[-1] < 0.5 * losses[0]


def test_anchor_images_are_the_hosts(comfy_host, demo, trainee):
    """And what Concept Ablation trains on: rows, pictures by prompt in turn."""
    model, clip, _ = demo
    module = comfy_host.module("nodes.baselines.ablation")
    pictures = [module.Picture(2, (1,)), module.Picture(1, (2,)), module.Picture(2, (1,))]
    progress = comfy_host.module("nodes.host.progress").LossProgress(3)
    found = module.anchor_images(trainee, pictures, 2, (64, 64), 3, 4.0, 7, progress)
    assert progress.bar.current == 3
    generator = comfy_host.module("mace.method.train").stream(7, "baseline", "anchor images")
    noise = torch.cat([torch.randn(count, 4, 8, 8, generator=generator) for count in (2, 1)])
    sigmas = model.model.model_sampling.sigma(torch.tensor([999.0, 666.0, 332.0, 0.0]))
    prompts = ["a photo of the sky", "a photo of the dog", "a photo of the sky"]
    expected = host_sample(comfy_host, model, clip, prompts, noise, torch.cat([sigmas, torch.zeros(1)]), 4.0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)


def test_the_ablations_plan(comfy_host):
    module = comfy_host.module("nodes.baselines.ablation")
    chosen = concepts(comfy_host, "dog | pooch -> sky\nship -> ground")
    prompts, pictures = module.plan(chosen, 45)
    assert prompts[0] == "" and len(pictures) == 90
    templates = chosen[0].prompts
    for place, picture in enumerate(pictures[:45]):
        template = templates[place % len(templates)]
        assert prompts[picture.anchor] == template.format("sky")
        assert [prompts[row] for row in picture.targets] == [template.format(word) for word in ("dog", "pooch")]
    assert prompts[pictures[45].anchor] == templates[0].format("ground") and len(pictures[45].targets) == 1
    assert len(module.plan(chosen, 2)[0]) == 1 + 2 * 3 + 2 * 2


@pytest.mark.parametrize("end_of_text, positions", [(False, [5]), (True, [5, *range(6, 77)])])
def test_forget_me_nots_first_loss(comfy_host, demo, run, end_of_text, positions):
    """The sum of squares of the host's own attention probabilities to the concept's tokens, in float64."""
    from comfy import model_management

    model, clip, _ = demo
    shown = images(comfy_host, demo, concepts(comfy_host, "dog -> sky"))[0]
    generator = comfy_host.module("mace.method.train").stream(0, "baseline", "draws")
    torch.randint(1, (1,), generator=generator)
    latents = shown[0].latents[int(torch.randint(len(shown[0]), (), generator=generator))][None].clone()
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    timestep = comfy_host.module("mace.method.schedule").Uniform().sample(1, generator)
    sigma = model.model.model_sampling.sigma(timestep.float())
    total = []

    def watch(q, k, v, options):
        from comfy.ldm.modules.attention import attention_pytorch

        heads = options["n_heads"]
        for queries, keys in zip(q[0].double().chunk(heads, -1), k[0].double().chunk(heads, -1), strict=True):
            chances = torch.softmax(queries @ keys.T / queries.shape[-1] ** 0.5, dim=-1)
            total.append(float((chances[:, positions] ** 2).sum()))
        return attention_pytorch(q, k, v, heads)

    watched = model.clone()
    for block in ("input", 1), ("middle", 0), ("output", 0), ("output", 1):
        watched.set_model_attn2_replace(watch, *block)
    model_management.load_models_gpu([watched])
    with torch.inference_mode():
        x = model.model.process_latent_in(latents) + sigma * noise
        context = comfy_host.encode(clip, "a photo of the dog")[0][0]
        options = watched.model_options["transformer_options"]
        watched.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options)
    assert len(total) == 4 * 8
    found = run("FMN", steps=1, end_of_text=end_of_text)[1]["loss"][0]
    assert found == pytest.approx(sum(total), rel=1e-4)


def test_sdxls_size_and_pooled_text(comfy_host):
    """A small network in SDXL's layout with random weights: y goes in as the host makes it, and gradients come out."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    config = comfy.supported_models.SDXL(
        dict(
            image_size=32,
            in_channels=4,
            out_channels=4,
            model_channels=64,
            num_res_blocks=[1, 1],
            channel_mult=[1, 1],
            use_spatial_transformer=True,
            use_linear_in_transformer=True,
            transformer_depth=[0, 1],
            transformer_depth_middle=1,
            transformer_depth_output=[0, 0, 1, 1],
            context_dim=2048,
            num_classes="sequential",
            adm_in_channels=2816,
            legacy=False,
            dtype=torch.float32,
        )
    )
    config.manual_cast_dtype = None
    network = config.get_model({})
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.requires_grad_(False).normal_(std=0.05, generator=generator)
    model = ModelPatcher(network, torch.device("cpu"), torch.device("cpu"))
    parts, module = comfy_host.module("mace.baselines.parts"), comfy_host.module("nodes.baselines.trainee")
    texts = module.Texts(*(torch.randn(3, *shape, generator=generator) for shape in ((77, 2048), (1280,))))
    trainee = module.Trainee(model, parts.cross_attention, texts)
    x = torch.randn(2, 4, 8, 16, generator=generator)
    sigma, rows = torch.tensor([2.0, 0.5]), trainee.rows([2, 1])
    found = trainee.predict(x, sigma, rows)
    for sample, row in enumerate((2, 1)):
        y = network.encode_adm(device="cpu", pooled_output=texts.pooled[row : row + 1], width=128, height=64)
        part = slice(sample, sample + 1)
        clean = network.apply_model(x[part], sigma[part], c_crossattn=texts.contexts[row : row + 1], y=y)
        torch.testing.assert_close(found[part], (x[part] - clean) / sigma[part], rtol=1e-3, atol=1e-4)
    found.square().mean().backward()
    assert all(master.grad is not None and master.grad.any() for master in trainee.masters.values())
    names = {name for name, _ in network.named_parameters() if parts.unconditional(name)}
    assert names and not any("label_emb" in name or "attn2" in name for name in names)


# A CPU takes several times as long in fp16.
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.long)], ids=str)
def test_a_first_step_at_a_small_rate_reaches_the_forward_in_half_precision(comfy_host, dtype):
    """Adam moves every weight by the rate. How much of what that does to keys and values is in them, least squares.

    Of weights rounded to the model's dtype they show a hundredth in bf16, a quarter in fp16 at 2e-6.
    """
    module, forward = comfy_host.module("nodes.baselines.trainee"), comfy_host.module("nodes.host.model.forward")
    parts = comfy_host.module("mace.baselines.parts")
    model = unet("sd15", dtype)
    model.set_model_compute_dtype(dtype)
    texts, seen = module.Texts(*conditioning(model, 4)), {}
    with forward.trainable_copy(model) as copy:
        trainee = module.Trainee(copy, parts.keys_and_values, texts)
        for name in trainee.masters:
            layer = copy.model.get_submodule(name.removesuffix(".weight"))
            layer.register_forward_hook(lambda _, given, out, name=name: seen.update({name: (given[0], out)}))

        def outputs():
            with torch.no_grad():
                trainee.predict(latents(4), torch.ones(4), trainee.rows([0, 1, 2, 3]))
            return {name: (given.double(), out.double()) for name, (given, out) in seen.items()}

        start = outputs()
        assert {out.dtype for _, out in seen.values()} == {dtype} and len(start) == len(trainee.masters)
        own = {name: master.detach().clone() for name, master in trainee.masters.items()}
        steps = {name: torch.where(master.detach() < 0, -1.0, 1.0) for name, master in trainee.masters.items()}
        for rate in (2e-6, 1e-5):
            for name, master in trainee.masters.items():
                master.data = own[name] + rate * steps[name]
            moved = outputs()
            for name, (given, out) in moved.items():
                exact = given @ (trainee.masters[name].detach().double() - own[name].double()).T
                share = float(((out - start[name][1]) * exact).sum() / exact.square().sum())
                assert share == pytest.approx(1, abs=0.2), (name, rate)
