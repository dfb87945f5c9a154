"""On the path of a test's processes: checkpoints skip the text layers that change nothing, for time (see
devtools/identity_layers.py). The bits are the same."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


class QuickSd:
    """Lets comfy.sd be imported as it is, and then wraps its loader of checkpoints."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "comfy.sd":
            return None
        found = PathFinder.find_spec(name, path, target)
        run = found.loader.exec_module

        def quick(module):
            run(module)
            cls.wrap(module)

        found.loader.exec_module = quick
        return found

    @staticmethod
    def wrap(module):
        import importlib.util

        spec = importlib.util.spec_from_file_location("mace_identity_layers", REPO / "devtools/identity_layers.py")
        identity_layers = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(identity_layers)
        identity_layers.skip_where_loaded(module)


sys.meta_path.insert(0, QuickSd)
