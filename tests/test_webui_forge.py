"""The tab in the real Forge: an erasure, and before and after by Forge's own sampler. In a real browser.

MACE_FORGE names a folder of Forge that can run: its requirements are in the Python of its venv. Nothing is written
there; models, settings and the extension stand in a folder of their own.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.webui_pages import check_compared, fill_side, opened_tab

FORGE = os.environ.get("MACE_FORGE", "")
pytestmark = [
    pytest.mark.long,
    pytest.mark.browser,
    pytest.mark.skipif(not FORGE, reason="MACE_FORGE names no folder of Forge"),
]

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
    (tmp_path / "models").mkdir()
    place_small_vae(tmp_path / "models", demo_checkpoint)
    (tmp_path / "config.json").write_text(json.dumps({"sd_vae_decode_method": "TAESD"}))
    own = ["--skip-prepare-environment", "--skip-torch-cuda-test", "--data-dir", tmp_path]
    own += [] if torch.cuda.is_available() else ["--always-cpu"]
    start = [Path(FORGE, "venv/bin/python"), "launch.py", *own, "--port"]
    with opened_tab(
        browser, tmp_path, demo_checkpoint, lambda port: [*start, port], READY, (1500, 1300), cwd=FORGE
    ) as page:
        yield page, tmp_path


def test_an_erasure_before_and_after(forge):
    page, folder = forge
    page.locator("#mace_compare").click()
    page.locator("#mace_said").first.get_by_text("erase something first").wait_for(timeout=60_000)
    page.locator("#mace_concepts textarea").fill("dog -> sky")
    page.locator("#mace_more").get_by_text("More").click()
    fill_side(page, "side", SIDE)
    page.locator("#mace_go").click()
    page.locator("#mace_status").first.get_by_text("demo_erased.safetensors").first.wait_for(timeout=1_500_000)
    check_compared(page, SIDE, timeout=300_000)
    if where := os.environ.get("MACE_SCREENSHOTS"):
        page.evaluate(
            """folder => document.querySelectorAll('#mace_status code').forEach(
                name => { name.textContent = name.textContent.replace(`${folder}/`, ''); })""",
            str(folder),
        )
        page.screenshot(path=f"{where}/forge.png")
    # Forge goes on with the checkpoint that it had.
    assert "demo_erased" not in json.loads((folder / "config.json").read_text()).get("sd_model_checkpoint", "")
