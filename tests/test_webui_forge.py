"""The tab in the real Forge: an erasure, and before and after by Forge's own sampler. In a real browser.

MACE_FORGE names a folder of Forge that can run: its requirements are in the Python of its venv. Nothing is written
there; models, settings and the extension stand in a folder of their own.
"""

import json
import os
import socket
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from devtools import process
from tests.test_webui_gradio import check_compared

FORGE = os.environ.get("MACE_FORGE", "")
pytestmark = [
    pytest.mark.long,
    pytest.mark.browser,
    pytest.mark.skipif(not FORGE, reason="MACE_FORGE names no folder of Forge"),
]

REPO = Path(__file__).resolve().parent.parent
SIDE = 64
READY = 300


def place_small_vae(models: Path, checkpoint: Path) -> None:
    """The demo model's autoencoder where Forge looks for small ones: in a checkpoint it opens none but SD's own."""
    (models / "VAE-taesd").mkdir()
    with safe_open(checkpoint, "pt") as file:
        for side in ("decoder", "encoder"):
            begin = f"first_stage_model.taesd_{side}."
            own = {key[len(begin) :]: file.get_tensor(key).float() for key in file.keys() if key.startswith(begin)}
            torch.save(own, models / "VAE-taesd" / f"taesd_{side}.pth")


@pytest.fixture
def forge(browser, tmp_path, demo_checkpoint):
    """(Forge's page at the tab, its folder)."""
    models = tmp_path / "models"
    (models / "Stable-diffusion").mkdir(parents=True)
    (models / "Stable-diffusion" / "demo.safetensors").symlink_to(demo_checkpoint)
    place_small_vae(models, demo_checkpoint)
    (tmp_path / "extensions").mkdir()
    (tmp_path / "extensions" / "mace").symlink_to(REPO)
    (tmp_path / "config.json").write_text(json.dumps({"sd_vae_decode_method": "TAESD"}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = ("--skip-prepare-environment", "--skip-torch-cuda-test", "--data-dir", tmp_path, "--port", port)
    device = () if torch.cuda.is_available() else ("--always-cpu",)
    variables = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    variables.pop("PYTHONPATH", None)
    with open(tmp_path / "log.txt", "wb") as log:
        command = [Path(FORGE, "venv/bin/python"), "launch.py", *map(str, own), *device]
        app = process.start(command, env=variables, cwd=FORGE, stdout=log, stderr=log)
        try:
            end = time.monotonic() + READY
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                    break
                except OSError:
                    assert app.poll() is None and time.monotonic() < end, (tmp_path / "log.txt").read_text()
                    time.sleep(1)
            page = browser.new_page(viewport={"width": 1500, "height": 1300})
            page.goto(f"http://127.0.0.1:{port}/")
            page.get_by_role("tab", name="Erase concepts").click(timeout=1000 * READY)
            yield page, tmp_path
            page.close()
        finally:
            process.stop(app)


def test_an_erasure_before_and_after(forge):
    page, folder = forge
    page.locator("#mace_compare").click()
    page.locator("#mace_said").first.get_by_text("erase something first").wait_for(timeout=60_000)
    page.locator("#mace_concepts textarea").fill("dog -> sky")
    page.locator("#mace_more").get_by_text("More").click()
    page.locator("#mace_side input").fill(str(SIDE))
    page.locator("#mace_side input").blur()
    page.locator("#mace_go").click()
    page.locator("#mace_status").first.get_by_text("demo_erased.safetensors").first.wait_for(timeout=1_500_000)
    before, after = check_compared(page, "demo_erased", SIDE, timeout=300_000)
    if where := os.environ.get("MACE_SCREENSHOTS"):
        page.evaluate(
            """folder => document.querySelectorAll('#mace_status code').forEach(
                name => { name.textContent = name.textContent.replace(`${folder}/`, ''); })""",
            str(folder),
        )
        page.screenshot(path=f"{where}/forge.png")
    # Forge goes on with the checkpoint that it had.
    assert "demo_erased" not in json.loads((folder / "config.json").read_text()).get("sd_model_checkpoint", "")
