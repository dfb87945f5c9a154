"""Keys by content: equal for equal content, different for any other."""

import collections
import functools
import operator
import re
import threading
import types
from dataclasses import dataclass

import pytest
import torch

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def content(comfy_host):
    return comfy_host.module("nodes.host.kept.content")


@dataclass(frozen=True)
class Pair:
    a: object
    b: object


class Scaled:
    """A wrapper as packs write them: a class of their own, called with what it wraps."""

    def __init__(self, factor, holder=None):
        self.factor, self.holder = factor, holder

    def __call__(self, *args):
        return self.factor


def scaled(factor):
    return lambda *args: factor


def test_equal_content_has_an_equal_key(content):
    parts = lambda: (1, "a", None, [torch.arange(6.0).reshape(2, 3)], {"x": Pair(1.5, ("b",))})  # noqa: E731
    assert content.content_sha256(*parts()) == content.content_sha256(*parts())
    assert content.content_sha256({"a": 1, "b": 2}) == content.content_sha256({"b": 2, "a": 1})
    assert content.content_sha256(torch.zeros(2, 3).T) == content.content_sha256(torch.zeros(3, 2))


def test_weights_that_were_moved_with_gradients_on(content):
    """Torch calls them neither inference tensors nor others, and they refuse to be viewed as bytes."""
    with torch.inference_mode():
        torn, own = (torch.nn.Parameter(torch.ones(2, 3), requires_grad=False) for _ in range(2))
    with torch.inference_mode(False):
        torn.data = torch.ones(2, 3)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="version counter"):
        torn.detach().reshape(-1).view(torch.uint8)
    for mode in (True, False):
        with torch.inference_mode(mode):
            assert content.content_sha256(torn) == content.content_sha256(own)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, "1"),
        (True, 1),
        (None, "None"),
        (torch.zeros(2), torch.zeros(1, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), torch.tensor([0.0, 1e-30])),
        (["ab", "c"], ["a", "bc"]),
        ([["a"], "b"], [["a", "b"]]),
        ({"a": 1}, {"a": 2}),
        (Pair(1, 2), Pair(2, 1)),
    ],
)
def test_other_content_has_another_key(content, one, other):
    assert content.content_sha256(one) != content.content_sha256(other)


def test_what_cannot_be_read_is_never_the_same(content):
    drawing = (number for number in range(3))
    assert content.content_sha256(drawing) != content.content_sha256(drawing)


LOCKS = ("Lock", "RLock", "Condition", "Event", "Semaphore", "BoundedSemaphore")


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_nothing(content, name):
    """A pack's object with a lock has the same key in the next process, where the lock is another, held or free."""
    made = getattr(threading, name)
    one, other = Scaled(0.5, made()), Scaled(0.5, made())
    key = content.content_sha256(one)
    if hasattr(one.holder, "acquire"):
        one.holder.acquire()
    else:
        one.holder.set()
    assert content.content_sha256(one) == content.content_sha256(other) == key
    assert content.content_sha256(Scaled(0.25, made())) != key
    assert len({content.content_sha256(Scaled(0.5, getattr(threading, kind)())) for kind in LOCKS}) == len(LOCKS)


@pytest.mark.parametrize(
    "made",
    [
        scaled,
        Scaled,
        lambda factor: Scaled(1, Scaled(factor)),
        lambda factor: Scaled(factor).__call__,
        lambda factor: functools.partial(max, factor),
        lambda factor: torch.full((2,), factor).numpy(),
        lambda factor: eval(f"lambda x: x * {factor}"),
        lambda factor: lambda x, by=factor: x * by,
        lambda factor: set_on(lambda x: x, factor),
        lambda factor: torch.nn.Linear(1, 1).requires_grad_(False).apply(lambda m: m.weight.fill_(factor)).weight,
    ],
    ids=["closure", "object", "nested", "method", "partial", "array", "code", "default", "attribute", "parameter"],
)
def test_functions_and_objects_count_by_what_they_hold(content, made):
    assert content.content_sha256(made(0.5)) == content.content_sha256(made(0.5))
    assert content.content_sha256(made(0.5)) != content.content_sha256(made(0.25))


def pack(source, name="their_pack"):
    """A module of another pack, by its source, as the host loads one."""
    module = types.ModuleType(name)
    exec(source, vars(module))
    return module


