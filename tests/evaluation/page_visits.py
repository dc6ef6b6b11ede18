"""How the tests of a comparison's page look at it, vote on it and read what it saves."""

from hyper_sd.evaluation.vote_file import load_ballot

DESKTOP = {"viewport": {"width": 1200, "height": 800}, "locale": "en-US"}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "locale": "en-US"}


def shown(page, number):
    """Waits until a pair is on the screen."""
    page.locator(f'#vote[data-pair="{number}"]').wait_for()


def press(page, keys, first=0):
    """Presses one key for each pair, once the pair is on the screen."""
    for number, key in enumerate(keys, first):
        shown(page, number)
        page.keyboard.press(key)


def saved(page, comparison, path, button="#save"):
    """Saves the votes as people do, and returns them as they are read."""
    with page.expect_download() as download:
        page.click(button)
    assert download.value.suggested_filename.startswith(f"votes-{comparison.id[:8]}-")
    download.value.save_as(path)
    return load_ballot(path, comparison)
