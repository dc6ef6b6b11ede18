"""The downloads of this host, and the node that has a catalogue file there before a loader needs it."""

from collections import Counter
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io
from server import PromptServer

from ..errors import CatalogError, DownloadError
from ..models.host_folders import HOST_ENDINGS, HOST_FOLDERS, REWARDS
from ..models.jobs import Downloads, user_catalog
from ..models.progress import Progress, Row, State
from .schema import CATEGORY, found_as, lasting_text, show_text

EVENT = "hyper_sd.download"  # what the page listens to


def register_folder() -> None:
    """Gives the host the folder of the scorers' files; one that a person named in extra_model_paths.yaml stands before it."""
    folder_paths.add_model_folder_path(REWARDS, str(Path(folder_paths.models_dir, REWARDS)))


def model_folders(kind: str) -> list[Path]:
    """Returns the host's folders for a kind of file such as "loras", the one to download into first."""
    # The host lists the older name of a folder before the newer.
    older = {Path(folder_paths.models_dir, name) for name in HOST_FOLDERS["comfyui"][kind][1:]}
    return sorted(map(Path, folder_paths.get_folder_paths(kind)), key=lambda folder: folder in older)


def notify(row: Row) -> None:
    """Sends an entry's row to every open page. May be called from any thread."""
    PromptServer.instance.send_sync(EVENT, row.to_json())


DOWNLOADS = Downloads(model_folders, user_catalog(folder_paths.get_user_directory()), notify, endings=HOST_ENDINGS["comfyui"])
_fetches: Counter[str] = Counter()  # by id, how often a run has found its file missing


def progress_text(progress: Progress) -> str:
    """Returns how far a download is: "downloading, 120 MB of 269 MB, 11 MB/s, 14 s left"."""
    text = ", ".join([progress.state.value, *progress.amounts()])
    return f"{text}; {progress.note}" if progress.note else text


def _watch(entry_id: str, node_id: str) -> Row:
    """Shows a download in the node until it has ended, and returns the entry's last row.

    Raises: the host's own exception when the run is interrupted.
    """
    bar = comfy.utils.ProgressBar(1, node_id)
    for row in DOWNLOADS.follow(entry_id):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if row.is_busy:
            bar.update_absolute(row.progress.bytes_done, max(row.progress.bytes_total, 1))
            show_text(progress_text(row.progress), node_id)
    return row


def fetch(entry_id: str, acknowledged: bool, node_id: str) -> Row:
    """Returns an entry's row, once its file is there and verified.

    Joins a download that the page has started. An interrupt stops only one that was started here.

    Args:
        entry_id: of the catalogue.
        acknowledged: whether the licence is accepted, which is asked for only where something has to be downloaded.
        node_id: the node that shows how far it is.
    Raises: CatalogError, DownloadError; the host's own exception when the run is interrupted.
    """
    is_here = DOWNLOADS.row(entry_id).state is State.READY
    joined = any(row.id == entry_id for row in DOWNLOADS.active())
    if not joined:
        DOWNLOADS.start(entry_id, acknowledged=acknowledged or is_here)
    try:
        row = _watch(entry_id, node_id)
    except BaseException:
        if not joined:
            DOWNLOADS.cancel(entry_id)
            for _ in DOWNLOADS.follow(entry_id):  # a run queued behind this one must not join what is ending
                pass
        raise
    if row.state is not State.READY:
        raise DownloadError(row.problem or f"{row.entry.title} was stopped; run again, and it goes on where it stopped.")
    return row


class HyperSDModelDownload(io.ComfyNode):
    """The file name of a catalogue entry, for a loader. The file is downloaded if it is not there yet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        ids = [entry.id for entry in DOWNLOADS.catalog()[0].models]
        return io.Schema(
            node_id="HyperSDModelDownload",
            display_name="Hyper-SD Model Download",
            category=CATEGORY,
            **found_as("get LoRA", "hugging face", "fetch", "install model"),
            description="Downloads a Hyper-SD file if it is not there yet, checks it, and gives its name to a loader.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=ids,
                    default=ids[0],
                    tooltip="The file to have: family, steps and kind. -lora goes to a LoRA loader, -unet to Load Diffusion "
                    "Model, the others to Load Checkpoint. Choose the one for your base model and steps.",
                ),
                io.Boolean.Input(
                    "accept_licence",
                    default=False,
                    label_on="accepted",
                    label_off="not accepted",
                    tooltip="On: you have read and accept the file's licence. Needed before a FLUX.1-dev file is downloaded "
                    "(no commercial use); the others do not ask for it.",
                ),
            ],
            # A loader's list of files is a type of its own for the host, and only "*" fits them all.
            outputs=[
                io.AnyType.Output("file_name", "file_name", tooltip="For lora_name, unet_name or ckpt_name of the loader.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model=None) -> bool | str:
        """Looks into the catalogue before the run; the host's own list has neither near ids to name nor entries added since."""
        try:
            return model is None or bool(DOWNLOADS.catalog()[0].get(model))  # wired from another node, it is known only later
        except CatalogError as error:
            return str(error)

    @classmethod
    def execute(cls, model: str, accept_licence: bool) -> io.NodeOutput:
        row = fetch(model, accept_licence, cls.hidden.unique_id)
        text = "\n".join(filter(None, [f"ready: {row.file}", row.progress.note]))
        return io.NodeOutput(row.file, ui=lasting_text(text))

    @classmethod
    def fingerprint_inputs(cls, model: str, accept_licence: bool) -> str:
        """Changes when the file has to be fetched again, or lies elsewhere, and only then."""
        row = DOWNLOADS.row(model)
        _fetches[model] += row.state is not State.READY
        return f"{_fetches[model]} {row.file or row.entry.name}"


NODES = [HyperSDModelDownload]
