"""Trains a LoRA on the loaded model: a style, few steps, or first the one and then the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io

from ...disk import format_bytes
from ...errors import TrainingError
from ...training.data.examples import GroupedExamples
from ...training.export import TrainedLora, clean_name
from ...training.phases import run_job, write_settings
from ...training.presets import AUTO, OBJECTIVES, PRESETS, Phase
from ...training.preview import Previews
from ...training.request import NONE, OFF, ON, UNIFIED, TrainRequest, fingerprint, fitted, job_of, metadata_of, phases_of
from ..lora_files import add_lora, lora_options, lora_path
from ..schema import TRAINING, found_as, node_id_of
from .network import Stopped, host_network
from .previews import as_image, decoder
from .progress import NodeText, Watch, show_last_sheet, summary
from .start import starting_lora

FOLDER = "hyper_sd_training"  # below the host's output folder
DATA = [
    io.Model.Input(
        "model",
        tooltip="SD1.5 or SDXL, as its loader gives it, or with other LoRAs on it. It is trained where it is, without a second "
        "copy, and is afterwards as before.",
    ),
    io.Latent.Input("latents", tooltip="The images, from Hyper-SD Training Data or VAE Encode. Batches may differ in size."),
    io.Conditioning.Input("positive", tooltip="The captions: one for each image in the same order, or one for all of them."),
]
PLAN = [
    io.Combo.Input(
        "objective",
        options=list(OBJECTIVES),
        default=OBJECTIVES[0],
        tooltip="style, then distil: learns the style and makes it work at 1 to 8 steps. style finetune: the style alone, for "
        "many steps. TSCD distillation: few steps alone, the images only serve as examples.",
    ),
    io.Combo.Input(
        "preset",
        options=list(PRESETS),
        default="Small",
        tooltip="How long and how large. Small to see whether it learns, Medium for use, Thorough for the last bit. Inputs "
        "at 0 follow it.",
    ),
    io.Int.Input(
        "steps",
        default=0,
        min=0,
        max=1_000_000,
        tooltip="Optimizer steps of the whole run. 0 takes the preset's. More when the samples still get better at the end.",
    ),
    io.Int.Input(
        "rank",
        default=0,
        min=0,
        max=256,
        tooltip="Size of the LoRA, 1 to 256. 0 takes the preset's. Higher learns finer detail, and makes a larger file.",
    ),
    io.Float.Input(
        "learning_rate",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.000001,
        round=False,
        tooltip="0 takes the preset's, about 0.0001. Lower it when the loss jumps or images break, raise it when nothing "
        "changes.",
    ),
    io.String.Input(
        "name",
        default="my_style",
        tooltip="Of the run: its folder below output/hyper_sd_training begins with it. Queue the same again to go on after a "
        "stop; another name starts anew.",
    ),
]
OPTIONS = [
    io.Conditioning.Input(
        "negative",
        optional=True,
        tooltip="The empty prompt, from Hyper-SD Training Data. Distillation needs it, unless teacher_cfg is 1.",
    ),
    io.Vae.Input("vae", optional=True, tooltip="Shows the samples in full quality. Without it they are coarse previews."),
    io.Combo.Input(
        "start_from",
        options=[NONE, UNIFIED, *lora_options()],
        default=NONE,
        optional=True,
        tooltip="A LoRA to go on from. Hyper-SD unified works at 1 to 8 steps already, so a distillation from it is much "
        "shorter. After a style the two are added.",
    ),
    io.String.Input(
        "stages",
        default=AUTO,
        optional=True,
        tooltip="Segments of the distillation, from many to few, such as 8-4-2-1; the last is the number of steps the LoRA is "
        "made for, 1 for any of 1 to 8. auto takes the preset's.",
    ),
    io.Int.Input(
        "batch_size",
        default=0,
        min=0,
        max=1024,
        optional=True,
        tooltip="Images per step, 1 to 1024. 0 takes the preset's. Lower it when memory does not suffice.",
    ),
    io.Float.Input(
        "teacher_cfg",
        default=5.0,
        min=1.0,
        max=20.0,
        step=0.5,
        optional=True,
        tooltip="CFG that is distilled into the LoRA, 1 to 20. Lower it (3) when images look burnt, raise it for more "
        "contrast; 1 needs no negative.",
    ),
    io.Int.Input(
        "preview_every",
        default=0,
        min=0,
        max=1_000_000,
        optional=True,
        tooltip="Steps between two sheets of sample images. 0 is about eight times a run, in at most 5 % of its time.",
    ),
    io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**63 - 1,
        control_after_generate=False,  # a seed that the page changes would start every run anew
        optional=True,
        tooltip="Of everything that is drawn. Another number gives another, equally good run.",
    ),
    io.Combo.Input(
        "gradient_checkpointing",
        options=[AUTO, ON],
        default=AUTO,
        optional=True,
        tooltip="on takes less memory and about half as long again; what is learnt is the same. auto does so only where the "
        "training would not fit otherwise.",
    ),
    io.Combo.Input(
        "adversarial",
        options=[AUTO, ON, OFF],
        default=AUTO,
        optional=True,
        tooltip="In style, then distil: at the stages 1 and 2 a discriminator shows the LoRA what your images look like, so "
        "few steps come nearer to them. on takes about 2 GB and half the time more; auto is on for the demo model only.",
    ),
]
OUTPUTS = [
    io.Model.Output("trained_model", display_name="model", tooltip="With the LoRA at strength 1."),
    io.Custom("LORA_MODEL").Output(
        "lora", display_name="lora", tooltip="For Hyper-SD Save LoRA, or the host's Load LoRA Model."
    ),
    io.Custom("LOSS_MAP").Output("loss_map", display_name="loss_map", tooltip="For Hyper-SD Loss Plot."),
    io.Int.Output("total_steps", display_name="steps", tooltip="Optimizer steps done."),
    io.Image.Output("samples", display_name="samples", tooltip="The last sheet of sample images."),
]


class HyperSDTrainLora(io.ComfyNode):
    """A LoRA trained on the loaded model, with samples on the way; stopped, it goes on where it was."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDTrainLora",
            display_name="Hyper-SD Train LoRA",
            category=TRAINING,
            **found_as("train", "finetune", "fine-tune", "style", "distil", "LoRA training"),
            description="Learns a style from images, makes it work at 1 to 8 steps, or both; stopped, it goes on where it was.",
            inputs=[*DATA, *PLAN, *OPTIONS],
            outputs=OUTPUTS,
            hidden=[io.Hidden.unique_id],
            is_experimental=True,
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(cls, name=None) -> bool | str:
        """Refuses a name before the run."""
        try:
            if name is not None:  # wired from another node, it is known only later
                clean_name(_one(name))
        except TrainingError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, start_from=NONE, **inputs) -> str:
        """Changes when the LoRA to start from does."""
        name = _one(start_from)
        if name in (NONE, UNIFIED):
            return ""
        path = lora_path(name)
        return f"{path.stat().st_mtime_ns} {path.stat().st_size}"

    @classmethod
    def execute(cls, model, latents, positive, negative=None, vae=None, **settings) -> io.NodeOutput:
        request = TrainRequest(**{name: _one(value) for name, value in settings.items()})
        node_text = NodeText(node_id_of(cls))
        try:
            # Nodes run under inference mode, in which nothing can be trained.
            with torch.inference_mode(False), torch.enable_grad():
                return train_lora(_one(model), latents, positive, negative or [], _one(vae), request, node_text)
        except Stopped as stop:
            raise stop.__cause__ from None
        finally:
            comfy.model_management.soft_empty_cache()


