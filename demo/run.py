"""The demo: one prompt at several step counts on a real ComfyUI, as image files and one labelled sheet."""

import io
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..disk import write_whole
from ..evaluation.contact_sheet import contact_sheet
from ..models.embedded import ONE_STEP, SIZE, UNIFIED_STEPS, lora_title
from ..models.file_plan import plan_for_embedded
from ..samplers.timesteps import LAST_TIMESTEP
from .base_directory import BASE, offer_checkpoint, prepare
from .checkpoint import read_checkpoint
from .console import StatusLine, progress_text, say
from .errors import ServerError
from .options import CFG_CHECKPOINT, CFG_DEMO_MODEL, DemoOptions
from .server import ComfyServer, device_arguments
from .workflow import NO_LORA, UNIFIED_LORA, fill_workflow, load_workflow, node_id

MIB = 2**20


@dataclass(frozen=True)
class Drawing:
    """One image to draw.

    Args:
        label: what it is called on the sheet.
        file_part: what it is called in its file's name.
        lora: one of the demo model node's LoRAs.
        cfg: guidance, 1 is off.
        steps: model evaluations.
        start_timestep: where the first of them is.
    """

    label: str
    file_part: str
    lora: str
    cfg: float
    steps: int
    start_timestep: int = LAST_TIMESTEP


@dataclass(frozen=True)
class Drawn:
    """One image that was drawn.

    Args:
        label: what it is called on the sheet.
        image: its pixels, RGB.
    """

    label: str
    image: Image.Image


def plan_drawings(steps: tuple[int, ...], cfg: float, with_lora: bool) -> list[Drawing]:
    """Returns a row without LoRA, then, for the demo model, a row with its LoRAs at CFG 1 for every count up to 8.

    One step is drawn with the LoRA that was made for one, from that file's own timestep, more steps with the unified LoRA.
    Fewer steps come first, so that the two rows stand under each other.

    Args:
        steps: the counts of model evaluations to show.
        cfg: guidance of the row without LoRA.
        with_lora: whether the model is the demo's.
    """
    counts = sorted(steps)
    base = "base, " if with_lora else ""
    rows = [Drawing(f"{base}{step_label(n)}", f"{n:02d}", NO_LORA, cfg, n) for n in counts]
    if with_lora:
        few = [n for n in counts if n <= UNIFIED_STEPS]
        one, start = lora_title(ONE_STEP), plan_for_embedded(1)[0].start_timestep
        loras = {n: (UNIFIED_LORA, 1.0, n) if n > 1 else (one, 1.0, n, start) for n in few}
        rows += [Drawing(f"Hyper-SD, {step_label(n)}", f"hyper-sd-{n:02d}", *loras[n]) for n in few]
    return rows


def run_demo(options: DemoOptions, comfyui: Path) -> int:
    """Runs the demo on a ComfyUI and returns the exit code. The server is stopped in any case.

    Args:
        options: of the command line.
        comfyui: the folder of the ComfyUI.
    Raises: DemoError when something stops the demo.
    """
    stop_on_signals()
    base = prepare(BASE)
    name, arguments, size, default_cfg = None, (), SIZE, CFG_DEMO_MODEL
    if options.checkpoint:
        checkpoint = read_checkpoint(options.checkpoint)
        name, arguments = offer_checkpoint(base, checkpoint.path)
        size, default_cfg = checkpoint.size, CFG_CHECKPOINT
    settings = {
        "prompt": options.prompt, "negative": options.negative, "seed": options.seed, "eta": options.eta, "size": size,
        "checkpoint": name,
    }  # fmt: skip
    drawings = plan_drawings(options.steps, default_cfg if options.cfg is None else options.cfg, with_lora=name is None)
    started, line = time.monotonic(), StatusLine()
    server = ComfyServer(
        comfyui,
        base,
        port=options.port,
        arguments=(*device_arguments(), *arguments),
        on_wait=lambda seconds: line.update(f"Starting ComfyUI in {comfyui}: {seconds:.0f} s"),
    )
    with server:
        require_nodes(server, {node["class_type"] for node in load_workflow().values()})
        line.close(f"ComfyUI runs at {server.address} (started in {time.monotonic() - started:.0f} s)")
        save_sheet(list(draw(server, settings, drawings, options)), options)
        _say_memory(server)
        if options.ui:
            _keep_open(server)
    return 0


