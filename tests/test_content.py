"""Keys by content: equal for equal content, different for any other."""

from dataclasses import dataclass

import pytest
import torch

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def content(comfy_host):
    return comfy_host.module("nodes.content")


@dataclass(frozen=True)
class Pair:
    a: object
    b: object


class Opaque:
    """Something that only is equal to itself."""


def test_equal_content_has_an_equal_key(content):
    parts = lambda: (1, "a", None, [torch.arange(6.0).reshape(2, 3)], {"x": Pair(1.5, ("b",))})  # noqa: E731
    assert content.content_sha256(*parts()) == content.content_sha256(*parts())
    assert content.content_sha256({"a": 1, "b": 2}) == content.content_sha256({"b": 2, "a": 1})
    assert content.content_sha256(torch.zeros(2, 3).T) == content.content_sha256(torch.zeros(3, 2))


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


def test_what_cannot_be_read_is_equal_to_itself_alone(content):
    one = Opaque()
    assert content.content_sha256(one) == content.content_sha256(one)
    assert content.content_sha256(one) != content.content_sha256(Opaque())


def test_a_models_key(comfy_host, demo, content):
    """Patches count by their content, attention patches by their identity; the loaded clone does not matter."""
    model = demo[0]
    key = "diffusion_model.out.2.bias"

    def changed(value):
        clone = model.clone()
        clone.add_patches({key: ("diff", (torch.full((4,), value),))})
        return clone

    base = content.model_sha256(model)
    assert content.model_sha256(model.clone()) == base
    assert content.model_sha256(changed(0.1)) == content.model_sha256(changed(0.1)) != base
    assert content.model_sha256(changed(0.1)) != content.model_sha256(changed(0.2))
    weaker = model.clone()
    weaker.add_patches({key: ("diff", (torch.full((4,), 0.1),))}, 0.5)
    assert content.model_sha256(weaker) != content.model_sha256(changed(0.1))
    attention = [model.clone(), model.clone()]
    for clone in attention:
        clone.set_model_attn2_patch(lambda q, k, v, options: (q, k, v))
    assert len({base, *map(content.model_sha256, attention)}) == 3
    comfy_host.sample(changed(0.1), demo[1], "a dog", steps=1)
    assert content.model_sha256(model) == base


def test_the_store_drops_the_least_recently_used(comfy_host):
    store = comfy_host.module("nodes.store").ContentStore(10)
    for name in "abc":
        store.put(name, name.upper(), 4)
    assert store.get("a") is None and store.get("b") == "B" and store.bytes == 8
    store.put("d", "D", 4)
    assert store.get("c") is None and store.get("b") == "B"
    store.put("large", "L", 100)
    assert len(store) == 1 and store.get("large") == "L"
    store.put("large", "M", 2)
    assert store.bytes == 2 and store.get("large") == "M"
    store.clear()
    assert not len(store)
