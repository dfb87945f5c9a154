"""The texts of the nodes that one meets first, in other languages: complete, translated, and true to the notation.

The English file is what was translated; test_locales_host.py holds it to what the nodes say.
"""

import json
import re
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, StringConstraints

REPO = Path(__file__).resolve().parent.parent
ENGLISH = json.loads((REPO / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
NODES = json.loads((REPO / "tests/snapshots/object_info.json").read_text(encoding="utf-8"))
LANGUAGES = ("de", "es", "fr", "ja", "ko", "zh")
# How each language sets off the name of a node, an input or an output.
QUOTED = {
    "de": "„(.+?)“",
    "es": "«(.+?)»",
    "fr": "«\xa0(.+?)\xa0»",
    "ja": "「(.+?)」",
    "ko": "‘(.+?)’",
    "zh": "“(.+?)”",
}
# The host's own nodes, as its page calls them in each language.
HOSTS = {
    "de": {"Checkpoint laden", "Diffusionsmodell laden", "Leeres latentes Bild"},
    "es": {"Cargar Punto de Control", "Cargar Modelo de Difusión", "Imagen Latente Vacía"},
    "fr": {"Charger Point de Contrôle", "Charger Modèle Diffusion", "Image Latente Vide"},
    "ja": {"チェックポイントを読み込む", "拡散モデルを読み込む", "空の潜在画像"},
    "ko": {"체크포인트 로드", "확산 모델 로드", "빈 잠재 이미지"},
    "zh": {"Checkpoint加载器（简易）", "UNet加载器", "空Latent图像"},
}
SCRIPT = {"ja": "[\u3041-\u30ff]", "ko": "[\uac00-\ud7a3]", "zh": "[\u4e00-\u9fff]"}
# What is typed or read as it stands: lines of concepts with the usual mappings, names in equations, options, folders,
# models, and the pack's nodes that have no translation.
LITERAL = re.compile(
    r"target -> mapping|target \| alias, alias -> mapping|\||#|\{\}|(?:object|celebrity|style|explicit): [a-z ]+"
    r"|lambda\d|\bmu\b|\bfp16|\bbf16|as loaded|\.json|output/checkpoints|clip skip|v-prediction|SDXL|SD\d\.x|COCO|CIFAR"
    r"|\b(?:stag|hart|deer|wolf|dog)\b|CFR Refine|Concept Images|(?:Load|Save) Prior|LoRA|CLIP|VAE"
)
# With what stands between the digits of a long number in one language or another.
NUMBER = re.compile(r"-?\d+(?:[.,\u202f]\d+)*")

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"^\S(?:[\s\S]*\S)?$")]


class Slot(BaseModel):
    """An input or an output."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Text
    tooltip: Text


class Node(BaseModel):
    """A node in nodeDefs.json. Options of a list keep their names: the page translates none."""

    model_config = ConfigDict(extra="forbid", strict=True)
    display_name: Text
    description: Text
    inputs: dict[str, Slot]
    outputs: dict[str, Slot]


def read(language: str) -> dict[str, Node]:
    path = REPO / "locales" / language / "nodeDefs.json"
    return {name: Node.model_validate(node) for name, node in json.loads(path.read_text(encoding="utf-8")).items()}


def slots(node: Node) -> list[tuple[str, Slot]]:
    """Inputs and outputs, by where they stand."""
    return [(f"{kind} {key}", slot) for kind in ("inputs", "outputs") for key, slot in getattr(node, kind).items()]


def labels(node: Node) -> list[str]:
    return [node.display_name, *(slot.name for _, slot in slots(node))]


def sentences(node: Node) -> dict[str, str]:
    """The description and the tooltips, by where they stand."""
    return {"description": node.description, **{place: slot.tooltip for place, slot in slots(node)}}


def numbers(text: str) -> set[str]:
    return {re.sub(r"[^\d-]", "", number) for number in NUMBER.findall(text.replace("SD1.x", "").replace("SD2.x", ""))}


def pairs(language: str) -> list[tuple[str, str, str]]:
    """(place, English, translation) of every description and tooltip."""
    return [
        (f"{name} {place}", english, sentences(node)[place])
        for name, node in read(language).items()
        for place, english in sentences(Node.model_validate(ENGLISH[name])).items()
    ]


def test_the_languages_are_those_of_the_folder():
    files = {path.relative_to(REPO / "locales").as_posix() for path in (REPO / "locales").rglob("*") if path.is_file()}
    assert files == {f"{language}/nodeDefs.json" for language in ("en", *LANGUAGES)}


@pytest.mark.parametrize("language", ("en", *LANGUAGES))
def test_every_node_is_complete_and_every_name_exists(language):
    said = read(language)
    assert set(said) == set(ENGLISH)
    for name, node in said.items():
        groups = NODES[name]["input"]
        assert set(node.inputs) == {key for group in groups.values() for key in group}, name
        assert list(node.outputs) == [str(index) for index in range(len(NODES[name]["output"]))], name
        assert node.display_name.endswith(" (MACE)"), name


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_left_in_english(language):
    for place, english, text in pairs(language):
        assert text != english, place
        assert re.search(SCRIPT.get(language, ""), text), place
        rest = LITERAL.sub(" ", english)
        runs = [run.split(" ") for run in re.findall(r"[a-z]+(?: [a-z]+)+", rest)]
        triples = {" ".join(run[at : at + 3]) for run in runs for at in range(len(run) - 2)}
        assert not [triple for triple in triples if triple in text], place


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_typed_stays_as_it_is(language):
    for place, english, text in pairs(language):
        missing = {literal for literal in LITERAL.findall(english) if literal not in text}
        assert not missing, (place, missing)
        assert numbers(text) == numbers(english), place
        assert english.count("->") == text.count("->") and english.count("\n") == text.count("\n"), place


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_in_quotes_are_names_on_the_page(language):
    """A tooltip that speaks of another input or node calls it as the page does."""
    said = read(language)
    shown = {text.removesuffix(" (MACE)") for node in said.values() for text in labels(node)} | HOSTS[language]
    quoted = [(place, name) for place, _, text in pairs(language) for name in re.findall(QUOTED[language], text)]
    assert {name for _, name in quoted} >= HOSTS[language]
    assert not [(place, name) for place, name in quoted if name not in shown]


@pytest.mark.parametrize("language", LANGUAGES)
def test_inputs_and_outputs_of_one_node_are_told_apart(language):
    for name, node in read(language).items():
        for group in (node.inputs, node.outputs):
            names = [slot.name for slot in group.values()]
            assert len(set(names)) == len(names), name


@pytest.mark.parametrize("language", ("en", *LANGUAGES))
def test_the_page_can_read_names_and_descriptions(language):
    """It compiles them as messages, in which these signs have a meaning; tooltips are taken as they are."""
    for name, node in read(language).items():
        for text in (node.description, *labels(node)):
            assert not re.search(r"[@{}|%]", text), (name, text)
