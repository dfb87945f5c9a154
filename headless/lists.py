"""The lists of a command: read, and refused with the line and the reason, before ComfyUI is imported."""

from dataclasses import dataclass

from mace.concepts.concept import TYPES, Concept, ConceptError, merge, parse_concepts
from mace.concepts.lists import PAPER_LISTS, RETENTION
from mace.concepts.named import check_names
from mace.concepts.notation import passed_over
from mace.concepts.strengths import parse_strengths, strengths_of
from mace.concepts.subjects import parse_names, parse_templates, subjects

from .errors import BadInput, meant
from .files import read_list

NONE = "none"


@dataclass(frozen=True)
class ConceptList:
    """One list as a Concepts node takes it: its lines, their type, and a list of the paper before them."""

    text: str
    type: str
    preset: str = NONE


@dataclass(frozen=True)
class Lists:
    """concepts: the lists to erase, chained in order.  parsed: what they hold, for the checks and the report.
    strengths, synonyms, keep, prompts, preserve: lines, as the nodes take them."""

    concepts: tuple[ConceptList, ...]
    parsed: tuple[Concept, ...]
    strengths: str = ""
    synonyms: str = ""
    keep: str = ""
    prompts: str = ""
    preserve: str = ""


def read_lists(options) -> Lists:
    """All lists that a command's options name. Raises BadInput, with file, line and reason."""
    asked = list(getattr(options, "concepts", None) or ())
    lists = [
        ConceptList(read_list(name, "--concepts"), kind)
        for name, kind in zip(asked, _types(options, asked), strict=True)
    ]
    try:
        parsed = [
            _parsed(name, lambda own=own: parse_concepts(own.text, own.type))
            for name, own in zip(asked, lists, strict=True)
        ]
        paper = getattr(options, "paper_list", None)
        if paper is not None:
            chosen = meant(paper, PAPER_LISTS, "--paper-list")
            parsed.insert(0, [Concept(target, mapping, kind) for target, mapping, kind in PAPER_LISTS[chosen]])
            lists.insert(0, ConceptList("", TYPES[0], chosen))
        whole = merge(*parsed)
        if "concepts" in vars(options) and options.needs_concepts and not whole:
            passed = [line for own in lists for line in passed_over(own.text)]
            raise ConceptError("; ".join(["there is nothing to erase: write one concept a line", *passed]))
        strengths = "\n".join(getattr(options, "strengths", None) or ())
        if whole:
            strengths_of(strengths, whole)
            # A command says its whole list beside them: here it can only be a slip.
            check_names(parse_strengths(strengths), whole, "strengths")
        texts = {
            name: _text(getattr(options, name, None), name) for name in ("synonyms", "keep", "preserve")
        }  # fmt: skip
        prompts = "\n".join(getattr(options, "prompts", None) or ())
        if prompts:
            parse_templates(prompts)
        parse_names(texts["keep"], "keep")
        if whole:
            subjects(whole, texts["synonyms"], texts["keep"])
        kind = getattr(options, "preserve_type", None) or TYPES[0]
        parse_concepts(texts["preserve"], meant(kind, TYPES, "--preserve-type"), mapped=False, field="preserve")
        if getattr(options, "retention", None):
            meant(options.retention, RETENTION, "--retention")
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(str(error)) from None
    return Lists(tuple(lists), whole, strengths, prompts=prompts, **texts)


def _types(options, asked: list[str]) -> list[str]:
    """A type for each list: the one that is given, one each, or the first of all."""
    given = [meant(kind, TYPES, "--type") for kind in getattr(options, "type", None) or ()]
    if len(given) > 1 and len(given) != len(asked):
        raise BadInput(f"--type is given {len(given)} times and --concepts {len(asked)} times: once for all, or each")
    return given if len(given) == len(asked) else (given or [TYPES[0]]) * len(asked)


def _parsed(name: str, parse):
    try:
        return parse()
    except ValueError as error:
        raise BadInput(f"{name}: {error}") from None


def _text(name: str | None, option: str) -> str:
    return "" if name is None else read_list(name, f"--{option}")