HOLDERS = {
    "global": lambda factor: pack(f"FACTOR = {factor}\ndef f(x): return x * FACTOR").f,
    "global in a function within": lambda factor: (
        pack(f"FACTOR = {factor}\ndef f(x):\n return [y * FACTOR for y in x]").f
    ),
    "global of a function named": lambda factor: (
        pack(f"FACTOR = {factor}\ndef g(x): return x * FACTOR\ndef f(x): return g(x)").f
    ),
    "global of a function that wraps the host's": lambda factor: (
        pack(f"import functools, torch\nFACTOR = {factor}\n@functools.wraps(torch.load)\ndef f(x): return x * FACTOR").f
    ),
    "functions that name one another": lambda factor: (
        pack(f"FACTOR = {factor}\ndef f(x): return g(x)\ndef g(x): return f(x) * FACTOR").f
    ),
    "class": lambda factor: pack(f"class W:\n factor = {factor}").W(),
    "method of a class": lambda factor: pack(f"class W:\n def __call__(self, x): return x * {factor}").W(),
    "base class": lambda factor: pack(f"class V:\n factor = {factor}\nclass W(V): pass").W(),
    "property": lambda factor: pack(f"class W:\n @property\n def factor(self): return {factor}").W(),
    "static method": lambda factor: pack(f"class W:\n @staticmethod\n def f(x): return x * {factor}").W(),
    "class within a function": lambda factor: (
        pack(
            f"def make(factor):\n class W:\n  def f(self, x): return x * factor\n return W()\nmade = make({factor})"
        ).made
    ),
    "dataclass": lambda factor: pack(
        f"import dataclasses\n@dataclasses.dataclass\nclass W:\n a: int = 1\n def f(self): return {factor}"
    ).W(),
    "deque": lambda factor: collections.deque([factor]),
    "mapping with a default": lambda factor: collections.defaultdict(int, {"a": factor}),
    "bytes that change": lambda factor: bytearray(str(factor).encode()),
    "method of a list": lambda factor: [factor].__getitem__,
    "getter": lambda factor: operator.itemgetter(factor),
    "pattern": lambda factor: re.compile(str(factor)),
    "torch's random state": lambda factor: torch.Generator().manual_seed(int(factor * 4)),
    "random state": lambda factor: __import__("random").Random(str(factor)),
    "setting of a module": lambda factor: set_on(torch.nn.Linear(1, 1).apply(zeroed), factor),
    "hook of a module": lambda factor: hooked(torch.nn.Linear(1, 1).apply(zeroed), factor),
    "setting inside a module": lambda factor: torch.nn.Sequential(set_on(torch.nn.ReLU(), factor)),
}


def zeroed(module):
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)


def set_on(holder, factor):
    holder.factor = factor
    return holder


def hooked(module, factor):
    module.register_forward_hook(scaled(factor))
    return module


@pytest.mark.parametrize("case", HOLDERS)
def test_what_other_packs_write_counts_by_value(content, case):
    made = HOLDERS[case]
    assert content.content_sha256(made(0.5)) == content.content_sha256(made(0.5))
    assert content.content_sha256(made(0.5)) != content.content_sha256(made(0.25))


def test_settings_of_a_module_of_the_pack(content, monkeypatch):
    settings = pack("FACTOR = 1.0")
    function = pack("def f(x): return x * settings.FACTOR").f
    function.__globals__["settings"] = settings
    before = content.content_sha256(function)
    assert content.content_sha256(function) == before
    settings.FACTOR = 0.2
    assert content.content_sha256(function) != before


def test_what_changes_in_place_is_seen(content):
    wrapper = Scaled([1.0])
    module = torch.nn.Linear(1, 1)
    before = content.content_sha256(wrapper), content.content_sha256(module)
    wrapper.factor.append(2.0)
    with torch.no_grad():
        module.weight += 1
    assert content.content_sha256(wrapper) != before[0]
    assert content.content_sha256(module) != before[1]


@pytest.mark.parametrize("make", [lambda: (n for n in range(3)), lambda: open(__file__)])
def test_what_has_no_value_is_never_the_same_again(content, make):
    value = make()
    assert content.content_sha256(value) != content.content_sha256(value)


def test_what_holds_itself_has_a_key(content):
    one, other = Scaled(1), Scaled(1)
    one.holder, other.holder = one, Scaled(1, other)
    assert content.content_sha256(one) == content.content_sha256(one)
    assert content.content_sha256(one) != content.content_sha256(other)


def test_formats_that_cannot_be_edited_have_a_key(content):
    """Packed bytes of other packs, and the host's own quantised tensors with their scales."""
    from comfy_kitchen.tensor import QuantizedTensor

    class Packed(torch.Tensor):
        tensor_type = 8

        def view(self, *shape):
            raise RuntimeError("answers to views in its own way")

    one, other = (torch.full((4, 4), value, dtype=torch.uint8).as_subclass(Packed) for value in (1, 2))
    assert content.content_sha256(one) == content.content_sha256(one.clone()) != content.content_sha256(other)
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    kinds = [QuantizedTensor.from_float(weight * f, "TensorCoreFP8E4M3Layout", scale="recalculate") for f in (1, 1, 2)]
    keys = [content.content_sha256(kind) for kind in kinds]
    assert keys[0] == keys[1] != keys[2]
