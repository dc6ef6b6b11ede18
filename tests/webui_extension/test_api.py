"""The API's arguments on the stub host: settings by name in one object, as in a plain list, and what is refused."""

import pytest
import torch
from hyper_sd.tests.webui_extension.lora_files import FOUR, UNIFIED, place
from hyper_sd.tests.webui_extension.stub_host import StubHost
from hyper_sd.tests.webui_extension.stub_run import Processing, process_images
from hyper_sd.webui_extension.settings_table import TABLE, VARIANTS

NAMES = ", ".join(spec.name for spec in TABLE)


def ask(host: StubHost, *args, behind: dict | None = None, **given) -> Processing:
    """Makes an image as the hosts' API does, which lays a request's arguments over the page's defaults.

    Args:
        host: with the extension loaded.
        args: of the request.
        behind: values by name that the request's infotext has set before.
        given: of the request itself.
    """
    defaults = {spec.name: control.value for spec, control in zip(TABLE, host.scripts[0].controls, strict=True)}
    values = list((defaults | (behind or {})).values())
    values[: len(args)] = args
    p = Processing(**{"args": values, **given})
    p.images = process_images(host, p)
    return p


@pytest.mark.parametrize(
    ("named", "listed"),
    [
        ({"enabled": True, "steps": 4, "variant": "auto"}, [True, 4, "auto"]),
        ({"variant": "unified", "enabled": True, "steps": 3, "strength": 0.7}, [True, 3, "unified", 0.7]),
        ({"enabled": True, "auto_eta": False, "eta": 0.5}, [True, 4, "auto", 0, 0, True, False, 0.5]),
        ({"enabled": True, "eta": 0.5}, [True, 4, "auto", 0, 0, True, False, 0.5]),
        ({"enabled": True, "eta": 0.5, "auto_eta": True}, [True]),
        ({"enabled": True, "variant": "merged"}, [True, 4, "merged checkpoint"]),
        ({"enabled": True, "recommended": False, "steps": None}, [True, None, "auto", 0, 0, False]),
        ({"segments": 4, "eta": 1}, [False, 4, "auto", 0, 0, True, False, 1, 4]),
        ({}, []),
    ],
)
def test_named_settings_make_the_image_and_infotext_of_a_plain_list(host, named, listed):
    place(host, FOUR, UNIFIED)
    given = {"sampler_name": "Hyper-SD TCD", "steps": 4, "cfg_scale": 1.0}
    by_name, by_order = ask(host, named, **given), ask(host, *listed, **given)
    assert by_name.infotext == by_order.infotext
    assert by_name.activations == by_order.activations
    assert torch.equal(by_name.images[0], by_order.images[0])
    assert not by_name.comments


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_known_by_its_key_and_by_its_label(host, variant):
    place(host, FOUR, UNIFIED, "Hyper-SD15-8steps-CFG-lora")
    by_key, by_label = (ask(host, {"enabled": True, "variant": name}) for name in (variant, VARIANTS[variant]))
    assert by_key.infotext == by_label.infotext
    assert by_key.comments == by_label.comments
    is_made = variant not in ("auto", "one-step", "other")  # the last two need a checkpoint and a file that are not there
    assert (f"Hyper-SD variant: {VARIANTS[variant]}," in by_key.infotext) == is_made


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"enabled": True, "stpes": 4}, "no setting 'stpes'; did you mean 'steps'? "),
        ({"enabled": True, "steps": 4, "lora": "x"}, "no setting 'lora'. "),
        ({"enable": True}, "no setting 'enable'; did you mean 'enabled'? "),
        ({"enabled": True, "Steps": 4}, "no setting 'Steps'; did you mean 'steps'? "),
    ],
)
def test_an_unknown_name_stops_the_run_and_the_known_ones_are_told(host, named, words):
    place(host, FOUR)
    p = ask(host, named)
    assert p.images == []
    assert p.activations == []
    (comment,) = p.comments
    assert comment == f"Hyper-SD has {words}The settings are {NAMES}."
    assert p.extra_generation_params["Hyper-SD problem"] == comment
    assert comment in p.infotext
    assert ask(host, {"enabled": True}).images  # the next image is not stopped


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"enabled": "yes"}, "Enable: got 'yes', allowed is true or false"),
        ({"enabled": True, "steps": "4"}, "Hyper-SD steps: got '4', allowed is 1 to 16"),
        ({"enabled": True, "variant": "best"}, "got 'best', allowed is auto, unified, n-step, cfg (CFG-preserving), merged"),
        ({"enabled": True, "variant": 4}, "got 4, allowed is auto"),
        ({"enabled": True, "strength": [1]}, "LoRA strength: got [1], allowed is 0 to 2"),
        ({"eta": 2}, "Eta: got 2, allowed is 0 to 1"),
    ],
)
def test_a_wrong_value_stops_the_run_and_the_allowed_ones_are_told(host, named, words):
    place(host, FOUR)
    p = ask(host, named)
    assert p.images == []
    assert words in p.comments[0]
    assert words in p.infotext


def test_axes_of_a_grid_count_before_named_settings(host):
    place(host, FOUR, UNIFIED)
    p = ask(host, {"enabled": True, "steps": 4, "eta": 0.2}, hyper_sd_axes={"steps": 3, "eta": 0.6})
    assert p.activations[-1] == [(UNIFIED, 1.0)]
    assert p.extra_generation_params["Hyper-SD eta"] == "0.6"


def test_values_of_the_requests_infotext_count_where_the_object_says_nothing(host):
    place(host, FOUR, UNIFIED)
    p = ask(host, {"enabled": True, "strength": 0.9}, behind={"variant": "unified", "strength": 0.4})
    assert p.activations[-1] == [(UNIFIED, 0.9)]
