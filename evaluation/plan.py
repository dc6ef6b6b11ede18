"""What is drawn for an evaluation: arms, prompts and seeds, and the pictures that follow from them."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import EvaluationError
from ..samplers.timesteps import LAST_TIMESTEP

IMAGES, PLAN, FORMAT = "images", "plan.json", "hyper-sd evaluation 1"
ENDS = 2**20  # bytes at each end of a file that its mark is made of
SEEDS_APART = 10**6  # between the noise of two seeds of one prompt, so that no two pictures of an arm share theirs


@dataclass(frozen=True)
class LoraUse:
    """A LoRA at a strength.

    Args:
        path: its file.
        strength: as hosts take it.
        mark: names its content.
    """

    path: Path
    strength: float
    mark: str


@dataclass(frozen=True)
class Arm:
    """One way to draw.

    Args:
        label: for people, such as "unified, 4 steps".
        series: what its step counts have in common: one line of a chart.
        steps: model evaluations; with guidance each of them costs two.
        loras: one after another; none is the base.
        cfg: guidance, 1 is off.
        eta: share of fresh noise, from 0 to 1.
        num_segments: of the sampler and its grid.
        start_timestep: of the first step.
        slug: its folder's name, which unique_slugs() gives.
    """

    label: str
    series: str
    steps: int
    loras: tuple[LoraUse, ...] = ()
    cfg: float = 1.0
    eta: float = 0.0
    num_segments: int = 1
    start_timestep: int = LAST_TIMESTEP
    slug: str = ""

    @property
    def cost(self) -> int:
        """How often the network is called for a picture."""
        return self.steps * (2 if self.cfg != 1 else 1)

    @property
    def settings(self) -> dict:
        """What decides how its pictures look, as plain data without labels and places."""
        keys = ("steps", "cfg", "eta", "num_segments", "start_timestep")
        return {key: getattr(self, key) for key in keys} | {"loras": [[use.mark, use.strength] for use in self.loras]}


@dataclass(frozen=True)
class Model:
    """The model that draws.

    Args:
        title: for people.
        family: a key of models.families.FAMILIES.
        mark: names its content.
        size: side in pixels of its pictures.
        path: its file or folder, None for the demo model.
    """

    title: str
    family: str
    mark: str
    size: int
    path: Path | None = None

    @property
    def is_embedded(self) -> bool:
        """Whether it is the model that ships with the pack."""
        return self.path is None


@dataclass(frozen=True)
class Job:
    """One picture.

    Args:
        arm: how it is drawn.
        prompt: what it is to show.
        number: of the prompt, from 1.
        seed: of the pictures of a prompt, from 0.
    """

    arm: Arm
    prompt: str
    number: int
    seed: int

    @property
    def noise_seed(self) -> int:
        """The seed of its noise, which no arm has a say in: so arms are compared on the same noise."""
        return self.seed * SEEDS_APART + self.number

    @property
    def name(self) -> str:
        """Its file's name without ending, the same in every arm."""
        return f"{self.number:04d}-{self.seed}"

    def path(self, out: Path) -> Path:
        """Returns its file below a folder of results."""
        return out / IMAGES / self.arm.slug / f"{self.name}.png"


@dataclass(frozen=True)
class Plan:
    """A whole evaluation.

    Args:
        model: what draws.
        through: what runs it: "comfyui" or "diffusers".
        arms: at least one, with different slugs; see unique_slugs.
        prompts: what is drawn.
        seeds: pictures of each prompt.
        source: where the prompts come from, None for the demo model's labels.
    Raises: EvaluationError for no arm, no prompt, or no seed.
    """

    model: Model
    through: str
    arms: tuple[Arm, ...]
    prompts: tuple[str, ...]
    seeds: int = 1
    source: Path | None = None

    def __post_init__(self) -> None:
        for name, what in (("arms", "way to draw"), ("prompts", "prompt"), ("seeds", "seed")):
            if not getattr(self, name):
                raise EvaluationError(f"An evaluation needs at least one {what}, got none.")

    def jobs(self) -> Iterator[Job]:
        """Yields every picture, arm by arm, since a host changes LoRAs more slowly than prompts."""
        for arm in self.arms:
            yield from self.jobs_of(arm)

    def jobs_of(self, arm: Arm) -> list[Job]:
        """Returns the pictures of an arm; those of all arms stand in the same order."""
        numbered = list(enumerate(self.prompts, 1))
        return [Job(arm, prompt, number, seed) for seed in range(self.seeds) for number, prompt in numbered]

    def key(self, job: Job) -> str:
        """Returns a hash of everything that a picture depends on."""
        model = [self.model.mark, self.model.size, self.through]
        content = json.dumps([model, job.arm.settings, job.prompt, job.noise_seed], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:24]

    @property
    def base(self) -> Arm | None:
        """The model without LoRA at its most steps, which the other arms are compared with; None where no arm is such."""
        return max((arm for arm in self.arms if not arm.loras), key=lambda arm: arm.steps, default=None)

    def without_last(self, arm: Arm) -> Arm | None:
        """Returns the arm that draws like this one without the last of its several LoRAs, None where there is none."""
        if len(arm.loras) < 2:
            return None
        wanted = replace(arm, loras=arm.loras[:-1]).settings
        return next((other for other in self.arms if other.settings == wanted), None)

    def as_plain(self) -> dict:
        """Returns it as data for JSON."""
        content = asdict(self) | {"format": FORMAT, "source": self.source.name if self.source else None}
        content["model"].pop("path")
        for arm in content["arms"]:
            arm["loras"] = [use | {"path": use["path"].name} for use in arm["loras"]]
        return content


def slug(text: str) -> str:
    """Returns a short name for a folder, safe on every system."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-") or "arm"


def unique_slugs(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Returns the arms with a name for each one's folder: its label's, with a number where two would be the same.

    Raises: EvaluationError where the same way to draw is given twice.
    """
    taken: dict[str, Arm] = {}
    for arm in arms:
        if any(arm.settings == other.settings for other in taken.values()):
            raise EvaluationError(f"The arm {arm.label!r} is given twice; give each LoRA and step count once.")
        names = (f"{slug(arm.label)}{ending}" for ending in ("", *(f"-{number}" for number in range(2, len(arms) + 2))))
        name = next(name for name in names if name not in taken)
        label = arm.label + name.removeprefix(slug(arm.label)).replace("-", " #")
        taken[name] = replace(arm, slug=name, label=label)
    return tuple(taken.values())


def mark_of(path: Path) -> str:
    """Returns a name for the content of a file, or of all safetensors files of a folder, made of sizes and both ends.

    Raises: EvaluationError where it cannot be read.
    """
    digest = hashlib.sha256()
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    try:
        for file in files:
            size = file.stat().st_size
            with file.open("rb") as content:
                digest.update(f"{file.name if path.is_dir() else ''} {size}".encode() + content.read(ENDS))
                content.seek(max(size - ENDS, 0))
                digest.update(content.read(ENDS))
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    return digest.hexdigest()[:16]
