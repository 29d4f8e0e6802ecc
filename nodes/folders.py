"""Model files in all folders of ComfyUI and other packs, and our own folders. No other file imports `folder_paths`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path, PurePosixPath
from uuid import uuid4

import folder_paths

from ..pipeline.errors import WeightsError
from ..pipeline.model_files import BUNDLED_WEIGHTS

logger = logging.getLogger(__name__)

EXAMPLES = Path(__file__).parents[1] / "demo" / "assets"
EXAMPLE = "{} [temp]"  # the name of a file in the temporary folder
NONE = "none"
BUNDLED = "multitalk_bundled_{}"  # keys of our own: the lists of core's loaders are none of our business

# Keys of `folder_paths` that each loader lists: core's, and those that other packs register. The first one names the
# folder of the bundled model too.
BASE = ("diffusion_models", "unet_gguf")
ADAPTER = ("model_patches", "diffusion_models", "unet_gguf")
TEXT_ENCODER = ("text_encoders", "clip_gguf")
IMAGE_ENCODER = ("clip_vision",)
VAE = ("vae",)
AUDIO_ENCODER = ("audio_encoders", "wav2vec2")
LORA = ("loras",)

# Keys that ComfyUI has only where some pack registers them: their folders and extensions.
EXTRA_FOLDERS = {
    "unet_gguf": (("diffusion_models", "unet"), {".gguf"}),
    "clip_gguf": (("text_encoders", "clip"), {".gguf"}),
    "wav2vec2": (("wav2vec2",), {".safetensors", ".bin", ".pth", ".pt"}),
}
MODEL_DIRECTORIES = {
    "transformers": AUDIO_ENCODER + TEXT_ENCODER,
    "diffusers": BASE + TEXT_ENCODER + IMAGE_ENCODER + VAE,
}


def register_folders() -> None:
    """Adds the bundled model and the extra folders to ComfyUI's search, beside the users' own settings."""
    for key, (names, extensions) in EXTRA_FOLDERS.items():
        if key not in folder_paths.folder_names_and_paths:
            paths = [str(Path(folder_paths.models_dir) / name) for name in names]
            folder_paths.folder_names_and_paths[key] = (paths, extensions)
    for folder in BUNDLED_WEIGHTS.glob("*"):
        folder_paths.folder_names_and_paths[BUNDLED.format(folder.name)] = ([str(folder)], {".safetensors"})


def media_files(kind: str) -> list[str]:
    """Pictures ("image") or sounds ("audio", videos too): the bundled examples, then those of the input folder."""
    kinds = {"image": ["image"], "audio": ["audio", "video"]}[kind]
    inputs = Path(folder_paths.get_input_directory())
    own = [file.name for file in inputs.iterdir() if file.is_file()] if inputs.is_dir() else []
    examples = folder_paths.filter_files_content_types(_examples(), kinds)
    return [*(EXAMPLE.format(name) for name in examples), *sorted(folder_paths.filter_files_content_types(own, kinds))]


def check_media(name: str) -> bool | str:
    """True for a picture or sound that is there, else the refusal."""
    if folder_paths.exists_annotated_filepath(name):
        return True
    return f"{name} is not in ComfyUI's input folder. Choose another file, or upload it."


def media_path(name: str) -> Path:
    """The file behind a name that `media_files` listed, or that the page has made from one."""
    return Path(folder_paths.get_annotated_filepath(name))


def is_painted(name: str) -> bool:
    """True for a file of the page's mask editor: what it paints is kept as transparency, and the colours stay."""
    return PurePosixPath(name).parts[0] == "clipspace"


def media_version(name: str) -> str:
    """A word for the present content of a picture or sound."""
    facts = media_path(name).stat()
    return f"{facts.st_mtime_ns} {facts.st_size}"


def _examples() -> list[str]:
    """Names of the bundled pictures and voices in ComfyUI's temporary folder, the one from which its page shows files
    that are not the user's.
    """
    folder = Path(folder_paths.get_temp_directory())
    examples = {f"multitalk_{file.name}": file for file in EXAMPLES.iterdir() if file.suffix != ".md"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, file in examples.items():
            if not (folder / name).exists():
                shutil.copyfile(file, folder / name)
    except OSError as error:
        logger.warning("The example pictures and voices are not in %s (%s).", folder, error.strerror)
        return []
    return sorted(examples)


def names(keys: tuple[str, ...]) -> list[str]:
    """Relative names of all files below `keys`, each once, and of whole model folders as users download them."""
    directories = [name for name, _ in _directories(keys)]
    return list(dict.fromkeys([*_files(keys), *directories, *_files((BUNDLED.format(keys[0]),))]))


def path(keys: tuple[str, ...], name: str) -> Path:
    """The file or folder behind a name that `names` listed.

    Raises:
        WeightsError: no such file below `keys`; the message names the folders.
    """
    for key in (*keys, BUNDLED.format(keys[0])):
        if _is_registered(key) and name in folder_paths.get_filename_list(key):
            return Path(folder_paths.get_full_path_or_raise(key, name))
    directories = dict(_directories(keys))
    if name in directories:
        return directories[name]
    key_folders = ", ".join(f"models/{key}" for key in keys)
    raise WeightsError(f"{name} is not in {key_folders}. Put the file there, or choose another in the loader.")


def new_video() -> Path:
    """A new file for a video in ComfyUI's temporary folder, which it empties as it starts and ends."""
    return Path(folder_paths.get_temp_directory()) / f"multitalk_{uuid4().hex[:12]}.mp4"


def runs_directory() -> Path:
    """The folder of unfinished runs' windows, which outlives a restart."""
    return private_directory() / "runs"


def private_directory() -> Path:
    """Our own folder, which ComfyUI does not serve to browsers."""
    return Path(folder_paths.get_user_directory()) / "__multitalk"


def output_directory() -> Path:
    """ComfyUI's output folder."""
    return Path(folder_paths.get_output_directory())


def _files(keys: tuple[str, ...]) -> list[str]:
    return [name for key in keys if _is_registered(key) for name in folder_paths.get_filename_list(key)]


def _is_registered(key: str) -> bool:
    return key in folder_paths.folder_names_and_paths


def _directories(keys: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Downloaded model folders (`transformers/<org>/<repo>`, `diffusers/<repo>/<part>`) for `keys`."""
    directories = []
    for root, root_keys in MODEL_DIRECTORIES.items():
        base = Path(folder_paths.models_dir) / root
        if base.is_dir() and set(keys) & set(root_keys):
            configs = sorted(base.glob("*/config.json")) + sorted(base.glob("*/*/config.json"))
            folders = [config.parent for config in configs]
            directories += [(f"{root}/{folder.relative_to(base).as_posix()}", folder) for folder in folders]
    return directories
