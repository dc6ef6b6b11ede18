"""A stub of the A1111 family: the modules.* names that the extension uses, and how one image runs through a host.

Small on purpose. Each behaviour that is copied from the hosts is one that an extension can trip over; none of it is their code.
"""

import re
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ...samplers.schedule import NoiseSchedule, alpha_bar_of
from . import stub_samplers
from .stub_samplers import module

PACKAGE = "hyper_sd.webui_extension"
CALLBACKS = (
    "on_ui_settings", "on_before_ui", "on_ui_tabs", "on_model_loaded", "on_script_unloaded", "on_image_grid", "on_cfg_denoiser",
)  # fmt: skip
OPTIONS = {
    "skip_early_cond": 0.0, "img2img_fix_steps": False, "sgm_noise_multiplier": False, "eta_ancestral": 1.0,
    "return_mask": False, "return_mask_composite": False,
}  # fmt: skip
FLAGS = {"sd15": "is_sd1", "sdxl": "is_sdxl", "sd3": "is_sd3"}


class Component:
    """Any gradio control; what is wired to it can be called as the page would, and `inside` are the parts around it."""

    around: "list[Component]" = []  # noqa: RUF012 - one list for all

    def __init__(self, *args: Any, **given: Any):
        self.__dict__.update({"value": None, "label": None, "title": args[0] if args else None, **given})
        self.handlers: dict[str, Callable] = {}
        self.wired: list[SimpleNamespace] = []
        self.inside = [part.title for part in self.around]

    def __enter__(self) -> "Component":
        self.around.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        self.around.pop()

    def __getattr__(self, event: str) -> Callable:
        if event not in {"change", "click", "load", "select", "then"}:
            raise AttributeError(event)

        def wire(handler: Callable | None, **given: Any) -> None:
            self.handlers[event] = handler
            self.wired.append(SimpleNamespace(event=event, handler=handler, **given))

        return wire


class Options:
    """The host's options: data is what was saved, the rest are defaults."""

    def __init__(self, **defaults: Any):
        self.data, self.data_labels = {}, {name: SimpleNamespace(default=value) for name, value in defaults.items()}

    def __getattr__(self, name: str) -> Any:
        if name in self.data:
            return self.data[name]
        if name in self.data_labels:
            return self.data_labels[name].default
        raise AttributeError(name)

    def add_option(self, name: str, info: Any) -> None:
        """Registers one; a value without a component stops the real hosts from starting."""
        assert info.component is not None
        self.data_labels[name] = info
        self.data.setdefault(name, info.default)


class OptionInfo:
    """One option."""

    def __init__(self, default=None, label="", component=None, component_args=None, section=None, infotext=None):
        self.default, self.component, self.infotext = default, component, infotext

    def info(self, text: str) -> "OptionInfo":
        """Returns itself, as the hosts' does."""
        return self


class Model:
    """A checkpoint: a small nonlinear network that the prompt and the active LoRAs have an influence on."""

    def __init__(self, host: "StubHost", family: str = "sd15", v: bool = False, zero_snr: bool = False):
        table = NoiseSchedule.from_betas(zero_terminal_snr=zero_snr).table
        self.alphas_cumprod = alpha_bar_of(torch.tensor(table, dtype=torch.float64)).float()
        self.host, self.parameterization = host, "v" if v else "eps"
        self.is_sd1 = self.is_sdxl = self.is_sd3 = False
        if family in FLAGS:
            setattr(self, FLAGS[family], True)
        self.sd_checkpoint_info = SimpleNamespace(filename=str(host.root / "model.safetensors"))

    def apply_model(self, x: torch.Tensor, timestep: torch.Tensor, cond: str = "") -> torch.Tensor:
        """Depends on neighbours, timestep, prompt and LoRAs, so that no mistake in any of them stays hidden."""
        push = 0.1 * len(cond) + sum(strength for _, strength in self.host.active_loras)
        return torch.sin(3 * x) + 0.1 * float(timestep.flatten()[0]) / 1000 * x.roll(1, -1) + 0.05 * push


