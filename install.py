"""Door 3: `python install.py` (what the hosts call), `python install.py demo`, `test`, `download`, `bake`."""

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 - so this file must stay readable for Python 3.7
    sys.exit("Hyper-SD needs Python 3.10 to 3.13, this is %d.%d; use a newer one: python3.11 install.py" % sys.version_info[:2])  # noqa: UP031

ROOT = Path(__file__).resolve().parent
# Commands that run in the running Python, which is the host's, and where each of them is.
IN_PLACE = {
    "download": ("fetch_models", "run_download"),
    "bake": ("build_checkpoint", "run_bake"),
    "build": ("build_checkpoint", "run_build"),
}
IMPORT_NAMES = {"pillow": "PIL"}


def bind_package() -> None:
    """Makes this folder importable as `hyper_sd`; its own __init__.py is ComfyUI's door."""
    if "hyper_sd" not in sys.modules:
        package = types.ModuleType("hyper_sd")
        package.__path__ = [str(ROOT)]
        sys.modules["hyper_sd"] = package


def missing_dependencies() -> list:
    """Returns the lines of requirements.txt that the running Python cannot import."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and importlib.util.find_spec(IMPORT_NAMES.get(line, line)) is None]


def install_dependencies() -> int:
    """Installs what is missing into the running Python without changing anything that is there, and returns the exit code."""
    import importlib.metadata

    missing = missing_dependencies()
    if not missing:
        return 0
    print("Hyper-SD: installing " + ", ".join(missing), flush=True)
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    with tempfile.TemporaryDirectory() as folder:
        present = Path(folder) / "present.txt"
        present.write_text("\n".join(f"{name}=={version}" for name, version in found.items() if name), encoding="utf-8")
        isolated = ["-s"] if sys.flags.no_user_site else []  # ComfyUI's portable Python ignores the user's packages
        command = [sys.executable, *isolated, "-m", "pip", "install", "--quiet", "--constraint", str(present), *missing]
        code = subprocess.run(command, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}, check=False).returncode
    if code:
        print(
            f"Hyper-SD: pip could not install {', '.join(missing)} beside what the host has (its message stands above). "
            f"Check the network, or install them by hand: {sys.executable} -m pip install {' '.join(missing)}",
            file=sys.stderr,
        )
    return code


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with an option."""

    def error(self, message: str):
        self.exit(2, f"{message[:1].upper()}{message[1:]} (all options: {self.prog} --help)\n")


def make_parser() -> Parser:
    """Returns the command line of install.py."""
    from hyper_sd.demo.build_checkpoint import add_bake_options, add_build_options
    from hyper_sd.demo.check import add_test_options
    from hyper_sd.demo.compare_options import add_compare_options
    from hyper_sd.demo.evaluate_options import add_evaluate_options
    from hyper_sd.demo.fetch_models import add_download_options
    from hyper_sd.demo.options import add_demo_options
    from hyper_sd.demo.taste_options import add_taste_options
    from hyper_sd.demo.votes_options import add_votes_options

    parser = Parser(
        prog="python install.py",
        description="Hyper-SD for ComfyUI and A1111. Without a command: installs what the pack misses in the running Python.",
    )
    commands = parser.add_subparsers(dest="command", metavar="command")
    demo = commands.add_parser(
        "demo", help="draw one prompt in few steps and many, with and without Hyper-SD, on a real ComfyUI"
    )
    add_demo_options(demo)
    add_download_options(commands.add_parser("download", help="fetch Hyper-SD files, verified, into the host's folders"))
    add_bake_options(commands.add_parser("bake", help="write a checkpoint that has a LoRA in it at a strength"))
    add_build_options(commands.add_parser("build", help="make a full checkpoint from the lone SDXL one-step UNet"))
    add_compare_options(commands.add_parser("compare", help="make a page on which people compare pictures without names"))
    add_votes_options(commands.add_parser("votes", help="say what people's votes on such a page say"))
    test = commands.add_parser("test", help="run every check on a real ComfyUI; arguments go to pytest")
    add_test_options(test)
    test.add_argument("pytest", nargs="*", metavar="argument", help="for pytest, for example -k sampler")
    add_taste_options(commands.add_parser("taste", help="learn a person's taste from votes, as a score of pictures"))
    add_evaluate_options(commands.add_parser("evaluate", help="draw with LoRAs and without, and make a table of scores"))
    train = commands.add_parser("train-demo", help="train the demo model from nothing (hours on a CPU)")
    train.add_argument("recipe", nargs="*", metavar="argument", help="for the recipe, for example --threads 2")
    return parser


def run_command(arguments: list) -> int:
    """Runs a command, all but those IN_PLACE in the environment made for it, and returns the exit code."""
    from hyper_sd.demo.commands import run

    passes_on = arguments[0] in {"test", "train-demo"} and not {"-h", "--help"} & set(arguments[1:2])
    options = None if passes_on else make_parser().parse_args(arguments)
    if arguments[0] in IN_PLACE:
        module, function = IN_PLACE[arguments[0]]
        return getattr(importlib.import_module(f"hyper_sd.demo.{module}"), function)(options)
    return run(arguments[0], arguments[1:], options)


def main(arguments: list) -> int:
    """Returns the exit code: 0 done, 1 failed, 2 a wrong option, 130 stopped by the user."""
    if not arguments:
        return install_dependencies()
    bind_package()
    from hyper_sd.errors import HyperSDError

    try:
        return run_command(arguments)
    except HyperSDError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
