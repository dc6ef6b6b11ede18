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
from ...training.export import clean_name
from ...training.feedback.choice import SCORER_CHOICES
from ...training.phases import run_job, write_settings
from ...training.preset_table import PRESETS
from ...training.presets import CHOICES, MOST_STRENGTH, Phase, TrainRequest
from ...training.preview import Previews
from ...training.request import fingerprint, fitted, job_of, phases_of
from ...training.words import FEEDBACK, NONE, OBJECTIVES, UNIFIED
from ..lora_files import add_lora, lora_options, lora_path
from ..schema import TRAINING, found_as, lasting_text, node_id_of
from .judge import host_judge, known_scorers, own_files
from .network import HostNetwork, Stopped, network_of
from .previews import as_image, decoder
from .progress import NodeText, Watch, show_last_sheet, summary
from .results import trained_loras
from .start import starting_lora

FOLDER = "hyper_sd_training"  # below the host's output folder
DEFAULTS = TrainRequest()
TOOLTIPS = {
    "model": "SD1.5 or SDXL with unquantised weights, as its loader gives it, or with other LoRAs on it. It is afterwards as "
    "before. It is trained in place; only under ComfyUI's dynamic VRAM a second copy is loaded for the training.",
    "latents": "The images, from Hyper-SD Training Data or VAE Encode. Batches may differ in size.",
    "positive": "The captions: one for each image in the same order, or one for all of them.",
    "objective": "style, then distil: learns the style and makes it work at 1 to 8 steps. style finetune: the style alone, for "
    "many steps. TSCD distillation: few steps alone, the images only serve as examples. human feedback: few-step pictures that "
    "a scorer likes better; start from Hyper-SD unified, prompts are enough.",
    "preset": "How long and how large. Small to see whether it learns, Medium for use, Thorough for the last bit. Inputs "
    "at 0 follow it.",
    "steps": "Optimizer steps of the whole run. 0 takes the preset's. More when the samples still get better at the end.",
    "rank": "Size of the LoRA, 1 to 256. 0 takes the preset's. Higher learns finer detail, and makes a larger file.",
    "learning_rate": "0 takes the preset's, about 0.0001. Lower it when the loss jumps or images break, raise it when nothing "
    "changes.",
    "name": "Of the run: its folder below output/hyper_sd_training begins with it. Queue the same again to go on after a "
    "stop; another name starts anew.",
    "negative": "The empty prompt, from Hyper-SD Training Data. Distillation needs it, unless teacher_cfg is 1.",
    "vae": "Shows the samples in full quality. Without it they are coarse previews. human feedback needs it.",
    "start_from": "A LoRA to go on from. Hyper-SD unified works at 1 to 8 steps already, so a distillation from it is much "
    "shorter. After a style the two are added.",
    "stages": "Segments of the distillation, from many to few, such as 8-4-2-1; the last is the number of steps the LoRA is "
    "made for, 1 for any of 1 to 8. auto takes the preset's.",
    "batch_size": "Images per step, 1 to 1024. 0 takes the preset's. Lower it when memory does not suffice.",
    "teacher_cfg": "CFG that is distilled into the LoRA, 1 to 20. Lower it (3) when images look burnt, raise it for more "
    "contrast; 1 needs no negative.",
    "preview_every": "Steps between two sheets of sample images. 0 is about eight times a run, in at most 5 % of its time.",
    "seed": "Of everything that is drawn. Another number gives another, equally good run.",
    "gradient_checkpointing": "on takes less memory and about half as long again; what is learnt is the same. auto does so "
    "only where the training would not fit otherwise.",
    "adversarial": "In style, then distil: at the stages 1 and 2 a discriminator shows the LoRA what your images look like, so "
    "few steps come nearer to them. on takes about 2 GB and half the time more; auto is on for the demo model only.",
    "one_step": "In TSCD distillation: on makes a second LoRA after it, for exactly 1 step, by the paper's score "
    "distillation. A preset then takes five to six times as long; stages must end on 1. auto is on for the demo model only.",
    "cuda_graphs": "On an NVIDIA card each kind of step is recorded once and then replayed, which is faster; what is learnt is "
    "the same. auto does so wherever it can. off when the training stops with a CUDA error, or memory is very short.",
    "optimizer": "adamw8bit keeps the optimizer's memory in 8 bits: up to 1.2 GB less for SDXL, and nearly the same result. It "
    "needs a graphics card and the package bitsandbytes in the host's Python. adamw needs neither.",
    "reward": "In human feedback: the scorer whose scores are to rise. auto is ImageReward, and for the demo model its match "
    "score; my_taste is what you have voted for. Get the files in the tab Hyper-SD models.",
    "second_reward": "In human feedback: one more scorer to learn from, as two are harder to fool than one. auto is LAION "
    "aesthetic beside ImageReward; none for one alone.",
    "held_out_reward": "In human feedback: a scorer that nothing is learnt from. When it falls, the pictures only please the "
    "others by a trick, and the run ends with what it approved last. auto takes one whose files are there; none never "
    "ends it.",
    "perceptual_weight": "In human feedback: 0.3 or so also keeps things whole, by a network that sees things; it needs your "
    "images, and for models other than the demo one a file more (the message says which). 0 is off.",
    "feedback_strength": "In human feedback: how strongly what it has learnt is merged into the LoRA in start_from, 0 to 2. "
    "Lower it when pictures look burnt; queueing again with another value does not train again.",
}


