"""What a person has to be told about a plan, in the panel's line and below the pictures; one sentence each."""

from collections.abc import Sequence

from ..models.sampling_plan import LoraPlan
from .chosen_model import Model
from .planning import inside_of
from .prompt_loras import Written, few_step_in
from .settings_table import BY_FILE, Settings

# A plan of the prompt's LoRA from one of these is exactly as the file was made; from any other the picture says so.
AS_MADE = ("released recipe", "measured here", "its own training")
# A method's numbers that artists found are the same for each of its pictures, so the panel's line alone says them.
USUAL = (*AS_MADE, "field practice")
INSIDE = ("merged", "one-step")  # variants by which a person says that few steps are in the checkpoint


def is_to_be_told(settings: Settings, model: Model, plan: LoraPlan, kept: Written | None) -> bool:
    """Whether the picture says what its plan rests on.

    Args:
        settings: the panel's.
        model: that makes the image.
        plan: for the image.
        kept: the LoRA of the prompt that it is for, None for the released file.
    """
    if plan.source == "a guess" or settings.method != BY_FILE:
        return True
    if kept is None and (plan.file or inside_of(model) is None):
        return False  # what the panel chooses by itself, its line says
    is_other = kept is not None and settings.variant not in ("auto", kept.known.variant)
    return is_other or plan.source not in (USUAL if plan.recipe else AS_MADE)


def two_at_once(settings: Settings, model: Model, plan: LoraPlan, loras: Sequence[Written], kept: Written | None) -> str:
    """Returns a sentence where a picture gets few steps twice, empty elsewhere.

    Args:
        settings: the panel's.
        model: that makes the image.
        plan: for the image.
        loras: of the prompt.
        kept: the one of them that the plan is for, None for the released file.
    """
    names = [f"{lora.known.file} of the prompt" for lora in few_step_in(loras) or filter(None, [kept])]
    if plan.file and kept is None:
        names.append(f"{plan.file}, which the panel adds")
    if names and (found := inside_of(model)):
        names.append(f"what the checkpoint has inside ({found})")
    elif settings.variant in INSIDE:
        names.append("what the checkpoint has inside, as you chose")
    if len(names) < 2:
        return ""
    listed = " and ".join((", ".join(names[:-1]), names[-1]))
    return f"Two few-step LoRAs at once often burn the picture: {listed}; remove one."


def came_later(loras: Sequence[Written]) -> str:
    """Returns a sentence about few-step LoRAs of a prompt that the plan did not know of."""
    names, verb = " and ".join(lora.known.file for lora in loras), "is" if len(loras) == 1 else "are"
    return (
        f"{names} came into the prompt after the picture was planned, by a later batch, the hires pass or a wildcard, and "
        f"{verb} sampled by that plan. Where it does not fit, make such pictures in a run of their own."
    )
