"""demo/lock.txt: it holds all that the commands need, on every system, and pip takes no other file than those it names."""

import hashlib
import itertools
import random
import re
import sys
import zipfile
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from hyper_sd.demo import lock as lock_file
from hyper_sd.demo import pip, requirements
from hyper_sd.demo.environment import VENV, inside
from hyper_sd.demo.errors import InstallError
from hyper_sd.demo.lock import CHOSEN_BY_CARD, LISTS, lock, read_lock
from packaging.requirements import Requirement

SYSTEMS = [
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
]
PLACES = [
    {**system, "python_version": python, "python_full_version": f"{python}.9", "implementation_name": "cpython"}
    for system, python in itertools.product(SYSTEMS, ("3.10", "3.11", "3.12", "3.13"))
]

locked = pytest.mark.skipif(not inside(VENV), reason="only .venv holds what the lock names")


def lines_of(command: str) -> tuple[str, ...]:
    """Returns the lists' requirement lines of a command, on the pinned ComfyUI."""
    return (*requirements.requirements_for(command, Path("none")), *requirements.alone_for(command))


def all_lines() -> dict[str, str]:
    """Returns the lines of every command by their projects, without those that the card decides about."""
    lines = {requirements.name_of(line): line for command in requirements.COMMANDS for line in lines_of(command)}
    return {name: line for name, line in lines.items() if not CHOSEN_BY_CARD.fullmatch(name)}


@cache
def chosen(line: str) -> Requirement:
    """Returns a line of the lock, read by the library that pip uses."""
    return Requirement(line.split(" --hash=", maxsplit=1)[0])


def at(place: dict[str, str], lines: tuple[str, ...]) -> dict[str, str]:
    """Returns the version of each project of lock lines that a system and Python get, and asserts that it is one."""
    here = [line for line in map(chosen, lines) if line.marker is None or line.marker.evaluate(place)]
    versions = {line.name: str(line.specifier).removeprefix("==") for line in here}
    assert len(versions) == len(here)
    return versions


def here(lines: Iterable[str], extras: Iterable[str] = ()) -> list[Requirement]:
    """Returns those of some requirement lines that hold in this environment, when a project is asked for with some extras."""
    found = map(Requirement, lines)
    return [r for r in found if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in ("", *extras))]


def test_lists_and_lock_are_the_same():
    listed = {entry.name for entry in read_lock() if LISTS in " ".join(entry.needed_by)}
    assert listed == set(all_lines())
    reached = {line for command in requirements.COMMANDS for line in lock(lines_of(command))}
    assert {entry.line for entry in read_lock()} == {line for line in reached if "--hash" in line}


def test_lock_names_nothing_that_the_card_decides_about():
    assert not [entry.name for entry in read_lock() if CHOSEN_BY_CARD.fullmatch(entry.name)]
    assert not CHOSEN_BY_CARD.fullmatch("torchsde")
    assert lock(lines_of("demo"))[-1] == "torchvision"


def test_lock_gives_every_list_a_version_that_it_allows_on_every_system_and_python():
    entries = tuple(entry.line for entry in read_lock())
    for place in PLACES:
        versions = at(place, entries)
        for name, line in all_lines().items():
            required = Requirement(line)
            if required.marker is None or required.marker.evaluate(place):
                assert required.specifier.contains(versions[name], prereleases=True), (name, place)


def test_systems_and_pythons_differ_only_in_what_python_itself_brings_and_in_the_console():
    entries = tuple(entry.line for entry in read_lock())
    names = [set(at(place, entries)) for place in PLACES]
    differing = set.union(*names) - set.intersection(*names)
    old = {"tomli", "exceptiongroup", "async-timeout", "importlib-resources", "six", "httpx", "httpcore"}
    new = {"httpx2", "httpcore2", "truststore", "lazy-importer"}
    assert differing <= {"colorama", *old, *new}


@locked
@pytest.mark.parametrize("command", requirements.COMMANDS)
def test_lock_holds_everything_that_a_command_and_torch_ask_for(command):
    try:
        pending = [("torch", frozenset()), *((r.name, frozenset()) for r in here(lines_of(command)))]
        versions = at({}, tuple(line for line in lock(lines_of(command)) if "--hash" in line))
        alone, seen = {requirements.name_of(line) for line in requirements.alone_for(command)}, set()
        while pending:
            name, extras = pending.pop()
            name = requirements.name_of(name)
            if (name, extras) in seen or (name != "torch" and CHOSEN_BY_CARD.fullmatch(name)):
                continue
            seen.add((name, extras))
            assert name == "torch" or name in versions
            if name not in alone:
                pending += [(r.name, frozenset(r.extras)) for r in here(distribution(name).requires or (), extras)]
    except PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed here")
    assert len(seen) > 20


