"""A web UI as far as an extension sees it: A1111's names in `modules`, tabs around what on_ui_tabs gives, a queue.

Started with the Python that has the gradio to test: webui_app.py FOLDER PORT. FOLDER has models/Stable-diffusion and
extensions/mace, a link to the repository.
"""

import importlib.util
import os
import sys
import threading
import types
from pathlib import Path

import gradio as gr
from PIL import Image

folder, port = Path(sys.argv[1]), int(sys.argv[2])
models = folder / "models" / "Stable-diffusion"
tabs, settings = [], []
info = types.SimpleNamespace


def module(name: str, **names) -> types.ModuleType:
    made = types.ModuleType(f"modules.{name}")
    vars(made).update(names)
    sys.modules[made.__name__] = made
    return made


class OptionInfo:
    def __init__(self, default=None, label="", component=None, component_args=None, onchange=None, section=None):
        self.default, self.label, self.section = default, label, section


class Options:
    def add_option(self, key, option):
        setattr(self, key, option.default)


class Drawing:
    """In place of a picture one colour: green by an erased checkpoint, red by another."""

    def __init__(self, width, height, override_settings, **given):
        self._size, self._title = (width, height), override_settings["sd_model_checkpoint"]

    def picture(self):
        return Image.new("RGB", self._size, "green" if "_erased" in self._title else "red")

    def close(self):
        pass


checkpoints_list = {}


def list_models():
    checkpoints_list.clear()
    for path in sorted(models.glob("*.safetensors")):
        checkpoints_list[path.name] = info(filename=str(path), title=path.name)


list_models()
package = types.ModuleType("modules")
sys.modules["modules"] = package
package.paths = module("paths", models_path=str(folder / "models"))
package.script_callbacks = module("script_callbacks", on_ui_tabs=tabs.append, on_ui_settings=settings.append)
package.sd_models = module(
    "sd_models",
    checkpoints_list=checkpoints_list,
    checkpoint_tiles=lambda: sorted(checkpoints_list),
    list_models=list_models,
)
package.shared = module(
    "shared", cmd_opts=info(ckpt_dir=None), opts=Options(), OptionInfo=OptionInfo, sd_model=None,
    state=info(begin=lambda job: None, end=lambda: None),
)  # fmt: skip
package.shared.opts.outdir_txt2img_samples = package.shared.opts.outdir_txt2img_grids = str(folder)
package.call_queue = module("call_queue", queue_lock=threading.Lock())
package.processing = module(
    "processing",
    StableDiffusionProcessingTxt2Img=Drawing,
    process_images=lambda drawing: info(images=[drawing.picture()]),
)

# As A1111 loads an extension's scripts: its folder on the path while they are imported.
extension = folder / "extensions" / "mace"
sys.path.insert(0, str(extension))
spec = importlib.util.spec_from_file_location("mace_erase", extension / "scripts" / "mace_erase.py")
spec.loader.exec_module(importlib.util.module_from_spec(spec))
sys.path.remove(str(extension))
for callback in settings:
    callback()
package.shared.opts.mace_comfyui = os.environ.get("MACE_TEST_COMFYUI", "")

interfaces = [interface for callback in tabs for interface in callback()]
with gr.Blocks() as demo:
    with gr.Tabs():
        with gr.TabItem("txt2img"):
            gr.Markdown("elsewhere")
        for interface, label, name in interfaces:
            with gr.TabItem(label, id=name, elem_id=f"tab_{name}"):
                interface.render()
# As A1111 has it, where this is the number of events at once.
demo.queue(64) if gr.__version__.startswith("3.") else demo.queue()
demo.launch(server_name="127.0.0.1", server_port=port, share=False)
