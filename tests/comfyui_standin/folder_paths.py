"""Where the stand-in keeps its files: the same names as ComfyUI's module of that name, as far as Ptolemy's extension needs them."""

from __future__ import annotations

import os

base_path = ""


def set_base(directory: str) -> None:
    """Take a base directory, with one below it for each type of file."""
    global base_path  # noqa: PLW0603 - as in ComfyUI, where it is a variable of this module, too
    base_path = directory
    for name in ("input", "output", "temp"):
        os.makedirs(os.path.join(directory, name), exist_ok=True)


def get_save_image_path(filename_prefix: str, output_dir: str, width: int = 0, height: int = 0) -> tuple[str, str, int, str, str]:
    """The folder, the name, the next number, the subfolder and the prefix of a picture to be saved."""
    subfolder, name = os.path.split(os.path.normpath(filename_prefix))
    folder = os.path.join(output_dir, subfolder)
    os.makedirs(folder, exist_ok=True)
    taken = [entry[len(name) + 1 :].split("_")[0] for entry in os.listdir(folder) if entry.startswith(name + "_")]
    return folder, name, max((int(number) for number in taken if number.isdigit()), default=0) + 1, subfolder, filename_prefix
