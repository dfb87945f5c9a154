"""What the commands share: the files that they write, and a session, in which each runs its nodes."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from .errors import BadInput
from .files import folder_beside, put, target_of
from .host import Host
from .lists import Lists
from .models import Loaded, file_of, files_of, load
from .progress import Silent
from .settings import CONCEPTS, SAVE, SETTINGS

BUILT_IN = "built-in"
# Files that a command writes, by option.
OUTPUTS = ("out", "loras", "lora", "sheet")


def targets(options) -> dict[str, Path]:
    """The files that a command is to write, by option. Raises BadInput."""
    names = {name: getattr(options, name, None) for name in OUTPUTS}
    found = {
        name: target_of(own, f"--{name}", options.overwrite) for name, own in names.items() if isinstance(own, str)
    }
    if len(set(found.values())) < len(found):
        raise BadInput("two of the files to write have one name")
    return found


@dataclass
class Session:
    """One command on an open host. stages: what ran: node, seconds and its own words.  files: what was written."""

    host: Host
    options: object
    lists: Lists
    targets: dict[str, Path]
    progress: Silent
    stages: list[dict] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    result: dict = field(default_factory=dict)

    def widgets(self, node: str, **given) -> dict:
        """All settings of a node: those of its widgets, of the command line, and given here. Raises BadInput."""
        asked = {
            name: value
            for setting in SETTINGS[self.options.command]
            if (value := getattr(self.options, setting.dest)) is not None
            for own, name in setting.widgets
            if own == node
        }
        return {**self.host.widgets(node), **self.host.checked(node, {**asked, **given})}

    @contextmanager
    def timed(self, node: str, title: str) -> Iterator[dict]:
        """A stage of the report, which may be given its words."""
        self.progress.stage(title)
        begun, entry = time.perf_counter(), {"node": node, "title": title}
        yield entry
        self.stages.append({**entry, "seconds": round(time.perf_counter() - begun, 3)})

    def run(self, node: str, **inputs):
        """A node's outputs; its own words go into the report."""
        import comfy.model_management

        title = self.host.node_classes[node].GET_SCHEMA().display_name.removesuffix(" (MACE)")
        with self.timed(node, title) as entry:
            found = self.host.run(node, **inputs)
            shown = found.ui.as_dict() if hasattr(found.ui, "as_dict") else found.ui or {}
            entry["text"] = [line for text in shown.get("text", ()) for line in text.splitlines()]
            comfy.model_management.throw_exception_if_processing_interrupted()
        return found

    def concepts(self, **settings):
        """The whole list, as chained Concepts nodes give it. settings: of the nodes, what auto means."""
        found = ()
        for own in self.lists.concepts:
            given = dict(concepts=own.text, type=own.type, preset=own.preset, prompt_file="none", **settings)
            found = self.host.run(CONCEPTS, **given, more=found)[0]
        return found

    def save(self, name: str, folder: str, node: str, **inputs) -> None:
        """Run a node that saves one file, and give it the name that the command line says."""
        target, paths = self.targets[name], self.host.folder_paths
        before = paths.get_output_directory()
        with folder_beside(target) as beside:
            paths.set_output_directory(str(beside))
            try:
                self.run(node, filename_prefix=f"{folder}/{target.stem}", **inputs)
            finally:
                paths.set_output_directory(before)
            (written,) = (beside / folder).iterdir()
            put(written, target, self.options.overwrite)
            # Where it lay meanwhile is nobody's business.
            self.stages[-1]["text"] = [line for line in self.stages[-1]["text"] if str(beside) not in line]
        self.files[name] = str(target)

    def save_model(self, model, loaded: Loaded, settings: dict) -> None:
        """Write a model as its file was: a checkpoint, or the diffusion model alone."""
        whole = {"clip": loaded.clip, "vae": loaded.vae} if loaded.whole else {}
        folder = "checkpoints" if loaded.whole else "diffusion_models"
        self.save("out", folder, SAVE, model=model, dtype=settings["dtype"], **whole)

    def listed(self, name: str, kind: str, option: str) -> str:
        """The name by which a node knows a file of a kind, whose folder is made known to the host."""
        path = file_of(self.host, name, (kind,), option)
        self.host.folder_paths.add_model_folder_path(kind, str(path.parent), is_default=True)
        self.host.folder_paths.filename_list_cache.pop(kind, None)
        return path.name

    def prior(self):
        """What --prior names, or None."""
        name = getattr(self.options, "prior", None)
        return name and self.run("MACE_LoadPrior", prior_name=self.listed(name, "mace_priors", "--prior"))[0]

    def cluster(self) -> AbstractContextManager:
        """The workers that --ray names, or None without it."""
        if not getattr(self.options, "ray", None):
            return nullcontext()
        from .cluster.stages import on_cluster

        return on_cluster(self)

    def open(self) -> Callable[[], Loaded]:
        """Find the model's files now, and open them when asked."""
        files = files_of(self.host, self.options)

        def opened() -> Loaded:
            with self.timed("load", "Open the model"):
                return load(self.host, files)

        return opened

    def captions(self, name: str) -> str:
        """The name of a captions' file in the input folder, which becomes the file's own."""
        if name == BUILT_IN:
            return name
        path = file_of(self.host, name, (), "--captions")
        self.host.folder_paths.set_input_directory(str(path.parent))
        return path.name
