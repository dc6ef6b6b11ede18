"""The ways to draw that are compared: the base, and LoRAs by the plans that belong to their files."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import EvaluationError
from ..models.embedded import LORAS, UNIFIED
from ..models.families import FAMILIES
from ..models.file_plan import plan_for_file
from ..models.lora import LoraInfo, check_family, effective_strength, read_lora
from ..models.recognition import Recognition, recognise
from ..models.sampling_plan import LoraPlan
from .plan import Arm, LoraUse, Model, mark_of, unique_slugs

BASE, UNIFIED_NAME, N_STEP = "base", "unified", "n-step"
EMBEDDED_NAMES = (UNIFIED_NAME, N_STEP)  # the demo model's own LoRAs, in place of a file
FEW_STEPS = (1, 2, 4, 8)
PLUS, TIMES = "+", "*"  # FILE+FILE*0.5: the second one on top of the first, at half strength


def counted(steps: int) -> str:
    """Returns "1 step", "2 steps" and so on."""
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def base_arms(steps: Sequence[int], cfg: float) -> list[Arm]:
    """Returns the model without a LoRA, with guidance and no fresh noise, which is DDIM."""
    return [Arm(f"{BASE}, {counted(count)}", BASE, count, cfg=cfg) for count in steps]


def lora_arms(given: str, model: Model, steps: Sequence[int] | None = None) -> list[Arm]:
    """Returns a LoRA at several step counts, each by the plan that belongs to the file.

    Args:
        given: a file; files with a plus between them, of which the first one says how to sample, and the others may have a
            strength: "a.safetensors+b.safetensors*0.5"; for the demo model in a file's place also "unified" or "n-step".
        model: that it is loaded on.
        steps: None takes the file's own number, and 1, 2, 4 and 8 for a unified LoRA and an unknown one.
    Raises: EvaluationError for a file that is not there; UnsupportedModelError for one that is no LoRA or of another family;
        ScheduleError for a step count.
    """
    first, *others = [given] if Path(given).is_file() else given.split(PLUS)
    further = tuple(_further(other, model) for other in others)
    if first == N_STEP and model.is_embedded:
        counts = [count for variant, count in sorted(LORAS) if variant == N_STEP]
        return [_arm(LORAS[N_STEP, count], N_STEP, count, model, further) for count in counts if count in (steps or counts)]
    path = LORAS[UNIFIED] if first == UNIFIED_NAME and model.is_embedded else _file(first, model)
    name = first if path == LORAS[UNIFIED] else path.stem
    known = recognise(path)
    return [_arm(path, name, count, model, further) for count in steps or _own_steps(known)]


def require_arms(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Returns the arms, each with its folder's name.

    Raises: EvaluationError where there is none, or one is given twice.
    """
    if not arms:
        raise EvaluationError("There is nothing to draw: no step count of the base is given and no LoRA has one of --steps.")
    return unique_slugs(arms)


def _own_steps(known: Recognition) -> tuple[int, ...]:
    return (known.steps,) if known.variant in ("n-step", "cfg") else FEW_STEPS


def _file(given: str, model: Model) -> Path:
    path = Path(given).expanduser()
    if not path.is_file():
        names = f", or for the demo model's own {' or '.join(EMBEDDED_NAMES)}" if model.is_embedded else ""
        raise EvaluationError(f"There is no LoRA {path}; give the path of a .safetensors file{names}.")
    return path


def _further(given: str, model: Model) -> LoraUse:
    name, _, strength = given.partition(TIMES)
    path = _file(name, model)
    _check(path, model)
    try:
        return LoraUse(path, float(strength or 1), mark_of(path))
    except ValueError as error:
        raise EvaluationError(f"The strength of {given!r} is not a number; write for example {path.name}*0.5.") from error


def _arm(path: Path, name: str, steps: int, model: Model, further: tuple[LoraUse, ...]) -> Arm:
    info, chosen = _check(path, model), plan_for_file(model.family, steps, "auto", recognise(path))
    _require_own_sampler(chosen, path)
    series = " + ".join([name, *(use.path.stem for use in further)])
    use = LoraUse(path, effective_strength(info, chosen), mark_of(path))
    return Arm(
        f"{series}, {counted(steps)}", series, steps, (use, *further), cfg=chosen.cfg, eta=chosen.eta,
        num_segments=chosen.num_segments, start_timestep=chosen.start_timestep,
    )  # fmt: skip


def _check(path: Path, model: Model) -> LoraInfo:
    """Returns what a LoRA file is, which has to be of the model's family; the demo model's have its own width."""
    info = read_lora(path)
    check_family(info, (model.is_embedded and read_lora(LORAS[UNIFIED]).family) or model.family)
    return info


def _require_own_sampler(chosen: LoraPlan, path: Path) -> None:
    if chosen.grid == "default":
        titles = [family.title for family in FAMILIES.values() if not family.is_flow]
        raise EvaluationError(
            f"{path.name} is sampled by the host's own sampler, which an evaluation does not run; give a LoRA for "
            f"{' or '.join(titles)}."
        )
