"""Training LoRAs at the text ports of the small SD3, against what closed form alone erases there.

    python dev.py run python -m benchmarks.port_training [--search]

Nothing of the host is replaced: a forward hook on each port adds B A x of each sample's own LoRA, and the attention of
picture to text rows is read by the host's attention override, in every block. What is trained away is Eq. 3's loss, on
pictures that the model draws and masks from its own attention. LoRAs are fused by Eq. 7 at the tokens' port, and by the
same equation at the pooled text's; for one concept they are also put on as they are. Weights of the refinement, prior
and questions are those of benchmarks.transformer. The model reads CLIP-L alone, and all is solved in its numbers: the
others are zeros in texts and weights. --search: ways to fuse, asked with another seed. The last line is one JSON object
with a row for each way; each row is written to benchmarks/results as it is found.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.erasure.questions import SEED
from benchmarks.erasure.tasks import TEN
from benchmarks.measure import Rows
from benchmarks.port_loras import WIDTH, WINDOW, Attention, with_loras
from benchmarks.small_model import EVERY_CAPTION, SD3, Small
from benchmarks.transformer import ALONE, FOUND, MODEL, RESULTS
from devtools.demo_prior import captions
from mace.masks.maps import average_maps, mask_of_map
from mace.method.focus import directions, selected_moment
from mace.method.fuse import FuseWeights, fuse
from mace.method.loss import SQUARED, grid_mask, masked_loss, spread_over
from mace.method.metric import RIDGE
from mace.method.moments import ConceptMoments, Gram, concept_moments, pack, pooled_moments
from mace.method.prior import COCO_CAPTIONS
from mace.method.refine import RefineWeights, refinement
from mace.method.tokens import fill, pair_located
from mace.method.train import Example, TrainSettings, train

PICTURES = dict(count=8, width=64, height=64, steps=10, cfg=4.0, sampler_name="euler", scheduler="normal", seed=0)
TOKENS, POOLED = "diffusion_model.context_embedder.weight", "diffusion_model.y_embedder.mlp.0.weight"
# The model's patches, and CLIP-L's token.
PATCH, END_OF_TEXT = 2, 49407
# At which timesteps the model's attention says where a thing is.
LOOKED_AT = (100, 250, 400)


@dataclass(frozen=True)
class Way:
    """How to train. own_words: of the refinement that is trained on.  ports: which have LoRAs.  end: whether Eq. 3's
    tokens include end-of-text and padding.  lambda2, mu: of Eq. 7; mu None: LoRAs are put on as they are."""

    rate: float
    steps: int = 50
    own_words: bool = True
    ports: tuple[str, ...] = (TOKENS,)
    focus: bool = False
    end: bool = True
    lambda2: float = 1e-4
    mu: float | None = 1e4


# Whether closed form alone moves own words; then a way to train, with fusions of what was trained.
SEARCHED: tuple[bool | Way, ...] = (
    True,
    *(Way(1e-3, lambda2=lambda2, mu=mu) for lambda2, mu in ((0.0, None), (1e-4, 1e4), (1e-6, 1e2))),
)
CHOSEN: tuple[bool | Way, ...] = (True, Way(1e-3, lambda2=1e-6, mu=1e2))


class Ports:
    """Closed forms and trained LoRAs at the ports of a small SD3."""

    def __init__(self, small: Small):
        self.small, self.pack = small, small.host.module
        self.forward, self.predict = self.pack("nodes.host.model.forward"), self.pack("nodes.host.model.predict")
        self.unet = self.pack("nodes.host.model.unet")
        self.section = self.pack("nodes.host.port_rows").Section(small.clip, "l")
        weights = small.model.model.state_dict()
        self.weights = {key: weights[key].float().clone() for key in (TOKENS, POOLED)}
        assert all(not weight[:, WIDTH:].any() for weight in self.weights.values())
        self._pictures: dict[str, tuple[Tensor, Tensor]] = {}
        self._trained: dict[tuple, list] = {}

    def read(self, prompt: str) -> tuple[Tensor, Tensor]:
        """(rows [77, d], pooled text [d]) of a prompt."""
        tokens, pooled = self.small.studio.conditioning(prompt)
        return tokens[:, :WIDTH].float(), pooled[:WIDTH].float()

    @cached_property
    def priors(self) -> dict[str, Tensor]:
        """The mean moment of a caption at each port, [d, d]."""
        grams = {key: Gram(WIDTH, torch.device("cpu")) for key in self.weights}
        texts = captions()[::EVERY_CAPTION]
        for text in texts:
            for gram, rows in zip(grams.values(), self.read(text), strict=True):
                gram.add(rows)
        return {key: gram.matrix / len(texts) for key, gram in grams.items()}

    @cached_property
    def metrics(self) -> dict[str, Tensor]:
        """R of what each port reads (mace.method.metric), [d, d]."""
        found = {}
        for key, weight in self.weights.items():
            rows = weight.double()
            read = (rows.T @ rows * (rows.shape[1] / rows.square().sum()))[:WIDTH, :WIDTH]
            found[key] = torch.linalg.inv(read + RIDGE * torch.eye(WIDTH, dtype=torch.float64))
        return found

    def pair(self, concept, template: str, phrase: str):
        """Which rows of a prompt pair with which of the mapping's."""
        sides = (self.section.locate(template, words) for words in (phrase, concept.mapping))
        return pair_located(*sides, (1, 1), (WINDOW, WINDOW))

    def moments(self, concept, own_words: bool) -> dict[str, ConceptMoments]:
        """A concept's sums at each port."""
        batches, vectors = [], []
        for template, phrase in concept.readings:
            pairing = self.pair(concept, template, phrase)
            pairing = pairing.with_own_words() if own_words else pairing
            (f, v), (g, w) = (self.read(fill(template, words)) for words in (phrase, concept.mapping))
            batches.append((f[None], g[None], [pairing]))
            vectors.append((v, w))
        tokens = concept_moments(batches, WIDTH, torch.device("cpu"))
        return {
            TOKENS: tokens,
            POOLED: pooled_moments(*map(torch.stack, zip(*vectors, strict=True)), torch.device("cpu")),
        }

    def solved(self, concepts, way: Way | bool, loras: Sequence[dict] | None = None):
        """The MODEL without some concepts, by closed form alone or with LoRAs fused into it."""
        lambda1, mu, metric = FOUND
        sums = [self.moments(concept, way if isinstance(way, bool) else way.own_words) for concept in concepts]
        tokens = [own[TOKENS] for own in sums]
        # As CFR Refine holds features of any size, and the pooled text beside the tokens.
        pairs, size = (sum(getattr(own, name) for own in tokens) for name in ("pairs", "size"))
        scale = {TOKENS: size / (pairs * self.weights[TOKENS].shape[1])}
        scale[POOLED] = scale[TOKENS] * size / sum(own[POOLED].size for own in sums)
        changes = {}
        for key, weight in self.weights.items():
            weights = RefineWeights(float(lambda1), mu=float(mu) * scale[key], metric=metric)
            given = [own[key] for own in sums], self.priors[key] * COCO_CAPTIONS, self.metrics[key]
            if loras is None or way.mu is None:
                delta = refinement(given[0], weights, given[1], metric=given[2])
                change = weight[:, :WIDTH] @ delta.float()
            else:
                own = [{name: pair for name, pair in lora.items() if name == key} for lora in loras]
                fusing = FuseWeights(way.lambda2, mu=way.mu * scale[key])
                fused = fuse(given[0], own, weights, fusing, given[1], metric=given[2])
                change = fused.delta(key, weight[:, :WIDTH].contiguous())
            if loras is not None and way.mu is None and key in loras[0]:
                (lora,) = loras
                change = change + lora[key][0] @ lora[key][1]
            changes[key] = torch.nn.functional.pad(change, (0, weight.shape[1] - WIDTH))
        with torch.inference_mode():
            model = self.small.model
            return self.unet.patched(model, list(changes), lambda key, _: changes[key], 1.0, lambda step: None)

    def looked(self, model, latents: Tensor, timesteps: Sequence[int], contexts: Tensor, pooled: Tensor, noise: Tensor):
        """Attention of each block to the texts [B, 77, D], pooled [B, C], at noisy latents [B, ch, h, w]."""
        from comfy.model_patcher import create_model_options_clone

        x, sigmas = self.predict.noisy(model, latents, noise, timesteps)
        watch = Attention()
        options = create_model_options_clone(model.model_options)
        options.setdefault("transformer_options", {})["optimized_attention_override"] = watch
        self.predict.call(model, x, sigmas, [[contexts, {"pooled_output": pooled}]], options)
        return watch.seen

    def pictures(self, concept) -> tuple[Tensor, Tensor]:
        """(latents [n, ch, h, w], masks [n, H, W]) of a concept, drawn by the model and found by its own attention."""
        if concept.target not in self._pictures:
            small = self.small
            images = self.pack("nodes.stages.images").make_images(
                small.model, small.clip, small.vae, (concept,), "auto", "", PICTURES
            )[0]
            context, pooled = small.studio.conditioning(fill(images.template, concept.target))
            rows = list(self.pair(concept, images.template, concept.target).phrase)
            count, side, maps = len(images), images.latents.shape[-1] // PATCH, []
            for timestep in LOOKED_AT:
                noise = torch.randn(images.latents.shape, generator=torch.Generator().manual_seed(timestep))
                seen = self.looked(
                    small.model, images.latents, [timestep] * count,
                    context.expand(count, -1, -1), pooled.expand(count, -1), noise,
                )  # fmt: skip
                maps += [own[..., rows].sum(-1).mean(1).unflatten(1, (side, side)) for own in seen]
            masks = mask_of_map(average_maps(maps), *images.pictures.shape[1:3])
            masks[masks.flatten(1).amax(1) == 0] = 1
            self._pictures[concept.target] = images.latents, masks
        return self._pictures[concept.target]

    def material(self, concept, end: bool) -> list[Tensor]:
        """Latents, masks, contexts [P, 77, D], pooled [P, C], own rows and rows of Eq. 3 [P, 77] of a concept."""
        own, chosen, encoded = [], [], []
        for template, phrase in concept.readings:
            prompt = fill(template, phrase)
            rows = self.pair(concept, template, phrase).phrase
            tokens = [entry[0] for entry in self.small.clip.tokenize(prompt)["l"][0]]
            spread = spread_over(rows, tokens.index(END_OF_TEXT), WINDOW, end)
            own.append(torch.zeros(WINDOW).index_fill(0, torch.tensor(rows), 1.0))
            chosen.append(torch.zeros(WINDOW).index_fill(0, torch.tensor(spread), 1.0))
            encoded.append(self.small.studio.conditioning(prompt))
        contexts, pooled = (torch.stack(side).float() for side in zip(*encoded, strict=True))
        return [*self.pictures(concept), contexts, pooled, torch.stack(own), torch.stack(chosen)]

    def trained(self, concepts, way: Way) -> list[dict[str, tuple[Tensor, Tensor]]]:
        """A LoRA a concept, (B, A) by port, trained side by side on the refined model."""
        with torch.inference_mode():
            inside = [self.material(concept, way.end) for concept in concepts]
        # What the host gives are inference tensors, of which autograd takes no part.
        inside = [[part.float().clone() for part in own] for own in inside]
        found = None
        if way.focus:
            found = [
                directions(
                    *selected_moment(texts[..., :WIDTH], own, chosen - own if way.end else None),
                    pack(self.priors[TOKENS]), 1, None, self.metrics[TOKENS],
                )
                for _, _, texts, _, own, chosen in inside
            ]  # fmt: skip
        examples = [
            Example(concept.target, len(latents), len(texts), tuple(latents.shape[1:]))
            for concept, (latents, _, texts, *_) in zip(concepts, inside, strict=True)
        ]
        settings = TrainSettings(steps=way.steps, learning_rate=way.rate)
        shapes = {key: (len(self.weights[key]), WIDTH) for key in way.ports}
        with self.forward.trainable_copy(self.solved(concepts, way.own_words)) as copy:

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

    def erased(self, names: Sequence[str], way: Way | bool):
        """The MODEL without some concepts."""
        concepts = self.small.chosen(names)
        if isinstance(way, bool):
            return self.solved(concepts, way)
        key = tuple(names), replace(way, lambda2=0.0, mu=None)
        if key not in self._trained:
            self._trained[key] = self.trained(concepts, way)
        return self.solved(concepts, way, self._trained[key])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--search", action="store_true", help="ways to fuse, on one list")
    options = parser.parse_args()
    rows = Rows(RESULTS / f"port_training{'_search' if options.search else ''}.json")
    with tempfile.TemporaryDirectory() as folder:
        small = Small(Path(folder), MODEL, SD3, prior=False)
        ports = Ports(small)
        lists = {ALONE[0]: ALONE[:1]} if options.search else {"ten": TEN} | {name: (name,) for name in ALONE}
        for name, names in lists.items():
            groups = small.questions(names, 500 if options.search else SEED)
            for way in SEARCHED if options.search else CHOSEN:
                about = (
                    {"trained": False, "own_words": way} if isinstance(way, bool) else {"trained": True} | asdict(way)
                )
                rows.add({"concepts": name} | about | small.shares(ports.erased(names, way), groups))
    rows.end()


if __name__ == "__main__":
    main()
