"""How a command ends, and what is refused."""

from collections.abc import Collection

# Exit codes. BAD_INPUT: nothing was done, for what was asked for cannot be. FAILED: something went wrong on the way.
# STOPPED: by Ctrl-C or SIGTERM, as shells have it.
DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 130
STATUS = {DONE: "done", FAILED: "failed", BAD_INPUT: "bad input", STOPPED: "stopped"}


class BadInput(ValueError):
    """What was asked for cannot be done; the message says why, with the line where it is a list's."""


def meant(given: str, known: Collection[str], option: str) -> str:
    """The one of `known` that is meant: the whole of it, all before its brackets, or a beginning that no other has; in
    any case.

    Raises BadInput, with the option's name.
    """
    if given in known:
        return given
    begun = given.lower()
    found = [name for name in known if name.lower().partition(" (")[0] == begun]
    found = found or [name for name in known if name.lower().startswith(begun)]
    if len(found) != 1:
        raise BadInput(f"{option}: {given!r} is {'none' if not found else 'several'} of: {', '.join(known)}")
    return found[0]
