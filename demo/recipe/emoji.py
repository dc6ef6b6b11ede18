"""The demo model's training set: Noto and Fluent emoji from the npm registry, rendered, with captions from emojibase.

Packages are pinned; npm verifies each against the registry's own integrity hash. Nothing of them is kept in this repository.
"""

import io
import json
import random
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGES = {"@iconify-json/noto": "1.2.9", "@iconify-json/fluent-emoji-flat": "1.2.6", "emojibase-data": "17.0.0"}
IMAGE_SIZE = 128
NOTO, FLUENT = "@iconify-json/noto", "@iconify-json/fluent-emoji-flat"

# Everyday things an artist would try first; faces are kept to those that differ at 128 pixels.
SUBGROUPS = (
    "with hats", "with glasses", "costumed & creatures", "hearts", "mammals", "birds", "amphibians", "reptiles",
    "marine life", "bugs", "flowers", "other plants", "fruit", "vegetables", "cooked / prepared", "sweets & candy",
    "drink", "geographic locations", "ground transportation", "water transportation", "air transportation", "weather",
    "events & holidays", "sports", "games & hobbies", "clothing", "music", "musical instruments", "computer", "tools",
    "lock & keys", "light, film & video",
)  # fmt: skip
STYLES = {NOTO: "noto style", FLUENT: "fluent style"}
TEMPLATES = ("{}", "{}", "a {}", "a picture of a {}", "an emoji of a {}", "{} emoji", "{} icon", "a drawing of a {}")


@dataclass(frozen=True)
class Concept:
    """One emoji: its emojibase label and tags, its SVG body per vendor, and the number of its kind in SUBGROUPS."""

    hexcode: str
    label: str
    tags: tuple[str, ...]
    svg: dict[str, str]
    kind: int = 0

    def caption(self, rng: random.Random, aliases: dict[str, tuple[str, ...]]) -> str:
        """Draws one caption: mostly the label in a template, sometimes an alias or a few tags behind it."""
        name = self.label
        if aliases.get(self.hexcode) and rng.random() < 0.3:
            name = rng.choice(aliases[self.hexcode])
        text = rng.choice(TEMPLATES).format(name)
        if self.tags and rng.random() < 0.25:
            text = ", ".join([text, *rng.sample(self.tags, min(len(self.tags), rng.randint(1, 3)))])
        return text


def fetch(folder: Path, packages: Mapping[str, str] = PACKAGES) -> Path:
    """Installs pinned npm packages into `folder` once and returns its node_modules.

    Args: packages: name -> version.
    Raises: RuntimeError when npm is missing.
    """
    modules = folder / "node_modules"
    if all((modules / name).is_dir() for name in packages):
        return modules
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("The recipe reads its emoji from npm packages and found no npm; install Node.js, then run it again.")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [f"{name}@{version}" for name, version in packages.items()]
    subprocess.run([npm, "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", *wanted], check=True)
    return modules


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _svg(icons: dict, name: str) -> str | None:
    while name in icons["aliases"]:
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def load_concepts(modules: Path, chosen: Sequence[str] = (NOTO, FLUENT)) -> list[Concept]:
    """Returns the emoji that all chosen vendors draw, in emojibase order."""
    emoji = _read(modules / "emojibase-data/en/data.json")
    subgroups = {g["order"]: g["message"] for g in _read(modules / "emojibase-data/en/messages.json")["subgroups"]}
    vendors = {v: (_read(modules / v / "icons.json"), _read(modules / v / "chars.json")) for v in chosen}
    concepts = []
    for entry in sorted(emoji, key=lambda e: e.get("order", 0)):
        kind = subgroups.get(entry.get("subgroup"))
        if kind not in SUBGROUPS:
            continue
        code = entry["hexcode"].lower()
        bare = "-".join(part for part in code.split("-") if part != "fe0f")
        svg = {}
        for vendor, (icons, chars) in vendors.items():
            name = chars.get(code) or chars.get(bare)
            body = _svg(icons, name) if name else None
            if body:
                svg[vendor] = body
        if len(svg) == len(vendors):
            tags = tuple(entry.get("tags", ()))
            concepts.append(Concept(entry["hexcode"], entry["label"].lower(), tags, svg, SUBGROUPS.index(kind)))
    return concepts


def unique_aliases(concepts: list[Concept]) -> dict[str, tuple[str, ...]]:
    """Returns, per hexcode, the tags that name this concept and no other one, so that "coffee" finds "hot beverage"."""
    owners: dict[str, set[str]] = {}
    for concept in concepts:
        for tag in concept.tags:
            owners.setdefault(tag, set()).add(concept.hexcode)
    labels = {c.label for c in concepts}
    return {c.hexcode: tuple(t for t in c.tags if len(owners[t]) == 1 and t not in labels and len(t) > 2) for c in concepts}


def cut_out(svg: str, size: int) -> Image.Image:
    """Renders one SVG without a ground: an RGBA picture of size x size."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def page(svg: str, size: int = IMAGE_SIZE) -> Image.Image:
    """Returns one SVG with a margin on a page of size x size that is transparent around it."""
    margin = round(size * 0.06)  # both vendors draw to the very edge
    drawn = cut_out(svg, size).resize((size - 2 * margin,) * 2, Image.LANCZOS)
    clear = Image.new("RGBA", (size, size), (255, 255, 255, 0))
    clear.paste(drawn, (margin, margin))
    return clear


def render(svg: str, size: int = IMAGE_SIZE) -> np.ndarray:
    """Renders one SVG on white. Returns: uint8 [size, size, 3]."""
    white = Image.new("RGBA", (size, size), "white")
    white.alpha_composite(page(svg, size))
    return np.asarray(white.convert("RGB"))


def corpus(modules: Path) -> list[str]:
    """Returns every emojibase label and tag, once each: the text the tokenizer is trained on."""
    emoji = _read(modules / "emojibase-data/en/data.json")
    texts = {e["label"].lower() for e in emoji} | {tag.lower() for e in emoji for tag in e.get("tags", ())}
    return sorted(texts) + list(TEMPLATES)
