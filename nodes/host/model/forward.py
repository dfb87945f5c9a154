"""A model's own forward pass for training: a copy that gradients run through, and what it attends with."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MethodType

import torch
from comfy import model_management
from torch import Tensor

from ....mace.pipeline.host import Attend, Attention
from ..progress import size
from .bare import bare_network
from .fp8 import FP8, own_wide_layers
from .memory import is_out_of_memory, make_way, suppress_out_of_memory
from .predict import noisy, predict, together, uncompiled
from .unet import cross_attention_keys, is_quantised, key_patches
from .unsaved import unsaved

_PLACE = re.compile(r"^diffusion_model\.(input|middle|output)_blocks?\.(\d+)\.(?:\d+\.)?transformer_blocks\.(\d+)\.")

# Of a weight that is compared: an edit changes every row, or nearly.
ROWS = 4


def place(key: str) -> tuple[str, int, int]:
    """Where the host's patches find the cross-attention of a projection: (block, its number, index inside it)."""
    found = _PLACE.match(key)
    if found is None:
        raise ValueError(f"{key} is not in a block of a Stable Diffusion UNet")
    block, number, index = found.groups()
    return block, 0 if block == "middle" else int(number), int(index)


@contextmanager
def trainable_copy(model) -> Iterator:
    """A copy of MODEL that autograd can run through: its own weights, frozen, with all patches baked in, loaded.

    The host's weights are inference tensors, which cannot take part in a backward pass; and its dynamic memory manager
    takes weights off the device after each layer, while autograd still needs them. The copy leaves the device when
    the block ends, however it ends. Raises ValueError when the host cannot copy the model or finds other weights in its
    file by now, or where other nodes put something into it that a copy lacks or gradients cannot pass.
    """
    injected = ", ".join(str(name) for name, parts in model.injections.items() if parts)
    if injected:
        raise ValueError(
            f"the model has layers put into it that cannot be copied for training ({injected}): load LoRAs with Load "
            "LoRA, not in bypass mode"
        )
    with torch.inference_mode(False), torch.enable_grad():
        copy = _read_again(model)
        own_wide_layers(copy)
        _bind_to_its_own(copy, model)
        _in_the_hosts_dtypes(copy.model)
        if not _same_weights(model, copy):
            raise ValueError(
                "the model's file has changed since it was loaded, or another node changed its weights in place, and "
                "training reads the file again: choose Unload Models and Execution Cache in ComfyUI's menu, and leave "
                "such a node out"
            )
        copy.model.requires_grad_(False)
        before, frozen = model_management.in_training, []
        model_management.in_training = True
        try:
            _place(copy)
            # Only now are other nodes' own modules in it, which their MODEL shares.
            frozen += [parameter for parameter in copy.model.parameters() if parameter.requires_grad]
            copy.model.requires_grad_(False)
            yield copy
        except RuntimeError as error:
            if "Inference tensors" not in str(error):
                raise
            raise ValueError(
                "other nodes put layers with weights of their own into the model (hypernetworks and GLIGEN do), or "
                "functions that run the original network, and gradients cannot pass them: connect the model without "
                f"them. What is set on it: {'; '.join(unsaved(model))}"
            ) from error
        finally:
            model_management.in_training = before
            copy.detach()
            # Some of them may be inference tensors, which nothing else can do this to.
            with torch.inference_mode():
                for parameter in frozen:
                    parameter.requires_grad_(True)


def _place(copy) -> None:
    """`load`, for the first time. Raises ValueError, with what is free, where the device has no room for the copy."""
    with suppress_out_of_memory():
        return load(copy)
    # The part of the copy that had come goes too.
    copy.detach()
    model_management.soft_empty_cache()
    free = model_management.get_free_memory(copy.load_device)
    raise ValueError(
        f"the copy of the model to train on takes {size(copy.model_size())} of the device's memory, and {size(free)} "
        "are free: close other programs, load the model in fp16 or bf16, or take a smaller model"
    )


def _read_again(model):
    """A plain patcher of the MODEL's own, whose weights the host reads from its file anew."""
    try:
        return uncompiled(model).clone(disable_dynamic=True, force_deepcopy=True)
    # A file that is damaged by now fails in as many ways as there are readers.
    except Exception as error:
        if is_out_of_memory(error):
            raise ValueError(
                f"training needs a second copy of the model ({model.model_size() / 1e9:.1f} GB), and there is no room "
                "for it in memory: close other programs, or load the model in fp16 or bf16"
            ) from error
        raise ValueError(
            f"the model cannot be copied for training: {str(error).rstrip('.')}. Load it with a checkpoint loader "
            "whose file is still there, and whole"
        ) from error


