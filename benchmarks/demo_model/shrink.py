"""The demo model's own file from a whole checkpoint of it.

    python dev.py run python -m benchmarks.demo_model.shrink mace_demo.safetensors demo_sd.safetensors

All matrices have 8 bits a row, but for the embeddings and for what the cross-attention reads of text, which is what
erasing edits: these stay float16. A file that is to be assets/demo/demo_sd.safetensors needs its checksum, the last
line, in devtools/demo_model.py.

Each number of the text encoder rounded by itself is off by up to half a step, and the embeddings of captions by 1.4 %.
Of a matrix's inputs on captions only few directions are large, so what one column's rounding changes there the columns
behind it can take back: GPTQ (Frantar et al. 2022, arXiv 2210.17323), column by column.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from devtools.cache import sha256_file
from devtools.compact import steps_of, write_compact

from .pictures import all_names, captions
from .text import TEXT, TextModel, Tokenizer, clip_l

PRECISE = r"embeddings\.|attn2\.to_[kv]\."
CAPTIONS = 600
# So many columns are rounded before those behind them take back what is off.
BLOCK = 64
OTHERS = ("", "a man walking with an umbrella by the sea at night", "portrait, oil painting, highly detailed, 8k")


def round_matrix(weight: Tensor, moment: Tensor, damping: float = 1e-4) -> Tensor:
    """The matrix [out, in] on its rows' grids of 255 steps, rounded so that its outputs change least.

    moment: the inputs' second moment [in, in], to any scale.  damping: what is added to its diagonal, in its mean. A
    row's largest number keeps its end of the grid, so that the file finds the same grid again.
    """
    inputs = weight.shape[1]
    moment = moment.double()
    damped = moment + damping * moment.diagonal().mean() * torch.eye(inputs, dtype=torch.float64)
    # The inverse is float64's; what is carried on is exact enough in float32.
    spread = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True).float()
    left, found = weight.float().clone(), torch.empty_like(weight, dtype=torch.float32)
    step, largest = torch.from_numpy(steps_of(left.numpy())).float(), weight.abs().argmax(1)
    for start in range(0, inputs, BLOCK):
        end = min(start + BLOCK, inputs)
        off = torch.empty(len(weight), end - start)
        for column in range(start, end):
            own = left[:, column]
            rounded = (own / step).round().clamp(-127, 127)
            rounded = torch.where(largest == column, 127 * weight[:, column].sign(), rounded)
            found[:, column] = rounded * step
            off[:, column - start] = (own - found[:, column]) / spread[column, column]
            left[:, column + 1 : end] -= off[:, column - start, None] * spread[column, column + 1 : end]
        left[:, end:] -= off @ spread[start:end, end:]
    return found


def round_text(model: TextModel, tokens: Sequence[Tensor]) -> dict[str, Tensor]:
    """The matrices of a text encoder's layers, rounded, by their names in it.

    tokens: batches of captions' tokens [B, N], padded as the encoder is given them.
    """
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    moments = {name: torch.zeros(part.in_features, part.in_features) for name, part in layers.items()}

    def watch(name: str):
        def add(_part, given, _found) -> None:
            rows = given[0].flatten(0, -2)
            moments[name] += rows.T @ rows

        return add

    hooks = [part.register_forward_hook(watch(name)) for name, part in layers.items()]
    with torch.no_grad():
        for batch in tokens:
            model(batch)
    for hook in hooks:
        hook.remove()
    return {f"{name}.weight": round_matrix(part.weight.detach(), moments[name]) for name, part in layers.items()}


def shrink(state: Mapping[str, Tensor], out: Path, tokenize: Tokenizer) -> None:
    """Write the compact file of a checkpoint's tensors in the demo model's layout."""
    texts = [caption.text for caption in captions(all_names(), CAPTIONS, 0)] + list(OTHERS)
    tokens = torch.stack([tokenize(text).padded_l for text in texts])
    rounded = round_text(clip_l(state), tokens.split(64))
    tensors = {name: tensor.float() for name, tensor in state.items()}
    tensors |= {TEXT + name: tensor for name, tensor in rounded.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_compact(out, {name: tensor.numpy() for name, tensor in tensors.items()}, PRECISE)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    tokenize = Tokenizer(Path(os.environ["MACE_COMFYUI"]) / "comfy/sd1_tokenizer")
    shrink(load_file(arguments.checkpoint), arguments.out, tokenize)
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes")
    print(sha256_file(arguments.out))


if __name__ == "__main__":
    main()
