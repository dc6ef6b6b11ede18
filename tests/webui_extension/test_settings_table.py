"""The table from which page, infotext, API and XYZ plot are made; no host is involved."""

import dataclasses

import pytest
from hyper_sd.errors import ScheduleError
from hyper_sd.webui_extension.settings_table import TABLE, VARIANTS, Settings, read_settings


def test_missing_arguments_keep_the_defaults():
    assert read_settings([], {}) == Settings()
    assert read_settings([True, 8], {}) == Settings(enabled=True, steps=8)
    assert read_settings([True, None, "unified"], {}) == Settings(enabled=True, variant="unified")


def test_numbers_come_in_as_the_page_sends_them():
    assert read_settings([True, 8.0, "auto", 1], {}) == Settings(enabled=True, steps=8, strength=1.0)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("steps", 17, "1 to 16"),
        ("steps", 2.5, "1 to 16"),
        ("steps", True, "1 to 16"),
        ("variant", "best", "auto, unified"),
        ("eta", 1.3, "0 to 1"),
        ("eta", float("nan"), "0 to 1"),
        ("strength", "0.8", "0 to 2"),
        ("enabled", "yes", "true or false"),
    ],
)
def test_refusal_says_what_was_given_and_what_is_allowed(name, value, allowed):
    values = dataclasses.asdict(Settings(enabled=True)) | {name: value}
    with pytest.raises(ScheduleError, match=allowed) as error:
        read_settings(list(values.values()), {})
    assert repr(value) in str(error.value)


def test_axes_go_before_the_page_and_switch_on_what_they_need():
    assert read_settings([], {"eta": 0.5}) == Settings(eta=0.5, auto_eta=False)
    assert read_settings([], {"steps": 2}) == Settings(steps=2, enabled=True)
    assert read_settings([True, 4], {"variant": "unified"}) == Settings(variant="unified", enabled=True)


def test_every_control_explains_itself_and_lies_in_its_range():
    for spec in TABLE:
        assert len(spec.info) > 15
        assert spec.info.endswith(".")
        assert spec.read(spec.default) == spec.default
    assert "0 = deterministic, 1 = fully stochastic" in next(spec for spec in TABLE if spec.name == "eta").info


def test_every_variant_is_read_by_its_key_and_by_its_label():
    spec = next(spec for spec in TABLE if spec.name == "variant")
    assert spec.choices == tuple(VARIANTS.values())
    assert [spec.read(label) for label in VARIANTS.values()] == [spec.read(key) for key in VARIANTS] == list(VARIANTS)


def test_an_infotext_of_another_sampler_switches_the_panel_off_and_leaves_the_rest():
    pasted = {spec.name: spec.pasted({"Steps": "20", "Sampler": "Euler a"}) for spec in TABLE}
    assert pasted.pop("enabled") is False
    assert set(pasted.values()) == {None}
