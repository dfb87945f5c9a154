"""MACE for ComfyUI: nodes that take concepts out of Stable Diffusion models."""

import logging

from .install import too_old

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY"]

try:
    from .nodes import comfy_entrypoint

    __all__ += ["comfy_entrypoint"]
except (AttributeError, ImportError, TypeError) as error:
    said = too_old(error)
    if said is None:
        raise
    # An older node API lacks what the nodes are made of. The host loads a pack without nodes, and shows no traceback.
    NODE_CLASS_MAPPINGS: dict = {}
    __all__ += ["NODE_CLASS_MAPPINGS"]
    logging.error(said)
