"""The small models' text encoders: the demo model's CLIP-L, and a CLIP-G of SDXL's layout that learns from it."""

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

START, END, LENGTH, VOCABULARY = 49406, 49407, 77, 49408
# Where CLIP-L stands in a checkpoint of SD1.5's layout.
TEXT = "cond_stage_model.transformer.text_model."


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, alive: int):
        super().__init__()
        self.heads, inner = alive, width // heads * alive
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, units: int, act):
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(width, units), nn.Linear(units, width), act

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, alive: int, units: int, act):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn, self.mlp = _Attention(width, heads, alive), _Mlp(width, units, act)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextModel(nn.Module):
    """The first layers of a CLIP text model under its usual names; the layers behind them are identities.

    Only the heads and hidden units that are alive are here; `whole` adds the others.
    """

    def __init__(self, width: int, heads: int, layers: int, act, alive: int | None = None, units: int | None = None):
        super().__init__()
        alive, units = alive or heads, units or 4 * width
        self.embeddings = nn.ModuleDict(
            {"token_embedding": nn.Embedding(VOCABULARY, width), "position_embedding": nn.Embedding(LENGTH, width)}
        )
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(_Layer(width, heads, alive, units, act) for _ in range(layers))}
        )
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden states as SDXL reads them, [B, N, width]; the same behind the last norm) of tokens [B, N]."""
        x = self.embeddings["token_embedding"](tokens) + self.embeddings["position_embedding"].weight[: tokens.shape[1]]
        for layer in self.encoder["layers"]:
            x = layer(x)
        return x, self.final_layer_norm(x)


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP-L's activation."""
    return x * torch.sigmoid(1.702 * x)


def untrained_clip_l() -> TextModel:
    """A CLIP-L of two layers with random weights."""
    model = TextModel(768, 12, 2, quick_gelu)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


def clip_l(state: dict[str, Tensor]) -> TextModel:
    """The demo model's text encoder from its checkpoint."""
    model = TextModel(768, 12, 2, quick_gelu)
    model.load_state_dict({name: state[TEXT + name].float() for name in model.state_dict()})
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Tokens:
    """A prompt's tokens [77], padded as CLIP-L (with its end) and CLIP-G (with 0) are, and where its end stands."""

    padded_l: Tensor
    padded_g: Tensor
    end: int


class Tokenizer:
    """CLIP's, as the host carries it."""

    def __init__(self, folder):
        from transformers import CLIPTokenizer

        self._tokenizer = CLIPTokenizer.from_pretrained(folder)

    def __call__(self, text: str) -> Tokens:
        ids = torch.tensor(self._tokenizer(text)["input_ids"][:LENGTH])
        padded = [torch.cat([ids, torch.full((LENGTH - len(ids),), pad)]) for pad in (END, 0)]
        return Tokens(*padded, len(ids) - 1)

    def words(self, tokens: Tensor) -> list[str]:
        """What tokens [n] are written as, sorted; one that ends a word and one that does not may read alike."""
        written = self._tokenizer.convert_ids_to_tokens(tokens.tolist())
        return sorted(word.removesuffix("</w>") for word in written)


# CLIP-G is 1280 wide with 20 heads and 5120 hidden units. So many of them are alive, the others are zeros.
WIDTH, HEADS, UNITS, LIVE_HEADS, LIVE_UNITS = 1280, 20, 5120, 6, 384


def clip_g() -> TextModel:
    """A CLIP-G of two layers, what is alive of it, on the CPU."""
    return TextModel(WIDTH, HEADS, 2, F.gelu, LIVE_HEADS, LIVE_UNITS)


def untrained_clip_g(teacher: TextModel, known: Tensor) -> TextModel:
    """CLIP-G with random weights. Of the tokens `known` [n], and of places, the embeddings are the teacher's, turned.

    Its table of tokens has a row for each of `known`, in their order.
    """
    model = clip_g()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        turn = torch.linalg.qr(torch.randn(WIDTH, teacher.final_layer_norm.weight.numel())).Q.T
        own = {name: table.weight.cpu() @ turn for name, table in teacher.embeddings.items()}
        model.embeddings["position_embedding"].weight.copy_(own["position_embedding"])
        table = nn.Embedding.from_pretrained(own["token_embedding"][known], freeze=False)
        model.embeddings["token_embedding"] = table
    return model


