"""Finds model files in every folder where users keep them, and our own; alone in importing `folder_paths`."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import folder_paths

PACK_MODELS = Path(__file__).parents[1] / "demo" / "weights"  # the small bundled model, by the same folder names
NONE = "none"

# What a loader lists: keys of `folder_paths`, ours and those that other packs register.
BASE = ("diffusion_models", "unet_gguf")
ADAPTER = ("model_patches", "diffusion_models", "unet_gguf")
TEXT_ENCODER = ("text_encoders", "clip_gguf")
IMAGE_ENCODER = ("clip_vision",)
VAE = ("vae",)
AUDIO_ENCODER = ("audio_encoders", "wav2vec2")
LORA = ("loras",)

# Folders that ComfyUI does not know until some pack names them, and what they list.
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
    """Adds the bundled model and the extra folders to ComfyUI's search, and leaves what users set up as it is."""
    for key, (names, extensions) in EXTRA_FOLDERS.items():
        if key not in folder_paths.folder_names_and_paths:
            paths = [str(Path(folder_paths.models_dir) / name) for name in names]
            folder_paths.folder_names_and_paths[key] = (paths, extensions)
    for folder in PACK_MODELS.iterdir() if PACK_MODELS.is_dir() else ():
        if folder.is_dir() and folder.name in folder_paths.folder_names_and_paths:
            folder_paths.add_model_folder_path(folder.name, str(folder))


def names(keys: tuple[str, ...]) -> list[str]:
    """Relative names of all files below `keys`, each once, and of whole model folders as users download them."""
    files = [name for key in keys if _exists(key) for name in folder_paths.get_filename_list(key)]
    return list(dict.fromkeys(files + [name for name, _ in _directories(keys)]))


def path(keys: tuple[str, ...], name: str) -> Path:
    """The file or folder behind a name that `names` listed.

    Raises:
        ValueError: no such file below `keys`; the message names the folders.
    """
    for key in keys:
        if _exists(key) and name in folder_paths.get_filename_list(key):
            return Path(folder_paths.get_full_path_or_raise(key, name))
    for relative, folder in _directories(keys):
        if relative == name:
            return folder
    places = ", ".join(f"models/{key}" for key in keys)
    raise ValueError(f"{name} is not in {places}. Put the file there, or choose another in the loader.")


def new_video() -> Path:
    """A new file for a video, where ComfyUI wipes it once it is done with it."""
    return Path(folder_paths.get_temp_directory()) / f"multitalk_{uuid4().hex[:12]}.mp4"


def runs_directory() -> Path:
    """The folder of unfinished runs' windows, which no restart wipes."""
    return private_directory() / "runs"


def private_directory() -> Path:
    """For what is ours: a folder that ComfyUI does not serve to browsers."""
    return Path(folder_paths.get_user_directory()) / "__multitalk"


def output_directory() -> Path:
    """ComfyUI's folder for results."""
    return Path(folder_paths.get_output_directory())


def _exists(key: str) -> bool:
    return key in folder_paths.folder_names_and_paths


def _directories(keys: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Downloaded model folders (`transformers/<org>/<repo>`, `diffusers/<repo>/<part>`) for `keys`."""
    files = []
    for root, serves in MODEL_DIRECTORIES.items():
        base = Path(folder_paths.models_dir) / root
        if base.is_dir() and set(keys) & set(serves):
            configs = sorted(base.glob("*/config.json")) + sorted(base.glob("*/*/config.json"))
            files += [(f"{root}/{config.parent.relative_to(base).as_posix()}", config.parent) for config in configs]
    return files
