"""Fixtures shared by all tests: the numerics, the real host in process, the real server.

The host is the one `dev.py` prepared: MACE_COMFYUI is its folder, MACE_DEMO_CHECKPOINT the demo model.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parent.parent


def _import_package(name: str) -> None:
    """Import a package of the repository by its place, without putting the repository on the path: its
    nodes/ would shadow the host's nodes.py."""
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        name, REPO / name / "__init__.py", submodule_search_locations=[str(REPO / name)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_import_package("mace")
_import_package("headless")
_import_package("mace_webui")
_import_package("devtools")
_import_package("benchmarks")
# tests/ must not be a package (pytest would import the pack's own __init__.py above it), yet its helpers are
# imported as tests.<name>.
_tests = ModuleType("tests")
_tests.__path__ = [str(REPO / "tests")]
sys.modules.setdefault("tests", _tests)
# Files that take more than a minute.
LONGEST = ("test_demo.py", "test_first_click.py")
# Fixtures that several test files share.
pytest_plugins = ["tests.evaluation", "tests.device"]


def pytest_configure(config):
    """What the demo model's text layers give is computed by one process of a run and read by the others, the servers
    among them."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    from devtools.identity_layers import SHARED

    os.environ[SHARED] = folder = tempfile.mkdtemp(prefix="mace-layers-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def _from_environment(name: str) -> Path:
    value = os.environ.get(name)
    if not value or not Path(value).exists():
        pytest.fail(f"{name} is not set: run the tests with `python dev.py test`")
    return Path(value)


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The expanded demo checkpoint."""
    return _from_environment("MACE_DEMO_CHECKPOINT")


@pytest.fixture(scope="session")
def comfy_host(tmp_path_factory, demo_checkpoint):
    """The real host, imported into this process on the CPU (or the device that tests/device.py simulates), with the
    pack loaded by the host's own loader."""
    from tests.device import SIMULATED
    from tests.host import InProcessHost

    comfy, base = _from_environment("MACE_COMFYUI"), tmp_path_factory.mktemp("host")
    return InProcessHost(comfy, REPO, base, demo_checkpoint, cpu=not SIMULATED)


@pytest.fixture(scope="session")
def gpu_host(tmp_path_factory, demo_checkpoint):
    """The real host in this process on its own device, with its default memory manager: for the tests marked gpu."""
    from devtools.host import prepare_base
    from tests.host import InProcessHost

    base = tmp_path_factory.mktemp("host")
    host = InProcessHost(_from_environment("MACE_COMFYUI"), REPO, base, demo_checkpoint, cpu=False, dynamic=True)
    prepare_base(base)
    return host


@pytest.fixture(scope="module")
def one_thread():
    """torch computes in one thread while a module's tests run: small calls wait for one another otherwise."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def demo(comfy_host):
    """(model, clip, vae) of the demo checkpoint. Shared: nothing may change them in place."""
    return comfy_host.load_checkpoint(comfy_host.demo_checkpoint)


@pytest.fixture
def said(comfy_host):
    """What nodes say while they run, in order."""
    listeners, said = comfy_host.module("nodes.host.progress").listeners, []
    listeners.append(said.append)
    yield said
    listeners.remove(said.append)


@pytest.fixture(scope="module")
def few_templates(comfy_host):
    """Three prompts a phrase in place of thirty while a module's tests run: for tests that are not about erasing."""
    with pytest.MonkeyPatch.context() as patched:
        few = ("a photo of the {}", "the {} on a table", "{}")
        patched.setitem(comfy_host.module("mace.concepts.concept").TEMPLATES, "object", few)
        yield


@pytest.fixture(scope="session")
def server_base(tmp_path_factory):
    """Makes base directories for servers that skip the demo model's identity layers."""

    def make(name: str) -> Path:
        base = tmp_path_factory.mktemp(name)
        (base / "custom_nodes").mkdir()
        (base / "custom_nodes/skip_identity_layers").symlink_to(REPO / "tests/skip_identity_layers")
        return base

    return make


@pytest.fixture(scope="session")
def server(server_base, demo_checkpoint):
    """The real server with the pack, one process for all tests: a devtools.host.Host with a client."""
    from devtools import host
    from devtools.client import Client

    base = server_base("server")
    (base / "custom_nodes/draw_few").symlink_to(REPO / "tests/draw_few")
    # The classic cache drops nothing between prompts, so that what runs again can be counted.
    with host.start(
        _from_environment("MACE_COMFYUI"),
        sys.executable,
        base,
        cpu=True,
        extra_args=["--cache-classic"],
        checkpoint=demo_checkpoint,
    ) as running:
        running.client = Client(running.url)
        yield running


def pytest_collection_modifyitems(items):
    """Files that wait for a server or a page are spread among those that compute, so that no core is idle for long;
    the longest first."""
    files: dict[Path, list] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = {path: own for path, own in files.items() if any(map(_waits, own))}
    computing = [path for path in files if path not in waiting]
    first = sorted(waiting, key=lambda path: path.name not in LONGEST)
    places = {path: place * len(computing) / len(first) for place, path in enumerate(first)}
    places |= {path: place for place, path in enumerate(computing)}
    items[:] = [item for path in sorted(places, key=places.get) for item in files[path]]


def _waits(item) -> bool:
    return bool({"server", "browser"} & {mark.name for mark in item.iter_markers()})


FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# By module and not by session: while it is open its event loop runs, and no test may start one of its own.
@pytest.fixture(scope="module")
def browser():
    """A real browser."""
    path = os.environ.get("MACE_BROWSER")
    if not path:
        message = "no Chromium: install one, or name it in MACE_BROWSER"
        pytest.fail(message) if os.environ.get("MACE_REQUIRE_BROWSER") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(autouse=True)
def no_errors_of_the_page():
    """A test fails where a page that is watched says that something is wrong with the pack."""
    yield
    if "tests.pages" in sys.modules:
        assert sys.modules["tests.pages"].take_errors() == []


@pytest.fixture
def page(browser, server):
    """ComfyUI's page in it, ready and watched."""
    from devtools.pages import open_page
    from tests.pages import watch

    opened = watch(open_page(browser, server.url))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def kept_page(browser, server):
    """One page for tests that only load workflows into it, watched."""
    from devtools.pages import open_page
    from tests.pages import watch

    opened = watch(open_page(browser, server.url))
    yield opened
    opened.close()
