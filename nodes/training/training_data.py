"""Images and captions as training data: latents and conditioning in groups of one size."""

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ...errors import TrainingError
from ...models.progress import format_duration
from ..schema import TRAINING, found_as, lasting_text, node_id_of, show_text
from . import sources
from .encoders import conditioning_entry, encode_prompt


def reporter(node_id: str | None) -> sources.Report:
    """Returns a function that shows progress on the node, and raises the host's own exception when a person stops the run."""
    bar = comfy.utils.ProgressBar(1, node_id)

    def report(what: str, done: int, total: int, seconds: float | None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, max(total, 1))
        left = "" if seconds is None else f", {format_duration(seconds)} left"
        show_text(f"{what}: {done} of {total}{left}", node_id)

    return report


def _require(**models: Any) -> None:
    missing = " and ".join(name for name, value in models.items() if value is None)
    if missing:
        raise TrainingError(
            f"{missing} must be wired in, to turn images and captions into training data; take them from the loader of "
            "the model that will be trained."
        )


def _from_prompts(prompts: str, clip: Any, resolution: int, report: sources.Report) -> list[sources.Encoded]:
    """Returns prompts without pictures, nothing where there are none."""
    if not prompts.strip():
        return []
    _require(clip=clip)
    return [sources.from_prompts(prompts, clip, resolution, report)]


def _negative(parts: Sequence[sources.Encoded], clip: Any) -> Any:
    if parts:
        return [parts[0].negative]
    if clip is not None:
        return [conditioning_entry(encode_prompt(clip, ""), "")]
    return ExecutionBlocker("negative is that of the empty prompt; wire clip into Hyper-SD Training Data to have it.")


INPUTS = [
    io.Clip.Input("clip", optional=True, tooltip="The text encoder of the model that will be trained. Needed for captions."),
    io.Vae.Input(
        "vae", optional=True, tooltip="The VAE of the model that will be trained. Needed for a folder and for images."
    ),
    io.String.Input(
        "folder",
        default="",
        tooltip="A folder of images with captions: a whole path, or one below ComfyUI's input folder or else below this pack's "
        "own, where demo/style is. A caption is the .txt or .caption of the same name, or the row in a metadata.csv or .jsonl. "
        "Empty when images come from another node.",
    ),
    io.Int.Input(
        "resolution",
        default=0,
        min=0,
        max=2048,
        step=64,
        tooltip="Pixels, 64 to 2048: the side of the square whose area no image exceeds; other shapes keep their aspect. 0 is "
        "what the model is drawn at: 1024 for SDXL, 128 for the demo model, else 512. Lower it when memory is short.",
    ),
    io.String.Input(
        "default_caption",
        default="",
        tooltip="The caption of images that have none, such as: an emoji in my style. Empty leaves those images out and names "
        "them.",
    ),
    io.Image.Input("images", optional=True, tooltip="Images from other nodes, in place of a folder or beside it."),
    io.String.Input(
        "captions",
        default="",
        multiline=True,
        optional=True,
        tooltip="For the images input: one line for each image, in order, or one line for all. A folder's captions lie in it. "
        "Without a folder and images: prompts, one a line, for the objective human feedback, which draws its own pictures.",
    ),
    io.Latent.Input(
        "latents", optional=True, tooltip="Latents that were encoded elsewhere, a further group of their own; needs positive."
    ),
    io.Conditioning.Input(
        "positive",
        optional=True,
        tooltip="The captions of the latents input, encoded: one entry for each latent, or one for all.",
    ),
]
OUTPUTS = [
    io.Latent.Output("dataset_latents", "latents", is_output_list=True, tooltip="For training, a group a size."),
    io.Conditioning.Output(
        "dataset_positive", "positive", is_output_list=True, tooltip="The captions, in the same groups and order."
    ),
    io.Conditioning.Output("negative", "negative", tooltip="The empty prompt, for training with guidance."),
    io.String.Output("summary", "summary", tooltip="How many images of which sizes, and what was left out and why."),
]


class HyperSDTrainingData(io.ComfyNode):
    """Images and captions as groups of LATENT and CONDITIONING, for this pack's training and the host's own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDTrainingData",
            display_name="Hyper-SD Training Data",
            category=TRAINING,
            **found_as("dataset", "folder of images", "captions", "finetune"),
            description="Reads a folder of captioned images once and keeps what the model needs of them for training.",
            inputs=INPUTS,
            outputs=OUTPUTS,
            hidden=[io.Hidden.unique_id],
            is_experimental=True,
        )

    @classmethod
    def validate_inputs(cls, folder=None) -> bool | str:
        """Looks for the folder before the run."""
        path = sources.folder_path(folder or "")  # wired from another node, it is known only later
        if path is not None and not path.is_dir():
            return f"{path} is not a folder; give a whole path, or the name of a folder below ComfyUI's input folder."
        return True

    @classmethod
    def fingerprint_inputs(cls, folder=None, **inputs) -> str:
        """Changes when a file in the folder does."""
        path = sources.folder_path(folder or "")
        return sources.fingerprint(path) if path else ""

    @classmethod
    def execute(
        cls,
        clip=None,
        vae=None,
        folder="",
        resolution=0,
        default_caption="",
        images=None,
        captions="",
        latents=None,
        positive=None,
    ) -> io.NodeOutput:
        path, passed = sources.folder_path(folder), sources.passed_through(latents, positive)
        if captions.strip() and path and images is None:
            raise TrainingError(
                "captions belong to the images input, where nothing is wired in; a folder's captions lie in it."
            )
        if path is None and images is None and not captions.strip() and passed is None:
            raise TrainingError(
                "There is nothing to train on; give a folder, wire in images, or latents with positive. For human feedback "
                "prompts in captions are enough."
            )
        has_pictures, report = path is not None or images is not None, reporter(node_id_of(cls))
        if has_pictures:
            _require(clip=clip, vae=vae)
            rules, factor = sources.image_rules(clip, vae, resolution, default_caption), vae.spacial_compression_encode()
            parts = [sources.from_folder(path, clip, vae, rules, report)] if path else []
            parts += [sources.from_images(images, captions, clip, vae, rules, report)] if images is not None else []
        else:
            parts, factor = _from_prompts(captions, clip, resolution, report), sources.FACTOR
        examples = [example for part in parts for example in part.examples]
        groups = sources.grouped(examples)
        if passed:
            groups = groups[0] + [passed[0]], groups[1] + [passed[1]]
        skipped = [entry for part in parts for entry in part.skipped]
        notes = [entry for part in parts for entry in part.notes]
        noun = "image" if has_pictures else "prompt"
        text = sources.summary(examples, factor, skipped, notes, len(passed[1]) if passed else 0, noun)
        return io.NodeOutput(*groups, _negative(parts, clip), text, ui=lasting_text(text))


NODES = [HyperSDTrainingData]
