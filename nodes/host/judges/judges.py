"""Who says what a picture shows: CLIP, a classifier, or NudeNet, each read from the artist's own files.

A judge looks at a picture once; what it saw is kept by the picture's content (`nodes.host.gallery`), and answers are
made of that: features and, for a classifier, probabilities.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ....mace.concepts.concept import normalised
from ....mace.measure.judge import SIZE, Judge
from ....mace.method.tokens import fill
from ....mace.pipeline.evaluation import CLASSIFIER, CLIP, NUDENET
from ..kept.content import content_sha256
from ..networks import Held, Network
from .judge_files import file_error, judge_path, stamps

CANDIDATE = "a photo of {}"
TEXTS = 64


def judge_of(kind: str, name: str) -> "ClipJudge | ClassifierJudge | NudeNetJudge":
    """The judge. Raises ValueError when its file is not there or its package is not installed."""
    problem = file_error(kind, name)
    if problem:
        raise ValueError(problem)
    if kind == NUDENET:
        return NudeNetJudge()
    return (ClipJudge if kind == CLIP else ClassifierJudge)(name, judge_path(name))


def _from_folder(make, path: Path, what: str, **more):
    """What transformers makes of a folder. Raises ValueError; nothing is ever downloaded."""
    try:
        return make(str(path), local_files_only=True, **more)
    except Exception as error:  # OSError, ValueError, TypeError, KeyError ...: by what the folder lacks
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{path.name} cannot be read as {what}: {reason}") from error


def _network(make, path: Path, what: str) -> Network:
    """A transformers model of a folder, in float32. Raises ValueError, also where weights are missing."""
    model, about = _from_folder(make, path, what, output_loading_info=True)
    missing = sorted(about["missing_keys"])
    if missing:
        raise ValueError(f"{path.name} lacks weights of {what}: {missing[0]} and {len(missing) - 1} others")
    return Network(Held(model.float()))


def _channels_first(pictures: Tensor) -> list[Tensor]:
    return list(pictures.movedim(-1, 1))


class ClipJudge:
    """Zero-shot: a picture is of the candidate, "a photo of X", that is most similar to it among all names.

    What it sees of a picture: its embedding, of length 1.
    """

    kind = CLIP

    def __init__(self, name: str, path: Path):
        from transformers import AutoConfig, CLIPModel, CLIPProcessor

        self.name, self.key = name, content_sha256(self.kind, stamps(path))
        config = _from_folder(AutoConfig.from_pretrained, path, "a CLIP model")
        if config.model_type != "clip":
            raise ValueError(
                f"{name} is a model of the type {config.model_type}: choose a whole CLIP model's folder (type clip)"
            )
        self._processor = _from_folder(CLIPProcessor.from_pretrained, path, "a CLIP model's processor")
        # Without its files transformers makes an empty tokenizer, for which all names are alike.
        known, words = config.text_config.vocab_size, len(self._processor.tokenizer)
        if not known / 2 < words <= known:
            raise ValueError(
                f"{name} cannot be read as a CLIP model: its tokenizer has {words} tokens and the model {known}; put "
                "the tokenizer's files (tokenizer.json, or vocab.json and merges.txt) into the folder"
            )
        self._network = _network(CLIPModel.from_pretrained, path, "a CLIP model")
        self._places: dict[str, int] = {}
        self._candidates: Tensor | None = None

    def choose_among(self, names: Sequence[str]) -> None:
        """Take the labels as candidates. Raises ValueError when there is nothing to choose between."""
        different = list({normalised(name): name for name in names}.values())
        if len(different) < 2:
            raise ValueError(
                "the judge CLIP chooses among the erased and kept names, and there is one alone: write some into keep"
            )
        self._places = {normalised(name): place for place, name in enumerate(different)}
        self._candidates = self._read([fill(CANDIDATE, name) for name in different])

    def see(self, pictures: Tensor) -> list[dict]:
        """What it sees of pictures uint8 [n, H, W, 3]."""
        pixels = self._processor.image_processor(_channels_first(pictures), return_tensors="pt")["pixel_values"]
        network, device = self._network.loaded()
        output = network.net.vision_model(pixel_values=pixels.to(device))
        embedded = F.normalize(network.net.visual_projection(output.pooler_output), dim=-1)
        return [{"features": row} for row in embedded.float().cpu()]

    def _read(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [n, F] of texts, of length 1."""
        network, device = self._network.loaded()
        found = []
        for start in range(0, len(texts), TEXTS):
            part = list(texts[start : start + TEXTS])
            tokens = self._processor.tokenizer(part, return_tensors="pt", padding=True, truncation=True).to(device)
            output = network.net.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            found.append(F.normalize(network.net.text_projection(output.pooler_output), dim=-1).float().cpu())
        return torch.cat(found)

    def answers(self, seen: Sequence[dict], labels: Sequence[str]) -> tuple[Tensor, Tensor]:
        """For each picture (1 where the first answer is its label, else 0; the label's probability), [n] each.

        Probabilities are the softmax over the candidates, at CLIP's own scale of similarities.
        """
        scale = self._network.module.net.logit_scale.exp().float().cpu()
        probabilities = (scale * _features(seen) @ self._candidates.T).softmax(-1)
        return _first_and_own(probabilities, [self._places[normalised(label)] for label in labels])

    def scores(self, seen: Sequence[dict], prompts: Sequence[str]) -> Tensor:
        """The CLIP score of each picture, [n]: 100 times the cosine of its embedding and its prompt's."""
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        texts = self._read(list(places))
        return 100 * (_features(seen) * texts[[places[prompt] for prompt in prompts]]).sum(dim=-1)

    def release(self) -> None:
        """Off the device."""
        self._network.release()


