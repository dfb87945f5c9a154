"""Pictures for an evaluation, and what a judge saw in them: both kept by content, so that only what is new is drawn."""

from collections.abc import Hashable, Mapping, Sequence

import comfy.sample
import torch
from comfy import model_management
from comfy.utils import ProgressBar
from PIL import Image
from torch import Tensor

from ...mace.messages import MessageError
from .any_text import AnyText, text_to_draw_with
from .kept.content import content_sha256, model_sha256, module_sha256
from .kept.store import ContentStore
from .networks import Batches
from .progress import send_text
from .prompts import tokens_of
from .sampler import SHARE_OF_MEMORY, draws_noise, eight_bit, sampled
from .text import TextEncoder

# Pictures drawn before the judge looks: on a small GPU, sampler and judge take turns in its memory.
BLOCK = 64
SEEN_BYTES = 256 << 20
STRIP, STRIP_HEIGHT = 8, 96

_pictures = ContentStore(int(model_management.get_total_memory(torch.device("cpu")) * SHARE_OF_MEMORY))
_seen = ContentStore(SEEN_BYTES)

# A prompt and the seed of its noise.
Asked = tuple[str, int]


class Prompts:
    """Conditionings of prompts, each encoded once, as rows of one batch."""

    def __init__(self, encoder: TextEncoder | AnyText):
        self.encoder = encoder
        self._encoded: dict[str, tuple[Tensor, dict]] = {}

    def _known(self, prompt: str) -> tuple[Tensor, dict]:
        if prompt not in self._encoded:
            ((embedding, about),) = self.encoder.clip.encode_from_tokens_scheduled(tokens_of(self.encoder.clip, prompt))
            self._encoded[prompt] = embedding, {name: value for name, value in about.items() if value is not None}
            # Those of wide text encoders take megabytes each.
            if len(self._encoded) > 2 * BLOCK:
                del self._encoded[next(iter(self._encoded))]
        return self._encoded[prompt]

    def fit_together(self, prompts: Sequence[str]) -> bool:
        """Whether prompts can be rows of one batch: equally long, and of nothing but tokens and pooled text."""
        known = [self._known(prompt) for prompt in prompts]
        return len({embedding.shape for embedding, _ in known}) == 1 and all(
            set(about) <= {"pooled_output"} for _, about in known
        )

    def conditioning(self, prompts: Sequence[str]) -> list:
        """The host's CONDITIONING with a row for each prompt: it takes one for each latent.

        Of several prompts that `fit_together`.
        """
        embeddings, about = zip(*map(self._known, prompts), strict=True)
        if len(prompts) == 1:
            return [[embeddings[0], dict(about[0])]]
        pooled = [own["pooled_output"] for own in about if "pooled_output" in own]
        return [[torch.cat(embeddings), {"pooled_output": torch.cat(pooled)} if pooled else {}]]


