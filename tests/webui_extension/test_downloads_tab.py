"""The tab "Hyper-SD models": its words, its rows over real downloads from a loopback hub, and its wiring on both gradios."""

import asyncio
import sys
from dataclasses import replace

import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.entry import Licence
from hyper_sd.models.files import UNVERIFIED
from hyper_sd.models.jobs import user_catalog
from hyper_sd.models.progress import Progress, Row, State
from hyper_sd.models.search import SIZE_UNKNOWN
from hyper_sd.tests.models.loopback_hub import ALWAYS, Fault
from hyper_sd.tests.models.world import MIB
from hyper_sd.tests.webui_extension import fake_gradio
from hyper_sd.tests.webui_extension.downloads_page import built, of
from hyper_sd.webui_extension import model_rows
from hyper_sd.webui_extension.model_rows import appearance, cancel, follow, press, progress_text, row_html

ENTRY = load_catalog().get("hyper-sdxl-4steps-lora")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(model_rows, "POLL", 0.02)


def collect(looks):
    async def run():
        return [look async for look in looks]

    return asyncio.run(run())


def row(entry=ENTRY, file="", problem="", **progress):
    return Row(entry, Progress(**{"state": State.MISSING, "bytes_total": 269_000_000, **progress}), file, problem)


def test_press_downloads_the_file_and_shows_how_far_it_is(downloads, world):
    world.hub.faults.append(Fault(path="one", bytes_per_second=30 * MIB))
    looks = collect(press(downloads, "one"))
    assert [look.button for look in (looks[0], looks[-1])] == ["Download", "Ready"]
    assert looks[0].can_cancel
    assert not looks[0].can_start
    assert not looks[-1].can_cancel
    assert not looks[-1].can_start
    assert any(" MB of 13 MB" in look.html for look in looks)
    assert len(looks) == len({look.html + look.button for look in looks})
    assert (downloads.row("one").state, downloads.row("one").file) == (State.READY, "one.safetensors")


def test_leaving_the_page_stops_no_download_and_the_next_page_follows_it(downloads, world):
    world.hub.faults.append(Fault(path="one", bytes_per_second=20 * MIB))

    async def leave():
        async for _ in press(downloads, "one"):
            break

    asyncio.run(leave())
    assert downloads.active()
    looks = collect(follow(downloads, ["one", "two"]))
    assert "not downloaded" in looks[0][1].html
    assert looks[-1][0].button == "Ready"
    assert all(look[1] is None for look in looks[1:])


def test_cancel_waits_until_it_has_ended_and_keeps_what_came(downloads, world):
    world.hub.faults.append(Fault(path="one", bytes_per_second=8 * MIB))

    async def both():
        async for look in press(downloads, "one"):
            if " of 13 MB" in look.html and "0 B of" not in look.html:
                return await cancel(downloads, "one")

    look = asyncio.run(both())
    assert (look.button, look.can_start, look.can_cancel) == ("Resume", True, False)
    assert "partly here" in look.html
    assert collect(press(downloads, "one"))[-1].button == "Ready"


def test_licence_has_to_be_accepted_before_a_byte_is_asked_for(downloads, world):
    (look,) = collect(press(downloads, "strict"))
    assert "tick the box" in look.html
    assert "Test licence: &lt;no&gt; commercial use" in look.html
    assert world.hub.requests == []
    assert collect(press(downloads, "strict", accepted=True))[-1].button == "Ready"


def test_damaged_file_is_renamed_only_when_the_box_is_ticked(downloads, tmp_path):
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "one.safetensors").write_bytes(b"broken")
    (first, *_) = collect(follow(downloads, ["one"]))[0]
    assert first.can_set_aside
    assert first.button == "Download again"
    assert "Tick the box" in first.html
    assert collect(press(downloads, "one"))[-1].can_set_aside
    assert collect(press(downloads, "one", set_aside=True))[-1].button == "Ready"
    assert (tmp_path / "loras" / "one.safetensors.corrupt").read_bytes() == b"broken"


def test_failure_is_told_in_the_row(downloads, world):
    world.hub.faults.append(Fault(times=ALWAYS, status=404))
    look = collect(press(downloads, "one"))[-1]
    assert 'role="alert"' in look.html
    assert "404" in look.html
    assert look.can_start


def test_progress_text_tells_size_rate_and_time():
    busy = row(state=State.DOWNLOADING, bytes_done=120_000_000, rate=11e6, eta_seconds=13.6)
    assert progress_text(busy) == "44 % · 120 MB of 269 MB · 11 MB/s · 14 s left"
    assert progress_text(row(state=State.VERIFYING, bytes_done=1, bytes_total=2)) == "50 %"
    assert progress_text(row(state=State.DOWNLOADING, bytes_total=0)) == "0 %"


def test_every_text_from_outside_is_escaped():
    evil = '"><script>alert(1)</script>'
    entry = replace(ENTRY, title=evil, file=evil.replace("/", ""), licence=Licence("evil", evil, f"https://{evil}", True))
    html = "".join(
        row_html(row(entry, evil, f"{evil}.", state=state, note=evil), said) for state in State for said in ("", evil)
    )
    assert "<script" not in html
    assert '">&' not in html.replace('">&quot;&gt;&lt;script', "")


