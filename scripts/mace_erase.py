"""Registers the tab Erase concepts with A1111, Forge and their kin, which import this file."""

import os
from contextlib import closing
from pathlib import Path

from modules import call_queue, paths, processing, script_callbacks, sd_models, shared

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


def _draw(title, prompt, seed, side):
    """A picture by the web UI's own sampler and settings, saved nowhere."""
    given = dict(
        prompt=prompt, seed=seed, width=side, height=side, steps=20, cfg_scale=7.0, sampler_name="Euler",
        override_settings={"sd_model_checkpoint": title}, do_not_save_samples=True, do_not_save_grid=True,
        outpath_samples=shared.opts.outdir_txt2img_samples, outpath_grids=shared.opts.outdir_txt2img_grids,
    )  # fmt: skip
    with call_queue.queue_lock:
        shared.state.begin(job="mace")
        try:
            with closing(processing.StableDiffusionProcessingTxt2Img(sd_model=shared.sd_model, **given)) as drawing:
                return processing.process_images(drawing).images[0]
        finally:
            shared.state.end()


def _tabs():
    webui = WebUI(
        checkpoints=sd_models.checkpoint_tiles,
        file_of=lambda title: sd_models.checkpoints_list[title].filename,
        models=_models,
        loras=_loras,
        refresh=sd_models.list_models,
        comfyui=lambda: getattr(shared.opts, "mace_comfyui", "") or "",
        draw=_draw,
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
