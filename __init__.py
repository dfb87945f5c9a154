"""MACE for ComfyUI: nodes that take concepts out of Stable Diffusion models."""

import logging

from .install import TESTED, is_older

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY"]

try:
    from .nodes import comfy_entrypoint

    __all__ += ["comfy_entrypoint"]
except (AttributeError, ImportError) as error:
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        # Before there was such a file.
        version = "0"
    if not is_older(version):
        raise
    # An older node API lacks what the nodes are made of. The host loads a pack without nodes, and shows no traceback.
    NODE_CLASS_MAPPINGS: dict = {}
    __all__ += ["NODE_CLASS_MAPPINGS"]
    tested = ".".join(map(str, TESTED))
    logging.error(
        "MACE needs ComfyUI %s or later, and this one is %s (%s): update ComfyUI. None of its nodes are here.",
        tested,
        "older" if version == "0" else version,
        error,
    )
