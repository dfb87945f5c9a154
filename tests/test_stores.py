"""The stores of results that are kept by content, and the budget they share."""

import pytest

pytestmark = pytest.mark.host


def test_stores_share_a_budget(comfy_host):
    """What was not used for the longest time goes first, whichever store holds it; what is newest stays."""
    module = comfy_host.module("nodes.host.kept.store")
    budget = module.Budget(10)
    one, other = module.ContentStore(100, budget), module.ContentStore(100, budget)
    one.put("a", "A", 4)
    other.put("b", "B", 4)
    assert one.get("a") == "A"
    one.put("c", "C", 4)
    assert other.get("b") is None and one.get("a") == "A" and budget.bytes == 8
    other.put("large", "L", 100)
    assert not len(one) and other.get("large") == "L"
    budget.clear()
    assert budget.bytes == 0 and not len(other)


def test_every_store_of_the_pack_is_in_the_budget(comfy_host):
    module = comfy_host.module("nodes.host.kept.store")
    names = ("stages.images", "host.text", "stages.trainer")
    stores = [comfy_host.module(f"nodes.{name}")._store for name in names]
    stores += [comfy_host.module("nodes.host.text")._embeddings]
    stores += [getattr(comfy_host.module("nodes.host.gallery"), name) for name in ("_pictures", "_seen")]
    assert set(stores) <= set(module.BUDGET._stores)


def test_the_store_drops_the_least_recently_used(comfy_host):
    store = comfy_host.module("nodes.host.kept.store").ContentStore(10)
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


def test_moments_from_elsewhere_are_asked_for_and_not_kept(comfy_host, demo):
    """What a program has from other machines goes before what would be read here, and stays where it is."""
    module, text = comfy_host.module("nodes.host.kept.store"), comfy_host.module("nodes.host.text")
    encoder, asked, steps = text.TextEncoder(demo[1]), [], []
    concept = comfy_host.module("mace.concepts.concept").Concept("a teapot from elsewhere", "sky", "object")

    def source(*given):
        asked.append(given)
        return "theirs" if len(asked) > 1 else None

    module.moment_sources.extend([lambda *given: None, source])
    try:
        assert text._store.get(encoder.module, (encoder.identity, concept, False, True)) is None
        assert encoder.moments(concept, steps.append, own_words=True) == "theirs"
    finally:
        module.moment_sources.clear()
    assert asked == [(concept, False, True)] * 2 and steps == [len(concept.readings)]
    assert text._store.get(encoder.module, (encoder.identity, concept, False, True)) is None
