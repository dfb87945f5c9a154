"""What runs leave in variables around functions: averages, what was seen last, functions made for what was seen.

Around the host's own functions (APG, Self-Attention Guidance, HyperTile) a variable is no setting where it starts from
a constant whatever the settings are, and where only what runs assigns it later. Around those of other packs, which may
set it up in ways that cannot be seen, all counts but a function that is put there.
"""

import dis
import functools
import inspect
import types
from collections.abc import Iterator

_CONSTANT = {"LOAD_CONST", "LOAD_SMALL_INT"}


def closure_of(function: types.FunctionType, is_host: bool, came_up: set[int]) -> tuple:
    """What a function closes over; in place of what runs leave there, what it started from, or None for a function.

    is_host: whether it is the host's own.  came_up: what `assigned_by` gives of all functions that are told.
    """
    around = _around(function) if is_host and function.__closure__ else []
    held = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        owner = next((code for code in reversed(around) if name in code.co_cellvars), None)
        start = _start(owner, name) if owner else ()
        if start and all(_comes_up(part, name, came_up) for part in _codes_in(owner)):
            held.append(start[0])
            continue
        try:
            value = cell.cell_contents
        except ValueError:  # not filled yet
            value = None
        held.append(None if id(cell) in came_up and isinstance(value, types.FunctionType) else value)
    return tuple(held)


def assigned_by(function: types.FunctionType) -> set[int]:
    """The ids of the cells around a function that it assigns, and of its code where it assigns any."""
    assigned, cells = _assigned_in(function.__code__), function.__closure__ or ()
    found = {id(cell) for name, cell in zip(function.__code__.co_freevars, cells, strict=True) if name in assigned}
    return {*found, id(function.__code__)} if found else found


@functools.lru_cache(maxsize=256)
def _assigned_in(code: types.CodeType) -> frozenset[str]:
    """The variables of what stands around a function that it assigns, or a function within it."""
    within = map(_assigned_in, _codes_in(code))
    return frozenset(_own_assigned(code).union(*within) & set(code.co_freevars))


def _own_assigned(code: types.CodeType) -> set[str]:
    return {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF"}


def _comes_up(code: types.CodeType, name: str, came_up: set[int]) -> bool:
    """Whether all that assigns a variable here is part of what is told: what else does may have set it up."""
    if name not in _assigned_in(code) or id(code) in came_up:
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
    outermost = getattr(inspect.unwrap(getattr(found, "__func__", found)), "__code__", None)
    return _path(outermost, function.__code__) if outermost else []


def _path(code: types.CodeType, inner: types.CodeType) -> list[types.CodeType]:
    for part in _codes_in(code):
        if part is inner:
            return [code]
        if further := _path(part, inner):
            return [code, *further]
    return []


@functools.lru_cache(maxsize=256)
def _start(code: types.CodeType, name: str) -> tuple:
    """(the constant that a function starts its variable from), or () where it may start from another value.

    An empty container is no constant: it may have been filled since.
    """
    steps = list(dis.get_instructions(code))
    at = [place for place, step in enumerate(steps) if step.opname == "STORE_DEREF" and step.argval == name]
    if len(at) != 1 or name in code.co_varnames:
        return ()
    before = steps[at[0] - 1]
    return (before.argval,) if before.opname in _CONSTANT and not steps[at[0]].is_jump_target else ()


def names_in(code: types.CodeType) -> Iterator[str]:
    """All names of globals and attributes in a function, and in functions within it."""
    yield from code.co_names
    for part in _codes_in(code):
        yield from names_in(part)