def _wired(kind: Any, name: str, **options: Any) -> io.Input:
    """Returns an input that another node's output is wired into."""
    return kind.Input(name, tooltip=TOOLTIPS[name], **options)


def _setting(kind: Any, name: str, **options: Any) -> io.Input:
    """Returns an input for a value of TrainRequest, with its default; whole numbers begin at 0."""
    lowest = {"min": 0} if kind is io.Int else {}
    return kind.Input(name, default=getattr(DEFAULTS, name), tooltip=TOOLTIPS[name], **lowest | options)


def _rare(kind: Any, name: str, **options: Any) -> io.Input:
    """Returns a _setting that few people touch: the page shows it among the node's advanced inputs."""
    setting = _setting(kind, name, **options)
    setting.extra_dict["advanced"] = True  # the argument for it came after 0.3.75, the pages knew it before
    return setting


INPUTS = [
    _wired(io.Model, "model"),
    _wired(io.Latent, "latents"),
    _wired(io.Conditioning, "positive"),
    _setting(io.Combo, "objective", options=list(OBJECTIVES)),
    _setting(io.Combo, "preset", options=list(PRESETS)),
    _setting(io.Int, "steps", max=1_000_000),
    _setting(io.Int, "rank", max=256),
    _rare(io.Float, "learning_rate", min=0.0, max=1.0, step=0.000001, round=False),
    _setting(io.String, "name"),
    _wired(io.Conditioning, "negative", optional=True),
    _wired(io.Vae, "vae", optional=True),
    _setting(io.Combo, "start_from", options=[NONE, UNIFIED, *lora_options()], optional=True),
    _rare(io.String, "stages", optional=True),
    _rare(io.Int, "batch_size", max=1024, optional=True),
    _rare(io.Float, "teacher_cfg", min=1.0, max=20.0, step=0.5, optional=True),
    _rare(io.Int, "preview_every", max=1_000_000, optional=True),
    # A seed that the page changes would start every run anew.
    _setting(io.Int, "seed", max=2**63 - 1, control_after_generate=False, optional=True),
    _rare(io.Combo, "gradient_checkpointing", options=list(CHOICES["gradient_checkpointing"]), optional=True),
    _rare(io.Combo, "adversarial", options=list(CHOICES["adversarial"]), optional=True),
    _rare(io.Combo, "one_step", options=list(CHOICES["one_step"]), optional=True),
    _rare(io.Combo, "cuda_graphs", options=list(CHOICES["cuda_graphs"]), optional=True),
    _rare(io.Combo, "optimizer", options=list(CHOICES["optimizer"]), optional=True),
    *(_rare(io.Combo, name, options=list(options), optional=True) for name, options in SCORER_CHOICES.items()),
    _rare(io.Float, "perceptual_weight", min=0.0, max=10.0, step=0.1, optional=True),
    _rare(io.Float, "feedback_strength", min=0.0, max=float(MOST_STRENGTH), step=0.05, optional=True),
]
OUTPUTS = [
    io.Model.Output("trained_model", display_name="model", tooltip="With the LoRA at strength 1."),
    io.Custom("LORA_MODEL").Output(
        "lora", display_name="lora", tooltip="For Hyper-SD Save LoRA, or the host's Load LoRA Model."
    ),
    io.Custom("LOSS_MAP").Output("loss_map", display_name="loss_map", tooltip="For Hyper-SD Loss Plot."),
    io.Int.Output("total_steps", display_name="steps", tooltip="Optimizer steps done."),
    io.Image.Output("samples", display_name="samples", tooltip="The last sheet of sample images."),
    io.Custom("LORA_MODEL").Output(
        "one_step_lora",
        display_name="one_step_lora",
        tooltip="With one_step: the LoRA for exactly 1 step, for a Hyper-SD Save LoRA of its own.",
    ),
    io.Custom("LORA_MODEL").Output(
        "feedback_lora",
        display_name="feedback_lora",
        tooltip="With human feedback: what it has added, to load after the LoRA in start_from at any strength.",
    ),
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
            inputs=INPUTS,
            outputs=OUTPUTS,
            hidden=[io.Hidden.unique_id],
            is_experimental=True,
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(cls, name=None) -> bool | str:
        """Refuses a name before the run."""
        try:
            if (known := _one(name)) is not None:  # wired from another node, it is known only later
                clean_name(known)
        except TrainingError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, start_from=NONE, **inputs) -> str:
        """Changes when the LoRA to start from does, or a scorer of the person's own."""
        name, own = _one(start_from), own_files(map(_one, inputs.values()))
        if name in (NONE, UNIFIED):
            return own
        path = lora_path(name)
        return f"{path.stat().st_mtime_ns} {path.stat().st_size}{own}"

    @classmethod
    def execute(cls, model, latents, positive, negative=None, vae=None, **settings) -> io.NodeOutput:
        model, request = _one(model), TrainRequest(**{name: _one(value) for name, value in settings.items()})
        node_text = NodeText(node_id_of(cls))
        try:
            # Nodes run under inference mode, in which nothing can be trained.
            with torch.inference_mode(False), torch.enable_grad(), network_of(model) as host:
                return train_lora(host, model, latents, positive, negative or [], _one(vae), request, node_text)
        except Stopped as stop:
            raise stop.__cause__ from None
        finally:
            comfy.model_management.soft_empty_cache()