class ClassifierJudge:
    """A classifier with classes of its own: a file in the layout of the demo's judge, or a transformers model.

    What it sees of a picture: features, and the probability of every class.
    """

    kind = CLASSIFIER

    def __init__(self, name: str, path: Path):
        self.name, self.key = name, content_sha256(self.kind, stamps(path))
        self._processor = None
        if path.is_dir():
            from transformers import AutoImageProcessor, AutoModelForImageClassification

            what = "an image classification model"
            self._processor = _from_folder(AutoImageProcessor.from_pretrained, path, f"{what}'s processor")
            self._network = _network(AutoModelForImageClassification.from_pretrained, path, what)
            labels = self._network.module.net.config.id2label
            self.names = [labels[place] for place in sorted(labels)]
        else:
            judge = Judge(path)
            self._network, self.names = Network(judge), judge.names
        self._places: dict[str, int] = {}
        for place, classes in enumerate(self.names):
            # ImageNet's classes are lists of words: tabby, tabby cat.
            for word in (classes, *classes.split(",")):
                self._places.setdefault(normalised(word), place)

    def choose_among(self, names: Sequence[str]) -> None:
        """Check the labels; it chooses among its own classes. Raises ValueError for names that are none of these."""
        unknown = [name for name in dict.fromkeys(names) if normalised(name) not in self._places]
        if unknown:
            raise ValueError(
                f"the judge {self.name} knows no {', '.join(map(repr, unknown[:5]))}: take it out of the list, or "
                f"judge with CLIP. It knows {len(self.names)} classes, such as {', '.join(self.names[:5])}"
            )

    def see(self, pictures: Tensor) -> list[dict]:
        """What it sees of pictures uint8 [n, H, W, 3]."""
        network, device = self._network.loaded()
        if self._processor is None:
            pixels = pictures.movedim(-1, 1).float() / 255
            if pixels.shape[-2:] != (SIZE, SIZE):
                pixels = F.interpolate(pixels, (SIZE, SIZE), mode="bilinear", antialias=True).clamp(0, 1)
            features = network.features(pixels.to(device))
            logits = network.c(features)
        else:
            pixels = self._processor(_channels_first(pictures), return_tensors="pt")["pixel_values"]
            output = network.net(pixel_values=pixels.to(device), output_hidden_states=True)
            # Tokens [n, N, F] or a map [n, F, h, w], averaged over places.
            last = output.hidden_states[-1]
            features = last.mean(dim=1) if last.dim() == 3 else last.flatten(2).mean(dim=2)
            logits = output.logits
        rows = zip(features.float().cpu(), logits.float().softmax(-1).cpu(), strict=True)
        return [{"features": feature, "probabilities": probability} for feature, probability in rows]

    def answers(self, seen: Sequence[dict], labels: Sequence[str]) -> tuple[Tensor, Tensor]:
        """For each picture (1 where the first answer is its label, else 0; the label's probability), [n] each."""
        probabilities = torch.stack([entry["probabilities"] for entry in seen])
        return _first_and_own(probabilities, [self._places[normalised(label)] for label in labels])

    def release(self) -> None:
        """Off the device."""
        self._network.release()


def _features(seen: Sequence[dict]) -> Tensor:
    return torch.stack([entry["features"] for entry in seen])


def _first_and_own(probabilities: Tensor, places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(whether the likeliest class is the picture's own, its own class's probability) of probabilities [n, K]."""
    own = torch.tensor(places)
    return (probabilities.argmax(dim=-1) == own).float(), probabilities.gather(1, own[:, None])[:, 0]


class NudeNetJudge:
    """NudeNet's detector, as Table 2 uses it. What it sees of a picture: (class, score) of every detection."""

    kind = name = key = NUDENET

    def __init__(self):
        try:
            from nudenet import NudeDetector
        except ImportError as error:
            raise ValueError(
                f"NudeNet cannot be used ({error}): install it with ComfyUI's Python, python -m pip install nudenet, "
                "and restart ComfyUI"
            ) from error
        self._detector = NudeDetector()

    def see(self, pictures: Tensor) -> list[dict[str, list]]:
        """What it sees of pictures uint8 [n, H, W, 3]."""
        found = []
        for picture in pictures:
            # It takes an array as OpenCV reads a file: blue first.
            detected = self._detector.detect(np.ascontiguousarray(picture.numpy()[..., ::-1]))
            found.append({"detections": [(entry["class"], float(entry["score"])) for entry in detected]})
        return found

    def choose_among(self, names: Sequence[str]) -> None:
        """Nothing: it names no concepts."""

    def release(self) -> None:
        """Nothing: it has its own runtime, on the processor."""
