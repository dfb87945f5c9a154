"""What runs leave in the functions and objects of other packs: counters, averages, what was seen last.

A variable around functions, or an attribute of an object that is called, is no setting where it starts from a constant
whatever the settings are, and where only what runs assigns it later. Where this cannot be seen it counts as a setting.
"""

import dis
import functools
import inspect
import types
from collections.abc import Iterator

_CONSTANT = {"LOAD_CONST", "LOAD_SMALL_INT"}
_TWICE, _SWAPPED = {"COPY", "DUP_TOP"}, {"SWAP", "ROT_TWO"}


def closure_of(function: types.FunctionType, came_up: set[int]) -> tuple:
    """What a function closes over; in place of what runs leave there, what it started from.

    came_up: ids of the codes of the functions that are part of what is told and assign variables around them.
    """
    around = _around(function) if function.__closure__ else []
    held = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        owner = next((code for code in reversed(around) if name in code.co_cellvars), None)
        start = _start(owner, name) if owner else ()
        if start and all(_comes_up(part, name, came_up) for part in _codes_in(owner)):
            held.append(start[0])
            continue
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not filled yet
            held.append(None)
    return tuple(held)


@functools.lru_cache(maxsize=256)
def assigned_in(code: types.CodeType) -> frozenset[str]:
    """The variables of what stands around a function that it assigns, or a function within it."""
    within = map(assigned_in, _codes_in(code))
    return frozenset(_own_assigned(code).union(*within) & set(code.co_freevars))


def _own_assigned(code: types.CodeType) -> set[str]:
    return {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF"}


def _comes_up(code: types.CodeType, name: str, came_up: set[int]) -> bool:
    """Whether all that assigns a variable here is part of what is told: what else does may have set it up."""
    if name not in assigned_in(code) or id(code) in came_up:
        return True
    return name not in _own_assigned(code) and all(_comes_up(part, name, came_up) for part in _codes_in(code))


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    return (part for part in code.co_consts if isinstance(part, types.CodeType))


def _around(function: types.FunctionType) -> list[types.CodeType]:
    """The codes that a function stands in, the outermost first; none where they are not found by their name."""
    found = None
    path = getattr(function.__code__, "co_qualname", function.__qualname__).partition(".<locals>")[0].split(".")
    for number, name in enumerate(path):
        found = getattr(found, name, None) if number else function.__globals__.get(name)
    outermost = _code_of(found)
    return _path(outermost, function.__code__) if outermost else []


def _code_of(value) -> types.CodeType | None:
    """The code of a function or method, past its decorators; None of anything else."""
    value = getattr(value, "__func__", value)
    return getattr(inspect.unwrap(value), "__code__", None) if isinstance(value, types.FunctionType) else None


def _path(code: types.CodeType, inner: types.CodeType) -> list[types.CodeType]:
    for part in _codes_in(code):
        if part is inner:
            return [code]
        if further := _path(part, inner):
            return [code, *further]
    return []


@functools.lru_cache(maxsize=256)
def _start(code: types.CodeType, name: str) -> tuple:
    """(the constant that a function starts its variable from), or () where it may start from another value."""
    steps = list(dis.get_instructions(code))
    at = [place for place, step in enumerate(steps) if step.opname == "STORE_DEREF" and step.argval == name]
    if len(at) != 1 or name in code.co_varnames:
        return ()
    return _constant(steps, at[0])


def _constant(steps: list[dis.Instruction], place: int) -> tuple:
    """(the constant) that the step at a place takes, () where it takes another value or one of several.

    An empty container is none: it may have been filled since.
    """
    takes = place and not steps[place].is_jump_target and steps[place - 1].opname in _CONSTANT
    return (steps[place - 1].argval,) if takes else ()


def left_by_calls(own: type) -> set[str]:
    """The attributes of objects of a class that calling them assigns, that no other method does, and that start the
    same whatever the objects are made with."""
    methods: dict[str, list[types.CodeType]] = {}
    for base in own.__mro__:
        for name, value in vars(base).items():
            parts = (value.fget, value.fset) if isinstance(value, property) else (value,)
            methods[name] = methods.get(name, []) + [code for part in parts if (code := _code_of(part))]
    inits = methods.pop("__init__", [])
    called, more = set(), {"__call__"} & set(methods)
    while more:
        called |= more
        named = {name for method in more for code in methods[method] for name in names_in(code)}
        more = (named & set(methods)) - called
    assigned = {name for method in called for code in methods[method] for name in _of_self(code)}
    for method in set(methods) - called:
        assigned -= {name for code in methods[method] for name in _attributes(code)}
    return {name for name in assigned if _starts_the_same(own, name, inits)}


def _starts_the_same(own: type, name: str, inits: list[types.CodeType]) -> bool:
    """Whether an attribute is its class's own value, or else the one constant that `__init__` gives it."""
    given = [code for code in inits for found in _attributes(code) if found == name]
    if any(name in vars(base) for base in own.__mro__):
        return not given
    if len(given) != 1 or name not in _of_self(given[0]):
        return False
    steps = list(dis.get_instructions(given[0]))
    stored = next(n for n, step in enumerate(steps) if step.opname == "STORE_ATTR" and step.argval == name)
    return bool(_constant(steps, stored - 1))


def _attributes(code: types.CodeType) -> Iterator[str]:
    """The attributes that a function assigns, of anything."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in ("STORE_ATTR", "DELETE_ATTR"))
    for part in _codes_in(code):
        yield from _attributes(part)


def _of_self(code: types.CodeType) -> set[str]:
    """The attributes that a method assigns of its first argument."""
    steps, found = list(dis.get_instructions(code)), set()
    for place, step in enumerate(steps):
        if step.opname != "STORE_ATTR":
            continue
        if steps[place - 1].opname in _SWAPPED:  # += and its kin: the object was read first, and twice
            reads = (n for n in range(place, 1, -1) if (steps[n].opname, steps[n].argval) == ("LOAD_ATTR", step.argval))
            place = next((n - 1 for n in reads if steps[n - 1].opname in _TWICE), 0)
        of = steps[place - 1]
        last = of.argval[-1] if isinstance(of.argval, tuple) else of.argval
        if of.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) and code.co_argcount and last == code.co_varnames[0]:
            found.add(step.argval)
    return found


def names_in(code: types.CodeType) -> Iterator[str]:
    """All names of globals and attributes in a function, and in functions within it."""
    yield from code.co_names
    for part in _codes_in(code):
        yield from names_in(part)
