"""The tab in the real Gradio of A1111, of Forge and of today, each in a venv of its own, driven in a real browser."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from devtools.cache import REPO, cache_root
from tests.webui_pages import check_compared, fill_side, opened_tab, tab_of

pytestmark = [pytest.mark.long, pytest.mark.browser]

# What each was made for, where newer packages broke it.
OLDER = ["huggingface-hub<0.25", "jinja2<3.1.5", "numpy<2"]
VERSIONS = {
    "3.41.2": [*OLDER, "pydantic<2", "fastapi==0.94.0", "httpx==0.24.1", "pandas<2.3", "matplotlib<3.9"],
    "4.40.0": [*OLDER, "pydantic==2.8.2", "fastapi==0.112.4", "starlette<0.39"],
    "6.31.0": [],
}


def python_of(version: str) -> Path:
    """The Python of a venv with this gradio, made once in the cache folder."""
    folder = cache_root() / f"gradio-{version}"
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", f"gradio=={version}", *VERSIONS[version]], check=True)
        (folder / "done").touch()
    return python


@pytest.fixture(params=VERSIONS)
def opened(request, browser, tmp_path, demo_checkpoint):
    """(the tab's page, the web UI's folder)."""
    app = [python_of(request.param), REPO / "tests/webui_app.py", tmp_path]
    with opened_tab(browser, tmp_path, demo_checkpoint, lambda port: [*app, port], 180, (1400, 1000)) as page:
        yield page, tmp_path


def test_a_list_is_refused_an_erasure_cancelled_and_one_done(opened):
    page, folder = opened
    models, loras = folder / "models/Stable-diffusion", folder / "models/Lora"
    concepts, status = page.locator("#mace_concepts textarea"), page.locator("#mace_status").first
    concepts.fill("dog\nship -> a -> b")
    page.locator("#mace_go").click()
    status.get_by_text("line 2: more than one '->'").wait_for(timeout=300_000)

    concepts.fill("dog -> sky")
    page.locator("#mace_more").get_by_text("More").click()
    fill_side(page, "side", 64)
    page.locator("#mace_go").click()
    page.locator("#mace_bar").first.get_by_text("Estimate").wait_for(timeout=300_000)
    page.locator("#mace_cancel").click()
    status.get_by_text("stopped").first.wait_for(timeout=300_000)
    assert [path.name for path in models.iterdir()] == ["demo.safetensors"] and not list(loras.iterdir())

    page.locator("#mace_go").click()
    page.locator("#mace_bar progress[value]").first.wait_for(timeout=300_000)
    # Somebody looks away, comes back, and asks how far it is.
    page.reload()
    tab_of(page).click()
    page.locator("#mace_follow").click()
    page.locator("#mace_bar progress").first.wait_for(timeout=60_000)
    if where := os.environ.get("MACE_SCREENSHOTS"):
        page.wait_for_timeout(20_000)
        page.screenshot(path=f"{where}/webui_{folder.name}.png")
    status.get_by_text("demo_erased.safetensors").first.wait_for(timeout=1_500_000)
    if where:
        page.screenshot(path=f"{where}/webui_{folder.name}_done.png")
    assert "Training:" not in status.inner_text() and "done" in status.inner_text()
    with safe_open(models / "demo_erased.safetensors", "pt") as found:
        assert any(key.startswith("model.diffusion_model.") for key in found.keys())
    with safe_open(loras / "demo_erased.safetensors", "pt") as found:
        assert all(key.startswith("lora_unet_") for key in found.keys())
    check_compared(page, 64)
    # The new checkpoint is in the list.
    page.locator("#mace_checkpoint input").click()
    page.get_by_role("option", name="demo_erased.safetensors").or_(
        page.get_by_text("demo_erased.safetensors")
    ).first.wait_for()
