"""The host on a device, for the tests marked gpu, and the demo model there in three number formats.

A card's, or the one that devtools/simulated_device.py makes.
"""

import pytest
import torch

from devtools.identity_layers import skip_identity_layers
from devtools.simulated_device import SIZE, find_device, statistics_of

SIMULATED = bool(SIZE)
DEVICE = find_device()
statistics = statistics_of(DEVICE)
ON_DEVICE = [pytest.mark.gpu, pytest.mark.skipif(DEVICE is None, reason="no CUDA device")]
FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LIST = "dog | pooch -> sky\nship -> ground"


@pytest.fixture(scope="module")
def gpu_models(gpu_host):
    """(MODEL, CLIP, VAE) of the demo checkpoint by the format of the UNet's weights."""
    import comfy.sd

    with torch.inference_mode():
        loaded = {
            name: comfy.sd.load_checkpoint_guess_config(
                str(gpu_host.demo_checkpoint), output_vae=True, output_clip=True, model_options={"dtype": dtype}
            )[:3]
            for name, dtype in FORMATS.items()
        }
    if SIMULATED:
        for _, clip, _ in loaded.values():
            skip_identity_layers(clip)
    return loaded


@pytest.fixture(scope="module", params=FORMATS)
def gpu_demo(gpu_models, request):
    return gpu_models[request.param]
