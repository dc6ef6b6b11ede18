"""Writes demo/lock.txt from the lists of demo/requirements.py: `python -m hyper_sd.demo.relock`. Needs the program uv.

What the file has already is kept. Arguments go to uv: `--upgrade` takes the newest of everything, `--upgrade-package numpy`
of one package.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from ..disk import write_whole
from .console import say
from .errors import InstallError
from .lock import CHOSEN_BY_CARD, LISTS, LOCK, read_lock
from .requirements import COMFYUI, COMMANDS, TEST_ALONE, name_of, requirements_for

HEAD = "# Written by python -m hyper_sd.demo.relock; what it is for stands in docs/development.md.\n"
UV = (
    "uv", "pip", "compile", LISTS, "--universal", "--python-version", "3.10", "--generate-hashes", "--only-binary", ":all:",
    "--no-header", "--annotation-style", "line", "--quiet",
)  # fmt: skip


def every_requirement() -> tuple[str, ...]:
    """Returns the requirement lines of all commands, torch included, each project once; TEST_ALONE is apart."""
    lines = [line for command in COMMANDS for line in requirements_for(command, None)]
    return tuple({name_of(line): line for line in (*lines, *COMFYUI, "torch")}.values())


def compile_lock(requirements: tuple[str, ...], known: str, arguments: list[str]) -> str:
    """Returns what uv makes of requirement lines, for every system and Python 3.10 or newer.

    Args:
        requirements: the lines.
        known: an older lock file, whose versions are kept.
        arguments: further ones for uv.
    Raises: InstallError.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, LOCK.name)
        out.write_text(known, encoding="utf-8")
        Path(folder, LISTS).write_text("\n".join(requirements), encoding="utf-8")
        command = [*UV, "--output-file", out.name, *arguments]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        except OSError as error:
            raise InstallError(f'uv cannot be started ({error.strerror}); install it with "pip install uv".') from error
        if done.returncode:
            raise InstallError(f"uv found no versions that go together:\n{done.stderr.strip()}")
        return out.read_text(encoding="utf-8")


def relock(arguments: list[str]) -> str:
    """Returns the new text of the lock file, without what the machine's card decides about.

    Args: arguments: for uv.
    Raises: InstallError.
    """
    known = LOCK.read_text(encoding="utf-8") if LOCK.is_file() else ""
    compiled = compile_lock(every_requirement(), known, arguments) + compile_lock(TEST_ALONE, "", ["--no-deps", *arguments])
    lines = []
    for entry in sorted(read_lock(compiled), key=lambda entry: entry.line):
        if not CHOSEN_BY_CARD.fullmatch(entry.name):
            lines.append(entry.line.replace(" --hash=", " \\\n    --hash="))
            lines.append(f"    # via {', '.join(sorted(entry.needed_by))}")
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        write_whole(LOCK, relock(sys.argv[1:]).encode())
    except InstallError as error:
        sys.exit(str(error))
    say(f"{LOCK} has {len(read_lock())} packages.")
