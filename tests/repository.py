"""The files of the repository, and what none of them may say."""

import re
import subprocess
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {"__pycache__", "node_modules", "build", "dist", "demo-images", "comparisons"}

# Folders of a person's or a server's own machine, private addresses, package registries' hosts.
PRIVATE = {
    "machine path": re.compile(r"(?<![\w.:/~*-])/(?:home|root|work|workspace|Users|mnt)/\w|\b[A-Za-z]:[\\/]+Users\b"),
    "private address": re.compile(r"\b(?:10\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2}\b"),
    "registry host": re.compile(r"\b(?:pypi|pythonhosted|npmjs|anaconda|crates)\.(?:org|com|io)\b", re.IGNORECASE),
}


def _repository_files() -> list[PurePosixPath]:
    """Returns what git tracks or would track; in a copy without git, every file outside hidden and built folders."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        paths = (p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file())
        listed = [p.as_posix() for p in paths if not any(part in SKIPPED or part.startswith(".") for part in p.parts[:-1])]
    return [PurePosixPath(name) for name in sorted(listed) if name and (ROOT / name).is_file()]


FILES = _repository_files()
MODULES = [path for path in FILES if path.suffix == ".py"]


def private_text(text: str) -> list[str]:
    """Returns what a text tells about the machine it was written on."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        found += [f"line {number}: {kind}" for kind, pattern in PRIVATE.items() if pattern.search(line)]
    return found
