"""What the baselines that train share: a copy of the model with some weights in training, and the change as patches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from comfy import model_management
from comfy_api.latest import io, ui
from torch import Tensor, nn
from torch.func import functional_call

from ...mace.baselines.fitting import Fit, fit
from ...mace.baselines.parts import Part
from ...mace.concepts.concept import Concept
from ...mace.formats.provenance import concept_record
from ...mace.pipeline.batches import chunks
from ..host.model.forward import trainable_copy
from ..host.model.fp8 import FP8, fp8_note
from ..host.model.memory import is_out_of_memory
from ..host.model.predict import predict, sigmas_at
from ..host.model.unet import ATTACHMENT, BASE_MODEL, REFINED_BY, REFINEMENT, add_changes, check_editable, key_patches
from ..host.progress import LossProgress, listed
from ..host.text import TextEncoder


@dataclass(frozen=True)
class Texts:
    """Encoded prompts: embeddings [P, N, d], and pooled text [P, c] where the model reads it (SDXL)."""

    contexts: Tensor
    pooled: Tensor | None

    @classmethod
    def of(cls, encoder: TextEncoder, model, prompts: Sequence[str]) -> "Texts":
        """The prompts, each row one, on the CPU."""
        encoder.check_width(model)
        contexts = torch.cat([encoder.encoded(part).cpu() for part in chunks(prompts)])
        return cls(contexts, encoder.pooled(prompts).cpu() if encoder.has_pooled(model) else None)


class _Scope(nn.Module):
    """Lets `functional_call` put other weights into the host's model, which has no forward of its own."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, run: Callable):
        return run()


def _in_float32(forward: Callable, x: Tensor) -> Tensor:
    """A layer's forward with its weights in float32; what goes on into the model has the model's dtype."""
    return forward(x.float()).to(x.dtype)


