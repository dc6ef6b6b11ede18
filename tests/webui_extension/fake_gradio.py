"""The few names of gradio and of the host's callbacks that the tab uses: components are remembered, handlers can be fired."""

import types

VERSIONS = ("3.41.2", "4.40.0")


class Event:
    """One handler: what it calls, with what, and what it changes."""

    def __init__(self, fn, inputs=None, outputs=None, **options):
        self.fn, self.inputs, self.outputs, self.options = fn, list(inputs or []), list(outputs or []), options


class Component:
    """Remembers its arguments and applies updates; `with` works as for a layout."""

    made: "list[Component]" = []  # noqa: RUF012 - one list for all, emptied by the fixture

    def __init__(self, *values, **options):
        self.value = options.get("value", values[0] if values else None)
        self.options, self.events = options, {}
        Component.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def click(self, fn, inputs=None, outputs=None, **options):
        self.events.setdefault("click", []).append(Event(fn, inputs, outputs, **options))

    def change(self, fn, inputs=None, outputs=None, **options):
        self.events.setdefault("change", []).append(Event(fn, inputs, outputs, **options))

    def load(self, fn, inputs=None, outputs=None, **options):
        self.events.setdefault("load", []).append(Event(fn, inputs, outputs, **options))

    def apply(self, update):
        if isinstance(update, dict):
            self.value = update.get("value", self.value)
            self.options.update(update)
        else:
            self.value = update


NAMES = (
    "Accordion",
    "Blocks",
    "Button",
    "Checkbox",
    "Column",
    "Dropdown",
    "HTML",
    "Markdown",
    "Radio",
    "Row",
    "Slider",
    "Textbox",
)


def modules(version: str) -> dict[str, types.ModuleType]:
    """Returns gradio of that version and modules.script_callbacks for sys.modules."""
    gradio, host = types.ModuleType("gradio"), types.ModuleType("modules")
    gradio.__version__ = version
    for name in NAMES:
        setattr(gradio, name, type(name, (Component,), {}))
    gradio.update = lambda **changes: changes
    host.script_callbacks = types.ModuleType("modules.script_callbacks")
    return {"gradio": gradio, "modules": host, "modules.script_callbacks": host.script_callbacks}


async def fire(event: Event) -> int:
    """Runs a handler as gradio does, with its inputs' values, applies every update, and returns how many there were."""
    result, count = event.fn(*(component.value for component in event.inputs)), 0

    def take(values):
        listed = values if len(event.outputs) > 1 else [values]
        assert len(listed) == len(event.outputs)
        for component, update in zip(event.outputs, listed, strict=True):
            component.apply(update)

    if hasattr(result, "__aiter__"):
        async for values in result:
            take(values)
            count += 1
    elif hasattr(result, "__await__"):
        take(await result)
        count = 1
    return count