class StubHost:
    """One host: its modules in sys.modules while it lives, its lists, its LoRA folder.

    Args:
        root: its data folder.
        denoiser: k-diffusion's or the stub's.
        forge: whether it is of the Forge family, which leaves the negative prompt out at CFG 1 by itself.
        schedule_types: False is Forge-classic.
    """

    def __init__(
        self, root: Path, denoiser: Any = stub_samplers.PlainDenoiser, forge: bool = False, schedule_types: bool = True
    ):
        self.root, self.active_loras, self.loras = root, [], {}
        self.callbacks: dict[str, list[Callable]] = defaultdict(list)
        self.warnings: list[str] = []
        self.scripts: list[Any] = []
        (root / "Lora").mkdir(parents=True, exist_ok=True)
        state = SimpleNamespace(interrupted=False, evaluations=[], interrupt_after=0, current_latent=None, sampling_steps=0)
        self.shared = module(
            "modules.shared",
            opts=Options(**OPTIONS, **({} if schedule_types else {"k_sched_type": "Automatic"})),
            cmd_opts=SimpleNamespace(lora_dir=str(root / "Lora"), ckpt_dir=None),
            state=state,
            OptionInfo=OptionInfo,
        )
        self.model = self.shared.sd_model = Model(self)
        self.chosen = self.model.sd_checkpoint_info
        self._modules = self._build(denoiser, schedule_types)
        if forge:
            self._modules["modules_forge"] = types.ModuleType("modules_forge")
            self._modules["modules_forge"].__spec__ = SimpleNamespace(name="modules_forge")
            self._modules["gradio"].__version__ = "4.40.0"

    def _build(self, denoiser: Any, schedule_types: bool) -> dict[str, types.ModuleType]:
        root, on = str(Path(__file__).resolve().parents[2]), self.callbacks
        found = stub_samplers.install(self.shared, denoiser, schedule_types) | {
            "shared": self.shared,
            "devices": module("devices", autocast=nullcontext, device=torch.device("cpu"), torch_gc=lambda: None),
            "prompt_parser": module(
                "prompt_parser",
                get_learned_conditioning_prompt_schedules=lambda prompts, steps: [[[steps, _last(text)]] for text in prompts],
                parse_prompt_attention=parse_prompt_attention,
            ),
            "extra_networks": module(
                "extra_networks", ExtraNetworkParams=ExtraNetworkParams, parse_prompt=parse_prompt, activate=self.activate
            ),
            "paths_internal": module("paths_internal", models_path=str(self.root), data_path=str(self.root)),
            "sd_models": module(
                "sd_models",
                model_path=str(self.root / "Stable-diffusion"),
                model_data=SimpleNamespace(sd_model=self.model),
                list_models=lambda: None,
                select_checkpoint=lambda: self.chosen,
            ),
            "script_callbacks": module("script_callbacks", **{name: on[name].append for name in CALLBACKS}),
            "scripts": module("scripts", Script=Script, AlwaysVisible=object(), basedir=lambda: root, scripts_data=[]),
        }
        gradio = module("gradio", update=lambda **given: given, Warning=self.warnings.append, __getattr__=_component)
        gradio.__version__ = "3.41.2"
        networks = module("networks", available_networks=self.loras, list_available_networks=self.list_loras)
        modules = {f"modules.{name}": content for name, content in found.items()}
        return {"modules": module("modules", **found), "networks": networks, "gradio": gradio, **modules}

    def list_loras(self) -> None:
        """Lists the LoRA folder anew, as the button in the page does."""
        self.loras.clear()
        self.loras.update({path.stem: SimpleNamespace(filename=str(path)) for path in self.root.glob("Lora/**/*.safetensors")})

    def activate(self, p: Any, data: dict[str, list]) -> None:
        """Takes exactly these LoRAs; what was active before is not."""
        self.active_loras = [(entry.positional[0], float([*entry.positional, "1"][1])) for entry in data.get("lora", [])]
        p.activations.append(list(self.active_loras))

    def start(self) -> None:
        """Puts the modules in place; the extension's own are imported anew, as by a new process."""
        self._hidden = {name: module for name, module in sys.modules.items() if _replaced(name)}
        for name in self._hidden:
            del sys.modules[name]
        sys.modules.update(self._modules)

    def close(self) -> None:
        """Leaves sys.modules as it was."""
        for name in [name for name in sys.modules if _replaced(name)]:
            del sys.modules[name]
        sys.modules.update(self._hidden)

    def use(self, model: Model) -> None:
        """Loads another checkpoint."""
        self.model = self.shared.sd_model = self._modules["modules.sd_models"].model_data.sd_model = model
        self.chosen = model.sd_checkpoint_info


class Script:
    """The base class of scripts."""

    infotext_fields = paste_field_names = None

    def elem_id(self, name: str) -> str:
        """Returns an id."""
        return f"script_{name}"


class ExtraNetworkParams:
    """One tag: <lora:name:strength>."""

    def __init__(self, items: list[str]):
        self.items = items
        self.positional = [item for item in items if "=" not in item]
        self.named = dict(item.split("=") for item in items if "=" in item)


def parse_prompt(prompt: str) -> tuple[str, dict[str, list]]:
    """Returns the prompt without its tags, and the tags."""
    data = defaultdict(list)
    for kind, rest in re.findall(r"<(\w+):([^>]+)>", prompt):
        data[kind].append(ExtraNetworkParams(rest.split(":")))
    return re.sub(r"<\w+:[^>]+>", "", prompt), data


def _last(prompt: str) -> str:
    """Returns a prompt as the last step has it: [from:to:when] is to."""
    return re.sub(r"\[[^\[\]:]*:([^\[\]:]*):[\d.]+\]", r"\1", prompt)


def parse_prompt_attention(prompt: str) -> list[list]:
    """Returns a prompt's parts with their weights."""
    parts = []
    for weighted, weight, plain in re.findall(r"\(([^()]*?)(?::([\d.]+))?\)|([^()]+)", prompt):
        for i, text in enumerate((weighted or plain).split("BREAK")):
            parts += [["BREAK", -1], [text, float(weight or 1)]] if i else [[text, float(weight or 1)]]
    return parts


def _component(name: str) -> type[Component]:
    if name[0].isupper():
        return Component
    raise AttributeError(name)


def _replaced(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] in {"modules", "modules_forge", "networks", "gradio"} or name.startswith(PACKAGE)
