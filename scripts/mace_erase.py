"""Registers the tab Erase concepts with A1111, Forge and their kin, which import this file."""

import os
from pathlib import Path

from modules import paths, script_callbacks, sd_models, shared

from mace_webui.choices import WebUI
from mace_webui.job import Job
from mace_webui.tab import build

_job = Job()


def _models() -> Path:
    return Path(shared.cmd_opts.ckpt_dir or os.path.join(paths.models_path, "Stable-diffusion"))


def _loras() -> Path:
    folder = Path(getattr(shared.cmd_opts, "lora_dir", None) or os.path.join(paths.models_path, "Lora"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _tabs():
    webui = WebUI(
        checkpoints=sd_models.checkpoint_tiles,
        file_of=lambda title: sd_models.checkpoints_list[title].filename,
        models=_models,
        loras=_loras,
        refresh=sd_models.list_models,
        comfyui=lambda: getattr(shared.opts, "mace_comfyui", "") or "",
    )
    return [(build(webui, _job), "Erase concepts", "mace_erase")]


def _settings():
    info = shared.OptionInfo(
        "", "A ComfyUI folder to erase with, with its own Python; empty: one that is made at the first run",
        section=("mace", "Erase concepts"),
    )  # fmt: skip
    shared.opts.add_option("mace_comfyui", info)


script_callbacks.on_ui_tabs(_tabs)
script_callbacks.on_ui_settings(_settings)