def train_lora(
    model: Any, latents: Sequence, positive: Sequence, negative: Sequence, vae: Any, request: TrainRequest, node_text: NodeText
) -> io.NodeOutput:
    """Returns the node's outputs; see its inputs."""
    host = host_network(model)
    examples = host.examples(latents, positive, negative)
    start = starting_lora(host, model, request.start_from)
    trainee = host.trainee()
    planned = phases_of(request, trainee, examples, start)
    _require_empty_prompt(request, examples, planned)
    host.load()
    fingerprints = {"model": host.fingerprint(), "data": examples.fingerprint(), "start": fingerprint(start.tensors)}
    root = Path(folder_paths.get_output_directory(), FOLDER)
    job = job_of(request, trainee, examples, planned, start, root=root, fingerprints=fingerprints)
    write_settings(job, request.name)
    previews = Previews(job, request.name, request.preview_every, request.teacher_cfg, decoder(host, vae), restore=host.load)
    if job.begun < len(job.phases) or previews.finished() is None:
        job, needed, free = fitted(job, host.free_bytes)
        previews.job = job
        text = f"The training takes about {format_bytes(needed)} of {format_bytes(free)} free memory."
        node_text.show(text, now=True)
    outcome = run_job(job, Watch(job, previews, node_text), previews.last_sheet)
    show_last_sheet(job, previews)
    tensors = {name: tensor.to(torch.float16) for name, tensor in outcome.tensors.items()}
    patched, _ = add_lora(model, Path(f"{request.name}.safetensors"), tensors, 1.0)
    node_text.show(outcome.warning or summary(job, outcome), now=True)
    trained = TrainedLora(tensors, metadata_of(request, job, outcome.rank))
    loss_map = {"loss": outcome.losses, "stages": outcome.stages}
    return io.NodeOutput(patched, trained, loss_map, job.total_steps, as_image(previews.sheet))


def _require_empty_prompt(request: TrainRequest, examples: GroupedExamples, planned: Sequence[Phase]) -> None:
    if not examples.groups[0].empty and any(phase.config.is_guided for phase in planned):
        raise TrainingError(
            f"{request.objective} guides its teacher with CFG {request.teacher_cfg:g} and needs the empty prompt: wire the "
            "negative output of Hyper-SD Training Data into negative, or set teacher_cfg to 1."
        )


def _one(value: Any) -> Any:
    """Returns the first of a list, in which the host gives every input of this node; anything else as it is."""
    return value[0] if isinstance(value, list) else value


NODES = [HyperSDTrainLora]
