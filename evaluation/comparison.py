"""A blind comparison: pictures of several arms in pairs, whose order and sides tell nothing about the arms."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path

from ..disk import explain, write_whole
from ..errors import EvaluationError

FORMAT = "hyper-sd comparison 1"
KEY = "comparison.json"
ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FEW = 5  # from this many pairs on a tenth of them is shown twice, and at least this many lie between, where there is room
NAMED = 5  # names that a message lists


@dataclass(frozen=True)
class Picture:
    """One picture of an arm.

    Args:
        name: what the pictures of all arms have in common; their file names without ending.
        arm: what is compared, such as a model or a step count.
        path: its file.
        prompt: what it was to show, "" where that is not known.
    """

    name: str
    arm: str
    path: Path
    prompt: str = ""


@dataclass(frozen=True)
class Pair:
    """Two pictures of one name and two arms, side by side.

    Args:
        left: the id of the left picture.
        right: the id of the right picture.
        first: the number of the pair that this one repeats with its sides swapped, None where it is no repeat.
    """

    left: str
    right: str
    first: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Everything about one comparison, the arms included, so it stays with the person who made it.

    Args:
        id: random, in every vote file.
        arms: their names, at least two.
        pictures: by random id.
        pairs: in the order in which they are shown.
    """

    id: str
    arms: tuple[str, ...]
    pictures: dict[str, Picture]
    pairs: tuple[Pair, ...]


def find_pictures(folders: Mapping[str, Path] | Sequence[Path]) -> dict[str, dict[str, Picture]]:
    """Returns the pictures of every name by arm, {name: {arm: picture}}; names and arms stand in order.

    A text file with a picture's name and the ending .txt, in any of the folders, has the picture's prompt.

    Args: folders: one for each arm; without names of their own the arms are called like their folders.
    Raises: EvaluationError for fewer than two arms, a folder that is not there or empty, and two pictures of one name in it.
    """
    named = folders if isinstance(folders, Mapping) else name_arms(folders)
    if len(named) < 2:
        raise EvaluationError(f"A comparison needs at least 2 folders, got {len(named)}; give one for each thing to compare.")
    found: dict[str, dict[str, Picture]] = {}
    for arm, folder in named.items():
        for path in _images(Path(folder)):
            found.setdefault(path.stem, {})[arm] = Picture(path.stem, arm, path)
    return {name: _with_prompt(found[name], name, named.values()) for name in sorted(found)}


