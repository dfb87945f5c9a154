"""The stores of results that are kept by content, and the budget they share."""

import pkgutil
import weakref
from collections import OrderedDict

import pytest
import torch
from torch.utils._pytree import tree_leaves

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("few_templates")]


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


# Hashes by what they are of, names in code, presets (lines of text), functions to call, folders and what was said of
# files.
SMALL = {"nodes.host.kept.content._weights", "nodes.host.preset_files._read"}
SMALL |= {"nodes.host.kept.store.moment_sources", "nodes.host.progress.listeners"}
SMALL |= {"nodes.host.folders._beside", "nodes.host.folders._said"}
SMALL |= {f"nodes.host.kept.{name}" for name in ("content._encoders", "left._assigned_in", "left._start")}
SMALL |= {"nodes.stages.trained._forgotten"}
# It has a small budget of its own, since it stays as long as masks do that the host keeps.
SMALL |= {"nodes.stages.mask_making._sources"}


def kept_by_modules(host):
    """(name, value) of all that modules of the pack keep and that looks like a store."""
    root = host.module("mace").__name__.removesuffix("mace")
    for part in ("mace", "nodes"):
        package = host.module(part)
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            name = found.name.removeprefix(root)
            for own, value in vars(host.module(name)).items():
                ours = type(value).__module__.startswith(root) and hasattr(value, "put") and hasattr(value, "get")
                # What is not empty and holds no tensor is a table. A cache is empty at first.
                table = type(value) in (dict, list, set) and (not value or holds_tensors(value))
                cached = hasattr(value, "cache_info") and value.__module__.startswith(root)
                kinds = weakref.WeakKeyDictionary | weakref.WeakValueDictionary | OrderedDict
                if ours or table or cached or isinstance(value, kinds):
                    yield f"{name}.{own}", value


def holds_tensors(value) -> bool:
    """Whether a container has tensors in it, however deep."""
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(list(value) if isinstance(value, set) else value))


def test_every_store_of_the_pack_is_in_the_budget(comfy_host):
    budget = comfy_host.module("nodes.host.kept.store").BUDGET
    found = {name: value for name, value in kept_by_modules(comfy_host) if name not in SMALL}
    some = {"nodes.stages.trained._store", "mace.pipeline.prior._last_aside", "nodes.baselines.oce._last_general"}
    assert some <= set(found)
    stores = {id(store) for store in budget._stores}
    assert [name for name, value in found.items() if id(value) not in stores] == []
    assert 0 < budget.limit < float("inf")


def test_a_last_result_counts_and_is_forgotten(comfy_host):
    """By the tensors and texts in it and in what it depends on; it goes with its network too."""
    module = comfy_host.module("mace.pipeline.store")
    budget, network, other = module.Budget(100), torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    one, two = module.LastResult(budget), module.LastResult(budget)
    images = comfy_host.module("mace.method.prior").PriorTexts(("ab",), (("c", "d"),))
    one.put(network, ("key", 1), (torch.zeros(5), [None, images]))
    assert budget.bytes == one.bytes == 3 + 20 + 4
    two.put(other, "k", torch.zeros(10))
    assert one.get(network, ("key", 2)) is None and one.get(network, ("key", 1)) is not None
    two.put(network, "k", torch.zeros(10))
    # What was used last stays.
    assert one.get(network, ("key", 1)) is not None and two.get(other, "k") is None and budget.bytes == 68
    del network
    assert budget.bytes == 0 and not len(one) + len(two)
    two.put(other, "k", torch.zeros(100))
    assert two.get(other, "k") is not None
    budget.clear()
    assert two.get(other, "k") is None and budget.bytes == 0


def test_a_prior_that_stepped_aside_holds_the_whole_one_no_longer_than_the_host_does(comfy_host, demo):
    priors, text = comfy_host.module("mace.pipeline.prior"), comfy_host.module("nodes.host.text")
    progress = comfy_host.module("nodes.host.progress").NodeProgress()
    concepts = comfy_host.module("mace.concepts.concept")
    encoder, dog = text.TextEncoder(demo[1]), (concepts.Concept("dog", "sky", "object"),)
    source = priors.CaptionSource(priors.BUILT_IN, 20, 0)
    keep = [concepts.Concept("dog", "", "object", (), ("{}",)), concepts.Concept("cat", "", "object", (), ("{}",))]
    whole, _ = priors.build_prior(encoder, progress, source, keep)
    first = priors.step_aside(whole, dog, encoder, False, [], progress)
    assert first.preserved == ("cat",)
    assert priors.step_aside(whole, dog, encoder, False, [], progress) is first
    comfy_host.module("nodes.host.kept.store").BUDGET.clear()
    assert priors.step_aside(whole, dog, encoder, False, [], progress) is not first
    gone = weakref.ref(whole)
    del whole
    assert gone() is None


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
