"""A MODEL's network as it is without what a loaded MODEL puts into it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from comfy import model_management, utils

from .fp8 import Wide


@contextmanager
def bare_network(model) -> Iterator[None]:
    """Within, what a loaded MODEL injects and its object patches are off the network, which its clones share meanwhile.

    Wide layers stay: they hold the same weights (see `fp8`).
    """
    network, backup, replaced = model.model, model.backup, model.object_patches_backup
    with ExitStack() as stack:
        for loaded in model_management.current_loaded_models:
            if loaded.model is not None and loaded.model.model is network:
                stack.enter_context(loaded.model.use_ejected())
        # What stood there before, which clones share as they do the network.
        all_before = dict(replaced)
        before = {name: old for name, old in all_before.items() if not isinstance(utils.get_attr(network, name), Wide)}
        # Patched weights there are those of the parts that are taken off, which get their own back meanwhile.
        inside = tuple(f"{name}." for name in before)
        own, patched, put = {}, {}, {}
        try:
            for key in [key for key in backup if key.startswith(inside)]:
                own[key] = backup.pop(key)
                patched[key] = utils.set_attr_param(network, key, own[key].weight)
            for name in reversed(before):
                put[name] = utils.set_attr(network, name, replaced.pop(name))
            yield
        finally:
            replaced |= all_before
            backup |= own
            for name in reversed(put):
                utils.set_attr(network, name, put[name])
            for key, weight in patched.items():
                utils.set_attr(network, key, weight)
