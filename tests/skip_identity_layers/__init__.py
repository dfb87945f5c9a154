"""A custom node without nodes, for the servers of tests: see devtools/identity_layers.py. The bits are the same."""

import importlib.util
from pathlib import Path

import comfy.sd

FILE = Path(__file__).resolve().parents[2] / "devtools" / "identity_layers.py"
spec = importlib.util.spec_from_file_location("mace_identity_layers", FILE)
identity_layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(identity_layers)
identity_layers.skip_where_loaded(comfy.sd)
NODE_CLASS_MAPPINGS = {}
