"""Small plans, and painters that need no model, for the tests of evaluations."""

from dataclasses import replace
from pathlib import Path

from hyper_sd.evaluation.arms import base_arms
from hyper_sd.evaluation.plan import Arm, LoraUse, Model, Plan, unique_slugs
from PIL import Image, ImageDraw

PROMPTS = ("pear", "wolf", "tiger", "penguin")
MODEL = Model("demo model", "sd15", "abc", 128)
LORA = LoraUse(Path("few.safetensors"), 0.75, "def")


def make_plan(prompts=PROMPTS, seeds=2, **changes):
    """A base at 1 and 25 steps, and a LoRA at 4."""
    arms = [*base_arms((1, 25), 4.0), Arm("few, 4 steps", "few", 4, (LORA,), eta=1.0)]
    return replace(Plan(MODEL, "diffusers", unique_slugs(arms), tuple(prompts), seeds), **changes)


class Painter:
    """Draws a disc whose place and colour follow from the noise and the arm, and remembers what it drew.

    Args: stop_after: pictures after which Ctrl-C is pressed.
    """

    def __init__(self, stop_after=None):
        self.drawn, self.stop_after = [], stop_after

    def __call__(self, jobs):
        return [self._draw(job) for job in jobs]

    def _draw(self, job):
        if len(self.drawn) == self.stop_after:
            raise KeyboardInterrupt
        self.drawn.append((job.arm.label, job.name))
        image, place = Image.new("RGB", (128, 128), "white"), job.noise_seed % 7 * 8
        box = (10 + place, 20, 60 + place, 90 + 5 * job.seed)
        ImageDraw.Draw(image).ellipse(box, (job.number * 50 % 256, 40, job.arm.steps * 10 % 256))
        return image
