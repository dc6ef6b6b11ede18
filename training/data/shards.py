"""Images in tar shards as webdataset writes them, read in place through their offsets; nothing is extracted."""

import glob
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ...disk import open_file
from ...errors import TrainingError
from .captions import UNREADABLE, Sidecars
from .files import Source, suffixes
from .folder import note_unread
from .images import Candidate, ImageRules, ImageSet, OnProgress, examine
from .remarks import Remark

MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def scan_shards(shards: Path | str, rules: ImageRules | None = None, progress: OnProgress | None = None) -> ImageSet:
    """Returns the images of uncompressed tar shards, in the order of the shards and of their members.

    Members of one stem are a sample: 0001.jpg with 0001.txt or another file that Sidecars takes. Names inside a
    shard are never used as paths, links are skipped, and a damaged shard is skipped whole.

    Args:
        shards: a file, a folder of .tar files, a glob, or a pattern such as "data-{000..003}.tar" or "{train,extra}/*.tar".
        rules: which images are taken; None is ImageRules().
        progress: as OnProgress says.
    Raises: TrainingError when there are no shards, or nothing usable in them.
    """
    candidates, skipped, notes = [], [], []
    for path in shard_paths(shards):
        try:
            candidates += _samples(path, _members(path), skipped, notes)
        except (OSError, ValueError) as error:
            skipped.append(Remark(path.name, f"is not used: {error}"))
    return examine(candidates, rules or ImageRules(), skipped, notes, str(shards), progress)


def shard_paths(shards: Path | str) -> list[Path]:
    """Returns the files a pattern stands for; a name without a wildcard is kept even where there is no such file.

    Raises: TrainingError for an address, and where nothing matches.
    """
    pattern = str(shards)
    if re.match(r"\w{2,}:", pattern):  # "C:" is a drive
        raise TrainingError(f"Shards are read from disk, got {pattern}; download them and give their path.")
    paths: list[Path] = []
    for name in [pattern] if Path(pattern).exists() else expand_braces(pattern):
        if Path(name).is_dir():
            paths += sorted(path for path in Path(name).iterdir() if path.suffix.lower() == ".tar" and path.name[0] != ".")
        elif glob.has_magic(name) and not Path(name).exists():
            paths += map(Path, sorted(glob.glob(name, recursive=True)))
        else:
            paths.append(Path(name))
    if not paths:
        raise TrainingError(f"{pattern} stands for no shard; give .tar files, uncompressed, a folder of them, or a pattern.")
    return list(dict.fromkeys(paths))


def expand_braces(pattern: str) -> list[str]:
    """Returns the names that {000..003} and {a,b} stand for, in a shell's order; braces of another kind are kept."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not braces:
        return [pattern]
    first, last, words = braces.groups()
    parts = words.split(",") if first is None else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [name for part in parts for name in expand_braces(before + part + after)]


def _members(path: Path) -> list[tarfile.TarInfo]:
    """Returns all members of a shard.

    Raises: OSError, or ValueError with the reason why the shard cannot be used.
    """
    damaged = "it is damaged or ends early; copy or download it again"
    with open_file(path) as file:
        head, length = file.read(8), file.seek(0, os.SEEK_END)
        for magic, kind in MAGIC.items():
            if head.startswith(magic):
                raise ValueError(f"it is compressed ({kind}), and only uncompressed tar can be read in place; decompress it")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                members = archive.getmembers()
                file.seek(archive.offset)
                after = file.read(tarfile.BLOCKSIZE)
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise ValueError(damaged) from error
    is_whole = all(0 <= member.size <= length - member.offset_data for member in members if member.isreg())
    if not is_whole or after.strip(b"\0"):  # tarfile takes a damaged header in the middle for the end
        raise ValueError(damaged)
    return members


def _samples(path: Path, members: list[tarfile.TarInfo], skipped: list[Remark], notes: list[Remark]) -> Iterator[Candidate]:
    """Yields the images of one shard with their captions, and adds to `skipped` and `notes` what is not used."""
    files: dict[str, Source] = {}
    for member in members:
        name = PurePosixPath(member.name)
        label = f"{path.name}/{name}"
        if member.isdir() or name.name.startswith("."):
            continue
        if not member.isreg() or member.issparse():
            skipped.append(Remark(label, "is a link or another special member"))
        elif label in files:
            skipped.append(Remark(label, "comes twice in this shard; the first is used"))
        else:
            files[label] = Source(path, member.offset_data, member.size)
    sidecars = Sidecars(files, notes)
    for label, source in files.items():
        if label.lower().endswith(suffixes()):
            try:
                yield Candidate(label, source, sidecars.caption(label))
            except (OSError, ValueError, RecursionError) as error:
                skipped.append(Remark(label, UNREADABLE.format(error)))
    sidecars.note_unused(files)
    note_unread(files, skipped, notes)
