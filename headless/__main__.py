"""The command: `python -m headless erase ...`, or this folder given to Python."""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from headless.places import start  # noqa: E402

if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
