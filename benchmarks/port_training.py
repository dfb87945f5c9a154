"""Training LoRAs at the text ports of the small SD3, against what closed form alone erases there.

    python dev.py run python -m benchmarks.port_training [--search]

Nothing of the host is replaced: a forward hook on each port adds B A x of each sample's own LoRA, and the attention of
picture to text rows is read by the host's attention override, in every block. What is trained away is Eq. 3's loss, on
pictures that the model draws and masks from its own attention; the LoRAs are fused by Eq. 7 at the tokens' port, and by
the same equation at the pooled text's. Weights of the refinement are those of benchmarks.transformer, whose questions
are asked. --search: ways to train, asked with another seed. The last line is one JSON object with a row for each way;
each row is written to benchmarks/results as it is found.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.erasure.questions import SEED
from benchmarks.erasure.tasks import TEN
from benchmarks.small_model import SD3, Small
from benchmarks.transformer import ALONE, FOUND, MODEL, RESULTS
from mace.masks.maps import average_maps, mask_of_map
from mace.method.focus import directions, selected_moment
from mace.method.fuse import FuseWeights, fuse
from mace.method.lora import per_sample
from mace.method.loss import SQUARED, grid_mask, masked_loss, spread_over, token_attention
from mace.method.refine import READING
from mace.method.sums import pooled_of
from mace.method.train import Example, TrainSettings, train

PICTURES = dict(count=8, width=64, height=64, steps=10, cfg=4.0, sampler_name="euler", scheduler="normal", seed=0)
TOKENS, POOLED = "diffusion_model.context_embedder.weight", "diffusion_model.y_embedder.mlp.0.weight"
WINDOW, PATCH, END_OF_TEXT = 77, 2, 49407
# At which timesteps the model's attention says where a thing is.
LOOKED_AT = (100, 250, 400)


@dataclass(frozen=True)
class Way:
    """How to train. own_words: of the refinement that is trained on.  ports: which have LoRAs.  end: whether Eq. 3's
    tokens include end-of-text and padding.  mu: of Eq. 7; None: the LoRA is put on as it is, without a fusion."""

    rate: float
    steps: int = 50
    own_words: str = "on"
    ports: tuple[str, ...] = (TOKENS,)
    focus: bool = False
    end: bool = False
    lambda2: float = 1e-4
    mu: float | None = 1e4


# The refinement's own words, where nothing is trained; then ways to train, each with fusions of what was trained.
SEARCHED: tuple[str | Way, ...] = (
    "on",
    *(
        replace(way, lambda2=lambda2, mu=mu)
        for way in (
            Way(5e-3, focus=True, end=True),
            Way(2e-2, focus=True, end=True),
            Way(1e-3, end=True),
            Way(5e-3, end=True),
            Way(1e-3, end=True, ports=(TOKENS, POOLED)),
        )
        for lambda2, mu in ((0.0, None), (1e-4, 1e4), (1e-5, 1e3), (1e-6, 1e2))
    ),
)
CHOSEN = SEARCHED


class Attention:
    """A host's attention override that keeps the probabilities of picture rows for text rows, [B, heads, pixels, 77]."""

    def __init__(self):
        self.seen: list[Tensor] = []

    def __call__(self, func, q, k, v, heads, *args, **options):
        from comfy.ldm.modules.attention import attention_pytorch

        self.seen.append(token_attention(q[:, WINDOW:], k, heads)[..., :WINDOW])
        return attention_pytorch(q, k, v, heads, *args, **options)


