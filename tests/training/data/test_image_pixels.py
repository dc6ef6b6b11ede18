import numpy as np
import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.data.pictures import BLUE, RED, picture, write
from hyper_sd.training.data.cache import load_pixels
from hyper_sd.training.data.folder import scan_folder
from hyper_sd.training.data.images import ImageRules
from PIL import Image

ANY = ImageRules(resolution=64, step=16, min_side=32, default_caption="a picture")


def colour(pixels, x, y):
    """An RGB triple at a share of the width and height, as 8-bit numbers."""
    _, height, width = pixels.shape
    return tuple(round((value + 1) * 127.5) for value in pixels[:, int(y * height), int(x * width)].tolist())


def loaded(folder, name, image, **options):
    write(folder, name, image, **options)
    return load_pixels(next(item for item in scan_folder(folder, ANY).items if item.name == name))


def test_pixels_are_scaled_to_one_and_shaped_as_the_bucket(tmp_path):
    pixels = loaded(tmp_path, "a.png", picture((200, 120)))
    assert (pixels.dtype, pixels.shape) == (torch.float32, (3, 48, 80))
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert pixels.is_contiguous()
    assert colour(pixels, 0.1, 0.5) == RED
    assert colour(pixels, 0.9, 0.5) == BLUE


def test_image_of_the_size_of_its_bucket_is_unchanged(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    pixels = loaded(tmp_path, "a.png", Image.fromarray(values))
    assert torch.equal(((pixels + 1) * 127.5).round().byte(), torch.from_numpy(values).permute(2, 0, 1))


def test_crop_keeps_the_centre(tmp_path):
    stripes = Image.new("RGB", (300, 60), (0, 255, 0))
    stripes.paste(RED, (100, 0, 150, 60))
    stripes.paste(BLUE, (150, 0, 200, 60))
    pixels = loaded(tmp_path, "a.png", stripes)  # 60 x 60 x 5/3 of it are kept, all of them red or blue
    assert pixels.shape == (3, 48, 80)
    assert colour(pixels, 0.05, 0.5) == colour(pixels, 0.45, 0.5) == RED
    assert colour(pixels, 0.55, 0.5) == colour(pixels, 0.95, 0.5) == BLUE


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_orientation_is_respected(tmp_path, suffix, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that stores the upright image so
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture((96, 60))
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    pixels = loaded(tmp_path, "a" + suffix, stored, exif=exif.tobytes(), **({} if suffix == ".png" else {"quality": 100}))
    assert pixels.shape == (3, 48, 80)
    assert colour(pixels, 0.1, 0.5) == pytest.approx(RED, abs=8)
    assert colour(pixels, 0.9, 0.5) == pytest.approx(BLUE, abs=8)


def half_clear():
    image = picture((64, 64)).convert("RGBA")
    image.paste((0, 0, 255, 0), (32, 0, 64, 64))
    return image


def palette_with_transparency():
    image = Image.new("P", (64, 64), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (32, 0, 64, 64))
    return image


def test_transparent_parts_become_white(tmp_path):
    pixels = loaded(tmp_path, "a.png", half_clear())
    assert colour(pixels, 0.1, 0.5) == RED
    assert colour(pixels, 0.9, 0.5) == (255, 255, 255)
    grey = loaded(tmp_path, "grey.png", half_clear().convert("LA"))
    assert colour(grey, 0.1, 0.5) == (76, 76, 76)
    assert colour(grey, 0.9, 0.5) == (255, 255, 255)
    clear = loaded(tmp_path, "p.png", palette_with_transparency(), transparency=1)
    assert colour(clear, 0.1, 0.5) == RED
    assert colour(clear, 0.9, 0.5) == (255, 255, 255)
    keyed = loaded(tmp_path, "k.png", picture((64, 64)), transparency=BLUE)
    assert colour(keyed, 0.9, 0.5) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = picture((64, 64), (0, 0, 0), (255, 255, 255)).convert(mode)
    pixels = loaded(tmp_path, "a.jpg" if mode == "CMYK" else "a.png", image)
    assert colour(pixels, 0.1, 0.5) == (0, 0, 0)
    assert colour(pixels, 0.9, 0.5) == (255, 255, 255)


def test_16_bit_grey_keeps_its_range(tmp_path):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(64, 0)
    pixels = loaded(tmp_path, "a.png", Image.fromarray(ramp))
    assert torch.allclose(pixels[0, 5], torch.linspace(-1, 1, 64), atol=0.005)
    assert torch.equal(pixels[0], pixels[2])


def test_image_that_changed_or_went_after_the_scan_is_an_error(tmp_path):
    path = write(tmp_path, "a.png", picture())
    (item,) = scan_folder(tmp_path, ANY).items
    write(tmp_path, "a.png", picture(left=BLUE))
    with pytest.raises(TrainingError, match=r"a\.png changed after it was scanned"):
        load_pixels(item)
    path.unlink()
    with pytest.raises(TrainingError, match=r"a\.png can no longer be read"):
        load_pixels(item)
