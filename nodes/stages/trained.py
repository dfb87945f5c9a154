"""LoRAs that are trained already, in memory and on disk, as a run finds them and adds to them."""

from collections.abc import Sequence

from ...mace.formats.lora_set import ErasureLora
from ...mace.method.train import TrainState
from ..host.kept import lora_store
from ..host.kept.store import ContentStore

LORA_STORE_BYTES = 512 << 20

_store = ContentStore(LORA_STORE_BYTES)
# Keys that a run with `again` has forgotten, until one without it asks for them: what was trained since is kept as any.
# The disk knows them too: a training that was killed goes on.
_forgotten: set[str] = set()


class Trained:
    """The LoRAs of a run by their keys, and where trainings of them stand.

    again: what was kept before is forgotten, once.  blocks: the model's residual blocks (see `family.res_blocks`).
    refined_on: the digest of the run's refinement.
    """

    def __init__(self, again: bool, blocks, refined_on: str):
        self._again, self._blocks, self._refined_on = again, blocks, refined_on
        self._disk = lora_store.store()

    def known(self, keys: Sequence[str]) -> dict[str, tuple[ErasureLora | None, bool]]:
        """(the LoRA trained before or None, whether it was read from disk) by key. The run keeps all of them."""
        self._disk.held.update(keys)
        return {key: self._known(key) for key in keys}

    def _known(self, key: str) -> tuple[ErasureLora | None, bool]:
        if not self._again:
            _forgotten.discard(key)
            self._disk.end_forgetting(key)
        elif key not in _forgotten:
            _forgotten.add(key)
            _store.forget(key)
            self._disk.forget_once(key)
        found = _store.get(key)
        if found is not None:
            # The folder may have been emptied, or could not be written then.
            if not self._disk.mark_read(key):
                self._disk.put_lora(key, found, self._blocks)
            return found, False
        found = self._disk.lora(key)
        if found is not None:
            _keep(key, found)
        return found, found is not None

    def keep_plan(self, plan: str, key: str) -> None:
        """Keep on disk the key that a plan came to; behind `known`, so that no LoRA of the run goes for it."""
        self._disk.held.add(plan)
        if self._disk.planned(plan) != key:
            self._disk.put_planned(plan, key)

    def put(self, key: str, lora: ErasureLora) -> None:
        """Keep a LoRA whose training has ended."""
        _keep(key, lora)
        self._disk.put_lora(key, lora, self._blocks)

    def state(self, key: str) -> TrainState | None:
        """Where a training stands, None where it has not begun, or the disk keeps nothing."""
        return self._disk.state(key)

    def put_state(self, key: str, state: TrainState) -> None:
        """Keep where a training stands."""
        self._disk.put_state(key, state, self._refined_on)

    def begun_on(self, key: str) -> str:
        """The digest of the refinement that a LoRA's training was begun on."""
        return self._disk.begun_on.get(key, self._refined_on)

    @property
    def lines(self) -> list[str]:
        """What the artist is to know of the disk."""
        removed = len(self._disk.removed)
        lines = [f"{removed} of other runs, longest not used, removed from disk for room"] if removed else []
        return [*lines, self._disk.problem] if self._disk.problem else lines


def is_trained(key: str) -> bool:
    """Whether a LoRA is kept under this key, in memory or on disk."""
    return _store.get(key) is not None or lora_store.store().has_lora(key)


def _keep(key: str, lora: ErasureLora) -> None:
    _store.put(key, lora, sum(t.numel() * t.element_size() for pair in lora.lora.values() for t in pair))
