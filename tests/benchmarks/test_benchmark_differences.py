from pathlib import Path

from benchmarks import differences

METHODS = Path(__file__).resolve().parents[2] / "docs" / "methods"


def test_the_pages_of_the_methods_say_what_is_measured():
    """The largest differences of pixels were measured once, with code that nobody had kept, and two were wrong."""
    dino, beit = ((METHODS / f"{name}.md").read_text() for name in ("dino", "beit"))
    hues = [row for what, row in differences.colors() if what.startswith("hue")]
    blurs = max(row["max"] for _, row in differences.blurs())
    fresh, smooth, *bells = [row for _, row in differences.positions()]
    for line in (
        f"hue {hues[0]['mean']:.2f} to {hues[1]['mean']:.2f} in the mean and {hues[1]['max']:.0f} at most",
        f"in the outer pixels .5 in the mean, {blurs:.0f} at most",
        f"an rms of {fresh['ours']:.3f} and not {fresh['theirs']:.3f}",
        f"differ by {smooth['apart']:.0%} of their rms",
    ):
        assert line.replace(" 0.", " .").replace("%", " %") in dino
    assert f"differ by {bells[0]['apart'] * 100:.0f} to {bells[-1]['apart'] * 100:.0f} % of their rms" in beit
