"""What a scanner of packs would stop at: a process, a pickle, a socket, another computer. None of the nodes has to do
with any of them, so that what may be imported and named is listed, and all else is found."""

import ast
import re
from collections.abc import Iterator

# Modules all of whose names may be used, and all that is below those of the host.
MODULES = set(
    "PIL argparse collections contextlib copyreg csv dataclasses datetime dis enum errno functools hashlib inspect "
    "itertools json logging math mmap operator pathlib pydantic random re regex signal statistics tempfile "
    "threading time tqdm types typing unicodedata uuid weakref zlib folder_paths latent_preview comfyui_version "
    "nodes devtools headless mace comfy comfy_aimdo comfy_api comfy_execution utils".split()
)
# Of these only what is named: the server's side alone of aiohttp, for the host's own server is asked to tell when it
# frees memory; what a file holds as text of yaml.
NAMES = {
    "aiohttp": "web",
    "asyncio": "run",
    "groundingdino": "models util",
    "importlib": "metadata util",
    "numpy": "array asarray ascontiguousarray broadcast_arrays divide errstate float64 full isnan nan ndarray quantile "
    "random stack typing zeros",
    "nudenet": "NudeDetector",
    "os": "DirEntry O_CREAT O_EXCL O_WRONLY PathLike W_OK X_OK access chdir chmod close environ fdopen fsdecode "
    "fsencode fsync getcwd link makedirs open path pathconf replace scandir sep stat unlink utime",
    "safetensors": "SafetensorError safe_open torch",
    "segment_anything": "modeling",
    "server": "PromptServer",
    "shutil": "disk_usage rmtree",
    "sys": "argv executable exit modules path stderr stdin stdlib_module_names stdout version_info",
    "transformers": "AutoConfig AutoImageProcessor AutoModelForImageClassification CLIPModel CLIPProcessor",
    "yaml": "BaseLoader YAMLError load",
}
NAMES = {module: set(names.split()) for module, names in NAMES.items()}
# torch has more names than can be listed: those that read code, start processes or fetch.
OF_TORCH = set("classes compile distributed hub jit load multiprocessing ops package save serialization utils".split())
UTILS_OF_TORCH = {"torch.utils._python_dispatch", "torch.utils._pytree", "torch.utils.checkpoint"}
# A module has its own name, so that what is named of it can be told; some have a usual one.
ALIASES = {"np": "numpy", "F": "torch.nn.functional"}
BUILT_IN = {"eval", "exec", "compile", "__import__", "__builtins__"}
# Where a module is named by what the program has, and not by what a file or an artist says.
KNOWN = {
    "headless/host.py": {"importlib.import_module"},
    "nodes/host/detectors/transformers_models.py": {"transformers"},
    "nodes/host/model/fp8.py": {"torch"},
    "nodes/host/model/memory.py": {"torch"},
}


def _may(module: str, name: str) -> bool:
    """Whether a name of a module may be used. module: with all its dots."""
    top, *below = module.split(".")
    if top == "torch":
        return module in UTILS_OF_TORCH or not {*below, name} & OF_TORCH
    return top in MODULES or top in NAMES and (below or [name])[0] in NAMES[top]


def python_findings(name: str, source: str | bytes) -> Iterator[str]:
    """What a file of Python has no business with. name: the file's."""
    tree, bare, imported = ast.parse(source), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            bare[id(node.value)] = node
        elif isinstance(node, ast.Import):
            imported |= {own.asname or own.name.split(".")[0] for own in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for own in node.names:
                top, *below = own.name.split(".")
                if own.asname and ALIASES.get(own.asname) != own.name:
                    yield f"{own.name} as {own.asname}"
                elif not (top in NAMES and not below or _may(own.name, "")):
                    yield own.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for own in node.names:
                if own.name == "*" or not _may(node.module or "", own.name):
                    yield f"{node.module}.{own.name}"
        elif isinstance(node, ast.Name):
            module, owner = ALIASES.get(node.id, node.id), bare.get(id(node))
            if module in BUILT_IN:
                yield module
            elif node.id not in imported or module not in {*NAMES, "torch"}:
                continue
            elif owner is None or not _may(module, owner.attr):
                named = module if owner is None else f"{module}.{owner.attr}"
                if named not in KNOWN.get(name, ()):
                    yield named
        elif isinstance(node, ast.Attribute) and node.attr in {"__subclasses__", "__builtins__"}:
            yield node.attr
        elif isinstance(node, ast.Call):
            yield from _of_a_call(node)


def _of_a_call(node: ast.Call) -> Iterator[str]:
    """Calls that are well or ill by what is given to them."""
    called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called == "yaml.load" and [ast.unparse(own) for own in node.args[1:]] != ["yaml.BaseLoader"]:
        yield called
    if given.get("allow_pickle", "False") != "False" or given.get("trust_remote_code", "False") != "False":
        yield f"{called} of what runs code"


# Every `new` of the page's code, and what else it may not say: other computers, code out of text, pages out of text,
# types of nodes, which are the host's.
MADE = set("AbortController Map RegExp Set TextError URL URLSearchParams".split())
_MADE = re.compile(r"\bnew\s+([A-Z][\w.]*|[\w.]+(?=\())")
_SAID = re.compile(
    r"""\b(?:fetch|XMLHttpRequest|WebSocket|EventSource|WebTransport|RTCPeerConnection|Worker|SharedWorker|Image|Audio
    |sendBeacon|importScripts|eval|Function|setAttributeNS|innerHTML|outerHTML|insertAdjacentHTML|srcdoc)\b(?!["'])
    |\b(?:prototype|__proto__|[gs]etPrototypeOf|beforeRegisterNodeDef)\b
    |\bimport\s*\(|\bdocument\.write|\blocation\b|\bwindow\.open\b
    |\b(?:window|globalThis|self|top|parent|document|navigator)\s*\[
    |https?://|wss?://|(?:=|\(|,|:)\s*["'`]\s*//|\b(?:import|from)\s*["'](?!\.{1,2}/)""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"^\s*//.*$", re.MULTILINE)


def page_findings(source: str) -> list[str]:
    """What a file of the page's code has no business with: its own server is asked by the host's api alone."""
    code = _COMMENT.sub("", source)
    return [made for made in _MADE.findall(code) if made not in MADE] + _SAID.findall(code)
