"""What other nodes put into a MODEL that a copy to train on lacks or gradients cannot pass, and no room for a copy."""

import errno
from contextlib import nullcontext
from types import MethodType

import pytest
import torch

from tests.kinds import conditioning, latents, unet
from tests.test_forward import losses_of
from tests.test_predict_others import batch_of, load, modules, plain, stack_of

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("one_thread")]

# Fixtures of the other file, used here by name.
__all__ = ["modules", "plain"]


def test_what_was_compiled_is_looked_into_and_trained_as_it_is(comfy_host, modules, plain):
    """The host's TorchCompileModel, whose graph asks for no patches of a call and holds the original's weights."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    compiled, again = (plain.clone(disable_dynamic=True) for _ in range(2))
    for model in (compiled, again):
        set_torch_compile_wrapper(model, "eager", {"guard_filter_fn": skip_torch_compile_dict})
    key = comfy_host.module("nodes.host.kept.content").model_sha256
    assert key(compiled) == key(again) != key(plain)
    forward, contexts = modules["forward"], conditioning(plain)[0]
    found = []
    for model in (plain, compiled):
        with torch.inference_mode():
            maps = modules["attention_maps"].concept_maps(model, latents(2), contexts[0], [4, 5], None, "dog")
        with forward.trainable_copy(model) as copy:
            stacked = stack_of(copy, modules["unet"].cross_attention_keys(copy))
            loss = losses_of(forward, copy, batch_of(forward, copy), stacked)
            loss.sum().backward()
        found.append((maps, loss.detach()))
    torch.testing.assert_close(found[1], found[0])
    assert compiled.get_all_wrappers("apply_model")


def test_weights_of_others_that_gradients_cannot_pass_are_named(modules, plain, tmp_path):
    from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch

    context = plain.model.model_config.unet_config["context_dim"]
    layer = {"linear.weight": torch.eye(context), "linear.bias": torch.zeros(context)}
    torch.save({context: [layer, layer]}, tmp_path / "hyper.pt")
    model, forward = plain.clone(), modules["forward"]
    with torch.inference_mode():
        patch = load_hypernetwork_patch(str(tmp_path / "hyper.pt"), 1.0)
    model.set_model_attn2_patch(patch)
    model.set_model_attn1_patch(patch)
    with pytest.raises(ValueError, match="gradients cannot pass them: .*hypernetwork"):
        with forward.trainable_copy(model) as copy:
            # What comes from other layers has gradients by then.
            contexts = conditioning(copy)[0].requires_grad_(True)
            forward.predict(copy, latents(1), torch.tensor([1.0]), contexts).sum().backward()


def test_a_lora_in_bypass_mode_is_not_passed_over(comfy_host, modules, plain):
    """Training says what to load in its place, and what it leaves on the network does not make it another MODEL."""
    from comfy.sd import load_bypass_lora_for_models

    layer = modules["unet"].cross_attention_keys(plain)[0].removesuffix(".weight")
    d_out, d = modules["unet"].matrix_shape(plain, f"{layer}.weight")
    draw = torch.Generator().manual_seed(0)
    lora = {
        f"{layer}.lora_up.weight": torch.randn(d_out, 2, generator=draw),
        f"{layer}.lora_down.weight": torch.randn(2, d, generator=draw),
    }
    key = comfy_host.module("nodes.host.kept.content").model_sha256
    before = key(plain)
    with torch.inference_mode():
        model = load_bypass_lora_for_models(plain, None, lora, 1.0, 0)[0]
    assert key(model) != before
    load(model)
    with torch.inference_mode():
        drawn = [modules["predict"].predict(model, latents(), torch.tensor([1.0]), conditioning(plain)[0])]
        assert key(plain) == before != key(model)
        drawn += [modules["predict"].predict(model, latents(), torch.tensor([1.0]), conditioning(plain)[0])]
    assert torch.equal(*drawn)
    load(plain)
    assert key(plain) == before
    with pytest.raises(ValueError, match="layers put into it .*bypass_lora.*Load LoRA"):
        with modules["forward"].trainable_copy(model):
            pass


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("out of memory"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_no_room_for_a_copy_is_told_as_that(modules, plain, error):
    def load_again(**_):
        raise error

    model = plain.clone()
    model.cached_patcher_init = (load_again, ())
    with pytest.raises(ValueError, match=r"second copy of the model \(.* GB\), and there is no room"):
        with modules["forward"].trainable_copy(model):
            pass


def test_no_room_for_the_copy_on_the_device_is_told_with_what_is_free(modules, plain, monkeypatch):
    from comfy import model_management

    def full(models, **_):
        loaded.extend(models)
        raise torch.OutOfMemoryError("out of memory")

    loaded = []
    monkeypatch.setattr(model_management, "load_models_gpu", full)
    monkeypatch.setattr(model_management, "get_free_memory", lambda device: 2 * 10**6)
    with pytest.raises(ValueError, match="takes [0-9.]+ [MG]B of the device's memory, and 2 MB are free: close other"):
        with modules["forward"].trainable_copy(plain):
            pass
    assert len(loaded) == 1 and not model_management.in_training


def test_modules_of_others_are_frozen_while_the_copy_trains(modules, plain):
    """What a node put in a layer's place is shared with its MODEL: it has no gradient afterwards, and is as it was."""
    layer = modules["unet"].cross_attention_keys(plain)[0].replace("attn2.to_k.weight", "attn1.to_q")
    width = plain.get_model_object(layer).in_features
    model, theirs = plain.clone(), torch.nn.Linear(width, width, bias=False)
    model.add_object_patch(layer, theirs)
    with modules["forward"].trainable_copy(model) as copy:
        assert not any(parameter.requires_grad for parameter in copy.model.parameters())
        contexts = conditioning(copy)[0].requires_grad_(True)
        modules["forward"].predict(copy, latents(1), torch.tensor([1.0]), contexts).sum().backward()
        assert contexts.grad.any()
    assert theirs.weight.grad is None and theirs.weight.requires_grad


