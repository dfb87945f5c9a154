"""The real ComfyUI in this process: for the tests, and for the benchmarks."""

import asyncio
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import torch

from .identity_layers import skip_identity_layers

REPO = Path(__file__).resolve().parent.parent


def open_host(base: Path) -> "InProcessHost":
    """The host and demo model that `dev.py run` names in the environment. base: see InProcessHost.

    For a program started with -m in the repository: what it needs of the repository must be imported before, since
    the repository's folder, whose nodes/ shadows the host's nodes.py, is taken off the path.
    """
    try:
        comfy, checkpoint = (Path(os.environ[name]) for name in ("MACE_COMFYUI", "MACE_DEMO_CHECKPOINT"))
    except KeyError as missing:
        raise SystemExit(f"{missing} is not set: start this with `python dev.py run python -m ...`") from None
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != REPO]
    return InProcessHost(comfy, REPO, base, checkpoint)


def _start_dynamic_memory() -> bool:
    """What the host's main.py does at its start on NVIDIA; whether it worked."""
    import comfy_aimdo.control

    comfy_aimdo.control.init()
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    devices = [device.index for device in comfy.model_management.get_all_torch_devices()]
    if not comfy_aimdo.control.init_devices(devices):
        return False
    comfy_aimdo.control.set_log_warning()
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
    return True


def as_list(name: str, value):
    """An input as the host gives it to nodes that take lists; of a DynamicCombo each of its own inputs."""
    if isinstance(value, dict) and name in value:
        return {inner: [own] for inner, own in value.items()}
    return [value]


class InProcessHost:
    """Imports the host once and loads the pack as the host itself does.

    base: a fresh folder that becomes the host's base directory (models/, input/, output/ ...).  demo_checkpoint: the
    demo model, None to go without.  cpu: on the CPU, else on the device the host chooses.  dynamic: with the memory
    manager that the host has on NVIDIA (main.py sets it up, which is not run here), where it works.
    """

    def __init__(
        self,
        comfy: Path,
        pack: Path,
        base: Path,
        demo_checkpoint: Path | None,
        cpu: bool = True,
        dynamic: bool = False,
    ):
        self.base = base
        self.demo_checkpoint = demo_checkpoint
        for name in ("custom_nodes", "models/checkpoints", "input", "output", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        if demo_checkpoint is not None:
            (base / "models/checkpoints/mace_demo.safetensors").symlink_to(demo_checkpoint)
        sys.path.insert(0, str(comfy))
        arguments, sys.argv = sys.argv, ["main.py", *(["--cpu"] if cpu else []), "--base-directory", str(base)]
        here = os.getcwd()
        try:
            import comfy.options

            comfy.options.enable_args_parsing()
            import comfy.cli_args  # noqa: F401  (reads the arguments now)
        finally:
            sys.argv = arguments
        os.chdir(here)
        self.dynamic = dynamic and _start_dynamic_memory()
        import comfy.sd
        import folder_paths

        import nodes

        folder_paths.add_model_folder_path("checkpoints", str(base / "output/checkpoints"))
        self.folder_paths = folder_paths
        self.nodes = nodes
        before = set(nodes.NODE_CLASS_MAPPINGS)
        if not asyncio.run(nodes.load_custom_node(str(pack), before, "custom_nodes")):
            raise RuntimeError("the host could not load the pack; its log says why")
        self.node_classes = {name: cls for name, cls in nodes.NODE_CLASS_MAPPINGS.items() if name not in before}
        self._root = str(pack).replace(".", "_x_")

    def module(self, name: str) -> ModuleType:
        """A module of the pack as the host loaded it, such as "nodes.host.model.unet" or "mace.method.refine"."""
        return importlib.import_module(f"{self._root}.{name}")

    def run(self, node: str, **inputs):
        """Execute a node as the host does: checked inputs, inference mode. Returns its NodeOutput."""
        cls = self.node_classes[node]
        cls.GET_SCHEMA()
        if cls.INPUT_IS_LIST:
            inputs = {name: as_list(name, value) for name, value in inputs.items()}
        with torch.inference_mode():
            return cls.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs)

    def validate(self, node: str, **inputs):
        """What the node's validate_inputs says: True or the message."""
        cls = self.node_classes[node]
        return cls.validate_inputs(**{name: [value] for name, value in inputs.items()} if cls.INPUT_IS_LIST else inputs)

    @staticmethod
    def load_checkpoint(path: Path):
        """(MODEL, CLIP, VAE) of a checkpoint, as CheckpointLoaderSimple gives them, but for time: text layers that
        change nothing are not computed (see devtools.identity_layers). The bits are the same."""
        import comfy.sd

        with torch.inference_mode():
            loaded = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)[:3]
        if loaded[1] is not None:
            skip_identity_layers(loaded[1])
        return loaded

    @staticmethod
    def encode(clip, prompt: str):
        """CONDITIONING of a prompt, as CLIPTextEncode gives it."""
        with torch.inference_mode():
            return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))

    def sample(
        self, model, clip, prompt, seed=0, steps=12, cfg=4.0, sampler="ddim", scheduler="normal", batch=1
    ) -> torch.Tensor:
        """Latents [B, 4, 8, 8] of the demo model. prompt: text, or a CONDITIONING."""
        positive = self.encode(clip, prompt) if isinstance(prompt, str) else prompt
        with torch.inference_mode():
            latent = {"samples": torch.zeros(batch, 4, 8, 8)}
            (out,) = self.nodes.common_ksampler(
                model, seed, steps, cfg, sampler, scheduler, positive, self.encode(clip, ""), latent
            )
        return out["samples"]

    @staticmethod
    def decode(vae, latents: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, H, W] in 0..1."""
        with torch.inference_mode():
            return vae.decode(latents).movedim(-1, 1).clamp(0, 1)
