"""MACE for ComfyUI: nodes that take concepts out of Stable Diffusion models."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
