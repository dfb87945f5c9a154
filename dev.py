#!/usr/bin/env python3
"""The developer's entrance: makes an environment with a real ComfyUI, then runs the demo, the host or the tests."""

import sys

# Before the import below, which an older Python could not even read; so no newer syntax here.
if sys.version_info < (3, 10):  # noqa: UP036
    message = "dev.py needs Python 3.10 or newer; this is {0[0]}.{0[1]} ({1})."
    sys.exit(message.format(sys.version_info, sys.executable))

from devtools.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
