"""Where names stand in charts: measured in the pictures that matplotlib draws of them."""

from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
    "one score for all": ([(1, number) for number in range(4)], ["0 (base)", "0.25", "0.5", "0.75"]),
}


@pytest.mark.parametrize("name", CASES)
def test_no_name_covers_another_one_or_leaves_the_chart(name):
    made = chart(*CASES[name])
    assert made.curves[0].names == CASES[name][1]
    with in_style():
        whole = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        canvas = FigureCanvasAgg(whole)
        draw_chart(panel := whole.subfigures(1, 1), made)
        canvas.draw()
        (axes,) = panel.axes
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
        drawn = axes.get_window_extent()
        for line in axes.lines[1:]:
            shown = line.get_transform().transform_path(line.get_path())
            assert not any(shown.intersects_bbox(box, filled=False) for box in boxes.values())
    assert [both for both in combinations(boxes, 2) if boxes[both[0]].overlaps(boxes[both[1]])] == []
    assert all(drawn.x0 <= box.x0 and box.x1 <= drawn.x1 for box in boxes.values())


def test_names_without_room_are_left_out_the_shortest_first():
    names = [f"{number / 100:g}" for number in range(1, 40)]
    made = chart([(1.0, 1.0)] * 40 + [(2, 2)], ["0 (base)", *names, ""])
    left = [name for name in made.curves[0].names if name]
    assert left[0] == "0 (base)"
    assert 4 <= len(left) <= 9
