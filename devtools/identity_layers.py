"""Text layers that change nothing are not computed: the same bits in a fraction of the time.

Ten of the demo model's twelve text layers are identities (see devtools.demo_model), and on a CPU most of encoding a
prompt goes into them: their weights are cast and multiplied only for zeros to be added. Tests encode thousands of
prompts.
"""

import types

import torch


def skip_identity_layers(clip) -> list[str]:
    """Let the layers of a host's CLIP that are identities by their weights pass their input through.

    Whether a layer is one is read from its weights in every call, as they then are: with a LoRA, a hook or a changed
    weight on it, it is computed as the host computes it. Clip skip and intermediate outputs are the encoder's, which
    still calls every layer. Returns the layers' names.
    """
    from comfy.clip_model import CLIPLayer

    found = {
        name: module
        for name, module in clip.cond_stage_model.named_modules()
        if type(module) is CLIPLayer and is_identity(module)
    }
    for layer in found.values():
        layer.forward = types.MethodType(_forward, layer)
    return list(found)


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
    if weight.device.type != "cpu":
        return False
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
