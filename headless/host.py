"""ComfyUI as a library: imported into this process, with the pack loaded as ComfyUI's own loader loads it."""

import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from .errors import BadInput, meant


def start_dynamic_memory() -> bool:
    """What the host's main.py does at its start on NVIDIA; whether it worked."""
    import comfy_aimdo.control

    comfy_aimdo.control.init()
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    devices = [device.index for device in comfy.model_management.get_all_torch_devices()]
    if not comfy_aimdo.control.init_devices(devices):
        return False
    comfy_aimdo.control.set_log_warning()
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
    return True


def as_list(name: str, value):
    """An input as the host gives it to nodes that take lists; of a DynamicCombo each of its own inputs."""
    if isinstance(value, dict) and name in value:
        return {inner: [own] for inner, own in value.items()}
    return [value]


class Host:
    """Imports ComfyUI once and loads the pack.

    arguments: ComfyUI's own.  dynamic: with the memory manager that it has on NVIDIA, where that works. The pack's
    folder is taken off the path, for its nodes/ would hide the host's nodes.py.  opened_as: see `cli.open_host`.
    """

    opened_as: dict

    def __init__(self, comfy: Path, pack: Path, arguments: Sequence[str], dynamic: bool = False):
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != pack.resolve()]
        sys.path.insert(0, str(comfy))
        own, sys.argv = sys.argv, ["main.py", *arguments]
        here = os.getcwd()
        try:
            import comfy.options

            comfy.options.enable_args_parsing()
            import comfy.cli_args  # noqa: F401  (reads the arguments now)
        finally:
            sys.argv = own
        os.chdir(here)
        self.dynamic = dynamic and start_dynamic_memory()
        import comfy.sd  # noqa: F401
        import folder_paths

        import nodes

        self.folder_paths = folder_paths
        self.nodes = nodes
        before = set(nodes.NODE_CLASS_MAPPINGS)
        if not asyncio.run(nodes.load_custom_node(str(pack), before, "custom_nodes")):
            raise RuntimeError("the host could not load the pack; its log says why")
        self.node_classes = {name: cls for name, cls in nodes.NODE_CLASS_MAPPINGS.items() if name not in before}
        self._root = str(pack).replace(".", "_x_")

    def module(self, name: str) -> ModuleType:
        """A module of the pack as the host loaded it, such as "nodes.host.model.unet" or "mace.method.refine"."""
        return importlib.import_module(f"{self._root}.{name}")

    def run(self, node: str, **inputs):
        """Execute a node as the host does: checked inputs, inference mode. Returns its NodeOutput."""
        cls = self.node_classes[node]
        cls.GET_SCHEMA()
        if cls.INPUT_IS_LIST:
            inputs = {name: as_list(name, value) for name, value in inputs.items()}
        with torch.inference_mode():
            return cls.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs)

    def validate(self, node: str, **inputs):
        """What the node's validate_inputs says: True or the message."""
        cls = self.node_classes[node]
        return cls.validate_inputs(**{name: [value] for name, value in inputs.items()} if cls.INPUT_IS_LIST else inputs)

    def widgets(self, node: str) -> dict[str, object]:
        """The node's settings as its widgets start, by input."""
        found = {}
        for own in self.node_classes[node].GET_SCHEMA().inputs:
            # Of an input of several types the widget is one's.
            entry = getattr(own, "input_override", None) or own
            options = _options(entry)
            if getattr(entry, "default", None) is not None:
                found[entry.id] = entry.default
            elif options:
                found[entry.id] = options[0]
        return found

    def checked(self, node: str, given: dict[str, object]) -> dict[str, object]:
        """Settings of a node, as the host would check them; a choice may be given by how it begins.

        Raises BadInput for one that the node does not take.
        """
        schema = {entry.id: entry for entry in self.node_classes[node].GET_SCHEMA().inputs}
        found = {}
        for name, value in given.items():
            entry = schema[name]
            options = _options(entry)
            if options:
                value = meant(value, options, name)
            least, most = getattr(entry, "min", None), getattr(entry, "max", None)
            if least is not None and most is not None and not least <= value <= most:
                raise BadInput(f"{name}: {value} is not within {least} and {most}")
            found[name] = value
        cls = self.node_classes[node]
        if "validate_inputs" in vars(cls):
            taken = inspect.signature(cls.validate_inputs).parameters
            said = self.validate(node, **{name: value for name, value in found.items() if name in taken})
            if said is not True:
                raise BadInput(said)
        return found


def _options(entry) -> list[str]:
    """What a choice of a schema offers; nothing for any other input. Those of a DynamicCombo have a key."""
    return [getattr(option, "key", option) for option in getattr(entry, "options", None) or ()]
