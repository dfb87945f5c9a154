"""What diffusers makes of a checkpoint and a LoRA: diffusers_child.py CHECKPOINT CONFIG INPUTS OUT [LORA].

CONFIG is a folder with the UNet's config.json. INPUTS has the latent x, the text and the timesteps; OUT gets the
noise predicted at each timestep, of the same latent, and the latent at the end of plain DDIM over them. Offline.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from safetensors.torch import load_file, save_file

checkpoint, config, inputs, out, *lora = sys.argv[1:]
given = load_file(inputs)
unet = UNet2DConditionModel.from_single_file(
    checkpoint, config=config, local_files_only=True, torch_dtype=torch.float32
)
if lora:
    state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(load_file(lora[0]), unet_config=unet.config)
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
scheduler = DDIMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
)
scheduler.set_timesteps(len(given["timesteps"]))
scheduler.timesteps = given["timesteps"].long()
with torch.inference_mode():
    noise = torch.cat([unet(given["x"], t, given["text"]).sample for t in scheduler.timesteps])
    x = given["x"]
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, given["text"]).sample, t, x).prev_sample
save_file({"noise": noise, "latent": x}, out)
