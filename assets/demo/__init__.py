"""A custom node without nodes: it puts the templates that draw with the demo model on ComfyUI's list."""

NODE_CLASS_MAPPINGS = {}

__all__ = ["NODE_CLASS_MAPPINGS"]
