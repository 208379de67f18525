"""Where names stand in charts: measured in the pictures that matplotlib draws of them."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from monosoup_cli.report.charts import draw_chart
from monosoup_cli.report.labels import placed
from monosoup_cli.report.plots import WIDTH, in_style
from monosoup_cli.report.scored import Chart, Curve


def chart(points, names, *lines):
    curves = [Curve("points", points, is_line=False, names=names), *(Curve("line", line) for line in lines)]
    return placed(Chart("out against in", "in", "out", curves))


NEAR = [(0.50, 0.60), (0.51, 0.602), (0.70, 0.65), (0.8, 0.63), (0.9, 0.56)]
NAMES = ["0 (base)", "0.25", "0.5", "0.75", "1 (fine-tuned)"]
FRONT = [(0.5, 0.7), (0.7, 0.65), (0.9, 0.5)]
CASES = {
    "near points": (NEAR, NAMES),
    "a point on a line": ([FRONT[1], *NEAR], ["chosen", *NAMES], FRONT),
    "the same point": ([(1, 1), (1, 1), (2, 2)], ["base", "mean", "chosen"]),
    "neighbours": ([(0.999, 0), (0.997, 0), (0.943, 0), (0.695, 0.373), (0.542, 0.997)], NAMES),
    "a crowd at a corner": (
        [*((0.54 + near / 500, 1.0) for near in range(4)), (0.58, 0.98), (0.62, 0.68)],
        ["", "fine-tuned", "", "", "chosen", ""],
    ),
    "one score for all": ([(1, number) for number in range(4)], ["0 (base)", "0.25", "0.5", "0.75"]),
}


@pytest.mark.parametrize("name", CASES)
def test_names_stand_at_their_points_inside_the_axes_and_off_each_other(name):
    """Each is nearest to its own point, or a line leads to it."""
    points, names, *lines = CASES[name]
    made = chart(points, names, *lines)
    assert made.curves[0].names == names
    with in_style():
        whole = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        canvas = FigureCanvasAgg(whole)
        draw_chart(panel := whole.subfigures(1, 1), made)
        canvas.draw()
        (axes,) = panel.axes
        boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}
        drawn = axes.get_window_extent()
        for line in axes.lines[1:]:
            shown = line.get_transform().transform_path(line.get_path())
            assert not any(shown.intersects_bbox(box, filled=False) for box in boxes.values())
    assert [both for both in combinations(boxes, 2) if boxes[both[0]].overlaps(boxes[both[1]])] == []
    assert all(drawn.contains(*box.min) and drawn.contains(*box.max) for box in boxes.values())
    places = dict(zip(points, axes.transData.transform(points), strict=True))
    for text in axes.texts:
        box = boxes[text.get_text()]
        apart = {
            point: np.linalg.norm(place - np.clip(place, box.min, box.max)) for point, place in places.items()
        }
        least = min(apart, key=apart.get)
        assert least == text.xy or (text.arrow_patch is not None and apart[least] > 5)


def test_names_without_room_are_left_out_the_shortest_first():
    names = [f"{number / 100:g}" for number in range(1, 40)]
    made = chart([(1.0, 1.0)] * 40 + [(2, 2)], ["0 (base)", *names, ""])
    left = [name for name in made.curves[0].names if name]
    assert left[0] == "0 (base)"
    assert 4 <= len(left) <= 9
