"""The experiments. Each adds the cells that its records do not hold yet: what one model answered to its questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.erasure.baselines import OCE_DERIVED, OCE_PEOPLE, SPEED_LISTS
from benchmarks.erasure.bench import STYLE, Bench
from benchmarks.erasure.methods import ALONE, BASE, FUSED, NEAR_KEPT, REFINED, STAGES, Subject
from benchmarks.erasure.questions import SEED, TEMPLATES, VARIED, Question, asked
from benchmarks.erasure.records import Records, rounded, told
from mace.measure.distance import frechet_distance

TEN = ("airplane", "automobile", "bird", "deer", "dog", "frog", "horse", "ship", "truck")
SHARED = {"dog": ("hot dog",), "fire": ("fire engine", "fireworks")}
COUNTS = (1, 5, 10, 50, 100)
# Of what a hundred leave, each how many-th is kept by the longest list.
FEW = 5
TABLE_1 = ("UCE", "ESD-x", "ESD-u", "AC", "FMN", "SLD-M", "negative prompt")
CLOSED_FORMS = ("UCE", "SPEED", SPEED_LISTS, "OCE", OCE_PEOPLE, OCE_DERIVED)
# Ten with the aliases that the model tells.
FOUND = "10, aliases found"
# How far the pictures of the base model itself are apart, by another noise.
OTHER_NOISE = "base, other noise"
# The base model's answers are kept, so any number of cells may compare with them.
KEPT = "base"
# Groups of many different things, whose pictures are compared as a whole too.
CLOUDS = ("others", "captions")


@dataclass(frozen=True)
class Plan:
    """What of a task to run. methods: None for the task's own.  only: names of erasures; None for all."""

    methods: Sequence[str] | None = None
    only: Sequence[str] | None = None

    def wants(self, name: str) -> bool:
        """Whether an erasure is to run."""
        return self.only is None or name in self.only

    def chosen(self, usual: Sequence[str]) -> Sequence[str]:
        """The methods, of a task that has `usual` ones."""
        return usual if self.methods is None else self.methods