class Gallery:
    """The pictures of one MODEL, as a KSampler with the seed and a batch of one draws each.

    judge: of `nodes.host.judges.judges`, None where nobody judges.  settings: width, height, steps, cfg, sampler_name,
    scheduler.  batch: pictures drawn together, fewer where memory runs out; samplers that draw noise at every step draw
    them one by one.  title: what progress calls the model.
    """

    def __init__(self, model, prompts: Prompts, vae, judge, settings: dict, batch: int, progress: ProgressBar, title):
        self.model, self.prompts, self.vae, self.judge = model, prompts, vae, judge
        self.settings, self.progress, self.title = settings, progress, title
        self._together = Batches(1 if draws_noise(settings["sampler_name"]) else batch)
        self.drawn = 0
        content = prompts.encoder.content()
        self.key = content_sha256(model_sha256(model), module_sha256(vae.first_stage_model), content, settings)

    def look(self, asked: Sequence[Asked], shown: set[int]) -> tuple[list[dict], dict[int, Tensor]]:
        """What the judge saw in every picture asked for, and the pictures uint8 [H, W, 3] of the places in `shown`.

        Advances progress by `steps` a picture. Raises the host's interrupt; what is drawn by then is kept.
        """
        seen, pictures = [], {}
        for start in range(0, len(asked), BLOCK):
            found, drawn = self._block(asked[start : start + BLOCK], {place - start for place in shown})
            seen += found
            pictures |= {start + place: picture for place, picture in drawn.items()}
            send_text(f"{self.title}: {min(start + BLOCK, len(asked))} of {len(asked)} pictures judged")
        return seen, pictures

    def draw(self, asked: Sequence[Asked]) -> list[Tensor]:
        """The pictures uint8 [H, W, 3] asked for, without a judge. Advances progress as `look` does."""
        keys = self._keys(asked)
        pictures = self._pictures_of(asked, keys, range(len(asked)))
        return [pictures[place] for place in range(len(asked))]

    def _keys(self, asked: Sequence[Asked]) -> list[str]:
        return [content_sha256(self.key, self.prompts.encoder.tokenize(prompt), prompt, seed) for prompt, seed in asked]

    def _pictures_of(self, asked: Sequence[Asked], keys: Sequence[str], wanted: Sequence[int]) -> dict[int, Tensor]:
        """The pictures of the places in `wanted`, from the store or drawn."""
        pictures = {place: _pictures.get(keys[place]) for place in wanted}
        missing = [place for place in wanted if pictures[place] is None]
        self.progress.update((len(asked) - len(missing)) * self.settings["steps"])
        together = not missing or self.prompts.fit_together(["", *(asked[place][0] for place in missing)])
        begin, drawn = self.progress.current, self.drawn

        def draw(places: Tensor) -> list[Tensor]:
            # Behind a batch that did not fit it stands further on.
            self.progress.current = begin + (self.drawn - drawn) * self.settings["steps"]
            part = places.tolist()
            return self._draw([asked[place] for place in part], [keys[place] for place in part])

        batches = self._together if together else Batches(1)
        pictures.update(zip(missing, batches.run(torch.tensor(missing), draw), strict=True))
        return pictures

    def _block(self, asked: Sequence[Asked], shown: set[int]) -> tuple[list[dict], dict[int, Tensor]]:
        keys = self._keys(asked)
        seen = [_seen.get((self.judge.key, key)) for key in keys]
        wanted = [place for place in range(len(asked)) if seen[place] is None or place in shown]
        pictures = self._pictures_of(asked, keys, wanted)
        unseen = [place for place in wanted if seen[place] is None]
        batch = self._together.most
        for start in range(0, len(unseen), batch):
            part = unseen[start : start + batch]
            model_management.throw_exception_if_processing_interrupted()
            for place, found in zip(part, self.judge.see(torch.stack([pictures[p] for p in part])), strict=True):
                seen[place] = found
                _seen.put((self.judge.key, keys[place]), found, _bytes(found))
        return seen, {place: pictures[place] for place in wanted if place in shown}

    def _draw(self, asked: Sequence[Asked], keys: Sequence[Hashable]) -> list[Tensor]:
        """Pictures uint8 [H, W, 3] of a batch, put into the store."""
        model_management.throw_exception_if_processing_interrupted()
        s = self.settings
        empty = torch.zeros(1, 4, s["height"] // 8, s["width"] // 8)
        # The host gives an empty latent the model's own channels and scale.
        empty = comfy.sample.fix_empty_latent_channels(self.model, empty, 8)
        noise = torch.cat([comfy.sample.prepare_noise(empty, seed) for _, seed in asked])
        latent = empty.repeat(len(asked), *[1] * (empty.dim() - 1))
        prompts = [prompt for prompt, _ in asked]
        positive = self.prompts.conditioning(prompts)
        negative = self.prompts.conditioning([""] * len(asked))
        end = self.progress.current + s["steps"] * len(asked)
        latents = sampled(self.model, noise, positive, negative, latent, s, asked[0][1], self.progress, each=len(asked))
        decoded = self.vae.decode(latents)
        if not torch.isfinite(decoded).all():
            raise MessageError(
                f"pictures of the {self.title} hold values that are not finite (NaN or infinity), among "
                f"{prompts[0]!r}: check the model, and use the VAE in fp32 or bf16"
            )
        pictures = list(eight_bit(decoded))
        for key, picture in zip(keys, pictures, strict=True):
            # A row of a batch would keep the whole batch in memory.
            _pictures.put(key, picture.clone(), picture.numel())
        self.drawn += len(pictures)
        # Pictures that nobody judges are shown as they are.
        preview = None if self.judge is None else ("JPEG", _strip(pictures), None)
        self.progress.update_absolute(end, preview=preview)
        return pictures


def galleries(
    models: Mapping[str, object], clip, vae, judge, asked: Sequence[Asked], settings: dict, batch: int
) -> dict[str, Gallery]:
    """A Gallery of each MODEL, by name, for what is asked of every one; arguments as in `Gallery`.

    Raises ValueError for a prompt that is too long and a text encoder that is not the models'.
    """
    encoder = text_to_draw_with(clip, *models.values())
    for model in models.values():
        encoder.check_width(model)
    for prompt in dict.fromkeys(prompt for prompt, _ in asked):
        encoder.check_length(prompt)
    progress, prompts = ProgressBar(len(models) * len(asked) * settings["steps"]), Prompts(encoder)
    return {
        name: Gallery(model, prompts, vae, judge, settings, batch, progress, f"{name} model")
        for name, model in models.items()
    }


def _strip(pictures: Sequence[Tensor]) -> Image.Image:
    """The first pictures side by side, small."""
    height, width = pictures[0].shape[:2]
    width = max(1, round(width * STRIP_HEIGHT / height))
    strip = Image.new("RGB", (width * min(len(pictures), STRIP), STRIP_HEIGHT))
    for place, picture in enumerate(pictures[:STRIP]):
        strip.paste(Image.fromarray(picture.numpy()).resize((width, STRIP_HEIGHT)), (place * width, 0))
    return strip


def _bytes(found: dict) -> int:
    """About how much memory a judge's record takes."""
    return 256 + sum(value.numel() * 4 if isinstance(value, Tensor) else 100 * len(value) for value in found.values())
