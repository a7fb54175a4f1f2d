"""Where the backend lives and how to set it up. Nothing here is a secret and nothing is saved in a .blend."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import bpy
from bpy.props import EnumProperty, StringProperty

from . import backend_process, environment
from .child import Child

# The extension's root package: its preferences belong to it. As a plain package (in tests) this package is the root.
ROOT_PACKAGE = ".".join(__name__.split(".")[:-2]) or __name__.split(".")[0]
PYTHON_VARIABLE = "GAUSSMITH_PYTHON"
WEIGHTS_VARIABLE = "GAUSSMITH_WEIGHTS"  # tells the backend where checkpoints lie

ACCELERATORS = (
    ("AUTO", "Automatic", "CUDA where an NVIDIA driver is found, Apple's GPU on Apple silicon, else the processor"),
    ("CPU", "Processor", "Runs everywhere; the smallest download"),
    ("CUDA", "NVIDIA (CUDA)", "For NVIDIA cards; a download of several gigabytes"),
    ("APPLE", "Apple silicon", "For Macs with an M-series chip"),
)
DEVICES = (
    ("AUTO", "Automatic", "The graphics card where the backend can use one, else the processor"),
    ("CPU", "Processor", "Never the graphics card, so that it stays free for rendering"),
    ("CUDA", "NVIDIA (CUDA)", "The graphics card, or an error"),
)


class GaussmithPreferences(bpy.types.AddonPreferences):
    bl_idname = ROOT_PACKAGE

    environment_folder: StringProperty(  # type: ignore[valid-type]
        name="Backend Folder",
        description="Where Set Up Backend puts the backend's packages. Empty: in Blender's folder for user files",
        subtype="DIR_PATH",
    )
    accelerator: EnumProperty(name="Accelerator", description="Which packages to install", items=ACCELERATORS)  # type: ignore[valid-type]
    package_index: StringProperty(  # type: ignore[valid-type]
        name="Package Index",
        description="Address of an additional Python package index, such as a company's own mirror",
    )
    existing_python: StringProperty(  # type: ignore[valid-type]
        name="Python",
        description="The Python of an environment that has the backend's packages. Empty: the one Set Up Backend makes",
        subtype="FILE_PATH",
    )
    device: EnumProperty(name="Device", description="What the backend computes on", items=DEVICES)  # type: ignore[valid-type]
    weights_folder: StringProperty(  # type: ignore[valid-type]
        name="Checkpoint Folder",
        description="Where downloaded checkpoints are kept. Empty: in your own data folder, for all Blenders together",
        subtype="DIR_PATH",
    )

    def draw(self, _context: bpy.types.Context) -> None:
        from . import panels

        panels.draw_preferences(self.layout, self)


def found(context: bpy.types.Context | None = None) -> GaussmithPreferences | None:
    """The user's preferences; None when the package runs without being enabled as an add-on, as in tests."""
    addon = (context or bpy.context).preferences.addons.get(ROOT_PACKAGE)
    return addon.preferences if addon is not None else None


def device() -> str:
    chosen = found()
    return chosen.device.lower() if chosen is not None else "auto"


def user_folder(name: str, *, create: bool = True) -> Path:
    """A folder that outlives an update of the extension. Raises OSError when it cannot be made."""
    if ROOT_PACKAGE.startswith("bl_ext."):
        return Path(bpy.utils.extension_path_user(ROOT_PACKAGE, path=name, create=create))
    return Path(bpy.utils.user_resource("DATAFILES", path=f"gaussmith/{name}", create=create))


def environment_folder() -> Path:
    """Where Set Up Backend makes the environment."""
    chosen = found()
    if chosen is not None and chosen.environment_folder:
        return Path(bpy.path.abspath(chosen.environment_folder))
    return user_folder("backend", create=False)


def accelerator() -> environment.Accelerator:
    chosen = found()
    return chosen.accelerator.lower() if chosen is not None else "auto"  # type: ignore[return-value]


def backend_python() -> tuple[Path | None, str]:
    """The backend's Python, and who named it: GAUSSMITH_PYTHON, "preferences" or "setup" (Set Up Backend).

    None when there is no such file, or the setup has not finished.
    """
    chosen = found()
    named = os.environ.get(PYTHON_VARIABLE, "")
    if named:
        path, origin = Path(named), PYTHON_VARIABLE
    elif chosen is not None and chosen.existing_python:
        path, origin = Path(bpy.path.abspath(chosen.existing_python)), "preferences"
    else:
        return (environment.python_of(environment_folder()) if is_set_up() else None), "setup"
    return (path if path.is_file() else None), origin


def is_set_up() -> bool:
    """Whether Set Up Backend has made an environment for this version of the extension."""
    try:
        return environment.is_complete(environment_folder(), accelerator())
    except environment.SetupError:  # there are no packages for this system
        return False


def new_setup() -> Child:
    """Starts Set Up Backend with what the preferences say. Raises environment.SetupError."""
    chosen = found()
    index = chosen.package_index if chosen is not None else ""
    folder = environment_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return environment.begin_setup(
        folder, online=online_allowed(), accelerator=accelerator(), extra_index=index, cache=user_folder("cache")
    )


def log_path() -> Path:
    return backend_process.log_file(user_folder("logs"))


def history_path() -> Path:
    """The prompts of before. Raises OSError when there is no place for them."""
    return user_folder("prompts") / "prompts.json"


def launch() -> backend_process.BackendProcess:
    """Starts the backend. Raises OSError with a sentence when it is not set up."""
    return backend_process.start_backend(
        _python_or_reason(), log=log_path(), cache=user_folder("cache"), variables=backend_variables()
    )


def run_weights(arguments: Sequence[str]) -> Child:
    """Starts the backend's command for checkpoints. Raises OSError with a sentence when it is not set up."""
    return Child(
        [str(_python_or_reason()), "-m", "backend", "weights", *arguments],
        cancelled="The download was stopped; the next one goes on where it was.",
        ended="The backend could not handle its checkpoints. Copy the details and report them.",
        folder=backend_process.SOURCE,
        variables=backend_variables(),
    )


def backend_variables() -> dict[str, str]:
    """What the backend learns from the preferences when it starts."""
    chosen = found()
    folder = bpy.path.abspath(chosen.weights_folder) if chosen is not None else ""
    return {WEIGHTS_VARIABLE: folder} if folder else {}


def _python_or_reason() -> Path:
    python, origin = backend_python()
    if python is None and origin == PYTHON_VARIABLE:
        raise FileNotFoundError(f"{PYTHON_VARIABLE} names {os.environ[PYTHON_VARIABLE]}, which is no file.")
    if python is None:
        raise FileNotFoundError("The backend is not set up. Press Set Up Backend in Gaussmith's preferences.")
    return python


def free_bytes(folder: Path) -> int:
    """Free space where a folder is or would be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def online_allowed() -> bool:
    return bool(bpy.app.online_access)
