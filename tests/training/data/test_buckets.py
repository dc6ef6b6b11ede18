import pytest
from hyper_sd.training.data.buckets import aspect_buckets, nearest_bucket


@pytest.mark.parametrize(
    ("settings", "table"),
    [
        ((512, 64, 2.0), [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]),
        ((512, 64, 2.5), [(320, 768), (384, 640), (448, 576), (512, 512), (576, 448), (640, 384), (768, 320)]),
        ((512, 64, 1.0), [(512, 512)]),
        ((64, 64, 2.0), [(64, 64)]),
        ((500, 64, 1.0), [(448, 448)]),  # the square is there although 448 x 512 would use more of the area
        ((64, 16, 2.0), [(48, 80), (64, 64), (80, 48)]),
    ],
)
def test_table_is_that_made_by_hand(settings, table):
    assert list(aspect_buckets(*settings)) == table


def test_table_is_the_largest_of_sdxls_sizes_for_each_side():
    tall = [(512, 2048), (576, 1792), (640, 1600), (704, 1472), (768, 1344), (832, 1216), (896, 1152), (960, 1088)]
    wide = [(height, width) for width, height in reversed(tall)]
    assert list(aspect_buckets(1024, 64, 4.0)) == [*tall, (1024, 1024), *wide]


@pytest.mark.parametrize("resolution", [64, 96, 500, 512, 1000, 1024])
@pytest.mark.parametrize("step", [8, 16, 64])
@pytest.mark.parametrize("max_aspect", [1.0, 1.5, 2.0, 4.0])
def test_buckets_keep_area_step_and_aspect(resolution, step, max_aspect):
    buckets = aspect_buckets(resolution, step, max_aspect)
    assert len(set(buckets)) == len(buckets) > 0
    assert [(height, width) for width, height in reversed(buckets)] == list(buckets)
    for width, height in buckets:
        assert width % step == height % step == 0
        assert width * height <= resolution**2
        assert max(width / height, height / width) <= max_aspect


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((100, 100), (512, 512)),
        ((4000, 3000), (576, 448)),  # 1.333: 1.286 is nearer than 1.667
        ((3000, 4000), (448, 576)),
        ((1920, 1080), (640, 384)),
        ((10000, 10), (640, 384)),
        ((10, 10000), (384, 640)),
    ],
)
def test_nearest_bucket_is_that_of_the_nearest_ratio(size, bucket):
    assert nearest_bucket(size, aspect_buckets(512)) == bucket


def test_every_bucket_is_its_own_nearest_at_any_scale():
    buckets = aspect_buckets(1024, 64, 4.0)
    assert [nearest_bucket((3 * width, 3 * height), buckets) for width, height in buckets] == list(buckets)
