"""Train a small denoiser on the icons: `python dev.py run python -m benchmarks.demo_model.train sdxl --minutes 10`.

Resumable: --out is written every few minutes and read where it is there. On a GPU ten minutes are plenty; on two CPU
cores SDXL's takes a day or two. The last line is one JSON object: how often the judge names what is drawn, by the ways
the text is given.
"""

import argparse
import copy
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from devtools.cache import REPO
from mace.measure.judge import Judge

from .checkpoint import CLIP_G, UNET, read_compact, write_compact
from .denoisers import TailBias, sd3_transformer, sd15_unet, sdxl_unet, skip_idle
from .noise import Diffusion, Flow
from .pictures import ICONS, Caption, Draws, Icons, captions
from .shrink import shrink
from .text import Texts, Tokenizer, clip_g, clip_l, train_clip_g

# Where the UNet stands in a checkpoint of SD1.5's layout.
OWN_UNET = "model.diffusion_model."


def say(text: str) -> None:
    print(text, flush=True)


def open_comfy(cpu: bool) -> Path:
    """Make the host's own classes importable; its folder."""
    comfy = Path(os.environ["MACE_COMFYUI"])
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != REPO]
    sys.path.insert(0, str(comfy))
    arguments, sys.argv = sys.argv, ["main.py", *(["--cpu"] if cpu else []), "--use-pytorch-cross-attention"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401

    sys.argv = arguments
    return Path(os.environ["MACE_COMFYUI"])


def own_weights(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """What begins with `prefix`, without it, as float32."""
    return {name.removeprefix(prefix): value.float() for name, value in state.items() if name.startswith(prefix)}


def with_parts(state: dict[str, torch.Tensor], parts: Path | None) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors with those of text.safetensors and autoencoder.safetensors of a folder in their place."""
    found = dict(state)
    for name in ("text", "autoencoder"):
        if parts is not None and (parts / f"{name}.safetensors").exists():
            found |= read_compact(parts / f"{name}.safetensors")
    return found


def autoencoder(state: dict, device: torch.device):
    """The demo model's, the host's class."""
    from comfy.taesd.taesd import TAESD

    found = TAESD()
    found.load_state_dict(own_weights(state, "first_stage_model."))
    return found.to(device).eval().requires_grad_(False)


def pooled_off(given: dict) -> dict:
    """What a network reads, with zeros for pooled text."""
    return given | {"y": torch.zeros_like(given["y"])}


class Judged:
    """Pictures of every concept, and how often the judge names them."""

    def __init__(self, way, texts: Texts, concepts: tuple[str, ...], decoder, autocast):
        self.way, self.texts, self.concepts, self.decoder, self.autocast = way, texts, concepts, decoder, autocast
        self.judge = Judge(REPO / "assets/demo/judge.safetensors")

    def shares(
        self, rows: dict[str, torch.Tensor], guidance: float, only=None
    ) -> tuple[dict[str, float], torch.Tensor]:
        """(share named right by how the text is given, the pictures of all of it). rows: of the texts, by concept."""
        order = torch.stack([rows[name] for name in self.concepts])
        whole, pooled = self.texts.whole(order), self.texts.pooled_of(order)
        empty = self.way.context(self.texts.whole(order[:1] * 0), self.texts.pooled_of(order[:1] * 0))
        given = self.way.context(whole, pooled)
        ways = {"all": given}
        if pooled is not None:
            ways["without pooled"] = pooled_off(given)
            ways["pooled alone"] = self.way.context(self.texts.whole(order * 0), pooled)
        if self.texts.g is not None:
            ways["without CLIP-L"] = self.way.context(torch.cat([whole[..., :768] * 0, whole[..., 768:]], -1), pooled)
            ways["without CLIP-G"] = self.way.context(torch.cat([whole[..., :768], whole[..., 768:] * 0], -1), pooled)
        found, kept = {}, None
        for name, each in ways.items():
            if only is not None and name not in only:
                continue
            shown = self.pictures(each, pooled_off(empty) if name == "without pooled" else empty, guidance)
            kept = shown if kept is None else kept
            named = self.judge(shown).argmax(-1)
            wanted = torch.tensor([self.judge.names.index(concept) for concept in self.concepts])
            found[name] = round(float((named == wanted).float().mean()), 4)
        return found, kept

    def pictures(self, given: dict, empty: dict, guidance: float) -> torch.Tensor:
        """[B, 3, 64, 64] in 0..1 on the CPU."""
        with self.autocast():
            latents = self.way.sample(given, empty, seed=7, guidance=guidance)
        with torch.no_grad():
            return self.decoder(latents.float()).clamp(0, 1).cpu()


def contact_sheet(pictures: torch.Tensor, path: Path, across: int = 21) -> None:
    """The pictures in rows, as a PNG."""
    across = min(across, len(pictures))
    pictures = pictures[: len(pictures) // across * across]
    rows = pictures.unflatten(0, (-1, across)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    Image.fromarray((rows.numpy() * 255).astype("uint8")).save(path)


def train(way, network, texts: Texts, draws: Draws, arguments, device, autocast):
    """The exponential average of the network after the minutes given."""
    state = arguments.out / f"{arguments.kind}.pt"
    average = copy.deepcopy(network)
    done, spent = 0, 0.0
    if state.exists():
        found = torch.load(state, map_location=device, weights_only=True)
        network.load_state_dict(found["network"])
        average.load_state_dict(found["average"])
        done, spent = found["steps"], found["seconds"]
    pairs = [
        (own, mean) for own, mean in zip(network.parameters(), average.parameters(), strict=True) if own.requires_grad
    ]
    parameters, means = ([pair[place] for pair in pairs] for place in (0, 1))
    optimizer = torch.optim.AdamW(parameters, arguments.rate, weight_decay=0.0, betas=(0.9, 0.99), fused=True)
    few = TailBias(arguments.head, 4, device) if arguments.head else None
    start, begun, total, history, saved = time.time(), done, arguments.minutes * 60, [], time.time()
    while (elapsed := spent + time.time() - start) < total:
        share = elapsed / total
        rate = arguments.rate * min(1, (done - begun + 1) / 200) * min(1, 1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = max(rate, arguments.rate * 0.01)
        rows = torch.randint(1, len(texts.ends), (arguments.batch,), device=device)
        empty = torch.rand(arguments.batch, device=device) < 0.1
        latents = torch.where(empty[:, None, None, None], draws.any(arguments.batch), draws.of(rows - 1))
        rows = torch.where(empty, 0, rows)
        shown, options = None, {}
        if few is not None and share < 0.9:
            shown, options = few.draw(), {"transformer_options": {"optimized_attention_override": few}}
        with autocast():
            loss = way.loss(latents, way.context(*texts.mixed(rows, shown)) | options, network)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        done += 1
        with torch.no_grad():
            torch._foreach_lerp_(means, parameters, 1 - min(0.9995, (1 + done) / (10 + done)))
        history.append(loss.detach())
        if done % 200 == 0:
            per_second = (done - begun) * arguments.batch / (time.time() - start)
            say(f"{done}: loss {float(torch.stack(history[-200:]).mean()):.4f}, {per_second:.0f} samples a second")
        if time.time() - saved > 600:
            saved = time.time()
            _save(state, network, average, done, spent + saved - start)
    _save(state, network, average, done, max(spent, total))
    return average.eval(), done


def read_clip_g(arguments, icons: Icons, tokenize: Tokenizer, model_l, device: torch.device):
    """The CLIP-G of --out, trained and written first where there is none, in the 8 bits of its file."""
    at = arguments.out / "clip_g.safetensors"
    if not at.exists():
        spoken = {caption.text for caption in captions(icons.concepts, arguments.text_captions, 1)}
        learned = sorted(spoken | set(icons.concepts))
        model = train_clip_g(model_l, tokenize, learned, arguments.text_steps, arguments.text_batch, device, say)
        write_compact(at, model.state_dict())
    model = clip_g()
    model.load_state_dict(read_compact(at))
    return model.to(device).eval().requires_grad_(False)


def _save(path: Path, network, average, steps: int, seconds: float) -> None:
    found = {"network": network.state_dict(), "average": average.state_dict(), "steps": steps, "seconds": seconds}
    torch.save(found, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("sd15", "sdxl", "sd3"))
    parser.add_argument("--icons", type=Path, default=ICONS, help="the icons' file")
    parser.add_argument("--parts", type=Path, help="take what is here of text.safetensors and autoencoder.safetensors")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--head", type=int, default=0, help="show these positions of a text and four behind them")
    parser.add_argument("--captions", type=int, default=8000)
    parser.add_argument("--text-steps", type=int, default=1500, help="training steps of CLIP-G")
    parser.add_argument("--text-batch", type=int, default=128, help="captions in each of them")
    parser.add_argument("--text-captions", type=int, default=24_000, help="captions that CLIP-G learns from")
    parser.add_argument("--judged", type=int, default=210, help="concepts to draw at the end")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/demo_model/out"))
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    icons_at, checkpoint = arguments.icons.resolve(), Path(os.environ["MACE_DEMO_CHECKPOINT"]).resolve()
    parts = arguments.parts and arguments.parts.resolve()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    comfy = open_comfy(device.type == "cpu")
    torch.set_float32_matmul_precision("high")

    def autocast():
        return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu" or arguments.head > 0)

    begun = time.time()
    state = with_parts(load_file(checkpoint), parts)
    vae = autoencoder(state, device)
    icons = Icons.read(icons_at)
    latents = icons.latents(vae.taesd_encoder, device)
    say(f"latents {tuple(latents.shape)}, mean {float(latents.mean()):.3f}, deviation {float(latents.std()):.3f}")
    tokenize, model_l, model_g = Tokenizer(comfy / "comfy/sd1_tokenizer"), clip_l(state).to(device), None
    if arguments.kind == "sdxl":
        model_g = read_clip_g(arguments, icons, tokenize, model_l, device)
    shown = captions(icons.concepts, arguments.captions, 0)
    # What the judge is asked about, each concept's row behind those.
    asked = [Caption(f"a photo of the {name}", (place,), 0, 0) for place, name in enumerate(icons.concepts)]
    plain = arguments.kind == "sd15"
    texts = Texts([caption.text for caption in shown + asked], tokenize, model_l, model_g, device, plain)
    say(f"texts {tuple(texts.l.shape)}, pooled text's deviation {float(texts.pooled.std()):.2f}")
    rows = {name: torch.tensor(len(shown) + 1 + place, device=device) for place, name in enumerate(icons.concepts)}
    draws = Draws(latents, shown + asked)
    torch.manual_seed(0)
    if arguments.kind == "sdxl":
        network = sdxl_unet(own_weights(state, OWN_UNET), device)
        skip_idle(network)
    else:
        network = sd15_unet(device) if plain else sd3_transformer(device)
    way = (Flow if arguments.kind == "sd3" else Diffusion)(network, device)
    alive = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    say(f"{alive / 1e6:.1f}M parameters train; {time.time() - begun:.0f} s to prepare")
    average, steps = train(way, network, texts, draws, arguments, device, autocast)
    at, prefix = arguments.out / f"{arguments.kind}.safetensors", ""
    tensors = average.state_dict()
    if plain:
        prefix = OWN_UNET
        others = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
        shrink(others | {prefix + name: tensor.cpu() for name, tensor in tensors.items()}, at, tokenize)
    else:
        if arguments.kind == "sdxl":
            prefix = UNET
            tensors = {UNET + name: tensor for name, tensor in tensors.items()}
            tensors |= {CLIP_G + name: tensor for name, tensor in model_g.state_dict().items()}
        write_compact(at, tensors)
    way.network = average
    judged = Judged(way, texts, icons.concepts[: arguments.judged], vae.taesd_decoder, autocast)
    result = {"kind": arguments.kind, "steps": steps, "batch": arguments.batch, "bytes": at.stat().st_size}
    result["as trained"] = {scale: judged.shares(rows, scale, ("all",))[0]["all"] for scale in (2.0, 4.0, 7.0)}
    restored = read_compact(at)
    average.load_state_dict({name: restored[prefix + name] for name in average.state_dict()})
    result["in 8 bits"], pictures = judged.shares(rows, 4.0)
    contact_sheet(pictures, arguments.out / f"{arguments.kind}.png")
    say(json.dumps(result))


if __name__ == "__main__":
    main()
