"""Translations: nothing a person reads is left out, and nothing is translated that no longer exists."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hyper_sd.models.catalog import HEADINGS, load_catalog
from hyper_sd.models.entry import ANY_FAMILY
from hyper_sd.models.files import UNVERIFIED
from hyper_sd.models.search import MORE, SIZE_UNKNOWN
from hyper_sd.webui_extension.checkpoint_builder import AS_IT_IS
from hyper_sd.webui_extension.model_rows import BUTTONS, READ_FIRST, STATES, UNET_HINT
from hyper_sd.webui_extension.settings_table import TABLE

ROOT = Path(__file__).resolve().parents[1]
WEBUI, LOCALES = ROOT / "localizations" / "zh_CN.json", ROOT / "locales"
CHINESE = re.compile(r"[\u4e00-\u9fff]")
SAYS = {"label", "info"}  # keywords of components whose text a person reads
FIRST = {"Accordion", "Button", "Markdown"}  # components whose first value is one
SAME = {"Eta"}  # the same in every language


def read(path: Path) -> dict:
    """Returns a JSON object, refusing a key that stands in it twice."""

    def distinct(pairs):
        assert len({key for key, _ in pairs}) == len(pairs), [key for key, _ in pairs]
        return dict(pairs)

    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=distinct)


def spoken(tree: ast.Module) -> Iterator[str]:
    """Yields the fixed texts of a module's components; names of its own constants are followed."""
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in ast.walk(node.targets[0])
        if isinstance(target, ast.Name)
    }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        given = [keyword.value for keyword in call.keywords if keyword.arg in SAYS]
        if name in FIRST:
            given += call.args[:1]
        if name == "OptionInfo":
            given += call.args[1:2]
        for node in given:
            text = constants.get(node.id) if isinstance(node, ast.Name) else getattr(node, "value", None)
            if isinstance(text, str):
                yield text
        explains = name == "info" and getattr(call.func.value, "id", "") != "_log"
        if explains and call.args and isinstance(call.args[0], ast.Constant):
            yield f"({call.args[0].value})"  # the host sets a setting's explanation in brackets


@pytest.fixture(scope="module")
def said() -> set[str]:
    """Every fixed text of the A1111 family's page."""
    texts = {text for spec in TABLE for text in (spec.label, spec.info)} | {*STATES.values(), *BUTTONS.values()}
    for entry in load_catalog():
        texts |= {entry.title, entry.licence.title}
        if entry.licence.acknowledge:
            texts.add(f"I have read and accept: {entry.licence.title}")
    for path in (ROOT / "webui_extension").glob("*.py"):
        texts.update(spoken(ast.parse(path.read_text(encoding="utf-8"))))
    texts |= {
        HEADINGS[ANY_FAMILY],
        UNET_HINT,
        READ_FIRST,
        AS_IT_IS,
        UNVERIFIED,
        "Hyper-SD models",
        "licence",
        MORE,
        SIZE_UNKNOWN,
    }
    return {text for text in texts if text not in SAME | {"Hyper-SD"}}


def test_webui_page_is_translated_whole(said):
    assert not said - read(WEBUI).keys()


def test_webui_translation_has_nothing_that_no_page_says(said):
    assert not read(WEBUI).keys() - said


def test_webui_translation_is_flat_and_chinese():
    for english, chinese in read(WEBUI).items():
        assert isinstance(chinese, str), english
        assert CHINESE.search(chinese), english
        assert english == english.strip(), english  # the host looks up a text without the space around it


def of_schemas(classes) -> dict:
    """Returns what the nodes say, in the form of a nodeDefs.json."""
    said = {}
    for node_id, node in sorted(classes.items()):
        schema = node.define_schema()
        inputs = {i.id: {"name": i.display_name or i.id, "tooltip": i.tooltip} for i in schema.inputs}
        outputs = {}
        for position, output in enumerate(schema.outputs):
            nameless = (output.id or "_").startswith("_")  # the host gives these a name such as "_0_MODEL_"
            name = output.display_name or ("" if nameless else output.id)
            known = {key: text for key, text in (("name", name), ("tooltip", output.tooltip)) if text}
            outputs |= {str(position): known} if known else {}
        said[node_id] = {"display_name": schema.display_name, "description": schema.description, "inputs": inputs}
        if outputs:
            said[node_id]["outputs"] = outputs
    return said


def leaves(tree: dict, path: tuple = ()) -> Iterator[tuple[tuple, str]]:
    """Yields (keys, text) of every text in a tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def test_english_nodes_say_what_the_nodes_say(pack):
    assert read(LOCALES / "en" / "nodeDefs.json") == of_schemas(pack)


@pytest.mark.parametrize("name", ["main", "nodeDefs"])
def test_chinese_has_every_text_and_no_other(name):
    english, chinese = (dict(leaves(read(LOCALES / language / f"{name}.json"))) for language in ("en", "zh"))
    assert english.keys() == chinese.keys()
    assert not [keys for keys, text in chinese.items() if not isinstance(text, str) or not text.strip()]


def test_every_chinese_tooltip_and_description_is_chinese():
    texts = dict(leaves(read(LOCALES / "zh" / "nodeDefs.json")))
    english = [keys for keys, text in texts.items() if keys[-1] in ("tooltip", "description") and not CHINESE.search(text)]
    assert not english


def test_english_keys_are_fit_for_the_pages_lookup():
    for keys, _ in leaves(read(LOCALES / "en" / "nodeDefs.json")):
        assert not [key for key in keys if "." in key]
