"""What a model is asked to draw, and what the judge sees in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from benchmarks.pictures import Studio

TEMPLATES = ("a photo of the {}", "an illustration of the {}")
# Words with an embedding and without, before and after the name, which stands first, in the middle or last.
VARIED = ("{}", "a red {}", "a {} in the forest", "my favourite {}", "{} on a blue background, high quality")
VARIED += ("a very detailed painting of one {}", "the {} by the street", "look at this {}, it is wonderful")
SEED = 9000


@dataclass(frozen=True)
class Question:
    """A picture to draw: the prompt, the name that the judge is asked about, the seed of its noise."""

    prompt: str
    name: str
    seed: int = SEED


@dataclass(frozen=True)
class Answers:
    """Of B pictures. right: [B], 1 where the judge's first answer is the name.  probability: [B], of the name.
    features: [B, F], what the judge's last layer reads.  style: [B], probability of the style asked about.  clip: [B],
    100 times the cosine of a CLIP model's embeddings of picture and prompt, or None."""

    right: Tensor
    probability: Tensor
    features: Tensor
    style: Tensor
    clip: Tensor | None = None

    @classmethod
    def gathered(cls, parts: Sequence["Answers"]) -> "Answers":
        """Many as one."""
        return cls(
            *(
                None if own[0] is None else torch.stack(own)
                for own in zip(*(part.parts() for part in parts), strict=True)
            )
        )

    def parts(self) -> list[Tensor | None]:
        """All of them, in order."""
        return [getattr(self, field.name) for field in fields(self)]

    def split(self) -> list["Answers"]:
        """One of each picture."""
        each = ([None] * len(self.right) if part is None else list(part) for part in self.parts())
        return [Answers(*parts) for parts in zip(*each, strict=True)]


class Examiner:
    """Asks models. A model's answers are kept by question where it is known by a key, such as the base model.

    clip: the pack's CLIP judge, or None.
    """

    def __init__(self, studio: Studio, style: str, clip=None):
        self.studio, self.style, self.clip = studio, style, clip
        self._kept: dict[tuple[str, Question], Answers] = {}

    def ask(self, model, questions: Sequence[Question], key: str | None = None, **how) -> Answers:
        """The answers to some questions, in order. key: of a model that is asked again.  how: see `Studio.draw`."""
        if key is None:
            return self._answers(model, questions, **how)
        new = [question for question in dict.fromkeys(questions) if (key, question) not in self._kept]
        if new:
            for question, found in zip(new, self._answers(model, new, **how).split(), strict=True):
                self._kept[key, question] = found
        return Answers.gathered([self._kept[key, question] for question in questions])

    def shares(self, base, model, groups: Mapping[str, Sequence[Question]], **how) -> dict[str, float]:
        """By group, how much of what a base model draws right is still drawn by another. how: see `Studio.draw`."""
        found = {}
        for name, group in groups.items():
            before = self.ask(base, group, "base").right
            found[name] = round(float((before * self.ask(model, group, **how).right).sum() / before.sum()), 3)
        return found

    def _answers(self, model, questions: Sequence[Question], **how) -> Answers:
        judge = self.studio.judge
        seeds = [question.seed for question in questions]
        pictures = self.studio.draw(model, [question.prompt for question in questions], seeds, **how)
        with torch.inference_mode():
            features = judge.features(pictures)
            likely, styles = judge.c(features).softmax(-1), judge.s(features).softmax(-1)
            similar = None
            if self.clip is not None:
                eight_bit = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1)
                similar = self.clip.scores(self.clip.see(eight_bit), [question.prompt for question in questions])
        wanted = torch.tensor([judge.names.index(question.name) for question in questions])
        return Answers(
            (likely.argmax(-1) == wanted).float(),
            likely.gather(1, wanted[:, None])[:, 0],
            features,
            styles[:, judge.styles.index(self.style)],
            similar,
        )


def asked(
    names: Sequence[str] | Mapping[str, str], templates: Sequence[str] = TEMPLATES, seeds: int = 1, seed: int = SEED
) -> list[Question]:
    """Every name with every template and seed. names: or {word in the prompt: name the judge is asked about}."""
    words = names if isinstance(names, Mapping) else {name: name for name in names}
    return [
        Question(template.format(word), name, seed + 100 * k)
        for k in range(seeds)
        for word, name in words.items()
        for template in templates
    ]
