"""What a worker does: opens ComfyUI and the model once, and calls the pack's stages for one unit after another."""

import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import torch

from ..cli import open_host
from ..models import load
from ..places import Place, find
from .folder import Folder, as_bytes, as_file, from_bytes, signed
from .plain import concept_from, files_from, model_key, training_from
from .units import MOMENTS


class Worker:
    """opening: plain values: comfy and base (see `Place`), arguments (ComfyUI's own), files (see `Files`), model (what
    `model_key` must give for them), folder (where results are written, None where they are sent)."""

    def __init__(self, opening: dict):
        self._opening = opening
        self._host = self._loaded = None
        self._refined: tuple[str, object] | None = None

    def open(self) -> dict:
        """Open what is not open yet; who and where this worker is. Raises ValueError for another model's file."""
        if self._loaded is None:
            given = self._opening
            comfy = Path(given["comfy"])
            base = given["base"] and Path(given["base"])
            place = Place(comfy, base) if (comfy / "main.py").is_file() else find()
            if place is None:
                raise ValueError(f"there is no ComfyUI in {comfy}, and COMFYUI_PATH names none")
            # Of one number everywhere: sums are rounded alike then, and workers beside each other do not wait.
            torch.set_num_threads(1)
            self._host = open_host(place, given["arguments"], False)
            import comfy.utils

            comfy.utils.set_progress_bar_enabled(False)
            files = files_from(given["files"])
            if model_key(files) != given["model"]:
                raise ValueError(f"{files.model} is another model on {platform.node()}")
            with torch.inference_mode():
                self._loaded = load(self._host, files)
        import comfy.model_management

        device = str(comfy.model_management.get_torch_device())
        return {"pid": os.getpid(), "node": platform.node(), "device": device}

    def work(self, kind: str, key: str, concepts: list[dict], how: dict, refinement: bytes | None = None) -> dict:
        """Do one unit: {seconds, bytes, result: the file's bytes where there is no folder to write it to}."""
        self.open()
        begun = time.perf_counter()
        with torch.inference_mode():
            made = [concept_from(self._host, plain) for plain in concepts]
            if kind == MOMENTS:
                tensors, metadata = self._moments(made, **how)
            else:
                tensors, metadata = self._loras(made, how, refinement)
        metadata = signed(key, tensors, metadata)
        told = {"seconds": time.perf_counter() - begun, "result": None}
        if self._opening["folder"] is None:
            told["result"] = as_bytes(tensors, metadata)
            return {**told, "bytes": len(told["result"])}
        folder = Folder(Path(self._opening["folder"]))
        return {**told, "bytes": folder.put(f"{key}.{kind}.safetensors", as_file(tensors, metadata))}

    def estimate(self, concepts: list[dict], wanted: dict) -> dict:
        """How long what workers do of an erasure of these concepts would take one: {seconds by part, lines}."""
        self.open()
        host, loaded = self._host, self._loaded
        stage = host.module("nodes.stages.erasing")
        preset = host.module("nodes.host.preset_files").find_preset(wanted["preset"])
        with torch.inference_mode():
            made = tuple(concept_from(host, plain) for plain in concepts)
            asked = stage.Wanted(**{**wanted, "preset": preset})
            # Captions are read where the list is.
            plan = replace(stage.how_done(loaded.model, made, asked), captions=None)
            found = host.module("nodes.stages.planning").estimate(loaded.model, loaded.clip, loaded.vae, made, plan)
        return {"seconds": dict(found.seconds), "lines": list(found.lines)}

    def _moments(self, concepts: list, pooled: bool, own_words: bool):
        text, _ = self._host.module("nodes.host.pipeline").text_and_weights(self._loaded.model, self._loaded.clip)
        found = [text.moments(concept, lambda prompts: None, pooled, own_words) for concept in concepts]
        return self._host.module("mace.formats.moments_file").shard_to_file(concepts, found)

    def _loras(self, concepts: list, how: dict, refinement: bytes):
        """Pictures, masks and LoRAs, as the nodes and Erase Concepts make them."""
        module, loaded = self._host.module, self._loaded
        refined = self._refined_by(refinement)
        images = module("nodes.stages.images").make_images(
            loaded.model, loaded.clip, loaded.vae, concepts, how["prompt"], how["negative"], how["drawing"]
        )
        masking = module("nodes.stages.mask_making")
        settings = masking.MaskSettings(**how["masks"])
        masks, *_ = masking.make_masks(loaded.model, loaded.clip, images, how["backend"], settings=settings)
        kept = [masking.without_skipped(*pair) for pair in zip(images, masks, strict=True)]
        loras, _ = module("nodes.stages.train").train_loras(
            refined, loaded.clip, [own for own, *_ in kept], [own for _, own, _ in kept],
            training_from(self._host, how["training"]),
        )  # fmt: skip
        # The recipe and the moments are where the list is.
        alone = module("mace.formats.lora_set").LoraSet(loras.loras, None, loras.blocks, loras.base)
        return module("mace.formats.lora_set_file").set_to_file(alone, with_moments=False)

    def _refined_by(self, refinement: bytes):
        """The refined MODEL, made once for each refinement."""
        if self._refined is None or self._refined[0] != refinement:
            module, loaded = self._host.module, self._loaded
            result = module("mace.formats.recipe_file").refinement_from_file(*from_bytes(refinement))
            _, weights = module("nodes.host.pipeline").text_and_weights(loaded.model, loaded.clip)
            refined, _ = module("mace.pipeline.refine").refined_by(weights, result, None, lambda count: None)
            self._refined = (refinement, refined.model)
        return self._refined[1]
