"""What the nodes' schemas share: category, search words, values of lists, and the text that a node shows."""

from collections.abc import Iterable
from dataclasses import fields

from comfy_api.latest import io, ui
from server import PromptServer

from ..errors import HyperSDError, ScheduleError
from ..samplers.timesteps import LAST_TIMESTEP

CATEGORY = "Hyper-SD"
TRAINING = f"{CATEGORY}/Training"
TEXT_EVENT = "hyper_sd.text"  # what web/node_text.js listens to


def found_as(*words: str) -> dict[str, list[str]]:
    """Returns the keyword argument of io.Schema for further search words; none on hosts (0.3.75) that search names alone."""
    known = any(field.name == "search_aliases" for field in fields(io.Schema))
    return {"search_aliases": list(words)} if known else {}


def require_choice(name: str, value: str, options: Iterable[str]) -> None:
    """Refuses a value that a list does not offer: the host (0.3.75) lets any text through when a program sends a workflow.

    Raises: HyperSDError naming the input and what is allowed.
    """
    allowed = list(options)
    if value not in allowed:
        raise HyperSDError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")


def require_start(start_timestep: int) -> None:
    """Refuses a start timestep outside of its input's range: the host checks no number that is wired from another node.

    Raises: ScheduleError naming the input, what is allowed and what to use.
    """
    is_number = isinstance(start_timestep, int | float) and not isinstance(start_timestep, bool)
    if not is_number or not 1 <= start_timestep <= LAST_TIMESTEP or start_timestep % 1:
        raise ScheduleError(
            f"start_timestep must be a whole number from 1 to {LAST_TIMESTEP}, got {start_timestep!r}; use {LAST_TIMESTEP} for "
            "released LoRAs, 800 for files that were made for one step from there."
        )


def node_id_of(node: type[io.ComfyNode]) -> str | None:
    """Returns the id of the node that is running; None where a program calls it that has no page to show anything on."""
    return getattr(node.hidden, "unique_id", None)


def show_text(text: str, node_id: str | None) -> None:
    """Shows a text on a node of the page while it runs, in place of the one before; None shows it nowhere.

    It is the pack's own event: newer pages remove the host's progress text when the job ends, and older ones cut it.
    """
    if node_id:
        server = PromptServer.instance
        server.send_sync(TEXT_EVENT, {"node": node_id, "text": text}, server.client_id)


def lasting_text(text: str) -> ui.PreviewText:
    """Returns the `ui` output by which a text stays on the node; the host keeps it in its history, too."""
    return ui.PreviewText(text)