def teaching_loss(found: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """(cosine and contrast, the mean cosine) of features [B, d] to their teacher's [B, d], which have length one."""
    found = F.normalize(found, dim=-1)
    alike = (found * told).sum(-1).mean()
    apart = F.cross_entropy(found @ told.mT / 0.05, torch.arange(len(found), device=found.device))
    return 1 - alike + 0.2 * apart, alike


def train_clip_g(
    teacher: TextModel, tokenize: Tokenizer, texts: list[str], steps: int, batch: int, device: torch.device, say
) -> TextModel:
    """A CLIP-G whose end-of-text feature tells what CLIP-L's does, learned from captions (cosine and contrast).

    The rows behind a prompt's end tell it nothing, so they are left out.
    """
    tokens = [tokenize(text) for text in texts]
    length = max(entry.end for entry in tokens) + 1
    own = torch.stack([entry.padded_g for entry in tokens]).to(device)[:, :length]
    ends = torch.tensor([entry.end for entry in tokens], device=device)
    padded = torch.stack([entry.padded_l for entry in tokens]).to(device)[:, :length]
    with torch.no_grad():
        told = [teacher(p)[1][range(len(p)), e] for p, e in zip(padded.split(512), ends.split(512), strict=True)]
    told = torch.cat(told)
    told = F.normalize(told - told.mean(0), dim=-1)
    torch.manual_seed(0)
    random.seed(0)
    known = torch.cat([own.unique(), padded.unique(), torch.zeros(1, dtype=own.dtype, device=device)]).unique()
    model = untrained_clip_g(teacher, known.cpu()).to(device)
    own = torch.searchsorted(known, own)
    head = nn.Linear(WIDTH, told.shape[1]).to(device)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 5e-4, weight_decay=0.0)
    batch = min(batch, len(texts))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = torch.tensor(random.sample(range(len(texts)), batch), device=device)
        features = model(own[rows])[1][torch.arange(batch, device=device), ends[rows]]
        loss, alike = teaching_loss(head(features), told[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            say(f"CLIP-G {step}: cosine to CLIP-L {float(alike):.4f}")
    with torch.no_grad():
        table = torch.zeros(VOCABULARY, WIDTH, device=device)
        table[known] = model.embeddings["token_embedding"].weight
    model.embeddings["token_embedding"] = nn.Embedding.from_pretrained(table)
    return model.eval().requires_grad_(False)


def whole_clip_g(alive: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP-G's layers with all of their heads and hidden units, zeros where nothing is alive."""
    found = {}
    for name, tensor in alive.items():
        part, kind = name.split(".")[-2:]
        rows = {"q_proj": WIDTH, "k_proj": WIDTH, "v_proj": WIDTH, "fc1": UNITS}.get(part, tensor.shape[0])
        columns = {"out_proj": WIDTH, "fc2": UNITS}.get(part) if kind == "weight" else None
        shape = (rows, *tensor.shape[1:]) if columns is None else (rows, columns)
        found[name] = tensor.new_zeros(shape)
        found[name][tuple(map(slice, tensor.shape))] = tensor
    return found


class Texts:
    """What the denoiser reads of captions, row 0 the empty prompt's, and the ways it is shown in training.

    l, g: hidden states [P, 77, 768 or 1280], g None without CLIP-G.  pooled: [P, c].  ends: where each prompt ends.
    plain: as SD1.5 reads them, with the last norm and without pooled text.
    """

    def __init__(
        self, texts: list[str], tokenize: Tokenizer, model_l: TextModel, model_g: TextModel | None, device, plain=False
    ):
        self.plain = plain
        tokens = [tokenize(text) for text in ("", *texts)]
        self.ends = torch.tensor([entry.end for entry in tokens], device=device)
        self.l, normed = self._encoded(model_l, [entry.padded_l for entry in tokens], device)
        self.g = None
        if model_g is not None:
            self.g, normed = self._encoded(model_g, [entry.padded_g for entry in tokens], device)
        self.pooled = normed

    def _encoded(self, model: TextModel, tokens: list[Tensor], device) -> tuple[Tensor, Tensor]:
        hidden, pooled, at = [], [], 0
        with torch.no_grad():
            for part in torch.stack(tokens).split(512):
                raw, normed = model(part.to(device))
                hidden.append((normed if self.plain else raw).half())
                pooled.append(normed[torch.arange(len(part), device=device), self.ends[at : at + len(part)]])
                at += len(part)
        return torch.cat(hidden), torch.cat(pooled)

    def whole(self, rows: Tensor) -> Tensor:
        """Contexts of prompts as the host gives them, [B, 77, d]."""
        return torch.cat([part[rows].float() for part in (self.l, self.g) if part is not None], -1)

    def pooled_of(self, rows: Tensor) -> Tensor | None:
        """The pooled text of prompts [B, c], None where the model reads none."""
        return None if self.plain else self.pooled[rows]

    def mixed(self, rows: Tensor, shown: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(contexts, pooled text) of prompts as training shows them, so that each place is read by itself too.

        shown: the token positions given [n], all 77 where None.

        The words with their own end (42 %), with the empty prompt's (30 %), with another prompt's (18 %), or the end
        without the words (10 %); pooled text their own (52 %), zeros (24 %), another prompt's (9 %), or their own with
        nothing in the context (15 %), which a plain text never has. CLIP-L is left out half of the time where there is
        a CLIP-G beside it.
        """
        count, device = len(rows), rows.device
        rand = lambda: torch.rand(count, device=device)  # noqa: E731
        other = (rand() * len(self.ends)).long()
        kind, pool = rand(), rand()
        behind = torch.where(kind < 0.72, torch.zeros_like(rows), other)
        behind = torch.where((kind < 0.42) | (kind >= 0.9), rows, behind)
        before = torch.where(kind >= 0.9, torch.zeros_like(rows), rows)
        alone = (pool >= 0.85) & (not self.plain)
        behind, before = (torch.where(alone, torch.zeros_like(rows), part) for part in (behind, before))
        ends = self.ends[rows][:, None]
        places = torch.arange(LENGTH, device=device)[None] if shown is None else shown[None]
        shifted = (places - ends + self.ends[behind][:, None]).clamp(1, LENGTH - 1)
        parts = []
        for part in (self.l, self.g):
            if part is not None:
                mixed = torch.where(
                    (places < ends)[..., None], part[before[:, None], places], part[behind[:, None], shifted]
                )
                parts.append(mixed.float())
        if self.plain:
            return parts[0], None
        if self.g is not None:
            parts[0] = parts[0] * (rand() < 0.5)[:, None, None]
        pooled = self.pooled[torch.where((pool >= 0.76) & ~alone, other, rows)]
        pooled = pooled * ~((pool >= 0.52) & (pool < 0.76))[:, None]
        return torch.cat(parts, -1), pooled
