import json

from benchmarks import views

from ssl_vit.config.evaluation_schema import BenchmarkConfig


def test_each_size_gives_three_rates_and_two_ratios(capsys, monkeypatch):
    monkeypatch.setattr(views, "SIZES", (((40, 30), 32, 16), ((32, 32), 24, 16)))
    monkeypatch.setattr(views, "NUM_IMAGES", 2)
    views.run(BenchmarkConfig(suite="views", repeats=1))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 10
    for size, part in (("40x30", lines[:5]), ("32x32", lines[5:])):
        assert {line["image"] for line in part} == {size}
        assert {line["suite"] for line in part} == {"views"}
        rates = {line["pipeline"]: line["images_per_second_per_core"] for line in part[:3]}
        assert rates.keys() == {"lightly", "workers", "total"}
        assert rates["workers"] > rates["total"] > 0
        assert part[3]["ratio_total"] > 0
        assert part[4]["ratio_workers"] > 0
    assert lines[0]["crops"] == "2x32+6x16"


def test_both_pipelines_give_normalized_crops_of_the_same_shapes():
    source, view = views.photographs(2, (48, 36)), views.multi_crop(32, 16)
    batch = views.AugmentedDataset(source, view, 0, source.labels).__getitems__([(0, 0), (0, 1)])
    ours = views.on_the_device(view, batch)
    theirs = views.lightly_batch(source, views.dino_transform(32, 16))
    assert [crop.shape for crop in ours] == [crop.shape for crop in theirs]
    for crop, other in zip(ours, theirs, strict=True):
        assert crop.dtype == other.dtype
        for values in (crop, other):
            assert -2.2 < values.min() < values.max() < 2.7  # black and white in ImageNet's deviations