class Trainee:
    """A copy of a MODEL (from `trainable_copy`) whose chosen weights train as float32 masters.

    Their layers compute in float32, since fp16 and bf16 would round small steps away (see mace.method.precision). The
    copy's own weights keep their values: they are the original model.
    """

    def __init__(self, copy, part: Part, texts: Texts):
        self.copy, self.device = copy, copy.load_device
        self.own = {name: weight for name, weight in copy.model.named_parameters() if part(name)}
        if not self.own:
            raise ValueError(
                f"{type(copy.model).__name__} has no weights of this kind: the baselines work on Stable Diffusion "
                "UNets (SD1.x, SD2.x, SDXL and their fine-tunes)"
            )
        self._stored = {name: weight.dtype for name, weight in self.own.items()}
        for name in dict.fromkeys(name.rpartition(".")[0] for name in self.own):
            layer = copy.model.get_submodule(name).float()
            layer.forward = partial(_in_float32, layer.forward)
        # The layers take more now than the host has counted.
        copy.size = 0
        self.masters = {
            name: weight.detach().to(self.device, torch.float32, copy=True).requires_grad_(True)
            for name, weight in self.own.items()
        }
        # What the node encoded are inference tensors, which autograd cannot take.
        self.contexts, self.pooled = (
            None if rows is None else rows.to(self.device, torch.float32, copy=True)
            for rows in (texts.contexts, texts.pooled)
        )
        self._scope = _Scope(copy.model)

    def edited(self, run: Callable):
        """run() with the masters in the model."""
        return functional_call(self._scope, {f"model.{name}": own for name, own in self.masters.items()}, (run,))

    def original(self, x: Tensor, sigma: Tensor, prompts: Tensor) -> Tensor:
        """eps of the model as it was (see mace.baselines.objectives.Predict). prompts: rows of the texts, [B]."""
        model_management.throw_exception_if_processing_interrupted()
        pooled = None if self.pooled is None else self.pooled[prompts]
        clean = predict(self.copy, x, sigma, self.contexts[prompts], pooled)
        # Whatever the model predicts (noise or v): the host gives x0, and x = x0 + sigma eps.
        return (x - clean) / sigma.view(-1, *[1] * (x.dim() - 1))

    def predict(self, x: Tensor, sigma: Tensor, prompts: Tensor) -> Tensor:
        """eps of the model in training, differentiable in the masters."""
        return self.edited(lambda: self.original(x, sigma, prompts))

    def rows(self, places: Sequence[int]) -> Tensor:
        """Row numbers of the texts as `Predict` takes them."""
        return torch.tensor(places, device=self.device)

    def sigmas(self, timesteps: Sequence[int]) -> Tensor:
        """sigma at timesteps."""
        return sigmas_at(self.copy, timesteps)

    def noise(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Noise [count, ch, h, w] for pictures of size (width, height) in pixels, drawn on the CPU."""
        form = self.copy.get_model_object("latent_format")
        sides = (side // form.spacial_downscale_ratio for side in reversed(size))
        return torch.randn(count, form.latent_channels, *sides, generator=generator).to(self.device)

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """Noise as sampling starts from it at sigma (a scalar)."""
        sampling = self.copy.model.model_sampling
        # The host adds the latents into the noise in place.
        return sampling.noise_scaling(sigma, noise.clone(), torch.zeros_like(noise), max_denoise=True)

    def noised(self, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """x = x0 + sigma noise of latents [B, ch, h, w] in the model's own scale at sigmas [B]."""
        shaped = sigmas.view(-1, *[1] * (latents.dim() - 1))
        return self.copy.model.model_sampling.noise_scaling(shaped, noise.clone(), latents)

    def changes(self) -> dict[str, Tensor]:
        """What training changed, by weight, in the weight's own dtype (float32 for fp8, too coarse for a difference).

        Weights that have not moved are left out.
        """
        found = {}
        for name, own in self.own.items():
            change = self.masters[name].detach() - own.to(self.device, torch.float32)
            if change.any():
                stored = self._stored[name]
                found[name] = change.to(torch.float32 if stored in FP8 else stored)
        return found


def train_baseline(
    model, part: Part, texts: Texts, settings: Fit, names: Sequence[str], prepare: Callable, before: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """(what training changed, by weight; losses [steps]).

    prepare(trainee, progress) -> the loss of a step, as `mace.baselines.fitting.fit` takes it.  names: of the
    concepts, for the artist.  before: progress that `prepare` makes by itself. MODEL and the host stay as they were,
    also when the host's interrupt ends training between two steps. Raises ValueError for quantised weights.
    """
    check_editable(model, [name for name, _ in model.model.named_parameters() if part(name)])
    progress = LossProgress(settings.steps + before)

    def report(step: int, loss: Tensor) -> None:
        model_management.throw_exception_if_processing_interrupted()
        progress.report([listed(names)], step, loss[None], settings.steps)

    try:
        with trainable_copy(model) as copy:
            trainee = Trainee(copy, part, texts)
            computes_in = copy.model.get_dtype_inference()
            history = fit(trainee.masters, prepare(trainee, progress), settings, report, computes_in)
            return trainee.changes(), history
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RuntimeError(
            "out of memory: use smaller pictures or a smaller batch, or train the cross-attentions alone"
        ) from error


def with_changes(model, changes: dict[str, Tensor]):
    """A clone of MODEL with the changes added as patches, kept where the host keeps the model when it is not in use."""
    clone = model.clone()
    patches = {name: ("diff", (change.to(model.offload_device),)) for name, change in changes.items()}
    add_changes(clone, patches, 1.0, key_patches(clone))
    return clone


def result(
    model, clip, stage: str, concepts: Sequence[Concept], settings: dict, changes: dict[str, Tensor], losses: Tensor
) -> io.NodeOutput:
    """A baseline's outputs: the changed MODEL, with a record of what was done, and the losses."""
    done = with_changes(model, changes)
    record = {
        "stage": stage,
        "concepts": [concept_record(concept) for concept in concepts],
        "settings": settings,
        "clip_layer": clip.layer_idx,
    }
    done.set_attachments(ATTACHMENT, (*(model.get_attachment(ATTACHMENT) or ()), record))
    # It is no longer the refinement of its base: whatever comes next starts from it as it is.
    for name in (BASE_MODEL, REFINEMENT, REFINED_BY):
        done.remove_attachments(name)
    tenth = max(len(losses) // 10, 1)
    first, last = float(losses[:tenth].mean()), float(losses[-tenth:].mean())
    text = (
        f"{listed([concept.target for concept in concepts])}: {len(changes)} weights changed in {len(losses)} steps\n"
        f"loss {first:.4g} to {last:.4g} (means of the first and the last tenth)"
    )
    note = fp8_note(done, list(changes))
    text += f"\n{note}" if note else ""
    return io.NodeOutput(done, {"loss": [float(loss) for loss in losses]}, ui=ui.PreviewText(text))