def require_nodes(server: ComfyServer, wanted: set[str]) -> None:
    """Makes sure that the server has some nodes: it lacks the pack's when the pack failed to import.

    Raises: ServerError naming those that are missing.
    """
    missing = wanted - server.object_info().keys()
    if missing:
        raise ServerError(
            f"ComfyUI started without the nodes {', '.join(sorted(missing))}: the pack did not load there.\n"
            f"{server.log_tail(60)}"
        )


def draw(server: ComfyServer, settings: dict, drawings: list[Drawing], options: DemoOptions) -> Iterator[Drawn]:
    """Draws and saves every image, and yields them one by one.

    Args:
        server: a running ComfyUI.
        settings: what all images share, by the names that fill_workflow takes.
        drawings: what to draw.
        options: of the command line.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    workflow = load_workflow()
    sampling, save = node_id(workflow, "Sampling"), node_id(workflow, "Save")
    for drawing in drawings:
        label, started, line = drawing.label, time.monotonic(), StatusLine()
        line.update(f"{label}: waiting for ComfyUI")

        def show(done: int, total: int, node: str, label=label, started=started, line=line) -> None:
            if node == sampling:
                line.update(progress_text(label, done, total, time.monotonic() - started))

        own = {"steps": drawing.steps, "cfg": drawing.cfg, "lora": drawing.lora, "start_timestep": drawing.start_timestep}
        outputs = server.run(fill_workflow(workflow, **settings, **own), on_progress=show)
        content = server.image(outputs[save]["images"][0])
        path = options.out / f"{slug(options.prompt)}-seed{options.seed}-{drawing.file_part}.png"
        write_whole(path, content)
        line.close(f"{label}: {time.monotonic() - started:.1f} s  {path}")
        yield Drawn(label, Image.open(io.BytesIO(content)).convert("RGB"))


def save_sheet(drawn: list[Drawn], options: DemoOptions) -> Path:
    """Writes the labelled sheet of all images, a row for each LoRA, and returns its path."""
    images, labels = [each.image for each in drawn], [each.label for each in drawn]
    sheet = contact_sheet(images, labels, columns=len(options.steps), title=options.prompt)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    path = options.out / f"{slug(options.prompt)}-seed{options.seed}-sheet.png"
    write_whole(path, buffer.getvalue())
    say(f"All together: {path}")
    return path


def step_label(steps: int) -> str:
    """Returns "1 step", "2 steps" and so on."""
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def slug(prompt: str) -> str:
    """Returns a short file name for a prompt, safe on every system."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-") or "image"


def _say_memory(server: ComfyServer) -> None:
    peak = server.peak_memory()
    if peak:
        say(f"ComfyUI needed {peak / MIB:.0f} MB of memory.")


def _keep_open(server: ComfyServer) -> None:
    say(f"Open {server.address} in a browser, and drop demo/workflow.json onto the page. Ctrl-C here stops ComfyUI.")
    while server.process.poll() is None:
        time.sleep(0.5)
    raise ServerError(f"ComfyUI stopped by itself.\n{server.log_tail()}")


def stop_on_signals() -> None:
    """Lets a termination or a closed terminal end the run like Ctrl-C, so that the server is stopped too."""
    names = ("SIGTERM",) if os.name == "nt" else ("SIGTERM", "SIGHUP")
    for name in names:
        signal.signal(getattr(signal, name), _interrupt)


def _interrupt(*_) -> None:
    raise KeyboardInterrupt