@pytest.mark.parametrize("within", ["", ".middle_block.1.transformer_blocks.0"], ids=["network", "block"])
def test_a_method_bound_to_a_part_of_the_model_runs_that_of_the_copy(modules, plain, within):
    """As nodes do that replace a network's forward. Also with recomputed blocks, which leave it where it was."""
    path = f"diffusion_model{within}"
    owner, ran = plain.get_model_object(path), []

    def forward(self, *given, **more):
        ran.append(self)
        return 0.5 * type(self).forward(self, *given, **more)

    model = plain.clone()
    model.add_object_patch(f"{path}.forward", MethodType(forward, owner))
    with modules["forward"].trainable_copy(model) as copy:
        own = copy.get_model_object(path)
        for run in (nullcontext(), modules["recompute"].recomputed_blocks(copy.model), nullcontext()):
            ran.clear()
            contexts = conditioning(copy)[0].requires_grad_(True)
            with run:
                modules["forward"].predict(copy, latents(1), torch.tensor([1.0]), contexts).sum().backward()
            assert ran and {*map(id, ran)} == {id(own)} and contexts.grad.any()
    assert model.object_patches[f"{path}.forward"].__self__ is owner


def test_a_method_bound_to_what_others_put_in_stays_bound_to_it(modules, plain):
    """Whether or not it is in the network just now; and one bound to what stood there runs that of the copy."""
    block = modules["unet"].cross_attention_keys(plain)[0].removesuffix(".attn2.to_k.weight")
    original = plain.get_model_object(f"{block}.attn1")
    model, theirs = plain.clone(), torch.nn.Sequential(torch.nn.Identity())
    model.add_object_patch(f"{block}.attn1", theirs)
    model.add_object_patch(f"{block}.norm1.forward", MethodType(lambda self, x: x, theirs))
    model.add_object_patch(f"{block}.norm2.forward", MethodType(lambda self, x: x, original))
    for put_in in (False, True):
        if put_in:
            load(model)
        with modules["forward"].trainable_copy(model) as copy:
            bound = [copy.object_patches[f"{block}.{name}.forward"].__self__ for name in ("norm1", "norm2")]
            assert bound[0] is theirs and type(bound[1]) is type(original) and bound[1] is not original
    load(plain)


def test_the_copy_of_a_model_in_dynamic_memory_is_plain(modules, plain):
    """The host's own manager needs a device; what it says of itself is what the host makes clones by."""
    from comfy.model_patcher import ModelPatcher

    class Dynamic(ModelPatcher):
        def is_dynamic(self):
            return True

    model = plain.clone()
    model.__class__ = Dynamic
    assert type(model.clone()) is Dynamic
    with modules["forward"].trainable_copy(model) as copy:
        assert type(copy) is ModelPatcher and not copy.is_dynamic()
        assert copy.model is not model.model


