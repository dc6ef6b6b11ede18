"""Builds checkpoints, from a lone SDXL UNet or with a LoRA baked in: what can be chosen, and one build at a time."""

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import torch

from ..errors import HyperSDError, UnsupportedModelError
from ..models.bake import bake
from ..models.catalog import Catalog, load_catalog
from ..models.files import index_folders
from ..models.jobs import listed_name
from ..models.merge import merge
from ..models.new_file import BuildClock, BuildError, Report
from .one_step import Kind, kind_of

POLL = 0.5  # seconds between two looks at a build
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
AS_IT_IS = "as in the checkpoint"  # the precision that a bake has by itself
BAKE_DTYPES = {AS_IT_IS: None, **DTYPES}
CHECKPOINTS, LORAS = "checkpoints", "loras"  # the new file goes into the first of the former
KINDS = (CHECKPOINTS, "diffusion_models")  # the folders a UNet may lie in
SUGGESTED = "Hyper-SDXL-1step-Unet-full.fp16"
_NAME = re.compile(r"[^\W_][\w .()+-]{0,120}")  # no folder, nothing hidden
_ENDING = ".safetensors"
_log = logging.getLogger("hyper_sd")


class _Stopped(Exception):
    pass


class CheckpointBuilder:
    """One host's builds. Every method may be called from any thread.

    Args:
        folders: returns the host's folders for a kind of file, the one to write into first.
        refresh: has the host list its files anew.
        catalog: returns the pack's catalogue with a person's own, by which a LoRA's method is told.
    """

    def __init__(
        self,
        folders: Callable[[str], Sequence[Path]],
        refresh: Callable[[], None] = lambda: None,
        catalog: Callable[[], Catalog] = load_catalog,
    ):
        self._folders, self._refresh, self._catalog = folders, refresh, catalog
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._text = ""

    @property
    def text(self) -> str:
        """How far the build is, or how the last one ended."""
        return self._text

    def is_busy(self) -> bool:
        """Tells whether a build is under way."""
        return self._thread is not None and self._thread.is_alive()

    def unets(self) -> list[str]:
        """Returns the files that are only an SDXL UNet, one-step ones first. Reads heads, so keep it off an event loop."""
        files = self._files()
        return sorted(self._of(files, lambda kind: not kind.has_clip), key=lambda name: kind_of(files[name]).start is None)

    def bases(self) -> list[str]:
        """Returns the full SDXL checkpoints, the plain base model first. Reads heads, so keep it off an event loop."""
        names = self._of(self._files(), lambda kind: kind.has_clip and kind.has_vae and kind.start is None)
        return sorted(names, key=lambda name: not Path(name).name.lower().startswith("sd_xl_base"))

    def checkpoints(self) -> list[str]:
        """Returns every checkpoint; which of them a LoRA fits, its bake says."""
        return sorted(self._files((CHECKPOINTS,)))

    def loras(self) -> list[str]:
        """Returns every LoRA file."""
        return sorted(self._files((LORAS,)))

    def start(self, unet: str, base: str, name: str, dtype: str = "fp16") -> None:
        """Starts a build in the background.

        Args:
            unet: one of unets().
            base: one of bases().
            name: of the new file, without a folder.
            dtype: a key of DTYPES.
        Raises: UnsupportedModelError for what is not on offer; BuildError for a name that cannot be, or while another build
            is under way.
        """
        files = self._files()
        lone, whole = _chosen(files, "UNet", unet), _chosen(files, "base checkpoint", base)
        target, final = self._target(name), _precision(DTYPES, dtype)

        def build(progress: Report) -> str:
            merge(whole, lone, target, dtype=final, progress=progress)
            return ""

        self._begin(target, build)

    def bake(
        self,
        checkpoint: str,
        lora: str,
        strength: str,
        text_strength: str,
        name: str,
        dtype: str = AS_IT_IS,
    ) -> None:
        """Starts to bake a LoRA into a checkpoint, in the background.

        Args:
            checkpoint: one of checkpoints().
            lora: one of loras().
            strength: of the LoRA in the UNet, a number.
            text_strength: of the LoRA in the text encoders, a number.
            name: of the new file, without a folder; "" takes the names of both files.
            dtype: a key of BAKE_DTYPES.
        Raises: as start().
        """
        base = _chosen(self._files((CHECKPOINTS,)), "checkpoint", checkpoint)
        source = _chosen(self._files((LORAS,)), "LoRA", lora)
        target = self._target(name.strip() or f"{base.stem}-{source.stem}")
        options = {"strength": _number(strength), "text_strength": _number(text_strength)}
        options["dtype"] = _precision(BAKE_DTYPES, dtype)

        def build(progress: Report) -> str:
            baked = bake(base, source, target, progress=progress, catalog=self._catalog(), **options)
            return f"{baked.match}. {baked.note}".strip()

        self._begin(target, build)

    def cancel(self) -> None:
        """Stops the build if one is under way. Nothing of it is left."""
        self._stop.set()

    async def follow(self) -> AsyncIterator[str]:
        """Yields how far the build is until it has ended, then how it ended."""
        while self.is_busy():
            yield self._text
            await asyncio.sleep(POLL)
        yield self._text

    def _target(self, name: str) -> Path:
        return Path(self._folders(CHECKPOINTS)[0], file_name(name))

    def _begin(self, target: Path, build: Callable[[Report], str]) -> None:
        with self._lock:
            if self.is_busy():
                raise BuildError("Another checkpoint is being built; wait until it is done, or press Cancel.")
            self._stop.clear()
            self._text = f"Building {target.name}"
            self._thread = threading.Thread(target=self._run, args=(target, build), name="hyper_sd build", daemon=True)
            self._thread.start()

    def _run(self, target: Path, build: Callable[[Report], str]) -> None:
        clock = BuildClock()

        def progress(stage: str, done: int, total: int) -> None:
            self._text = f"Building {target.name}: {clock.text(stage, done, total)}"
            if self._stop.is_set():
                raise _Stopped

        try:
            said = build(progress)
            self._refresh()
            done = f"{target.name} is built. Refresh the list of checkpoints (the button beside it) and choose it."
            self._text = f"{done} {said}".strip()
        except _Stopped:
            self._text = "Stopped; nothing was kept."
        except HyperSDError as error:
            self._text = str(error)
        except Exception as error:
            _log.exception("%s could not be built", target.name)
            self._text = f"{target.name} could not be built: {error}. The host's log has the details."

    def _files(self, kinds: Sequence[str] = KINDS) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for kind in kinds:
            folders = self._folders(kind)
            for paths in sorted(index_folders(folders).values()):
                for path in paths:
                    if path.suffix.lower() == _ENDING:
                        files.setdefault(listed_name(path, folders), path)
        return files

    @staticmethod
    def _of(files: dict[str, Path], fits: Callable[[Kind], bool]) -> list[str]:
        kinds = {name: kind_of(path) for name, path in files.items()}
        return [name for name, kind in kinds.items() if kind.is_sdxl and fits(kind)]


def _chosen(files: dict[str, Path], what: str, option: str) -> Path:
    """Returns a file that was on offer; the page may send anything."""
    if option not in files:
        raise UnsupportedModelError(f"Choose the {what} from the list; press Look again if your file is not in it.")
    return files[option]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise BuildError(f"A strength must be a number, got {text[:40]!r}; 1 is as the LoRA was made.") from error


def _precision(dtypes: dict[str, torch.dtype | None], name: str) -> torch.dtype | None:
    if name not in dtypes:
        raise BuildError(f"The precision must be one of {', '.join(dtypes)}, got {name!r}.")
    return dtypes[name]


def file_name(name: str) -> str:
    """Returns a person's name for the new checkpoint as a file name.

    Raises: BuildError for a name with a folder in it, or one that some system cannot keep.
    """
    stem = name.strip()
    stem = stem[: -len(_ENDING)] if stem.lower().endswith(_ENDING) else stem
    if not _NAME.fullmatch(stem):
        raise BuildError(
            f"The new checkpoint's name may have letters, digits, spaces and . _ - + ( ), and begins with a letter or a digit; "
            f"got {name[:140]!r}."
        )
    return stem + _ENDING