def test_fixed_words_stand_in_elements_of_their_own():
    for state, word in model_rows.STATES.items():
        assert f">{word}</span>" in row_html(row(state=state))
    assert ">licence</a>" in row_html(row())


def test_ready_row_shows_what_could_not_be_checked():
    assert f"<div>{UNVERIFIED}</div>" in row_html(row(state=State.READY, note=UNVERIFIED))


def test_lone_unet_that_is_ready_points_to_the_builder():
    unet = replace(ENTRY, kind="unet")
    assert model_rows.UNET_HINT in row_html(row(unet, state=State.READY))
    assert model_rows.UNET_HINT not in row_html(row(state=State.READY)) + row_html(row(unet))


def test_entry_that_left_the_catalogue_changes_nothing(downloads, tmp_path):
    user_catalog(tmp_path).unlink()
    assert collect(follow(downloads, ["one", "hyper-sd15-1step-lora"]))[0][0] is None
    assert appearance(row()).button == "Download"


def test_page_that_loads_shows_every_row(tab, tmp_path):
    page, components = built(tab, tmp_path)
    asyncio.run(fake_gradio.fire(page.events["load"][0]))
    rows = of(components, "HTML")
    assert len(rows) == 61
    assert all("not downloaded" in html.value for html in rows)
    assert sum(">SDXL, 4-step LoRA<" in html.value for html in rows) == 1


def test_rows_button_downloads_its_own_entry_and_takes_only_ticks(tab, tmp_path, downloads):
    _, components = built(tab, tmp_path)
    starts = [button for button in of(components, "Button") if button.value == "Download"]
    for button in starts:
        assert {type(component).__name__ for component in button.events["click"][0].inputs} == {"Checkbox"}
    position = [
        entry.id for family in ("sd15", "sdxl") for is_other in (False, True) for entry in downloads.catalog()[0]
        if entry.family == family and (entry.recipe is not None) is is_other
    ].index("one")  # fmt: skip
    event = starts[position].events["click"][0]
    assert asyncio.run(fake_gradio.fire(event)) >= 2
    assert downloads.row("one").state is State.READY
    assert starts[position].value == "Ready"
    assert starts[position].options["interactive"] is False


def test_row_tells_another_method_and_no_size_of_nothing():
    tcd = load_catalog().get("tcd-sd15-lora")
    assert f"<span>{SIZE_UNKNOWN}</span>" in row_html(row(tcd))
    assert "<span>TCD</span>" not in row_html(row(tcd))
    assert "<span>TCD</span>" in row_html(row(replace(tcd, title="mine")))


def test_entries_with_a_licence_to_accept_have_a_box_for_it(tab, tmp_path):
    _, components = built(tab, tmp_path)
    boxes = [box for box in of(components, "Checkbox") if box.options["label"].startswith("I have read and accept: ")]
    assert [box.value for box in boxes] == [False] * 8
    assert sum("FLUX.1-dev Non-Commercial" in box.options["label"] for box in boxes) == 2


def test_only_gradio_4_is_told_of_its_own_limit(tab, tmp_path):
    _, components = built(tab, tmp_path)
    options = [event.options for component in components for events in component.events.values() for event in events]
    has_limit = sys.modules["gradio"].__version__.startswith("4")
    assert all(("concurrency_limit" in option) is has_limit for option in options)
    assert all(option["show_progress"] == "hidden" for option in options)


def test_wrong_own_catalogue_is_told_in_the_tab(tab, tmp_path):
    user_catalog(tmp_path).write_text("{", encoding="utf-8")
    _, components = built(tab, tmp_path)
    assert any("Your own catalogue file is left out" in text.value for text in of(components, "Markdown"))


def test_tab_is_registered_with_the_hosts_own_downloads(tab, monkeypatch):
    module, _ = tab
    callbacks = []
    sys.modules["modules.script_callbacks"].on_ui_tabs = callbacks.append
    module.register()
    ((_, title, _),) = callbacks[0]()
    assert title == "Hyper-SD models"


def test_builder_says_in_the_tab_what_is_missing(tab, tmp_path):
    page, components = built(tab, tmp_path)
    asyncio.run(fake_gradio.fire(page.events["load"][1]))
    (build, _) = [button for button in of(components, "Button") if button.value == "Build checkpoint"]
    asyncio.run(fake_gradio.fire(build.events["click"][0]))
    (said, _) = of(components, "Textbox", label="Progress")
    assert said.value.startswith("Choose the UNet from the list")


def test_bake_section_fills_its_lists_and_says_what_is_wrong(tab, tmp_path):
    page, components = built(tab, tmp_path)
    for folder, name in (("checkpoints", "base"), ("loras", "style")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.safetensors").write_bytes(b"broken")
    asyncio.run(fake_gradio.fire(page.events["load"][2]))
    (base,) = of(components, "Dropdown", label="Checkpoint to bake into")
    (lora,) = of(components, "Dropdown", label="LoRA to bake")
    assert (base.value, lora.value) == ("base.safetensors", "style.safetensors")
    (_, build) = [button for button in of(components, "Button") if button.value == "Build checkpoint"]
    asyncio.run(fake_gradio.fire(build.events["click"][0]))
    (_, said) = of(components, "Textbox", label="Progress")
    assert "base.safetensors is no safetensors file" in said.value
