"""Draws the pictures of an evaluation on a real ComfyUI, with the host's own loaders."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

from ..evaluation.plan import Job, Plan
from .base_directory import BASE, offer_checkpoint, offer_loras, prepare
from .console import StatusLine, say
from .run import require_nodes
from .server import ComfyServer, device_arguments
from .workflow import fill_workflow, literal, load_workflow, node_id, with_loras


class ComfyPainter:
    """Draws one picture after another.

    Args:
        server: a running ComfyUI.
        size: side of the pictures in pixels.
        checkpoint: its name in CheckpointLoaderSimple, None for the demo model.
        loras: names among the host's LoRAs by their files.
    """

    def __init__(self, server: ComfyServer, size: int, checkpoint: str | None, loras: dict[Path, str]):
        self.server, self.size, self.checkpoint, self.loras = server, size, checkpoint, loras
        self.workflow = load_workflow()
        self.save = node_id(self.workflow, "Save")

    def __call__(self, jobs: list[Job]) -> list[Image.Image]:
        """Returns the pictures.

        Raises: WorkflowError with the server's message; ServerError.
        """
        return [self._draw(job) for job in jobs]

    def _draw(self, job: Job) -> Image.Image:
        arm = job.arm
        filled = fill_workflow(
            self.workflow, prompt=literal(job.prompt), negative="", steps=arm.steps, seed=job.noise_seed, cfg=arm.cfg,
            eta=arm.eta, size=self.size, checkpoint=self.checkpoint, start_timestep=arm.start_timestep,
            num_segments=arm.num_segments,
        )  # fmt: skip
        filled = with_loras(filled, [(self.loras[use.path], use.strength) for use in arm.loras])
        entry = self.server.run(filled)[self.save]["images"][0]
        content = self.server.image(entry)
        with suppress(OSError):  # thousands of pictures would stand on the disk twice
            self.server.base_directory.joinpath(entry["type"], entry["subfolder"], entry["filename"]).unlink()
        return Image.open(io.BytesIO(content)).convert("RGB")


@contextmanager
def comfy_painter(plan: Plan, comfyui: Path, port: int | None = None, base_directory: Path = BASE) -> Iterator[ComfyPainter]:
    """Starts a ComfyUI that knows the plan's model and LoRAs, gives a painter, and stops it again.

    Args:
        plan: what is drawn.
        comfyui: the folder of the ComfyUI.
        port: None takes a free one.
        base_directory: the demo's own folder of models and outputs.
    Raises: ServerError.
    """
    base, name, arguments = prepare(base_directory), None, ()
    if plan.model.path:
        name, arguments = offer_checkpoint(base, plan.model.path)
    loras = offer_loras(base, [use.path for arm in plan.arms for use in arm.loras])
    line = StatusLine()
    server = ComfyServer(
        comfyui,
        base,
        port=port,
        arguments=(*device_arguments(), *arguments),
        on_wait=lambda seconds: line.update(f"Starting ComfyUI in {comfyui}: {seconds:.0f} s"),
    )
    with server:
        line.close(f"ComfyUI runs at {server.address}")
        require_nodes(server, {node["class_type"] for node in load_workflow().values()} | {"LoraLoaderModelOnly"})
        yield ComfyPainter(server, plan.model.size, name, loras)
    say("ComfyUI is stopped.")