@contextmanager
def with_loras(network, stacked):
    """Each sample's own LoRA at the ports. stacked: (B [C, d_out, r], A [C, r, d]) by weight."""

    def adding(pair):
        def hook(module, given, out):
            x = given[0] if given[0].dim() == 3 else given[0][:, None]
            return out + per_sample(x, *pair).view_as(out)

        return hook

    handles = [
        network.get_submodule(key.removeprefix("diffusion_model.").removesuffix(".weight")).register_forward_hook(
            adding(pair)
        )
        for key, pair in stacked.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Ports:
    """Trains and fuses LoRAs at the ports of a small SD3."""

    def __init__(self, small: Small):
        self.small, self.pack = small, small.host.module
        self.forward, self.predict = self.pack("nodes.host.model.forward"), self.pack("nodes.host.model.predict")
        self.unet, self.refine = self.pack("nodes.host.model.unet"), self.pack("nodes.stages.refine")
        self.text = self.pack("nodes.host.port_text").PortText(small.model, small.clip)
        self._masks: dict[str, tuple[Tensor, Tensor]] = {}
        self._refined: dict[tuple, object] = {}
        self._trained: dict[tuple, list] = {}

    def looked(self, model, latents: Tensor, timesteps: Sequence[int], contexts: Tensor, pooled: Tensor, noise: Tensor):
        """Attention of each block to the texts [B, 77, d], pooled [B, c], at noisy latents [B, ch, h, w]."""
        from comfy.model_patcher import create_model_options_clone

        x, sigmas = self.predict.noisy(model, latents, noise, timesteps)
        watch = Attention()
        options = create_model_options_clone(model.model_options)
        options.setdefault("transformer_options", {})["optimized_attention_override"] = watch
        self.predict.call(model, x, sigmas, [[contexts, {"pooled_output": pooled}]], options)
        return watch.seen

    def rows_of(self, concept, template: str, phrase: str) -> tuple[int, ...]:
        """The concept's own rows of text."""
        prompts = template.replace("{}", phrase), template.replace("{}", concept.mapping)
        f, g = (each.rows for each in self.text.features(prompts))
        return self.text.pair(template, phrase, concept.mapping, f, g).phrase

    def pictures(self, concept) -> tuple[Tensor, Tensor]:
        """(latents [n, ch, h, w], masks [n, H, W]) of a concept, drawn by the model and found by its own attention."""
        if concept.target not in self._masks:
            small = self.small
            images = self.pack("nodes.stages.images").make_images(
                small.model, small.clip, small.vae, (concept,), "auto", "", PICTURES
            )[0]
            context, pooled = small.studio.conditioning(images.template.replace("{}", concept.target))
            count, maps = len(images), []
            for timestep in LOOKED_AT:
                noise = torch.randn(images.latents.shape, generator=torch.Generator().manual_seed(timestep))
                seen = self.looked(
                    small.model, images.latents, [timestep] * count,
                    context.expand(count, -1, -1), pooled.expand(count, -1), noise,
                )  # fmt: skip
                rows = list(self.rows_of(concept, images.template, concept.target))
                side = images.latents.shape[-1] // PATCH
                maps += [own[..., rows].sum(-1).mean(1).unflatten(1, (side, side)) for own in seen]
            masks = mask_of_map(average_maps(maps), *images.pictures.shape[1:3])
            masks[masks.flatten(1).amax(1) == 0] = 1
            self._masks[concept.target] = images.latents.clone(), masks
        return self._masks[concept.target]

    def material(self, concept, end: bool):
        """(latents, masks, contexts [P, 77, d], pooled [P, c], own rows and rows of Eq. 3 [P, 77]) of a concept."""
        own, chosen, encoded = [], [], []
        for template, phrase in concept.readings:
            prompt = template.replace("{}", phrase)
            rows = self.rows_of(concept, template, phrase)
            tokens = [token for token, _ in self.small.clip.tokenize(prompt)["l"][0]]
            spread = spread_over(rows, tokens.index(END_OF_TEXT), WINDOW, end)
            own.append(torch.zeros(WINDOW).index_fill(0, torch.tensor(rows), 1.0))
            chosen.append(torch.zeros(WINDOW).index_fill(0, torch.tensor(spread), 1.0))
            encoded.append(self.small.studio.conditioning(prompt))
        contexts, pooled = (torch.stack(side).float().clone() for side in zip(*encoded, strict=True))
        latents, masks = (part.float().clone() for part in self.pictures(concept))
        return latents, masks, contexts, pooled, torch.stack(own), torch.stack(chosen)

    def trained(self, refined, concepts, way: Way) -> list[dict[str, tuple[Tensor, Tensor]]]:
        """A LoRA a concept, trained side by side on a refined MODEL."""
        with torch.inference_mode():
            inside = [self.material(concept, way.end) for concept in concepts]
        inside = [[part.clone() for part in own] for own in inside]
        found = None
        if way.focus:
            caption = self.small.prior.mean.clone()
            metric = self.unet.reading(self.small.model, READING, [TOKENS]).clone()
            found = [
                directions(*selected_moment(texts, own, chosen - own if way.end else None), caption, 1, None, metric)
                for _, _, texts, _, own, chosen in inside
            ]
        examples = [
            Example(concept.target, len(latents), len(texts), tuple(latents.shape[1:]))
            for concept, (latents, _, texts, *_) in zip(concepts, inside, strict=True)
        ]
        settings = TrainSettings(steps=way.steps, learning_rate=way.rate)
        weights = self.small.model.model.state_dict()
        shapes = {key: tuple(weights[key].shape) for key in way.ports}
        with self.forward.trainable_copy(refined) as copy:

            def losses_of(drawn, stacked):
                def gather(part: int, place: str) -> Tensor:
                    return torch.stack([own[part][getattr(d, place)] for own, d in zip(inside, drawn, strict=True)])

                latents, masks = gather(0, "image"), gather(1, "image")
                contexts, pooled, chosen = (gather(part, "prompt") for part in (2, 3, 5))
                noise = torch.stack([d.noise for d in drawn])
                with with_loras(copy.model.diffusion_model, stacked):
                    seen = self.looked(copy, latents, [d.timestep for d in drawn], contexts, pooled, noise)
                side = latents.shape[-1] // PATCH
                mask = grid_mask(masks, side, side)
                return torch.stack([masked_loss(own, chosen, mask, SQUARED) for own in seen]).sum(0)

            loras, losses = train(examples, shapes, losses_of, settings, directions=found)
        print(f"losses {float(losses[:5].mean()):.4g} to {float(losses[-5:].mean()):.4g}", flush=True)
        return loras

    def erased(self, names: Sequence[str], way: Way):
        """The MODEL without some concepts, with trained LoRAs in it."""
        small = self.small
        concepts = small.chosen(names)
        refined = self.refined(names, way.own_words)
        refinement = refined.get_attachment(self.unet.REFINEMENT)
        key = tuple(names), replace(way, lambda2=0.0, mu=None)
        if key not in self._trained:
            self._trained[key] = self.trained(refined, concepts, way)
        loras = self._trained[key]
        if way.mu is None:
            (lora,) = loras
            with torch.inference_mode():
                return self.unet.patched(
                    refined, list(way.ports), lambda key, _: lora[key][0] @ lora[key][1], 1.0, lambda step: None
                )
        moments, prior = refinement.moments, small.prior
        scale = self.refine.mean_square(moments, self.text.width)
        weights = replace(refinement.weights, mu=refinement.weights.mu * scale)
        how = FuseWeights(way.lambda2, mu=way.mu * scale)
        with torch.inference_mode():
            tokens = fuse(
                moments, _only(loras, TOKENS), weights, how, prior.general_moment(),
                metric=self.unet.reading(small.model, weights.metric, [TOKENS]),
            )  # fmt: skip
            own = pooled_of(moments)
            share = sum(m.size for m in moments) / sum(m.size for m in own)
            pooled = fuse(
                own, _only(loras, POOLED), replace(weights, mu=weights.mu * share), replace(how, mu=how.mu * share),
                prior.pooled_moments()[0],
                metric=self.unet.pooled_reading(small.model, weights.metric, POOLED, own[0].cross.shape[0]),
            )  # fmt: skip
            by_key = {TOKENS: tokens, POOLED: pooled}
            return self.unet.patched(
                small.model, list(by_key), lambda key, weight: by_key[key].delta(key, weight), 1.0, lambda step: None
            )

    def refined(self, names: Sequence[str], own_words: str):
        """The MODEL without some concepts by closed form alone; the last ones are kept."""
        key = tuple(names), own_words
        if key not in self._refined:
            self._refined[key] = self.small.refined(names, FOUND, own_words, True)
        return self._refined[key]


def _only(loras, key: str) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """The LoRAs' part at one port."""
    return [{name: pair for name, pair in lora.items() if name == key} for lora in loras]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--search", action="store_true", help="ways to train, on two lists")
    options = parser.parse_args()
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        small = Small(Path(folder), MODEL, SD3)
        ports = Ports(small)
        out = RESULTS / f"port_training{'_search' if options.search else ''}.json"
        lists = {name: (name,) for name in (ALONE[:1] if options.search else ALONE)} | {"ten": TEN}
        for name, names in lists.items():
            groups = small.questions(names, 500 if options.search else SEED)
            for way in SEARCHED if options.search else CHOSEN:
                if isinstance(way, str):
                    model, about = ports.refined(names, way), {"own words": way, "trained": False}
                elif way.mu is None and len(names) > 1:
                    continue
                else:
                    model, about = ports.erased(names, way), {"trained": True} | asdict(way)
                rows.append({"concepts": name} | about | small.shares(model, groups))
                print(rows[-1], flush=True)
                out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