def _same_weights(model, copy) -> bool:
    """Whether a fresh copy has the MODEL's own weights, by a few rows of each.

    Left out are those that other nodes replaced, quantised ones, and those that the host rounds to fp8 for the copy
    alone.
    """
    replaced = model.object_patches_backup
    theirs, ours = (key_patches(one) for one in (model, copy))
    found = False
    for key, (own, *_) in ours.items():
        if key not in theirs or any(key == name or key.startswith(f"{name}.") for name in replaced):
            continue
        found = True
        weights = [theirs[key][0][0], own[0]]
        if any(type(weight) not in (Tensor, torch.nn.Parameter) or is_quantised(weight) for weight in weights):
            continue
        if weights[0].shape != weights[1].shape:
            return False
        dtype = weights[1].dtype
        if dtype in FP8 and weights[0].dtype != dtype:
            continue
        # What was moved with gradients on refuses views, but for those of its data.
        rows = [torch.atleast_1d(weight.data)[:ROWS].cpu() for weight in weights]
        # One may stand in another dtype than the file's: by the host, or as another node cast it in its place.
        rounded = [[part.to(dtype).float() for part in rows] for dtype in {part.dtype for part in rows}]
        if not any(torch.allclose(*pair, rtol=0, atol=0, equal_nan=True) for pair in rounded):
            return False
    return found


def _bind_to_its_own(copy, model) -> None:
    """Methods that other nodes put into the MODEL, bound to a part of its network, to the same part of the copy's."""
    with bare_network(model):
        paths = {part: path for path, part in model.model.named_modules()}
    for name, method in copy.object_patches.items():
        if isinstance(method, MethodType) and isinstance(method.__self__, torch.nn.Module) and method.__self__ in paths:
            own = copy.model.get_submodule(paths[method.__self__])
            copy.object_patches[name] = MethodType(method.__func__, own)


def _in_the_hosts_dtypes(network: torch.nn.Module) -> None:
    """Weights of a plain copy in the dtypes the host chose for them.

    Where its dynamic memory is on, layers take a file's dtype over as it is and are cast as they run, which a plain
    patcher does not do: fp32 weights would meet fp16 activations.
    """
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            chosen = getattr(module, f"{name}_comfy_model_dtype", None) or weight.dtype
            if weight.dtype != chosen and weight.is_floating_point() and not is_quantised(weight):
                setattr(module, name, torch.nn.Parameter(weight.to(chosen), requires_grad=False))


def load(copy, memory: float = 0.0) -> None:
    """The copy on its device as a whole, with room for `memory` bytes beside it; other models make way.

    With --novram the host would leave its weights where they are all the same, bring them one by one as they are
    needed, and add the patches anew each time.
    """
    make_way(copy)
    state = model_management.vram_state
    if state == model_management.VRAMState.NO_VRAM:
        model_management.vram_state = model_management.VRAMState.NORMAL_VRAM
    try:
        model_management.load_models_gpu([copy], memory_required=memory, force_full_load=True)
    finally:
        model_management.vram_state = state


@dataclass(frozen=True)
class ModelDenoiser:
    """A loaded MODEL, or a copy that trains, as what predicts pictures. See `mace.pipeline.host.Denoiser`.

    Nothing of the host is replaced: it attends through the attn2 replace patches of the call.
    """

    model: object

    @property
    def device(self) -> torch.device:
        """Where the host computes the model."""
        return self.model.load_device

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `predict.noisy`."""
        return noisy(self.model, latents, noise, timesteps)

    def together(self, sigmas: Tensor) -> list[Tensor]:
        """See `predict.together`."""
        return together(self.model, sigmas)

    def predict(self, x: Tensor, sigmas: Tensor, contexts: Tensor, pooled: Tensor | None, attend: Attend) -> Tensor:
        """As `predict.predict`, all cross-attention by `attend`; the model's own options are left as they are."""

        def replace(attn2: dict) -> None:
            ours = {}
            for layer in dict.fromkeys(key.rpartition(".to_")[0] for key in cross_attention_keys(self.model)):
                where = place(f"{layer}.")
                ours[where] = partial(_attended, attend, layer, attn2.get(where, attn2.get(where[:2])))
            attn2.update(ours)

        return predict(self.model, x, sigmas, contexts, pooled, replace)


def _attended(attend: Attend, layer: str, theirs, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """An attn2 replace patch. theirs: another pack's patch there, or None."""
    others = None if theirs is None else lambda keys, values: theirs(q, keys, values, options)
    height, width = options["activations_shape"][-2:]
    return attend(layer, Attention(q, k, v, options["n_heads"], (height, width), others))
