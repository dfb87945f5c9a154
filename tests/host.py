"""The real ComfyUI in the test process."""

from devtools.inprocess import InProcessHost

__all__ = ["InProcessHost"]
