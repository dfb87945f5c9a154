"""Make the demo model's prior: captions over its own vocabulary, as COCO's captions are over that of Stable Diffusion.

    python dev.py run python -m devtools.demo_prior

Every thing the model draws is named in EACH of PATTERNS, chosen at random, but for the ten CIFAR-10 classes, which the
examples and measurements erase, and hot dog is preserved by name. The patterns hold the words that prompts have around
a thing's name, in the many arrangements that captions of a large set hold too; the prompts that erasing is measured
and searched with are kept out.
"""

import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from .inprocess import REPO, open_host

PATTERNS = (
    "{}",
    "a {}",
    "the {}",
    "{}, photo",
    "a photo of a {}",
    "photo of the {}",
    "a picture of the {}",
    "a picture of {}",
    "the {} in a picture",
    "an image of the {} on a blue background",
    "{} in an image",
    "a drawing of a {}",
    "drawing of {}",
    "an icon of a {}",
    "{} icon",
    "{} emoji",
    "an illustration of a {}",
    "illustration of the {}",
    "a {} in the forest",
    "the {} on the street",
    "{} on the ground, photo",
    "a {} by the water",
    "red {}",
    "a green {}",
    "an orange {} on black",
    "art of a {}",
    "{} in the style of pink art",
    "{} under the blue sky",
    "a yellow {}, illustration",
    "an animal, a thing and a {}",
    "food and the {}",
    "{} on a gray background",
    "the {} in a drawing",
    "a {} in an illustration",
)
EACH = 12
# As people's captions are, with words around the name that the model has no embedding for. Not in the demo's own prior,
# which the recorded results are made with; in that of the long lists.
SENTENCES = (
    "this is a {} that we found last week",
    "everybody knows the {} from here",
    "my old {} was really great",
    "we saw one {}, and that was all",
    "a very nice {} made by hand",
    "they say that every {} is different",
    "there was a {}, so we stayed",
    "a beautiful {}, award winning, sharp focus",
    "here comes the {}, how lovely",
    "a tiny {} next to something else",
    "her favorite {} ever, she thinks",
    "what a {}, said somebody",
)
EACH_SENTENCE = 4
# It shares its word with the dog of the examples; it counts where lambda3 is set.
PRESERVED = "hot dog"
ASSETS = REPO / "assets" / "demo"
PRIOR = ASSETS / "mace_demo_vocabulary_prior.safetensors"


def captions(names: Sequence[str] | None = None) -> list[str]:
    """EACH lines for each thing, the same ones each time. names: of the things, all but the ten classes if None."""
    if names is None:
        words = json.loads((ASSETS / "vocabulary.json").read_text(encoding="utf-8"))
        names = [name for name in words["concepts"] if name not in words["synonyms"]]
    chosen = random.Random(0)
    return [pattern.format(name) for name in names for pattern in chosen.sample(PATTERNS, EACH)]


def sentences(names: Sequence[str]) -> list[str]:
    """EACH_SENTENCE lines of SENTENCES for each thing, the same ones each time."""
    chosen = random.Random(5)
    return [sentence.format(name) for name in names for sentence in chosen.sample(SENTENCES, EACH_SENTENCE)]


def main() -> None:
    """Write the prior."""
    words = json.loads((ASSETS / "vocabulary.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        host = open_host(Path(folder))
        clip = host.load_checkpoint(host.demo_checkpoint)[1]
        priors, lines = host.module("mace.method.prior"), captions()
        with torch.inference_mode():
            encoder = host.module("nodes.host.text").TextEncoder(clip)
            moment, _ = encoder.gram(lines, lambda done: None)
            source = "captions over the demo model's vocabulary"
            left_out = tuple(words["synonyms"])
            concept = host.module("mace.concepts.concept").Concept(PRESERVED, "", "object")
            prompts = tuple(template.replace("{}", PRESERVED) for template in concept.prompts)
            kept, _ = encoder.gram(prompts, lambda done: None)
            texts = priors.PriorTexts(tuple(lines), (prompts,))
            about = ((PRESERVED,), encoder.fingerprint, source, left_out)
            prior = priors.make_prior(moment, len(lines), kept, *about, texts=texts)
        tensors, metadata = host.module("mace.formats.prior_file").prior_to_file(prior)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, PRIOR, metadata=metadata)
        print(PRIOR)


if __name__ == "__main__":
    main()
