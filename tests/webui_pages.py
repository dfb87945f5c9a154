"""What the tests of the tab do with a web UI: start one in a folder of its own, open its page at the tab, compare."""

import os
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from devtools import process
from devtools.cache import REPO


@contextmanager
def opened_tab(
    browser, folder: Path, checkpoint: Path, command: Callable[[int], list], patience: float, size: tuple, **options
) -> Iterator:
    """The page of a web UI at the tab Erase concepts, with a checkpoint demo.safetensors and this repository in it.

    command(port): what starts it.  patience: seconds until it answers.  size: of the page.  options: of its process.
    """
    models, log_path = folder / "models/Stable-diffusion", folder / "log.txt"
    for made in (models, folder / "extensions"):
        made.mkdir(parents=True, exist_ok=True)
    (folder / "extensions/mace").symlink_to(REPO)
    (models / "demo.safetensors").symlink_to(checkpoint)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    # The web UI's Python has packages of its own.
    variables.pop("PYTHONPATH", None)
    with open(log_path, "wb") as log:
        app = process.start(command(port), env=variables, stdout=log, stderr=log, **options)
        try:
            end = time.monotonic() + patience
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                    break
                except OSError:
                    assert app.poll() is None and time.monotonic() < end, log_path.read_text()
                    time.sleep(0.5)
            page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)))
            page.goto(f"http://127.0.0.1:{port}/")
            tab_of(page).click(timeout=1000 * patience)
            yield page
            page.close()
        finally:
            process.stop(app)


def tab_of(page):
    """What opens the tab; older ones of Gradio have buttons for it."""
    return page.get_by_role("tab", name="Erase concepts").or_(page.get_by_role("button", name="Erase concepts"))


def fill_side(page, name: str, side: int) -> None:
    """Write a number, and leave its field."""
    page.locator(f"#mace_{name} input").fill(str(side))
    page.locator(f"#mace_{name} input").blur()


def check_compared(page, side: int, timeout: int = 60_000) -> None:
    """One click draws before and after, by the two checkpoints."""
    page.locator("#mace_prompt input, #mace_prompt textarea").first.fill("a photo of the dog")
    fill_side(page, "shown_side", side)
    page.locator("#mace_compare").click()
    found = []
    for place in ("before", "after"):
        picture = page.locator(f"#mace_{place} img")
        picture.wait_for(timeout=timeout)
        page.wait_for_function(
            "([name, side]) => document.querySelector(`#mace_${name} img`).naturalWidth === side",
            arg=[place, side],
            timeout=timeout,
        )
        found.append(picture.screenshot())
    assert found[0] != found[1]
