"""Keys of what is kept on the disk say nothing of where the pack lies, nor of the Python that runs it."""

import importlib
import sys
from types import ModuleType

import pytest

from tests.conftest import REPO

pytestmark = pytest.mark.host

# What was kept under it is found again.
DOG = "3b0056f35ed546aa241f60796d979ee47cd1fac81de3f9eb574a9bc2e6600397"


@pytest.fixture(params=["elsewhere", "/another/folder/custom_nodes/mace-comfyui"])
def moved(request, comfy_host, monkeypatch):
    """Imports a module of the pack as a host does that has it in another folder."""
    root = ModuleType(request.param)
    root.__path__ = [str(REPO)]
    before = set(sys.modules)
    monkeypatch.setitem(sys.modules, request.param, root)
    yield lambda name: importlib.import_module(f"{request.param}.{name}")
    for name in set(sys.modules) - before:
        del sys.modules[name]


def of_pack(find):
    """What a key may hold of the pack's own: objects, classes, functions, enumerations, modules."""
    concepts, kinds = find("mace.concepts.concept"), find("mace.method.train")
    dog = concepts.Concept("dog", "sky", "object", ("canine",))
    content = find("nodes.host.kept.content").content_sha256
    return [content(part) for part in (dog, [dog], concepts.Concept, kinds.train, concepts)], content(dog)


def test_the_folder_plays_no_part(comfy_host, moved):
    assert of_pack(moved) == of_pack(comfy_host.module)


def test_a_concepts_key_is_the_one_that_was_kept(comfy_host):
    assert of_pack(comfy_host.module)[1] == DOG


def test_what_a_concept_holds_counts(comfy_host):
    content, concepts = (comfy_host.module(n) for n in ("nodes.host.kept.content", "mace.concepts.concept"))
    given = ("dog", "sky", "object", ("canine",), ("{}, drawn",))
    others = (
        [given]
        + [(*given[:i], "style" if i == 2 else "cat", *given[i + 1 :]) for i in range(3)]
        + [(*given[:3], ("hound",), given[4]), (*given[:4], ())]
    )
    assert len({content.content_sha256(concepts.Concept(*own)) for own in others}) == 6


def test_a_class_put_over_one_of_the_packs_counts_by_what_it_does(comfy_host):
    """Another pack's class that names the pack's module as its own is none of it."""
    content, concepts = (comfy_host.module(n) for n in ("nodes.host.kept.content", "mace.concepts.concept"))

    def made(factor):
        kind = type("Concept", (), {"__call__": lambda self: factor, "__module__": concepts.__name__})
        kind.__qualname__ = "Concept"
        return content.content_sha256(kind())

    assert made(1) != made(2)
