"""How long does the Hyper-SD node look for a second few-step LoRA in a MODEL, where the LoRA folder has hundreds of files?

One command, from the repository root, in the environment of `python install.py test`, with a ComfyUI folder:

    python -m hyper_sd.benchmarks.second_lora --comfyui PATH --out benchmarks/results/second_lora.json

The MODEL is SDXL's UNet with few channels; a LoRA that is not in the folder is in its patches, so that every file is looked at.
The files have the released LoRA's 2364 tensors and its rank, and empty data. Timed are the first look, and a later one at files
that were looked at before; the files are in the system's cache. `--beside` keeps the result of another version in the new one.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from .measure import command_line, extremes, logger, machine, seconds_of, start_logging, versions, write_result
from .with_comfyui import add_comfyui_option, enter_comfyui, sdxl_unet

FILES, ROUNDS, RANK = 500, 5, 4


def write_folder(folder: Path, count: int) -> None:
    """Writes LoRA files whose data are a hole in the file."""
    from ..tests.models.synthetic_loras import RELEASED, head, tensors

    start, size = head(tensors("sdxl", RANK), RELEASED["sdxl"].metadata)
    for number in range(count):
        with (folder / f"style {number}.safetensors").open("wb") as file:
            file.write(start)
            file.truncate(len(start) + size)


def loaded_model() -> Any:
    """Returns the MODEL with a LoRA of the same layers and rank; the host must be on the path."""
    import comfy.lora

    from ..tests.models.synthetic_loras import tensors

    model = sdxl_unet(narrow=True)
    lora = {name: torch.full(shape, 0.01 if value is None else value) for name, shape, value in tensors("sdxl", RANK)}
    model.add_patches(comfy.lora.load_lora(lora, comfy.lora.model_lora_keys_unet(model.model, {})), 1.0)
    return model


def measure(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Returns the seconds of a first and of a later look at the folder, and the milliseconds a file.

    Args:
        folder: an empty one.
        count: of files.
        rounds: how often both are timed.
    """
    import folder_paths

    from ..nodes import loaded_loras

    folder_paths.folder_names_and_paths["loras"] = ([str(folder)], {".safetensors"})
    write_folder(folder, count)
    model = loaded_model()
    found: dict[str, list[float]] = {"first": [], "later": []}
    for _ in range(rounds):
        loaded_loras._ups.cache_clear()
        for times in found.values():
            times.append(seconds_of(lambda: loaded_loras.few_step_in(model))[0])
    per_file = {look: round(1000 * min(times) / count, 3) for look, times in found.items()}
    return {"seconds": {look: extremes(times) for look, times in found.items()}, "fastest_ms_per_file": per_file}


def main() -> None:
    """Measures and writes the result."""
    parser = command_line(__doc__)
    add_comfyui_option(parser)
    parser.add_argument("--files", type=int, default=FILES, help="LoRAs in the folder; default %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often both looks are timed; default %(default)s")
    parser.add_argument("--beside", type=Path, help="result of another version, which is kept beside the new one")
    options = parser.parse_args()
    enter_comfyui(parser, options.comfyui)
    start_logging()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        own = measure(Path(folder), options.files, options.rounds)
    result = {"files": options.files, "rounds": options.rounds, "machine": machine(), "versions": versions(), **own}
    if options.beside:
        other = json.loads(options.beside.read_text(encoding="utf-8"))
        result["before"] = {name: other[name] for name in own}
    logger.info("%s", json.dumps(result, indent=1))
    write_result(result, options.out)


if __name__ == "__main__":
    main()
