"""Sampler and scheduler nodes for SamplerCustom and its relatives."""

from comfy_api.latest import io

from ..samplers.schedule import NoiseSchedule
from ..samplers.tcd import sample_tcd
from ..samplers.timesteps import (
    ENDS,
    LAST_TIMESTEP,
    distinct_sigmas,
    hyper_sd_sigmas,
    listed_timesteps,
    read_timesteps,
)  # fmt: skip
from .schema import CATEGORY, found_as, require_choice, require_start
from .unit_noise import UnitNoiseSampler

ETA = io.Float.Input(
    "eta",
    default=0.3,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="Randomness per step, 0 to 1. 0 is deterministic (DDIM), 1 redraws all noise at every step. "
    "Lower it when images look restless, raise it when they look flat. Has no effect at 1 step.",
)
NUM_SEGMENTS = io.Int.Input(
    "num_segments",
    default=1,
    min=1,
    max=50,
    tooltip="Segments the LoRA was distilled on. 1 for the unified (1-step) LoRA and for TCD LoRAs; for the 2, 4 and 8-step "
    "LoRAs the same number as steps. Use one value in the Hyper-SD Sampler and the Hyper-SD Scheduler.",
)
START = io.Int.Input(
    "start_timestep",
    default=LAST_TIMESTEP,
    min=1,
    max=LAST_TIMESTEP,
    optional=True,
    tooltip="Timestep of the first step, 1 to 999. 999 is pure noise, where the released LoRAs start. 800 is for files made "
    "for one step from there, and makes a single step of others cleaner. Below 700 colours fade.",
)

TIMESTEPS = io.String.Input(
    "timesteps",
    default="",
    optional=True,
    tooltip="A method's own timesteps with commas between, such as 999, 749, 499, 249, each from 999 to 0 and lower than the "
    "one before. They replace steps, num_segments and start_timestep. Empty: not used.",
)


TO_CLEAN = io.Boolean.Input(
    "to_clean",
    default=False,
    optional=True,
    tooltip="On for LCM, DMD2, Flash and NitroSD, with eta 1: each step goes to the clean image and noise is added anew. Off "
    "for Hyper-SD and TCD.",
)
SHIFT = io.Float.Input(
    "timestep_shift",
    default=1.0,
    min=0.01,
    max=1.0,
    step=0.01,
    optional=True,
    tooltip="The network is asked at this share of the image's timestep: 0.25 for NitroSD-Realism, 0.5 for NitroSD-Vibrant, 1 "
    "for all others. For inpainting masks and ControlNets choose the method in the node Hyper-SD; it shifts the MODEL itself.",
)


class HyperSDSampler(io.ComfyNode):
    """SAMPLER for SamplerCustom: trajectory segmented consistency sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDSampler",
            display_name="Hyper-SD Sampler (TCD)",
            category=CATEGORY,
            **found_as("TCD", "LCM", "consistency", "few steps"),
            description="Samples Hyper-SD, TCD and other consistency models in 1 to 8 steps.",
            inputs=[ETA, NUM_SEGMENTS, TO_CLEAN, SHIFT],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, eta: float, num_segments: int, to_clean: bool = False, timestep_shift: float = 1.0) -> io.NodeOutput:
        options = {"eta": eta, "num_segments": num_segments, "to_clean": to_clean, "timestep_shift": timestep_shift}
        return io.NodeOutput(UnitNoiseSampler(sample_tcd, extra_options=options))


class HyperSDScheduler(io.ComfyNode):
    """SIGMAS for SamplerCustom: the grid a Hyper-SD model is distilled for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDScheduler",
            display_name="Hyper-SD Scheduler",
            category=CATEGORY,
            **found_as("TCD", "sigmas", "trailing", "timesteps"),
            description="The noise levels a Hyper-SD model expects at 1 to 50 steps.",
            inputs=[
                io.Model.Input("model", tooltip="The model to sample; its own noise levels are used."),
                io.Int.Input(
                    "steps",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="Model evaluations. Hyper-SD LoRAs are made for 1 to 8; a model without one needs about 25.",
                ),
                NUM_SEGMENTS,
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the noise to start from: 1 makes a new image, lower values keep more of the input image. "
                    "The steps are spread anew below that point, so all of them are used.",
                ),
                io.Combo.Input(
                    "end",
                    options=list(ENDS),
                    default=ENDS[0],
                    optional=True,
                    tooltip="Where the last step lands. sigma 0 is a clean image; alpha_bar[0] leaves the trace of noise that "
                    "diffusers leaves, to compare with it.",
                ),
                START,
                TIMESTEPS,
            ],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(
        cls, model, steps, num_segments, denoise, end=ENDS[0], start_timestep=LAST_TIMESTEP, timesteps=""
    ) -> io.NodeOutput:
        require_choice("end", end, ENDS)
        require_start(start_timestep)
        schedule = NoiseSchedule.from_sigmas(model.get_model_object("model_sampling").sigmas.double().cpu())
        if timesteps.strip():
            listed = listed_timesteps(read_timesteps(timesteps), denoise)
            return io.NodeOutput(distinct_sigmas(schedule, listed, end == ENDS[0]))
        ends = {"end_on_zero": end == ENDS[0], "start_timestep": start_timestep}
        return io.NodeOutput(hyper_sd_sigmas(schedule, steps, num_segments, denoise, **ends))


NODES = [HyperSDSampler, HyperSDScheduler]
