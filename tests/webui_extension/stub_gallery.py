"""What a host does with a job's pictures: the scripts' calls for each, files with their infotexts, the grid, and the result."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from .stub_host import StubHost
from .stub_run import Processing

SIDE = 128


@dataclass
class Job:
    """What a host delivers.

    Args:
        processed: the host's result, which the scripts had in their hands.
        saved: (picture, infotext) of every file, in the order in which they were written.
        grid: the pictures of the grid that was drawn, in its order.
        others: infotexts that are written on the way, before a picture is whole, and for the grid.
    """

    processed: Any = None
    saved: list[tuple[Any, str]] = field(default_factory=list)
    grid: list[Any] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def noisy(shares: list[float]) -> list[Image.Image]:
    """Returns pictures of a red square on white, each with its share of noise."""
    drawing = np.ones((SIDE, SIDE, 3))
    drawing[40:90, 30:70] = (0.9, 0.1, 0.1)
    noise = np.random.default_rng(0).random((SIDE, SIDE, 3))
    return [Image.fromarray((255 * (drawing * (1 - share) + noise * share)).astype(np.uint8)) for share in shares]


def infotext(p: Processing, prompts: list[str], seeds: list[int], index: int = 0, use_main_prompt: bool = False) -> str:
    """Returns a picture's text; what a script has put there as a function the hosts call with all that is at hand."""
    at_hand = {"p": p, "index": index, "use_main_prompt": use_main_prompt, "all_prompts": prompts, "all_seeds": seeds}
    notes = {"Seed": seeds[index]}
    for key, value in p.extra_generation_params.items():
        notes[key] = value(**at_hand) if callable(value) else value
    return ", ".join([prompts[index], *(f"{key}: {value}" for key, value in notes.items() if value is not None)])


def deliver(host: StubHost, p: Processing, pictures: list[Image.Image], masks: int = 0, stop_after: int = 10**6) -> Job:
    """Runs a job whose pictures are given.

    Args:
        host: with the extension loaded.
        p: the host's object. More than one picture makes a grid, unless do_not_save_grid is set there.
        pictures: one for each of n_iter times batch_size.
        masks: pictures that follow each, as the hosts' options for inpainting have it.
        stop_after: batches after which the person interrupts.
    """
    (script,), job = host.scripts, Job()
    count = p.batch_size * p.n_iter
    p.all_prompts = p.prompt if isinstance(p.prompt, list) else [p.prompt] * count
    p.all_negative_prompts = [f"not {i}" for i in range(count)]
    p.all_seeds, p.all_subseeds = [p.seed + i for i in range(count)], [100 + i for i in range(count)]
    p.sd_model, host.shared.state.interrupted = host.model, False
    script.process(p, *p.args)
    images, texts = [], []
    for n in range(min(p.n_iter, stop_after)):
        if host.shared.state.interrupted:
            break
        part = slice(n * p.batch_size, (n + 1) * p.batch_size)
        p.iteration, p.prompts, p.seeds = n, p.all_prompts[part], p.all_seeds[part]
        job.others.append(infotext(p, p.prompts, p.seeds))  # as for the picture before hires fix
        for i, picture in enumerate(pictures[part]):
            p.batch_index = i
            job.others.append(infotext(p, p.prompts, p.seeds, i))  # as for the picture before face restoration
            given = SimpleNamespace(image=picture)
            script.postprocess_image_after_composite(p, given, *p.args)
            texts.append(infotext(p, p.prompts, p.seeds, i))
            job.saved.append((given.image, texts[-1]))
            images += [given.image, *[f"mask of {id(given.image)}"] * masks]
    job.processed = _result(host, p, job, images, texts)
    script.postprocess(p, job.processed, *p.args)
    return job


def _result(host: StubHost, p: Processing, job: Job, images: list[Any], texts: list[str]) -> SimpleNamespace:
    first = 0
    if len(images) > 1 and not getattr(p, "do_not_save_grid", False):
        drawn = SimpleNamespace(imgs=images, cols=1, rows=len(images))
        for callback in host.callbacks["on_image_grid"]:
            callback(drawn)
        job.grid, first = list(drawn.imgs), 1
        text = infotext(p, p.all_prompts, p.all_seeds, use_main_prompt=True)
        job.others += [text, infotext(p, p.all_prompts, p.all_seeds)]  # the second as reForge has it
        images, texts = ["grid", *images], [text, *texts]
    lists = {name: getattr(p, name) for name in ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds")}
    return SimpleNamespace(
        images=images, infotexts=texts, index_of_first_image=first, info=texts[0] if texts else "", seed=p.all_seeds[0],
        subseed=p.all_subseeds[0], comments="".join(f"{comment}\n" for comment in p.comments), **lists,
    )  # fmt: skip