def name_arms(folders: Iterable[Path]) -> dict[str, Path]:
    """Returns the folders by name: each one's own name, with as many of its parents' as tell it from the others.

    Raises: EvaluationError where a folder is given twice.
    """
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise EvaluationError("A folder is given twice; give each thing to compare once, each in a folder of its own.")
    deepest = max((len(path.parts) for path in paths), default=1)
    for depth in range(1, deepest + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    return {}


def without_partner(found: Mapping[str, Mapping[str, Picture]]) -> list[str]:
    """Returns the names that only one arm has, and that no pair can show."""
    return [name for name, arms in found.items() if len(arms) < 2]


def plan_comparison(
    folders: Mapping[str, Path] | Sequence[Path], limit: int | None = None, rng: random.Random | None = None
) -> Comparison:
    """Returns a comparison of folders whose pictures have equal names.

    Args:
        folders: one for each arm, by the arm's name or in a list; see find_pictures.
        limit: different pairs at most, as many of each two arms; None takes all.
        rng: what ids, order and sides are drawn from; None takes the system's, which no seed repeats.
    Raises: EvaluationError where there is no pair to show.
    """
    rng = rng or random.SystemRandom()
    found = find_pictures(folders)
    arms = tuple(folders if isinstance(folders, Mapping) else name_arms(folders))
    paired = [picture for by_arm in found.values() if len(by_arm) > 1 for picture in by_arm.values()]
    if not paired:
        names = ", ".join(list(found)[:NAMED])
        raise EvaluationError(
            f"No picture has a partner of the same name in another folder; there are {names} and so on. Give the pictures of "
            "one prompt and seed the same file name in every folder, apart from the ending."
        )
    if alone := [arm for arm in arms if arm not in {picture.arm for picture in paired}]:
        raise EvaluationError(f"No picture of {', '.join(alone)} has a partner of the same name; leave that folder out.")
    rng.shuffle(paired)
    pictures = dict(sorted((new_id(rng), picture) for picture in paired))
    return Comparison(new_id(rng), arms, pictures, plan_pairs(pictures, limit, rng))


def new_id(rng: random.Random) -> str:
    """Returns a random id of 16 signs."""
    return f"{rng.getrandbits(64):016x}"


def plan_pairs(pictures: Mapping[str, Picture], limit: int | None = None, rng: random.Random | None = None) -> tuple[Pair, ...]:
    """Returns pairs of pictures of one name in random order on random sides, and a tenth of them again later, sides swapped.

    Args:
        pictures: by id.
        limit: different pairs at most, as many of each two arms; None takes all.
        rng: what order and sides are drawn from; None takes the system's, which no seed repeats.
    Raises: EvaluationError for a limit below 1.
    """
    rng = rng or random.SystemRandom()
    if limit is not None and limit < 1:
        raise EvaluationError(f"limit must be at least 1, got {limit}; leave it out to show every pair.")
    by_name: dict[str, list[str]] = {}
    for key, picture in pictures.items():
        by_name.setdefault(picture.name, []).append(key)
    kinds: dict[frozenset[str], list[list[str]]] = {}
    for keys in by_name.values():
        for two in combinations(keys, 2):
            if len(arms := frozenset(pictures[key].arm for key in two)) == 2:
                kinds.setdefault(arms, []).append(rng.sample(two, 2))
    for pairs in kinds.values():
        rng.shuffle(pairs)
    turns = sorted((turn, rng.random(), two) for pairs in kinds.values() for turn, two in enumerate(pairs))
    chosen = [two for _, _, two in turns[:limit]]
    rng.shuffle(chosen)
    return _with_repeats(chosen, rng)


def _with_repeats(chosen: list[list[str]], rng: random.Random) -> tuple[Pair, ...]:
    count, gap = len(chosen), min(FEW, len(chosen) // 4)
    repeats = max(round(count / 10), 1) if count >= FEW else 0
    places = [(float(number), None) for number in range(count)]
    for number in rng.sample(range(count - gap), repeats):
        places.append((rng.uniform(number + gap, count), number))
    places.sort(key=lambda place: place[0])
    shown = {int(place): at for at, (place, repeated) in enumerate(places) if repeated is None}
    pairs = []
    for place, repeated in places:
        left, right = chosen[int(place) if repeated is None else repeated]
        pairs.append(Pair(left, right) if repeated is None else Pair(right, left, shown[repeated]))
    return tuple(pairs)


def save_key(comparison: Comparison, folder: Path) -> Path:
    """Writes the key of a comparison, without which no vote can be read, and returns its file.

    Raises: EvaluationError where the folder cannot be written.
    """
    target = Path(folder) / KEY
    pictures = {
        key: {"name": picture.name, "arm": picture.arm, "file": _written(picture.path, target.parent), "prompt": picture.prompt}
        for key, picture in comparison.pictures.items()
    }
    key = {"format": FORMAT, "id": comparison.id, "arms": comparison.arms, "pictures": pictures}
    key["pairs"] = [asdict(pair) for pair in comparison.pairs]
    try:
        write_whole(target, json.dumps(key, ensure_ascii=False, indent=1).encode())
    except OSError as error:
        raise EvaluationError(f"The comparison's key was not written: {explain(error, target.parent)}.") from error
    return target


def load_key(folder: Path) -> Comparison:
    """Returns the comparison whose key lies in a folder; its pictures need not be there any more.

    Args: folder: that of the comparison, or the key file itself.
    Raises: EvaluationError where there is no key, or one that is damaged.
    """
    path = Path(folder) / KEY if Path(folder).is_dir() else Path(folder)
    try:
        return read_key(json.loads(path.read_text(encoding="utf-8")), path.parent)
    except FileNotFoundError as error:
        raise EvaluationError(f"There is no {KEY} in {folder}; give the folder that `compare` wrote.") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise EvaluationError(
            f"{path} is no key of a comparison ({type(error).__name__}: {error}); give the folder that `compare` wrote."
        ) from error


def read_key(key: dict, folder: Path) -> Comparison:
    """Returns the comparison that a key's content describes.

    Raises: ValueError, LookupError, TypeError or AttributeError for anything that is no key.
    """
    if key["format"] != FORMAT:
        raise ValueError(f"its format is {key['format']!r}, not {FORMAT!r}")
    pictures = {
        str(name): Picture(str(p["name"]), str(p["arm"]), Path(folder) / p["file"], str(p["prompt"]))
        for name, p in key["pictures"].items()
    }
    pairs = tuple(Pair(pair["left"], pair["right"], pair["first"]) for pair in key["pairs"])
    for number, pair in enumerate(pairs):
        left, right = pictures[pair.left], pictures[pair.right]
        if left.name != right.name or left.arm == right.arm or not {left.arm, right.arm} <= set(key["arms"]):
            raise ValueError(f"pair {number} does not show two arms' pictures of one name")
        if pair.first is None:
            continue
        first = pairs[pair.first] if pair.first in range(number) else None
        if first is None or first.first is not None or (first.left, first.right) != (pair.right, pair.left):
            raise ValueError(f"pair {number} repeats another one than it says")
    return Comparison(str(key["id"]), tuple(key["arms"]), pictures, pairs)


def _written(path: Path, folder: Path) -> str:
    """Returns a picture's path as the key has it: from the key's folder where the picture lies in it, else the whole one."""
    path, folder = Path(path).resolve(), folder.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise EvaluationError(f"There is no folder {folder}; give folders of pictures.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and path.is_file())
    if not paths:
        raise EvaluationError(f"{folder} has no picture ({', '.join(sorted(ENDINGS))}); give a folder that has some.")
    for one, other in pairwise(paths):
        if one.stem == other.stem:
            raise EvaluationError(f"{folder} has both {one.name} and {other.name}; keep one picture of a name.")
    return paths


def _with_prompt(by_arm: dict[str, Picture], name: str, folders: Iterable[Path]) -> dict[str, Picture]:
    texts = (Path(folder) / f"{name}.txt" for folder in folders)
    text = next((text for text in texts if text.is_file()), None)
    prompt = " ".join(text.read_text(encoding="utf-8", errors="replace").split()) if text else ""
    return {arm: Picture(name, arm, picture.path, prompt) for arm, picture in by_arm.items()}
