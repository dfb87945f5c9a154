"""Text layers that change nothing are not computed, and the others not twice: the same bits in a fraction of the time.

Ten of the demo model's twelve text layers are identities (see devtools.demo_model), and on a CPU most of encoding a
prompt goes into them: their weights are cast and multiplied only for zeros to be added. Tests encode thousands of
prompts, many of them over and over.
"""

import hashlib
import os
import types
from collections import OrderedDict
from pathlib import Path

import torch

# Bytes of outputs that a process holds.
_ROOM = 400 << 20
# The variable with a folder where processes of one run leave outputs for each other; without it they do not.
SHARED = "MACE_SHARED_LAYERS"


class _Remembered:
    """Outputs of layers by a digest of all that they depend on, those used last, up to `_ROOM`."""

    def __init__(self):
        self.outputs: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self.held = 0

    def __reduce__(self) -> str:
        # Keys by content read what hangs on an encoder: what is remembered changes nothing of what it computes.
        return "_remembered"

    def find(self, key: bytes) -> torch.Tensor | None:
        if key in self.outputs:
            self.outputs.move_to_end(key)
        return self.outputs.get(key)

    def clear(self) -> None:
        self.outputs.clear()
        self.held = 0

    def put(self, key: bytes, output: torch.Tensor) -> None:
        self.outputs[key] = output.clone()
        self.held += output.nbytes
        while self.held > _ROOM:
            self.held -= self.outputs.popitem(last=False)[1].nbytes


_remembered = _Remembered()


class _Folder:
    """Outputs as files, for the processes of one run on one machine."""

    def __init__(self, path: str):
        self._path = Path(path)

    def find(self, key: bytes, like: torch.Tensor) -> torch.Tensor | None:
        """An output with the dtype and shape of `like`."""
        try:
            held = bytearray((self._path / key.hex()).read_bytes())
        except FileNotFoundError:
            return None
        return torch.frombuffer(held, dtype=like.dtype).view(like.shape)

    def put(self, key: bytes, output: torch.Tensor) -> None:
        # Another process may write the same, or read: it sees all of a file or none.
        part = self._path / f"{key.hex()}.{os.getpid()}"
        part.write_bytes(output.contiguous().view(-1).view(torch.uint8).numpy())
        part.replace(self._path / key.hex())


def forget_layers() -> None:
    """Forget what layers gave in this process."""
    _remembered.clear()


def skip_identity_layers(clip) -> list[str]:
    """Let the layers of a host's CLIP that are identities by their weights pass their input through, and the others
    give what they gave for the same batch before.

    Whether a layer is one, and what it gave, is read from its weights in every call, as they then are: with a LoRA, a
    hook or a changed weight on it, an identity is computed as the host computes it, and with a function on one of its
    parts any layer is. Clip skip and intermediate outputs are the encoder's, which still calls every layer. Returns the
    names of the identities.
    """
    from comfy.clip_model import CLIPLayer

    layers = {name: module for name, module in clip.cond_stage_model.named_modules() if type(module) is CLIPLayer}
    identities = [name for name, layer in layers.items() if is_identity(layer)]
    for name, layer in layers.items():
        layer.forward = types.MethodType(_forward if name in identities else _remembering, layer)
    return identities


def skip_where_loaded(sd) -> None:
    """Let `skip_identity_layers` be done to every CLIP of a checkpoint from here on. sd: the host's module comfy.sd."""
    load = sd.load_checkpoint_guess_config

    def loaded(*arguments, **options):
        found = load(*arguments, **options)
        if found[1] is not None:
            skip_identity_layers(found[1])
        return found

    sd.load_checkpoint_guess_config = loaded


def is_identity(layer: torch.nn.Module) -> bool:
    """Whether a CLIPLayer returns every finite input as it is: layer-norm weights one, every other weight and bias
    zero, and nothing on its parts that would change what they compute."""
    parts = [part for name, part in layer.named_modules() if name]
    return not any(map(_is_altered, parts)) and all(_adds_nothing(*named) for named in layer.named_parameters())


def _is_altered(part: torch.nn.Module) -> bool:
    """Whether a module does not compute what its class and weights say: the host's patches for weights that are not
    changed in place, its LoRAs beside a layer (a forward on the instance), PyTorch's hooks."""
    functions = getattr(part, "weight_function", ()), getattr(part, "bias_function", ())
    return "forward" in vars(part) or any(functions) or bool(part._forward_hooks or part._forward_pre_hooks)


def _adds_nothing(name: str, weight: torch.Tensor) -> bool:
    weight = weight.cpu()
    if name.startswith("layer_norm") and name.endswith("weight"):
        return bool((weight == 1).all())
    # Eight bytes at a time, by numpy: half a millisecond a layer, where torch's any() takes longer than the layer.
    return not weight.detach().flatten().view(torch.uint8).numpy().view("u8").any()


def _forward(layer, x, mask=None, optimized_attention=None):
    # What is not finite would spread over the prompt in the host's attention (0 * inf).
    if is_identity(layer) and torch.isfinite(x).all():
        x += 0.0  # in place, and a negative zero becomes zero, as where the host's layer adds its zeros
        return x
    return type(layer).forward(layer, x, mask, optimized_attention)


def _remembering(layer, x, mask=None, optimized_attention=None):
    key = _key(layer, x, mask, optimized_attention)
    if key is None:
        return type(layer).forward(layer, x, mask, optimized_attention)
    found = _remembered.find(key)
    if found is None:
        folder = _Folder(os.environ[SHARED]) if SHARED in os.environ else None
        found = folder and folder.find(key, x)
        if found is None:
            found = type(layer).forward(layer, x, mask, optimized_attention)
            if folder:
                folder.put(key, found)
        _remembered.put(key, found)
    # In place, as the host's layer.
    return found if found is x else x.copy_(found)


def _key(layer, x, mask, attention) -> bytes | None:
    """A digest of all that a layer's output depends on, None where that cannot be told: gradients, hooks, the host's
    patches beside the weights, other devices."""
    parts = [part for name, part in layer.named_modules() if name]
    tensors = [x, *layer.parameters(), *layer.buffers(), *([] if mask is None else [mask])]
    if torch.is_grad_enabled() or any(map(_is_altered, parts)) or any(t.device.type != "cpu" for t in tensors):
        return None
    about = attention, layer.self_attn.heads, layer.mlp.activation, torch.get_num_threads()
    digest = hashlib.sha256(repr(about).encode())
    for tensor in tensors:
        digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.digest()
