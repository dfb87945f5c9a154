"""The real ComfyUI in this process: for the tests, and for the benchmarks."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from headless.host import Host

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
    return InProcessHost(comfy, REPO, base, checkpoint)


class InProcessHost(Host):
    """The host with a fresh base directory, and what tests and benchmarks do with it.

    base: a fresh folder that becomes the host's base directory (models/, input/, output/ ...).  demo_checkpoint: the
    demo model, None to go without.  cpu: on the CPU, else on the device the host chooses.  dynamic: with the memory
    manager that the host has on NVIDIA (main.py sets it up, which is not run here), where it works.  options: more of
    the host's own, as on its command line.
    """

    def __init__(
        self,
        comfy: Path,
        pack: Path,
        base: Path,
        demo_checkpoint: Path | None,
        cpu: bool = True,
        dynamic: bool = False,
        options: Sequence[str] = (),
    ):
        self.base = base
        self.demo_checkpoint = demo_checkpoint
        for name in ("custom_nodes", "models/checkpoints", "input", "output", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        if demo_checkpoint is not None:
            (base / "models/checkpoints/mace_demo.safetensors").symlink_to(demo_checkpoint)
        super().__init__(comfy, pack, [*(["--cpu"] if cpu else []), "--base-directory", str(base), *options], dynamic)
        self.folder_paths.add_model_folder_path("checkpoints", str(base / "output/checkpoints"))

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

    def forget_trained(self) -> None:
        """Forget trained LoRAs and trainings that were stopped, as in a new process with an empty user folder."""
        trained = self.module("nodes.stages.trained")
        trained._store.clear()
        trained._forgotten.clear()
        for path in self.module("nodes.host.kept.lora_store").store().folder.glob("*"):
            path.unlink()

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
