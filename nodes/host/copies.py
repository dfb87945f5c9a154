"""Two copies of the pack in one host."""

import inspect
import logging
from pathlib import Path

from comfy_api.latest import io

import nodes


def tell_other_copies(node: type[io.ComfyNode]) -> None:
    """Write to the log where another copy of the pack is that gave its nodes to the host before, and which is in use.

    The host takes nodes of one name from the pack that it loads last, which is this one now.  node: one of its own.
    """
    known = nodes.NODE_CLASS_MAPPINGS.get(node.GET_SCHEMA().node_id)
    if known is None or known is node:
        return
    here, there = (_pack(each) for each in (node, known))
    if here != there:
        logging.warning(
            "MACE: two copies of this pack are installed. The nodes are those of %s; remove or disable %s", here, there
        )


def _pack(node: type[io.ComfyNode]) -> Path:
    """The folder of a node's pack."""
    return Path(inspect.getfile(node)).resolve().parents[2]
