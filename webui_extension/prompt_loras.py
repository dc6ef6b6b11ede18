"""The LoRAs of a prompt, and which of them a picture is planned for. No host is asked here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..models.entry import OTHER
from ..models.recognition import Recognition
from .settings_table import BY_FILE, Settings


@dataclass(frozen=True)
class Written:
    """A LoRA that stands in a prompt.

    Args:
        name: the host's.
        path: of its file.
        known: what the file is.
        strength: in the prompt.
    """

    name: str
    path: Path
    known: Recognition
    strength: float = 1.0


def few_step_in(loras: Sequence[Written]) -> list[Written]:
    """Returns those that are known for few steps, in the prompt's order."""
    return [lora for lora in loras if lora.known.variant]


def unknown_in(loras: Sequence[Written]) -> list[Written]:
    """Returns those that nobody knows: styles of other trainings, and few-step LoRAs that no catalogue has."""
    return [lora for lora in loras if not lora.known.variant and not lora.known.is_style]


def kept_of(settings: Settings, loras: Sequence[Written]) -> Written | None:
    """Returns the LoRA of a prompt that the picture is planned for, None where the released file is.

    It is the first that is known for few steps. Where a person names a method, it can be one that nobody knows; of two it does
    not show which, so both are named.
    """
    few, unknown = few_step_in(loras), unknown_in(loras)
    if few or settings.method == BY_FILE or settings.variant not in ("auto", OTHER) or not unknown:
        return few[0] if few else None
    known = replace(unknown[0].known, file=" or ".join(lora.known.file for lora in unknown))
    return replace(unknown[0], known=known)


def keeps_own(settings: Settings, loras: Sequence[Written]) -> str:
    """Returns why the person's own settings are kept, "" where a plan is to be made.

    Args:
        settings: the panel's.
        loras: of the prompt.
    """
    unknown = unknown_in(loras)
    if settings.variant != OTHER or settings.method != BY_FILE or few_step_in(loras) or not unknown:
        return ""
    names, one = " and ".join(lora.known.file for lora in unknown), len(unknown) == 1
    made_for = "does not say what it was made for" if one else "do not say what they were made for"
    return (
        f"{names} of the prompt {made_for}, so your own steps, sampler and CFG are kept. To have them set, choose a method, "
        "under More."
    )