def made(stored, held):
    """A MODEL of a file in one dtype, whose weights the host holds in another; None for the same."""
    import comfy.sd

    state = unet("sd15", stored).model.diffusion_model.state_dict()

    def load_again(disable_dynamic=True):
        with torch.inference_mode():
            return comfy.sd.load_diffusion_model_state_dict(dict(state), model_options={"dtype": held} if held else {})

    model = load_again()
    model.cached_patcher_init = (load_again, ())
    return model


def read_again(model, change):
    """The MODEL as if its file had been changed since: change(weights by name)."""
    found, (make, _) = model.clone(), model.cached_patcher_init

    def load_again(**more):
        again = make(**more)
        with torch.inference_mode():
            change(again.model.state_dict())
        return again

    found.cached_patcher_init = (load_again, ())
    return found


def test_a_file_that_changed_since_it_was_loaded_is_not_trained_on(modules, plain):
    """Also where it was erased from in its place: cross-attention keys and values alone, by a LoRA."""
    key = modules["unet"].cross_attention_keys(plain)[-1]

    def merge(state):
        d_out, d = state[key].shape
        state[key] += 1e-3 * torch.linspace(0.5, 1, d_out)[:, None] * torch.ones(d)

    loaded = read_again(plain, merge)
    # What the host put into the network that is loaded is no part of its file, as the same change shows.
    loaded.add_patches({key: ("diff", (torch.ones_like(plain.model.state_dict()[key]),))})
    load(loaded)
    with pytest.raises(ValueError, match="file has changed since it was loaded, or another node.* Unload Models"):
        with modules["forward"].trainable_copy(loaded):
            pass
    loaded.cached_patcher_init = plain.cached_patcher_init
    with modules["forward"].trainable_copy(loaded):
        pass
    load(plain)


@pytest.mark.parametrize(
    ("stored", "held"),
    [(torch.float16, None), (torch.float32, torch.bfloat16), (torch.float16, torch.float8_e4m3fn)],
    ids=["fp16", "fp32 held in bf16", "fp16 held in fp8"],
)
def test_a_file_that_is_the_same_is_trained_on_in_any_dtype(modules, stored, held):
    """With wide layers of fp8 weights in the network, where there are such."""
    model = made(stored, held)
    key = modules["unet"].cross_attention_keys(model)[0]
    with torch.inference_mode():
        changed = modules["unet"].patched(model, [key], lambda key, weight: 0.1 * weight, 1.0, lambda step: None)
    for loaded in (model, changed):
        load(loaded)
        with modules["forward"].trainable_copy(changed):
            pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_model_that_another_node_cast_in_its_place_is_trained_on(modules, dtype):
    """As packs do that save memory. What one changes in place is lost with the file read again, and is said."""
    model = unet("sd15")
    with torch.inference_mode():
        model.model.diffusion_model.to(dtype)
    with modules["forward"].trainable_copy(model):
        pass
    with torch.inference_mode():
        model.get_model_object(modules["unet"].cross_attention_keys(model)[0])[0].zero_()
    with pytest.raises(ValueError, match="or another node changed its weights in place.* leave such a node out"):
        with modules["forward"].trainable_copy(model):
            pass


def test_a_model_that_was_moved_with_gradients_on_is_trained_on(modules):
    """Its weights are half inference tensors then, which refuse views."""
    model = unet("sd15")
    with torch.inference_mode(False):
        model.model.double().float()
    with pytest.raises(RuntimeError, match="Inference tensors"):
        model.get_model_object(modules["unet"].cross_attention_keys(model)[0])[:1]
    with modules["forward"].trainable_copy(model) as copy:
        contexts = conditioning(copy)[0].requires_grad_(True)
        modules["forward"].predict(copy, latents(1), torch.tensor([1.0]), contexts).sum().backward()
    assert contexts.grad.any()


def test_a_damaged_file_is_told_as_that(modules, plain, tmp_path):
    from comfy.sd import load_diffusion_model

    damaged, model = tmp_path / "unet.safetensors", plain.clone()
    damaged.write_bytes(b"\x40" + bytes(7) + b"not json")
    model.cached_patcher_init = (load_diffusion_model, (str(damaged),))
    with pytest.raises(
        ValueError, match="cannot be copied for training: .*checkpoint loader whose file is still there"
    ):
        with modules["forward"].trainable_copy(model):
            pass