@locked
def test_environment_of_the_tests_is_what_the_lock_names():
    versions = at({}, tuple(line for line in lock(lines_of("test")) if "--hash" in line))
    assert {name: distribution(name).version for name in versions} == versions


def test_project_that_the_lock_lacks_says_what_to_do():
    with pytest.raises(InstallError, match=r"lock\.txt does not name not-there\. Get the file again .*relock"):
        lock(("numpy", "not-there>=2"))


HASH = f"--hash=sha256:{'0' * 64}"


@pytest.mark.parametrize(
    "text",
    [
        "numpy==2.4.6\n    # via torchsde\n",
        f"numpy>=2 \\\n    {HASH}\n",
        f"numpy==2.4.6 \\\n    {HASH[:-1]}\n",
        f"numpy==2.4.6 \\\n    --hash=md5:{'0' * 32}\n",
        f"numpy @ file:numpy.whl \\\n    {HASH}\n",
        f"--extra-index-url elsewhere\nnumpy==2.4.6 \\\n    {HASH}\n",
        f"numpy==2.4.6 \\\n    {HASH} --global-option=x\n",
    ],
)
def test_lock_entry_without_one_version_and_its_sha256_is_refused(text):
    with pytest.raises(InstallError, match=r"needs one version with == and its sha256\. Get the file again"):
        read_lock(text)


def test_missing_lock_file_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_file, "LOCK", tmp_path / "lock.txt")
    with pytest.raises(InstallError, match=r"lock\.txt cannot be read .* Get the file again"):
        read_lock()


def tiny_wheel(folder: Path) -> Path:
    """Writes a wheel of one module."""
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "tiny-1.0.dist-info"
        archive.writestr("tiny.py", "WORD = 'hello'\n" * 20)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\nRequires-Dist: not-there\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return wheel


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """A folder with a tiny wheel, the only place where pip looks, and the line that names the wheel; see also `target`."""
    (tmp_path / "offered").mkdir()
    wheel = tiny_wheel(tmp_path / "offered")
    for name in ("PIP_REQUIRE_VIRTUALENV", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    values = {"NO_INDEX": 1, "FIND_LINKS": wheel.parent, "TARGET": tmp_path / "target", "NO_CACHE_DIR": 1, "QUIET": 1}
    for name, value in values.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    return wheel, f"tiny==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def test_named_wheel_is_installed_alone_and_every_tampered_one_is_refused(offered, tmp_path, reliability):
    wheel, line = offered
    expected = line[-64:]
    whole = wheel.read_bytes()
    random_bytes = random.Random(21)
    tampered = [whole[:-1], whole + b"\0"]
    for position in random_bytes.sample(range(len(whole)), 6):
        tampered.append(whole[:position] + bytes([whole[position] ^ 1 << random_bytes.randrange(8)]) + whole[position + 1 :])
    refused = 0
    for content in tampered:
        wheel.write_bytes(content)
        given = hashlib.sha256(content).hexdigest()
        message = rf"a file of tiny==1\.0 with sha256 {given}, expected {expected}: .* cache purge"
        with pytest.raises(InstallError, match=message):
            pip.pip_install_locked(Path(sys.executable), [line])
        refused += not (tmp_path / "target").exists()
    wheel.write_bytes(whole)
    pip.pip_install_locked(Path(sys.executable), [line])
    right = (tmp_path / "target" / "tiny.py").is_file()
    reliability("wheels of the environment", tried=len(tampered) + 1, refused=refused, right=int(right), wrong=0)


def test_wheel_for_another_python_or_system_says_for_which_the_lock_is(offered):
    wheel, line = offered
    wheel.rename(wheel.with_name("tiny-1.0-cp27-cp27m-win32.whl"))
    message = (
        rf"no wheel of tiny==1\.0, which .* for Python {re.escape(sys.version.split()[0])} on .* 3\.10 to 3\.13 .*--comfyui"
    )
    with pytest.raises(InstallError, match=message):
        pip.pip_install_locked(Path(sys.executable), [line])


@pytest.mark.usefixtures("offered")
def test_several_hashes_are_counted_in_the_refusal():
    other = [f"--hash=sha256:{digit * 64}" for digit in "12"]
    with pytest.raises(InstallError, match=r"expected one of the 2 that demo/lock\.txt names for it"):
        pip.pip_install_locked(Path(sys.executable), [" ".join(["tiny==1.0", *other])])