def groups(bench: Bench, erased: Sequence[str], share: int = 1, offset: int = 0, seeds: int = 1) -> dict:
    """Questions by group: the erased names, their synonyms, the other CIFAR classes, and the other things.

    Each other thing is asked for with one template, always the same one; of these questions each `share`-th, from
    `offset` on. seeds: of every group but the synonyms' and erased ones', which have more where there are few names.
    """
    cifar = [name for name in bench.words["synonyms"] if name not in erased]
    rest = [name for name in bench.words["concepts"] if name not in bench.words["synonyms"]]
    one_each = [(TEMPLATES[i % len(TEMPLATES)], name) for i, name in enumerate(rest)]
    one_each = [entry for entry in one_each if entry[1] not in erased][offset::share]
    words = {word: name for name in erased for word in bench.synonyms.get(name, ())}
    return {
        "erased": asked(erased, seeds=max(1, min(4, 40 // len(erased)))),
        "synonyms": asked(words, seeds=2 if len(erased) == 1 else 1),
        "classes": asked(cifar, seeds=seeds),
        "others": [question for t, name in one_each for question in asked([name], (t,), seeds)],
    }


def examine(bench: Bench, made: tuple[object, Mapping], questions: Mapping[str, Sequence[Question]]) -> dict:
    """A cell's answers by group. made: the MODEL, and what to draw with besides (see `Subject.model`)."""
    model, how = made
    found = {}
    for name, group in questions.items():
        if not group:
            continue
        base = bench.examiner.ask(bench.model, group, KEPT)
        answers = base if model is bench.model and not how else bench.examiner.ask(model, group, **how)
        found[name] = told(group, answers, base)
        if name in CLOUDS:
            found[name]["frechet"] = round(frechet_distance(base.features, answers.features)[0], 4)
        if name == "style":
            found[name]["style"] = rounded(answers.style)
    return {"groups": found}


def objects(bench: Bench, records: Records, plan: Plan) -> None:
    """Table 1: each CIFAR class alone. The classes take turns with the other things, half of them each."""
    for place, name in enumerate(bench.words["synonyms"]):
        if not plan.wants(name):
            continue
        questions = groups(bench, [name], share=2, offset=place % 2)
        fill(bench, records, Subject(bench, [name]), questions, plan, name, (*STAGES, *TABLE_1))


def with_aliases(bench: Bench, records: Records, plan: Plan, **where: bool) -> None:
    """Each CIFAR class alone with aliases. where: they are from, `aliases` or `found` of `Subject`."""
    for place, name in enumerate(bench.words["synonyms"]):
        if not plan.wants(name):
            continue
        questions = groups(bench, [name], share=4, offset=place % 4)
        fill(bench, records, Subject(bench, [name], **where), questions, plan, name, (REFINED, FUSED))


def mixed(bench: Bench, records: Records, plan: Plan) -> None:
    """Fig. 8a in small: nine CIFAR classes and the style Twemoji in one run."""
    questions = groups(bench, TEN, seeds=2)
    questions["style"] = styled(bench, TEN, 2)
    fill(bench, records, Subject(bench, TEN, style=True), questions, plan, "ten", (*STAGES, "UCE"))


def styles(bench: Bench, records: Records, plan: Plan) -> None:
    """Table 3 in small: the style Twemoji alone; what is asked for in it, and what is asked for without it."""
    names = bench.words["concepts"]
    questions = {"style": styled(bench, (), 2), "others": asked(names[::2], TEMPLATES[:1])}
    fill(bench, records, Subject(bench, (), style=True), questions, plan, STYLE)


def mass_order(words: Mapping) -> list[str]:
    """The things of the vocabulary that are erased together, those of a shorter list first; the rest stay."""
    cifar = list(words["synonyms"])
    rest = [name for name in words["concepts"] if name not in cifar]
    return cifar + [name for i, name in enumerate(rest) if i % 13 < 6][: max(COUNTS) - len(cifar)]


def mass_lists(bench: Bench) -> tuple[list[str], list[str], dict[str, list[Question]]]:
    """(the things that are erased, in order; those that stay; what is asked of these each time)."""
    order = mass_order(bench.words)
    kept = [name for name in bench.words["concepts"] if name not in order]
    return order, kept, {"others": asked(kept, TEMPLATES[:1]), "captions": varied(kept)}


def mass(bench: Bench, records: Records, plan: Plan) -> None:
    """Fig. 7: 1 to 100 things erased in one run, the same 106 others kept; and nearly all that the model knows.

    Ten are asked for by their synonyms too, and once erased with the aliases that the model tells.
    """
    with bench.any_length(wider=True):
        order, kept, always = mass_lists(bench)
        key = f"0/{OTHER_NOISE}"
        if key not in records and plan.only is None:
            again = {"others": asked(kept, TEMPLATES[:1], seed=SEED + 50), "captions": varied(kept, SEED + 50)}
            found = {name: compared(bench, group, always[name]) for name, group in again.items()}
            records.add(key, erased="0", method=OTHER_NOISE, seconds={}, groups=found)
        for count in COUNTS:
            erased = order[:count]
            questions = {"erased": asked(erased, seeds=max(1, 20 // count)), **always}
            if count == len(bench.words["synonyms"]):
                named = {word: name for name in erased for word in bench.synonyms[name]}
                questions["synonyms"] = asked(named)
                found = Subject(bench, erased, found=True)
                fill(bench, records, found, questions, plan, FOUND, (REFINED, FUSED, ALONE, NEAR_KEPT))
            usual = (ALONE, *STAGES, *CLOSED_FORMS)
            fill(bench, records, Subject(bench, erased), questions, plan, str(count), usual)
        most, questions = nearly_all(order, kept)
        # LoRAs would take hours and do not help a hundred.
        fill(bench, records, Subject(bench, most), questions, plan, str(len(most)), (ALONE, *CLOSED_FORMS))


def nearly_all(order: Sequence[str], kept: Sequence[str]) -> tuple[list[str], dict[str, list[Question]]]:
    """(nearly all things that the model knows, what is asked). order: of the other lists.  kept: what they leave."""
    most, few = [*order, *(name for i, name in enumerate(kept) if i % FEW)], kept[::FEW]
    # Few are left: each is asked for with several seeds.
    seeds = range(SEED, SEED + 400, 100)
    questions = {"erased": asked(most), "others": asked(few, TEMPLATES[:1], seeds=len(seeds))}
    return most, questions | {"captions": [question for seed in seeds for question in varied(few, seed)]}


def compared(bench: Bench, questions: Sequence[Question], with_those: Sequence[Question]) -> dict:
    """The base model's answers to some questions, compared with its answers to the same prompts and another noise."""
    first, second = (bench.examiner.ask(bench.model, group, KEPT) for group in (with_those, questions))
    found = told(questions, second, first)
    return found | {"frechet": round(frechet_distance(first.features, second.features)[0], 4)}


def varied(names: Sequence[str], seed: int = SEED) -> list[Question]:
    """Each name in one of VARIED, in turn."""
    return [Question(VARIED[i % len(VARIED)].format(name), name, seed) for i, name in enumerate(names)]


def shared(bench: Bench, records: Records, plan: Plan) -> None:
    """A concept whose word stands in the name of one that is to stay."""
    for name, kept in SHARED.items():
        questions = {"erased": asked([name], seeds=4), "kept": asked(kept, seeds=4)}
        fill(bench, records, Subject(bench, [name]), questions, plan, name)


def styled(bench: Bench, without: Sequence[str], share: int) -> list[Question]:
    """Pictures in the style, of each `share`-th thing that stays."""
    names = [name for name in bench.words["concepts"] if name not in without]
    return asked(names[::share], (f"a {STYLE} emoji of a {{}}",))


def fill(
    bench: Bench,
    records: Records,
    subject: Subject,
    questions: Mapping,
    plan: Plan,
    name: str,
    usual: Sequence[str] = STAGES,
) -> None:
    """Add the cells of one erasure, by method. usual: the task's own methods."""
    for method in (BASE, *plan.chosen(usual)):
        key = f"{name}/{method}"
        if key not in records and plan.wants(name):
            cell = examine(bench, subject.model(method), questions)
            if subject.found and method != BASE:
                cell["aliases"] = [alias for concept in subject.work.concepts for alias in concept.aliases]
            spent = {stage: round(value, 2) for stage, value in subject.seconds(method).items()}
            records.add(key, erased=name, method=method, seconds=spent, **cell)
            print(key, summary(cell["groups"]), spent, flush=True)


def summary(found: Mapping[str, Mapping]) -> str:
    """Percent right by group."""
    shares = {name: group["right"].count("1") / len(group["right"]) for name, group in found.items()}
    return ", ".join(f"{name} {100 * share:.0f}" for name, share in shares.items())


COMPARISONS: dict[str, Callable[[Bench, Records, Plan], None]] = {
    "objects": objects,
    "aliases": partial(with_aliases, aliases=True),
    "found": partial(with_aliases, found=True),
    "mass": mass,
    "styles": styles,
    "mixed": mixed,
    "shared": shared,
}
