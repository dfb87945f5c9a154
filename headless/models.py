"""The model that is erased from, as ComfyUI's loaders open it, by a path or by the name that they list."""

from dataclasses import dataclass
from pathlib import Path

from .errors import BadInput
from .host import Host

# Where a name is looked for, by what it is of.
MODELS, TEXT, VAES = ("checkpoints", "diffusion_models"), ("text_encoders",), ("vae",)


@dataclass(frozen=True)
class Loaded:
    """MODEL, CLIP and VAE; the last None where there is none.  whole: whether the file holds all three, as a checkpoint
    does, and what is saved is to hold them too."""

    model: object
    clip: object
    vae: object
    whole: bool


@dataclass(frozen=True)
class Files:
    """Where a model lies.  clip: its text encoders' files, none where the checkpoint's own are used.  clip_type: as
    Load CLIP names it.  clip_skip: 1 for none, as A1111 counts.  vae: None for the checkpoint's own."""

    model: Path
    clip: tuple[Path, ...]
    clip_type: str
    clip_skip: int
    vae: Path | None


def file_of(host: Host, name: str, kinds: tuple[str, ...], option: str) -> Path:
    """The file that an option names. Raises BadInput where there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        return path.absolute()
    for kind in kinds:
        found = host.folder_paths.get_full_path(kind, name)
        if found:
            return Path(found)
    raise BadInput(f"{option}: there is no file {name}, and none of that name in models/{' or models/'.join(kinds)}")


def files_of(host: Host, options) -> Files:
    """The files of --model, --clip and --vae. Raises BadInput."""
    import comfy.sd

    kinds = [kind.name.lower() for kind in comfy.sd.CLIPType]
    if options.clip_type not in kinds:
        raise BadInput(f"--clip-type: {options.clip_type!r} is none of {', '.join(kinds)}")
    clip = tuple(file_of(host, name, TEXT, "--clip") for name in options.clip)
    vae = file_of(host, options.vae, VAES, "--vae") if options.vae else None
    return Files(file_of(host, options.model, MODELS, "--model"), clip, options.clip_type, options.clip_skip, vae)


def load(host: Host, files: Files) -> Loaded:
    """Open a checkpoint, or a diffusion model with the text encoders beside it.

    Raises BadInput for a file that ComfyUI does not know, for a missing text encoder, and for a checkpoint without VAE.
    """
    import comfy.sd
    import comfy.utils

    embeddings = host.folder_paths.get_folder_paths("embeddings")
    model, own_clip, own_vae = open_model(files.model, embeddings)
    clip, vae = own_clip, own_vae if own_clip is not None else None
    if files.clip:
        kind = comfy.sd.CLIPType[files.clip_type.upper()]
        clip = comfy.sd.load_clip(list(map(str, files.clip)), embedding_directory=embeddings, clip_type=kind)
    if clip is None:
        raise BadInput(f"{files.model.name} holds no text encoder: name its files with --clip, and what they are of")
    if files.clip_skip > 1:
        clip = clip.clone()
        clip.clip_layer(-files.clip_skip)
    if files.vae is not None:
        weights, metadata = comfy.utils.load_torch_file(str(files.vae), return_metadata=True)
        vae = comfy.sd.VAE(sd=weights, metadata=metadata)
    if vae is not None and vae.first_stage_model is None:
        vae = None
    if own_clip is not None and vae is None:
        raise BadInput(f"{files.model.name} holds no VAE: name one with --vae")
    return Loaded(model, clip, vae, own_clip is not None)


def open_model(path: Path, embeddings: list[str]) -> tuple:
    """(MODEL, CLIP or None, VAE) of a file. Raises BadInput for one that ComfyUI does not know."""
    import comfy.sd

    try:
        found = comfy.sd.load_checkpoint_guess_config(
            str(path), output_vae=True, output_clip=True, embedding_directory=embeddings
        )
    except RuntimeError as error:
        raise BadInput(f"{path.name}: {error}") from None
    return found[:3]