def train_lora(
    host: HostNetwork,
    model: Any,
    latents: Sequence,
    positive: Sequence,
    negative: Sequence,
    vae: Any,
    request: TrainRequest,
    node_text: NodeText,
) -> io.NodeOutput:
    """Returns the node's outputs.

    Args:
        host: the network that is trained.
        model: the MODEL that it is of.
        latents: LATENTs.
        positive: CONDITIONINGs of the captions.
        negative: CONDITIONINGs of the empty prompt, may be empty.
        vae: shows the samples; None shows previews.
        request: the other inputs.
        node_text: on the node.
    """
    examples = host.examples(latents, positive, negative)
    start = starting_lora(host, model, request.start_from)
    trainee = host.trainee()
    planned = phases_of(request, trainee, examples, start, known_scorers() if request.objective == FEEDBACK else ())
    _require_empty_prompt(request, examples, planned)
    _require_pictures(request, examples)
    host.load()
    fingerprints = {"model": host.fingerprint(), "data": examples.fingerprint(), "start": fingerprint(start.tensors)}
    root = Path(folder_paths.get_output_directory(), FOLDER)
    feedback = planned[0].config.feedback
    judge = host_judge(host, vae, feedback) if feedback else None
    job = job_of(request, trainee, examples, planned, start, root=root, fingerprints=fingerprints, judge=judge)
    write_settings(job, request.name)
    previews = Previews(job, request.name, request.preview_every, request.teacher_cfg, decoder(host, vae), restore=host.load)
    if job.begun < len(job.phases) or previews.finished() is None:
        job, needed, free = fitted(job, host.free_bytes)
        previews.job = job
        text = f"The training takes about {format_bytes(needed)} of {format_bytes(free)} free memory."
        node_text.show(text, now=True)
    outcome = run_job(job, Watch(job, previews, node_text), previews.last_sheet)
    show_last_sheet(job, previews)
    trained, one_step, feedback_lora = trained_loras(request, job, outcome)
    patched, _ = add_lora(model, Path(f"{request.name}.safetensors"), dict(trained), 1.0)
    text = outcome.warning or summary(job, outcome)
    node_text.show(text, now=True)
    loss_map, sheet = {"loss": outcome.losses, "stages": outcome.stages}, as_image(previews.sheet)
    outputs = patched, trained, loss_map, len(outcome.losses), sheet, one_step, feedback_lora
    return io.NodeOutput(*outputs, ui=lasting_text(text))


def _require_empty_prompt(request: TrainRequest, examples: GroupedExamples, planned: Sequence[Phase]) -> None:
    if not examples.groups[0].empty and any(phase.config.is_guided for phase in planned):
        raise TrainingError(
            f"{request.objective} guides its teacher with CFG {request.teacher_cfg:g} and needs the empty prompt: wire the "
            "negative output of Hyper-SD Training Data into negative, or set teacher_cfg to 1."
        )


def _require_pictures(request: TrainRequest, examples: GroupedExamples) -> None:
    """Raises: TrainingError where prompts without pictures are given to what learns from pictures."""
    learns = request.objective != FEEDBACK or request.perceptual_weight
    if learns and any(not bool(group.latents.any()) for group in examples.groups):
        what = f"perceptual_weight {request.perceptual_weight:g}" if request.objective == FEEDBACK else request.objective
        raise TrainingError(
            f"{what} learns from pictures, and these latents are empty: they are prompts alone, or Empty Latent Image. Give "
            f"Hyper-SD Training Data a folder or images; prompts alone are enough for {FEEDBACK}."
        )


def _one(value: Any) -> Any:
    """Returns the first of a list, in which the host gives every input of this node; anything else as it is."""
    return value[0] if isinstance(value, list | tuple) else value


NODES = [HyperSDTrainLora]
