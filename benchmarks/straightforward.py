"""The straightforward way of training one erasure LoRA in the host (Eq. 3, 4), for benchmarks.training.

Batch 1. In every step the LoRA is merged into the weights (W' + B A), the attention maps of all layers and all tokens
are kept in a list, and the loss is summed from them after the forward pass. Draws, initial values, noise, timesteps,
each layer's mask and the settings of the optimizer are the pack's own, so that both ways train the same thing.
"""

import time

import torch


class Straightforward:
    """pack: name of a module of the pack -> the module, as the host loaded it.  settings:
    mace.method.train.TrainSettings.  cached: whether prompts and pictures are encoded once, or each in every step.
    seconds: spent on encoding."""

    def __init__(self, pack, clip, vae, settings, cached):
        self.pack, self.clip, self.vae, self.settings, self.cached = pack, clip, vae, settings, cached
        self.encoder = pack("nodes.host.text").TextEncoder(clip)
        self.seconds = {"text": 0.0, "vae": 0.0}

    def train(self, copy, drawn, masks):
        """(LoRA, losses [steps]) of one concept. copy: of `trainable_copy`.  drawn: ConceptImages."""
        concept, train = drawn.concept, self.pack("mace.method.train")
        prompts = [template.replace("{}", concept.target) for template in concept.prompts]
        with torch.inference_mode():
            positions = [self.encoder.pair(t, concept.target, concept.mapping).phrase for t in concept.prompts]
        if self.cached:
            parts = [self.texts(prompts[start : start + 16]) for start in range(0, len(prompts), 16)]
            contexts, latents = torch.cat(parts), self.latents(drawn.as_image)
        merged = Merged(self.pack, copy)
        example = train.Example(concept.target, len(drawn), len(prompts), tuple(drawn.latents.shape[1:]))
        shapes = {key: tuple(weight.shape) for key, weight in merged.weights.items()}
        start = train.initial([example], shapes, self.settings)
        lora = {key: tuple(side[0].detach().requires_grad_(True) for side in pair) for key, pair in start.items()}
        parameters = [side for pair in lora.values() for side in pair]
        optimizer = torch.optim.AdamW(
            parameters, lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        history = []
        for draw in train.draws(example, self.settings):
            if self.cached:
                context, latent = contexts[draw.prompt][None], latents[draw.image][None]
            else:
                context, latent = self.texts([prompts[draw.prompt]]), self.latents(drawn.as_image[draw.image][None])
            loss = merged.loss(draw, latent, context, lora, positions[draw.prompt], masks[draw.image])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip)
            optimizer.step()
            history.append(loss.detach())
        return {key: (up.detach(), down.detach()) for key, (up, down) in lora.items()}, torch.stack(history)

    def texts(self, prompts):
        """Embeddings [B, 77, d] by the host's text encoder."""
        start = time.perf_counter()
        with torch.inference_mode():
            found = self.encoder.encode(prompts)
        found = found.to("cpu", torch.float32, copy=True)
        self.seconds["text"] += time.perf_counter() - start
        return found

    def latents(self, pictures):
        """Latents of pictures [B, H, W, 3] by the host's VAE, in the VAE's scale."""
        start = time.perf_counter()
        with torch.inference_mode():
            found = self.vae.encode(pictures)
        found = found.to("cpu", torch.float32, copy=True)
        self.seconds["vae"] += time.perf_counter() - start
        return found


class Merged(torch.nn.Module):
    """The host's forward pass with other weights for to_k and to_v, giving the attention maps of all layers."""

    def __init__(self, pack, copy):
        super().__init__()
        self.network = copy.model
        self.model = pack("nodes.host.model.forward").ModelDenoiser(copy)
        self.grid_mask = pack("mace.method.loss").grid_mask
        state = dict(copy.model.named_parameters())
        self.weights = {key: state[key] for key in pack("nodes.host.model.unet").cross_attention_keys(copy)}

    def forward(self, x, sigmas, context):
        """[(maps [1, heads, pixels, tokens], (height, width))], one a layer."""
        maps = []

        def attend(layer, at):
            q, k, v = (part.unflatten(-1, (at.heads, -1)).transpose(1, 2) for part in (at.q, at.k, at.v))
            attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
            maps.append((attention, at.grid))
            return (attention @ v).transpose(1, 2).flatten(2)

        self.model.predict(x, sigmas, context, None, attend)
        return maps

    def loss(self, draw, latent, context, lora, positions, mask):
        """Eq. 3 of one draw."""
        x, sigmas = self.model.noisy(latent, draw.noise[None], [draw.timestep])
        weights = {f"network.{key}": self.weights[key] + up @ down for key, (up, down) in lora.items()}
        total = torch.zeros(())
        for maps, (height, width) in torch.func.functional_call(self, weights, (x, sigmas, context)):
            grid = self.grid_mask(mask[None], height, width)[0]
            for token in positions:
                total = total + (maps[0, :, :, token] * grid).square().sum()
        return total
