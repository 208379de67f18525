"""The page of a report, in a real browser: what it shows, what it lets one do, and what it must not do."""

import fnmatch
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.report.charts import draw_chart
from monosoup_cli.report.comparison import compare_reports
from monosoup_cli.report.comparison_page import comparison_page
from monosoup_cli.report.glossary import MEANINGS
from monosoup_cli.report.measures import LABELS
from monosoup_cli.report.opening import opening
from monosoup_cli.report.page import page
from monosoup_cli.report.rows import rows_of
from monosoup_cli.report.searched import charts_of

WORDS = [
    "Most of the update is in few directions.",
    "An <em>edit</em> would be a small step.",
    f"Long ones are shown in full: {'word ' * 100}.",
]
HOSTILE = {
    "</script><script>alert(1)</script>": "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>": "<img src=x onerror=alert(2)>",
    "<!--<script>": "<!--<script>",
    "escape\x1b[31m": "escape\\x1b[31m",
    "left\u202eright": "left\\u202eright",
    "lines\u2028and\u2029paragraphs": "lines\\u2028and\\u2029paragraphs",
    "&lt;b&gt;": "&lt;b&gt;",
}
"""Names of tensors, and how they are shown."""


def normals(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator)


def tensors(base=None, seed=0, blocks=3):
    """A small transformer with a stack of experts; or a fine-tune of it, with falling spectra."""
    normal = normals(seed)
    if base is None:
        made = {"model.embed_tokens.weight": normal(24, 12), "lm_head.weight": normal(24, 12)}
        for block in range(blocks):
            name = f"model.layers.{block}"
            made |= {f"{name}.self_attn.{part}_proj.weight": normal(12, 12) for part in "qkvo"}
            made[f"{name}.mlp.experts.down_proj"] = normal(2, 12, 10)
            made[f"{name}.input_layernorm.weight"] = normal(12)
        return made | {"frozen": normal(4, 4)}
    shared = normals(100)
    made = {}
    for depth, (name, tensor) in enumerate(base.items()):
        common, own = shared(*tensor.shape), normal(*tensor.shape)
        falls = torch.exp(-torch.arange(tensor.shape[-1]) * 0.1 * (depth % 7))
        made[name] = tensor if name == "frozen" else tensor + 0.1 * (common + own) * falls
    return made


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Real reports, by command; `several` is a sweep's, whose layers are in the folders of its parts."""
    folder = tmp_path_factory.mktemp("runs")
    base = tensors()
    save_file(base, folder / "base.safetensors")
    finetuned = [folder / f"finetuned-{seed}.safetensors" for seed in (1, 2, 3)]
    for seed, path in enumerate(finetuned, start=1):
        save_file(tensors(base, seed), path)
    base, options = folder / "base.safetensors", {"device": "cpu"}
    return {
        "edit": monosoup_cli.edit(base, finetuned[0], folder / "edit", **options),
        "several": monosoup_cli.edit(base, finetuned[0], folder / "several", energy=[0.5, 0.8], **options),
        "scored": monosoup_cli.edit(
            base,
            finetuned[0],
            folder / "scored",
            energy=[0.5, 0.8],
            wise="0.5,1",
            score=["in=cksum {}/model.safetensors | cut -d' ' -f1", "out=wc -c < {}/model.safetensors"],
            **options,
        ),
        "search": monosoup_cli.search(
            base,
            finetuned[0],
            folder / "search",
            score=["in=wc -c < {}", "out=wc -c < {}"],
            prefer="in",
            budget=3,
            **options,
        ),
        "stock": monosoup_cli.stock(base, finetuned, folder / "stock", **options),
        "soup": monosoup_cli.soup(finetuned, folder / "soup", **options),
        "greedy": monosoup_cli.soup(
            finetuned,
            folder / "greedy",
            greedy=True,
            score_command="cksum {}/*.safetensors {} 2> /dev/null | head -n 1 | cut -c 1-2",
            **options,
        ),
        "sfgs": monosoup_cli.sfgs(base, finetuned, folder / "sfgs", threshold=0.1, **options),
        "wise": monosoup_cli.wise(base, finetuned[0], folder / "wise", alpha=0.5, **options),
        "swept": monosoup_cli.wise(
            base,
            finetuned[0],
            folder / "swept",
            alpha="0,0.5,1",
            score=["in=wc -c < {}/model.safetensors", "out=wc -c < {}/model.safetensors"],
            **options,
        ),
        "lines": monosoup_cli.lines(base, finetuned[0], folder / "lines", alpha=0.3, beta=0.7, **options),
    }


@pytest.fixture(scope="module")
def inspected(reports):
    """A report with what an inspection of several fine-tunes measures beside the measures of edit."""
    report = json.loads(json.dumps(reports["edit"]))
    report["command"] = "inspect-spectrum"
    del report["output"]
    for layer in report["layers"]:
        for part in layer.get("slices", [layer]):
            if part["reason"] is None:
                values = [0.5 * ratio * part["sigma_max"] for ratio in part["spectrum"]]
                part |= {"singular_values": values, "rounding_sigma": 0.3 * part["sigma_max"]}
                part |= {"rank_above_rounding": 3, "cosine": 0.1, "ratio": 0.25, "clamped": False}
                part["cosines"] = [0.0, 0.1, 0.2]
    selection = reports["sfgs"]["selection"]
    report["similarity"] = {
        name: selection[name] for name in ("layers", "candidates", "similarity", "thresholds")
    }
    return report


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens a report's page, or this text. What goes wrong fails the test at its end."""
    contexts, wrong = [], []

    def opened(report, sentences=(), text=None, width=1280, **options):
        path = tmp_path / f"page-{len(contexts)}.html"
        path.write_text(text or page(report, sentences), "utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        view = context.new_page()

        def route(route):
            if route.request.url == path.as_uri():
                return route.continue_()
            wrong.append(f"request {route.request.url}")
            return route.abort()

        view.route("**/*", route)
        view.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        view.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        view.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        view.goto(path.as_uri())
        settle(view)
        return view

    yield opened
    for context in contexts:
        settle(context.pages[0])
        context.close()
    assert wrong == []


def settle(view):
    """Wait until what follows a change has been drawn."""
    view.evaluate("""() => new Promise(
      done => requestAnimationFrame(() => setTimeout(() => requestAnimationFrame(done))))""")


def names(view):
    """The rows in sight, by name."""
    return view.locator("#box tbody tr:not([hidden]) > th").all_text_contents()


def row(view, name):
    return view.locator("#box tbody tr", has=view.get_by_text(name, exact=True))


def pixels(view, selector="#panel canvas"):
    return view.locator(selector).first.evaluate("canvas => canvas.toDataURL()")


def broken(view):
    """Texts with an option that may be broken after its dashes. A chart's legend has lines of its own."""
    return view.evaluate(r"""() => {
      const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
      while (walk.nextNode()) {
        const { data, parentElement: parent } = walk.currentNode;
        const isRead = !parent.closest("script, .u-legend");
        if (isRead && /(^|[^\w-])--[a-z]/.test(data) && getComputedStyle(parent).textWrapMode !== "nowrap") {
          found.push(data);
        }
      }
      return found;
    }""")


def figures(view):
    return view.locator("#pictures h3").all_text_contents()


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("edit", ["λ_high and λ_low over depth", "k/r in model.layers"]),
        ("several", []),
        ("scored", ["in over --wise (1 = full edit)", "out over --wise (1 = full edit)", "out against in"]),
        ("search", ["out against in"]),
        ("stock", ["Ratio over depth", "Cosines of the updates of two checkpoints"]),
        ("soup", []),
        ("greedy", []),
        ("sfgs", ["How alike the updates of the checkpoints are"]),
        ("wise", []),
        ("lines", ["Scale over depth"]),
    ],
)
def test_every_report_has_its_page(opened, reports, name, pictures):
    report = reports[name]
    view = opened(report, WORDS)
    command = "search" if name == "search" else report["command"]
    assert view.title() == f"{name} · monosoup {command}"
    assert broken(view) == []
    assert re.match(rf"{name}\s*monosoup {command}, version", view.locator("h1").inner_text())
    said = view.locator(".sentences li").all_text_contents()
    assert said[len(said) - len(WORDS) :] == WORDS
    assert ("so they are likely too high for it" in said[0]) == ("search" in report)
    assert all(source["source"] in view.locator("#head").inner_text() for source in report["inputs"])
    assert view.locator("#layers").is_visible() == ("layers" in report)
    if "layers" in report:
        assert names(view) == [entry["name"] for entry in rows_of(report)]
        assert f"{report['summary']['edited']} tensors of" in view.locator("#head").inner_text()
    else:
        lines = view.locator(".outputs tbody th")
        paths = [output["path"] for output in report["outputs"]]
        assert lines.all_inner_texts() == [Path(path).name for path in paths]
        assert [line.get_attribute("title") for line in lines.all()] == paths
    assert figures(view) == pictures
    assert view.locator("#pictures").is_visible() == bool(pictures)
    assert view.locator("#pictures canvas").count() == sum(
        "over" in title or "against" in title or "Cos" in title for title in pictures
    )
    assert view.locator("#panel").is_visible() == (name == "edit")


def test_the_scores_of_a_sweep(opened, reports):
    """In the table, and under the pointer in the first picture: a curve for each R."""
    outputs = reports["scored"]["outputs"]
    view = opened(reports["scored"])
    headings = view.locator("#head thead th").all_inner_texts()
    assert [headings[0], *headings[2:4]] == ["output", "in", "out"]
    cells = [
        line.all_inner_texts() for line in (row.locator("td") for row in view.locator("#head tbody tr").all())
    ]
    out, best = f"{outputs[0]['scores']['out']:g}", max(output["scores"]["in"] for output in outputs)
    assert [line[2].removesuffix(" best") for line in cells] == [out] * 4
    assert ["best" in line[1] for line in cells] == [output["scores"]["in"] == best for output in outputs]
    legend = view.locator("#pictures .u-legend").first.locator("th").all_text_contents()
    assert [text.strip() for text in legend] == ["--wise (1 = full edit)", "R = 0.5", "R = 0.8"]


def test_the_page_of_a_search_has_its_candidates(opened, reports):
    """The best in the preferred score first; and its words, but none that it does not use."""
    search = reports["search"]["search"]
    view = opened(reports["search"])
    view.locator(".candidates").evaluate("details => { details.open = true; }")
    tried = [one for one in search["candidates"] if "same_as" not in one]
    tried.sort(key=lambda one: -one["scores"][search["prefer"]])
    lines = view.locator(".candidates tbody tr").all()
    assert [line.locator("th").inner_text() for line in lines] == [one["candidate"] for one in tried]
    of = {line.locator("th").inner_text(): line.locator("td").last.inner_text() for line in lines}
    assert "base" in of["wise --alpha 0"]
    assert "fine-tuned" in of["wise --alpha 1"]
    assert [label for label, role in of.items() if "chosen" in role] == [search["chosen"]]
    words = view.locator("#glossary dt").all_text_contents()
    assert "Pareto front" in words
    assert "No candidate beats those of the Pareto front in both." in view.locator("#pictures").inner_text()
    (chart,) = charts_of(reports["search"])
    named = {name for curve in chart.curves for name in curve.names if name}
    assert {name.removesuffix(", chosen") for name in named} >= {"base", "fine-tuned"}
    several = {**reports["search"], "search": {**search, "finetuned": search["finetuned"] * 2}}
    (chart,) = charts_of(several)
    named = {name.removesuffix(", chosen") for curve in chart.curves for name in curve.names}
    assert named >= {"base", "mean"}
    assert "Pareto front" not in opened(reports["edit"]).locator("#glossary dt").all_text_contents()
    swept = opened(reports["scored"]).locator("#glossary dt").all_text_contents()
    assert "--wise" in swept
    view = opened(reports["swept"])
    assert "WiSE α" in view.locator("#glossary dt").all_text_contents()
    place = view.locator("#head th span", has_text="WiSE α, from base (0)")
    place.hover()
    assert view.locator("#tip").inner_text().startswith("How far WiSE-FT goes from the base (0)")
    meaning = view.locator(f"[id='{place.get_attribute('aria-describedby')}']")
    assert meaning.text_content() == view.locator("#tip").inner_text()
    assert "spectrum" not in swept


def scored_as(report, **scores):
    """A report of a sweep, with these scores of its outputs."""
    made = json.loads(json.dumps(report))
    for at, output in enumerate(made["outputs"]):
        output["scores"] = {name: values[at] for name, values in scores.items()}
    return made


def test_a_sweep_says_which_output_is_best_and_what_the_choice_does(reports):
    ends = "alpha-0 is the base checkpoint and alpha-1 is the fine-tuned checkpoint."
    bias = "score the checkpoint on other data."
    *_, named, first, second, chosen = opening(scored_as(reports["swept"], a=[70, 81.5, 80], b=[90, 75, 60]))
    assert named == ends
    assert first == "alpha-0.5 has the best 'a', 81.5: +1.5 against fine-tuned."
    assert second == "alpha-0 has the best 'b', 90: +30 against fine-tuned."
    assert chosen.startswith("A best of 3 that is picked by a score is flattered by it")
    assert chosen.endswith(bias)
    *_, named, first, _ = opening(scored_as(reports["swept"], a=[1, 2, 2]))
    assert first == "alpha-0.5 and alpha-1 (the fine-tuned checkpoint) have the best 'a', 2."
    *_, named, first = opening(scored_as(reports["swept"], a=[2, 2, 2]))  # nothing was chosen
    assert (named, first) == (ends, "All 3 have the same score 'a', 2.")
    # the α of an edit does not begin at the base, and the sweep has no fine-tuned checkpoint
    *_, first, chosen = opening(scored_as(reports["scored"], a=[3, 2, 1, 0]))
    best = Path(reports["scored"]["outputs"][0]["path"]).name
    assert first == f"{best} has the best 'a', 3."
    assert bias in chosen
    assert bias not in " ".join(opening(reports["wise"]))


WRITTEN = """() => {
  const texts = [], draw = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
    const { actualBoundingBoxLeft: left, actualBoundingBoxRight: right } = this.measureText(text);
    texts.push([text, place[0] - left, place[0] + right, this.canvas.width]);
    return draw.call(this, text, ...place);
  };
  redraw();
  return new Promise((done) => setTimeout(() => done(texts), 100));
}"""
"""Draws the charts of a page again, and says what is written where, and how wide each canvas is."""


def test_the_points_of_a_sweep_have_names(opened, reports):
    """Beside each point stands what it was swept to; the ends of WiSE-FT also say what they are."""
    view = opened(scored_as(reports["swept"], a=[70, 81.5, 80], b=[90, 75, 60]))
    written = view.evaluate(WRITTEN)
    names = {"0 (base)", "0.5", "1 (fine-tuned)"}
    assert names <= {text for text, *_ in written}
    assert "The numbers beside the points are values of WiSE α." in view.locator("figure").last.inner_text()
    from matplotlib.figure import Figure

    chart = charts_of(scored_as(reports["swept"], a=[70, 81.5, 80], b=[90, 75, 60]))[-1]
    assert [name for curve in charts_of(reports["scored"])[-1].curves for name in curve.names] == [
        *["0.5", "1 (full edit)"] * 2
    ]
    draw_chart(whole := Figure().subfigures(1, 1), chart)
    assert {text.get_text(): text.xy for text in whole.axes[0].texts} == {
        "0 (base)": (70, 90),
        "0.5": (81.5, 75),
        "1 (fine-tuned)": (80, 60),
    }


@pytest.mark.parametrize("values", [[70, 81.5, 80], [80, 80.1, 70], [70, 80, 79.9]])
def test_on_a_small_screen_names_of_points_stay_in_the_picture(opened, reports, values):
    report = scored_as(reports["swept"], a=values, b=[90, 75, 60])
    named = {name for chart in charts_of(report) for curve in chart.curves for name in curve.names if name}
    written = [one for one in opened(report, width=360).evaluate(WRITTEN) if one[0] in named]
    assert {text for text, *_ in written} == named
    assert all(left >= 0 and right <= canvas for _, left, right, canvas in written), written


def test_the_legend_of_one_curve_shows_only_what_is_under_the_pointer(opened, reports):
    view = opened(scored_as(reports["swept"], a=[70, 81.5, 80]))
    legend = view.locator(".u-legend").first
    assert not legend.is_visible()
    place = view.locator("#pictures .u-over").first
    place.hover()
    assert legend.is_visible()
    assert [text.strip() for text in legend.locator(".u-value").all_text_contents()] == ["0.5000", "81.50"]


def test_the_legend_of_layers_shows_no_values_that_are_not_pointed_at(opened, reports):
    view = opened(reports["edit"])
    for legend, place in (
        ("#panel .u-legend", "#panel .u-over"),
        ("#pictures .u-legend", "#pictures .u-over"),
    ):
        view.locator("h1").hover()
        across, *others = view.locator(legend).first.locator(".u-series").all()
        assert not across.is_visible()
        assert [one.locator(".u-value").text_content() for one in others] == [""] * len(others)
        view.locator(place).first.hover()
        assert across.is_visible()
        assert all(float(one.locator(".u-value").text_content()) > 0 for one in others)


def test_all_names_or_none_have_their_end_and_their_start(opened, reports):
    """Also those with room for it."""
    view = opened(reports["edit"])
    cells = view.locator("#box tbody tr > th")
    short = "cells => cells.map(cell => cell.dataset.short ?? cell.textContent)"
    for width, has_ends in ((500, False), (1200, False), (1900, True)):
        view.set_viewport_size({"width": width, "height": 900})
        settle(view)
        shown = cells.evaluate_all(short)
        assert any(name.endswith(".weight") for name in shown) == has_ends
        of_blocks = [name for name in shown if re.search(r"\b[0-2]\.", name)]
        assert len(of_blocks) == 21
        assert {name.startswith("…") for name in of_blocks} == {not has_ends}


def test_few_columns_fit_a_narrow_screen(opened, reports):
    edited = [layer for layer in reports["wise"]["layers"] if layer["reason"] is None]
    view = opened({**reports["wise"], "layers": edited}, width=500)
    assert view.locator("#box").evaluate("box => box.scrollWidth <= box.clientWidth")
    cut = "cells => cells.filter(cell => cell.scrollWidth > cell.clientWidth).map(cell => cell.textContent)"
    assert view.locator("#box tbody td").evaluate_all(cut) == []


@pytest.mark.parametrize("width", [1200, 500])
def test_few_layers_leave_no_empty_room(opened, reports, width):
    view = opened(changed(reports["edit"], {}) | {"layers": reports["edit"]["layers"][:3]}, width=width)
    box, last = (view.locator(one).last.bounding_box() for one in ("#box", "#box tbody tr"))
    # what is left is the border, and the bar that scrolls sideways
    assert box["y"] + box["height"] - last["y"] - last["height"] < 20


@pytest.mark.parametrize(("name", "word"), [("wise", "scores"), ("search", "final scores")])
def test_the_scores_of_one_checkpoint_are_at_the_top(opened, reports, name, word):
    output = {**reports[name]["output"], "scores": {"clean": 98.25, "shifted": 64}}
    facts = opened({**reports[name], "output": output}).locator("#head dl").inner_text().splitlines()
    assert facts[facts.index(word) + 1] == "clean 98.25, shifted 64"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("edit", ["kept", "excluded 1,234, vector 2"]),
        ("soup", ["kept", "excluded 1,234 (averaged where all have them in one shape), vector 2"]),
    ],
)
def test_what_became_of_the_tensors_that_are_left_out(opened, reports, name, said):
    summary = {**reports[name]["summary"], "kept": {"vector": 2, "excluded": 1234}}
    facts = opened({**reports[name], "summary": summary}).locator("#head dl").inner_text().splitlines()
    assert facts[facts.index("kept") :][:2] == said


def test_a_sweep_is_a_picture_of_its_outputs(opened, reports):
    """A bar is as long as its number says: the mean equivalent α, times --wise."""
    outputs = reports["scored"]["outputs"]
    expected = [
        output["summary"]["means"]["equivalent_alpha"] * output["arguments"]["wise"] for output in outputs
    ]
    view = opened(reports["scored"])
    assert len({f"{reach:.3f}" for reach in expected}) == 4
    bars = view.locator(".bar").all()
    shares = [bar.evaluate("bar => bar.firstChild.offsetWidth / bar.clientWidth") for bar in bars]
    assert shares == pytest.approx(expected, abs=0.01)
    shown = view.locator(".outputs .value").all_inner_texts()
    assert list(map(float, shown)) == pytest.approx(expected, rel=5e-3)
    sizes = [sum(file["bytes"] for file in output["files"]) for output in outputs]
    written = view.locator(".outputs tbody tr > :last-child").all_inner_texts()
    assert written == [f"{size / 1000:.3g} kB" for size in sizes]


def test_the_trials_of_a_greedy_soup(opened, reports):
    selection = reports["greedy"]["selection"]
    alone = {one["source"]: one["score"] for one in selection["scores"]}
    view = opened(reports["greedy"])
    lines = [line.locator("th, td").all_inner_texts() for line in view.locator("#head tbody tr").all()]
    assert lines == [
        [
            Path(trial["candidate"]).name,
            f"{alone[trial['candidate']]:g}",
            f"{trial['score']:g}",
            "joined" if trial["joined"] else "left out",
        ]
        for trial in selection["trials"]
    ]


OPENINGS = {
    "edit": r"^MonoSoup edited what fine-tuning changed from base\.safetensors to finetuned-1\.safetensors\."
    r" It edited 17 of 21 tensors, .* \(equivalent α 0\.\d\d\)\.$",
    "several": r"^MonoSoup edited .*, as 2 checkpoints\. .* On average over the layers, the"
    r" results lie \d+% to \d+% of the way",
    "stock": r"^Model Stock moved from base\.safetensors towards the mean of 3 checkpoints\. .* to the mean"
    r" of the fine-tuned checkpoints \(mean ratio 0\.\d\d\)\.$",
    "soup": r"^A model soup: the mean of 3 checkpoints\. It edited",
    "greedy": r"^A greedy soup: (the mean of \d|\S+ alone,) of 3 checkpoints, chosen by their scores\.",
    "sfgs": r"^A soup: the mean of \d of 3 checkpoints, chosen by how alike their updates are\.",
    "wise": r"^WiSE-FT interpolated between base\.safetensors and .* 50% of the way .* \(WiSE α 0\.50\)\.$",
    "lines": r"^LiNeS scaled what .* by the depth of each layer\. .* \(mean scale 0\.\d\d\)\.$",
    "search": r"^A search tried \d+ candidates between base\.\S+ and finetuned-1\.safetensors, and chose .*\."
    r" It is the candidate with the best 'in', whatever it costs in 'out'\. The choice has",
}


@pytest.mark.parametrize("name", OPENINGS)
def test_a_page_begins_with_what_was_done(reports, name):
    assert re.search(OPENINGS[name], " ".join(opening(reports[name])))


@pytest.mark.parametrize(
    ("command", "sources", "arguments", "said"),
    [
        ("transplant", ["ft"], {"scale": 1.0}, "Task arithmetic added to onto the update of ft from base."),
        (
            "transplant",
            ["a", "b"],
            {"scale": [0.5, -1.0]},
            "Task arithmetic added to onto the updates of 2 checkpoints from base, times 0.5, -1.",
        ),
        ("soup", ["a", "b"], {"weights": [3, 1]}, "A model soup: the weighted mean of 2 checkpoints."),
        ("merge", ["a", "b"], {"weights": [1, 2]}, "The weighted sum of 2 LoRA adapters merged into base."),
        ("merge", ["a"], {"scale": 0.5}, "1 LoRA adapter merged into base, times 0.5."),
        (
            "extract",
            ["a", "b"],
            {"scale": 2.0},
            "A LoRA adapter extracted from what fine-tuning changed from base to the mean of 2 checkpoints,"
            " times 2.",
        ),
    ],
)
def test_the_opening_says_how_several_are_added(reports, command, sources, arguments, said):
    roles = [("base", "base"), *(("finetuned", one) for one in sources), ("onto", "onto")]
    inputs = [{"role": role, "source": source} for role, source in roles]
    report = {**reports["soup"], "command": command, "inputs": inputs}
    assert opening(report | {"arguments": report["arguments"] | arguments})[0] == said


def test_the_opening_has_the_means_of_the_report(opened, reports):
    means = reports["edit"]["summary"]["means"]
    words = opened(reports["edit"]).locator("h1 + .opening").inner_text()
    for name, after in (("lambda_high", " of the strong"), ("lambda_low", " of its weak")):
        assert f"{100 * means[name]:.0f}%{after}" in words
    assert f"lies {100 * means['equivalent_alpha']:.0f}% of the way" in words


@pytest.mark.parametrize(
    ("width", "in_sight"),
    [(1200, ["λ_high", "λ_low", "k/r", "equivalent α", "‖Δ‖/‖W0‖"]), (500, ["λ_high", "λ_low", "k/r"])],
)
def test_columns_that_matter_are_in_sight_and_names_give_way(opened, reports, width, in_sight):
    report = many(reports["edit"], 120)
    for layer in report["layers"]:
        layer["name"] = f"base_model.model.language_model.{layer['name']}"
    view = opened(report, width=width)
    box = view.locator("#box").bounding_box()
    for title in in_sight:
        head = view.locator("#box thead th", has_text=title).bounding_box()
        assert head["x"] + head["width"] <= box["x"] + box["width"], title
    name = view.locator("#box tbody tr > th").nth(93)
    full = report["layers"][93]["name"]
    assert name.text_content() == name.get_attribute("title") == full
    short = name.get_attribute("data-short")
    assert short.startswith("…11.")
    assert short.endswith("5")
    assert len(short) < len(full)
    cut = "cell => [cell.scrollWidth > cell.clientWidth + 1, getComputedStyle(cell, '::before').content]"
    assert name.evaluate(cut) == [False, f'"{short}" / ""']
    for other, expected in ((1900, full.removesuffix(".weight")), (width, short)):
        view.set_viewport_size({"width": other, "height": 900})
        settle(view)
        assert name.get_attribute("data-short") == expected


def test_what_is_from_before_wise_is_said_beside_every_figure(opened, reports):
    """At the means, at the layers, and at their picture; of a sweep, at its outputs."""
    edit = reports["edit"]
    view = opened({**edit, "arguments": {**edit["arguments"], "wise": 0.5}})
    before = view.locator(".note", has_text="anisotropy are from before --wise 0.5.")
    parents = [
        one.evaluate("note => note.parentNode.className || note.parentNode.localName") for one in before.all()
    ]
    assert parents == ["div", "section", "aside", "figcaption"]
    assert all(one.is_visible() for one in before.all())
    kept = row(view, "model.layers.0.input_layernorm.weight")
    kept.hover()
    assert view.locator("#panel p").all_inner_texts() == ["other, 12, F32, kept: vector (moved by --wise)"]
    assert "vector (moved by --wise)" in kept.locator("td").all_inner_texts()
    swept = opened(reports["scored"]).locator("#head .note").all_inner_texts()
    assert swept == ["λ_high, λ_low, equivalent α and anisotropy are from before --wise."]
    assert "from before" not in opened(edit).locator("body").inner_text()


def test_words_are_explained(opened, reports):
    view = opened(reports["edit"])
    tip, meaning = view.locator("#tip"), MEANINGS["k_ratio"]
    assert not tip.is_visible()
    button = view.locator("th[data-column=k_ratio] button")
    button.hover()
    assert (tip.is_visible(), tip.inner_text()) == (True, meaning)
    view.locator("h1").hover()
    assert not tip.is_visible()
    button.focus()
    assert (tip.is_visible(), tip.inner_text()) == (True, meaning)
    view.keyboard.press("Escape")
    assert not tip.is_visible()
    view.locator("#glossary summary").click()
    entries = dict(
        zip(
            view.locator("#glossary dt").all_inner_texts(),
            view.locator("#glossary dd").all_inner_texts(),
            strict=True,
        )
    )
    assert entries["k/r"] == meaning
    assert {"update", "λ_high", "cos low", "equivalent α"} <= entries.keys()
    assert "WiSE α" not in entries  # it is no measure of this report
    described = button.get_attribute("aria-describedby")
    assert view.locator(f"#{described}").inner_text() == meaning


def test_every_measure_with_a_label_is_explained():
    assert MEANINGS.keys() == LABELS.keys()


def test_numbers_are_those_of_the_report(opened, reports):
    view = opened(reports["edit"])
    titles = view.locator("#box thead th").all_inner_texts()
    cells = row(view, "model.layers.1.self_attn.q_proj.weight").locator("th, td").all_text_contents()
    shown = dict(zip(titles, cells, strict=True))
    (layer,) = (each for each in rows_of(reports["edit"]) if each["name"] == shown["name"])
    assert (shown["kind"], shown["block"], shown["shape"]) == ("attention", "1", "12 × 12")
    for title, measure in {"k": "k", "k/r": "k_ratio", "λ_high": "lambda_high", "‖Δ‖": "update_norm"}.items():
        assert float(shown[title]) == pytest.approx(layer[measure], rel=5e-3), title
    kept = row(view, "frozen").locator("th, td").all_text_contents()
    assert dict(zip(titles, kept, strict=True))["why kept"] == "unchanged"
    assert dict(zip(titles, kept, strict=True))["λ_high"] == ""


@pytest.mark.parametrize("measure", ["rho", "k_ratio", "update_norm"])
def test_a_click_sorts_and_another_turns_the_order(opened, reports, measure):
    view = opened(reports["edit"])
    head = view.locator(f"th[data-column={measure}]")
    rows = rows_of(reports["edit"])
    known = [each for each in rows if each[measure] is not None]
    unknown = [each["name"] for each in rows if each[measure] is None]
    assert unknown
    for direction in ("ascending", "descending"):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == direction
        ordered = sorted(known, key=lambda each: each[measure], reverse=direction == "descending")
        assert names(view) == [*(each["name"] for each in ordered), *unknown]
    assert view.locator("th[aria-sort]").count() == 1


def test_the_keyboard_sorts_too(opened, reports):
    view = opened(reports["edit"])
    rows = [each for each in rows_of(reports["edit"]) if each["k"] is not None]
    button = view.locator("th[data-column=sigma_max] button")
    button.focus()
    for key, is_reversed in (("Enter", False), ("Space", True)):
        view.keyboard.press(key)
        ordered = sorted(rows, key=lambda each: each["sigma_max"], reverse=is_reversed)
        assert names(view)[: len(rows)] == [each["name"] for each in ordered]


def test_names_sort_by_the_numbers_in_them(opened, reports):
    layer = reports["soup"]["layers"][0]
    layers = [{**layer, "name": f"layers.{block}.weight"} for block in (10, 9, *range(9))]
    view = opened({**reports["soup"], "layers": layers})
    view.locator("th[data-column=name] button").click()
    assert names(view) == [f"layers.{block}.weight" for block in range(11)]


def test_filters_by_name_kind_and_action(opened, reports):
    view = opened(reports["edit"])
    rows = rows_of(reports["edit"])

    def chosen(condition):
        found = [each["name"] for each in rows if condition(each)]
        assert names(view) == found
        assert view.locator("#count").inner_text() == f"showing {len(found)} of {len(rows)}"
        assert 0 < len(found) < len(rows)

    search = view.locator("#search")
    search.fill("Q_proj")
    chosen(lambda each: "q_proj" in each["name"])
    search.fill("model.layers.?.self_attn.*")
    chosen(lambda each: fnmatch.fnmatchcase(each["name"], "model.layers.?.self_attn.*"))
    search.fill("layers.?.self_attn.*")  # a glob is for whole names
    assert names(view) == []
    search.fill("experts.down_proj[1]")
    chosen(lambda each: each["name"].endswith("experts.down_proj[1]"))
    search.fill("attention")
    chosen(lambda each: each["kind"] == "attention")
    search.fill("")
    view.locator("#kind").select_option("mlp")
    chosen(lambda each: each["kind"] == "mlp")
    search.fill("layers.2")
    chosen(lambda each: each["kind"] == "mlp" and "layers.2" in each["name"])
    search.fill("")
    view.locator("#kind").select_option("")
    view.locator("#hide-kept").check()
    chosen(lambda each: each["reason"] is None)
    view.locator("#hide-kept").uncheck()
    search.fill("[")
    chosen(lambda each: "[" in each["name"])
    search.fill("no such layer")
    assert (names(view), view.locator("#count").inner_text()) == ([], f"showing 0 of {len(rows)}")


def test_a_filter_stays_through_a_sort(opened, reports):
    view = opened(reports["edit"])
    view.locator("#search").fill("k_proj")
    view.locator("th[data-column=rho] button").click()
    found = [each for each in rows_of(reports["edit"]) if "k_proj" in each["name"]]
    assert names(view) == [each["name"] for each in sorted(found, key=lambda each: each["rho"])]


def in_hand(view):
    """The panel's layer and its spectrum, after checking that the panel, the table and the title agree."""
    data = view.locator("#panel").evaluate("panel => ({...panel.dataset})")
    assert view.locator("#panel h3").inner_text() == data["layer"]
    assert view.locator("tr[aria-selected=true] > th").all_text_contents() == [data["layer"]]
    return data["layer"], [float(value) for value in data["spectrum"].split()]


def test_the_spectrum_of_the_row_under_the_pointer(opened, reports):
    view = opened(reports["edit"])
    seen = {pixels(view)}
    for name in ("model.layers.0.self_attn.o_proj.weight", "model.layers.1.mlp.experts.down_proj[1]"):
        row(view, name).hover()
        (layer,) = (each for each in rows_of(reports["edit"]) if each["name"] == name)
        shown, spectrum = in_hand(view)
        assert shown == name
        assert spectrum == pytest.approx(layer["spectrum"], rel=1e-3)
        assert f"k\n{layer['k']}\n" in view.locator("#panel").inner_text()
        seen.add(pixels(view))
    assert len(seen) == 3
    row(view, "frozen").hover()
    assert in_hand(view) == ("frozen", [])
    assert view.locator("#panel canvas").count() == 0
    assert "kept: unchanged" in view.locator("#panel").inner_text()


def test_the_keyboard_walks_through_the_rows(opened, reports):
    view = opened(reports["edit"])
    order = names(view)
    first = next(each["name"] for each in rows_of(reports["edit"]) if each["spectrum"])
    assert in_hand(view)[0] == first
    assert view.locator("#box tr[tabindex='0'] > th").all_text_contents() == [first]
    view.locator("#box tr[tabindex='0']").focus()
    seen, at = {pixels(view)}, order.index(first)
    for key, to in [
        ("ArrowDown", at + 1),
        ("j", at + 2),
        ("ArrowUp", at + 1),
        ("k", at),
        ("End", len(order) - 1),
        ("ArrowDown", len(order) - 1),
        ("Home", 0),
        ("ArrowUp", 0),
    ]:
        view.keyboard.press(key)
        assert in_hand(view)[0] == order[to], key
        assert view.evaluate("document.activeElement.firstChild.textContent") == order[to]
    view.locator("#search").fill("q_proj")
    view.locator("th[data-column=name] button").click()
    view.locator("th[data-column=name] button").click()
    assert view.locator("#box tr[tabindex='0']:not([hidden])").count() == 1
    view.locator("#box tr[tabindex='0']").focus()
    view.keyboard.press("Home")
    for block in (2, 1, 0):
        assert in_hand(view)[0] == f"model.layers.{block}.self_attn.q_proj.weight"
        seen.add(pixels(view))
        view.keyboard.press("ArrowDown")
    assert len(seen) >= 4


def test_rows_far_down_are_filled_when_they_come_into_sight(opened, reports):
    view = opened(many(reports["edit"], 300))
    last = view.locator("#box tbody tr").last
    last.scroll_into_view_if_needed()
    settle(view)
    assert last.locator("td").count() == view.locator("#box thead th").count() - 1


def test_an_inspection_of_several(opened, inspected):
    view = opened(inspected)
    assert figures(view) == [
        "λ_high and λ_low over depth",
        "Ratio over depth",
        "Cosines of the updates of two checkpoints",
        "k/r in model.layers",
        "How alike the updates of the checkpoints are",
    ]
    label = LABELS.get("rank_above_rounding", "rank above rounding")
    assert f"{label}\n3\n" in view.locator("#panel").inner_text()
    _, spectrum = in_hand(view)
    assert spectrum[0] == 1  # from singular values, which are in the units of the weights
    matrix = view.locator(".map.listed tbody tr")
    shown = [[float(text) for text in line.locator("td").all_text_contents()] for line in matrix.all()]
    assert shown == [[round(value, 3) for value in line] for line in inspected["similarity"]["similarity"]]


def changed(report, change):
    """A copy of the report, with the change made to every layer that was measured."""
    report = json.loads(json.dumps(report))
    for layer in report["layers"]:
        for part in layer.get("slices", [layer]):
            if part["reason"] is None:
                part.update(change)
    return report


def test_k_and_rounding_are_marked(opened, inspected):
    changes = ({}, {"k": None}, {"rounding_sigma": None})
    assert len({pixels(opened(changed(inspected, change))) for change in changes}) == 3


def test_all_singular_values_are_thinned_evenly(reports):
    report = json.loads(json.dumps(reports["edit"]))
    layer = next(layer for layer in report["layers"] if layer["reason"] is None and "slices" not in layer)
    layer["singular_values"] = [2 * 0.999**index for index in range(4001)]
    text = page(report, [])
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    (found,) = (
        dict(zip(data["columns"], row, strict=True))
        for row in data["rows"]
        if row[data["columns"].index("name")] == layer["name"]
    )
    expected = [0.999 ** round(4000 * point / 255) for point in range(256)]
    assert found["spectrum"] == pytest.approx(expected, rel=1e-3)
    assert "singular_values" not in found


def with_spectrum(report, spectrum):
    """The report with this spectrum in every layer that was measured."""
    return changed(report, {"spectrum": spectrum, "rank": len(spectrum), "k": 1})


def test_the_curve_follows_the_spectrum(opened, reports):
    curves = [opened(with_spectrum(reports["edit"], [1.0, middle, 0.2])) for middle in (0.9, 0.9, 0.3)]
    first, same, other = map(pixels, curves)
    assert first == same != other


@pytest.mark.parametrize(
    "spectrum", [[1.0, 0.5, 0.0, 0.0], [1.0, 0.0], [1.0], [1.0, 1.0, 1.0], [1.0, 1e-300, 0.0]]
)
def test_spectra_that_no_logarithm_likes(opened, reports, spectrum):
    view = opened(with_spectrum(reports["edit"], spectrum))
    assert in_hand(view)[1] == spectrum
    shades = view.locator("#panel canvas").evaluate(
        "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    )
    assert shades > 1
    assert "NaN" not in view.locator("#box").inner_html()


def test_next_to_nothing_is_drawn_like_nothing(opened, reports):
    tails = ([0.0, 0.0], [1e-30, 1e-40])
    nothing, next_to_it = (opened(with_spectrum(reports["edit"], [1.0, 0.5, *tail])) for tail in tails)
    assert pixels(nothing) == pixels(next_to_it)


def test_the_map_holds_the_mean_of_each_block_and_part(opened, reports):
    view = opened(reports["edit"])
    parts = view.locator(".map thead th").all_inner_texts()[1:]
    rows = [each for each in rows_of(reports["edit"]) if each["k_ratio"] is not None]
    assert sorted(parts) == sorted({each["part"] for each in rows if each["block"] is not None})
    for block, line in enumerate(view.locator(".map tbody tr").all()):
        for part, text in zip(parts, line.locator("td").all_inner_texts(), strict=True):
            found = [each["k_ratio"] for each in rows if (each["block"], each["part"]) == (block, part)]
            assert len(found) == (2 if "experts" in part else 1)
            assert float(text) == pytest.approx(sum(found) / len(found), abs=0.00501)
    assert view.locator(".map td").first.get_attribute("title").startswith("block 0, ")


def contrasts(view):
    """The contrast of every text with what is behind it, by the definition of WCAG 2.2."""
    colours = view.evaluate("""() => {
      const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
      const colour = (element, name) => getComputedStyle(element)[name];
      while (walker.nextNode()) {
        const text = walker.currentNode.data, element = walker.currentNode.parentElement;
        if (!text.trim() || !element.checkVisibility() || element.closest("select")) continue;
        let behind = element;
        while (colour(behind, "backgroundColor") === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        found.push([text, colour(element, "color"), colour(behind, "backgroundColor")]);
      }
      return found;
    }""")

    def luminance(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for text, front, behind in colours:
        darker, lighter = sorted((luminance(front), luminance(behind)))
        yield text, (lighter + 0.05) / (darker + 0.05)


def test_light_and_dark(opened, inspected):
    view = opened(inspected, WORDS, color_scheme="light")
    backgrounds, drawings = [], []
    for scheme in ("light", "dark"):
        view.emulate_media(color_scheme=scheme)
        settle(view)
        backgrounds.append(view.locator("body").evaluate("body => getComputedStyle(body).backgroundColor"))
        drawings.append((pixels(view), pixels(view, "#pictures canvas")))
        found = list(contrasts(view))
        assert len(found) > 300
        assert [(text, ratio) for text, ratio in found if ratio < 4.5] == []
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]
    assert all(light != dark for light, dark in zip(*drawings, strict=True))


def test_paper_is_white_and_has_every_row(opened, reports):
    view = opened(many(reports["edit"], 200), color_scheme="dark")
    lines = view.locator("#box tbody tr")
    empty = "lines => lines.filter(line => line.children.length === 1).length"
    assert lines.evaluate_all(empty) > 100
    view.pdf()
    assert lines.evaluate_all(empty) == 0
    view.set_viewport_size({"width": 1030, "height": 700})
    view.emulate_media(media="print")
    settle(view)
    assert (
        view.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    assert view.evaluate("document.documentElement.scrollWidth") == 1030
    assert lines.evaluate_all("lines => lines.every(line => line.offsetHeight > 0)")
    assert not view.locator("#panel").is_visible()
    assert view.locator("#pictures canvas").is_visible()


def test_no_page_scrolls_sideways_on_small_screens(browser, reports, tmp_path):
    """Also where scroll bars take room once the pictures have been drawn."""
    kind, path = browser.browser_type, tmp_path / "page.html"
    options = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox", "--disable-gpu"]}
    wide = []
    with kind.launch(**options, ignore_default_args=["--hide-scrollbars"]) as visible:
        view = visible.new_page(viewport={"width": 500, "height": 2000})
        for name, report in reports.items():
            path.write_text(page(report, WORDS), "utf-8")
            view.goto(path.as_uri())
            settle(view)
            for width in (500, 360):
                if width != 500:
                    view.set_viewport_size({"width": width, "height": 2000})
                    settle(view)
                over = view.evaluate("""() => {
                  const { scrollWidth, clientWidth } = document.scrollingElement;
                  return scrollWidth - clientWidth;
                }""")
                wide += [(name, width, over)] if over else []
            view.set_viewport_size({"width": 500, "height": 2000})
    assert wide == []


@pytest.mark.parametrize("width", [1280, 800])
def test_the_page_does_not_scroll_sideways(opened, inspected, width):
    view = opened(inspected, WORDS)
    view.set_viewport_size({"width": width, "height": 900})
    settle(view)
    for details in view.locator("details").all():
        details.locator("summary").first.click()
    assert view.evaluate("document.documentElement.scrollWidth") == width
    for canvas in view.locator("canvas").all():
        assert (
            canvas.evaluate("canvas => canvas.offsetWidth - canvas.closest('.uplot').parentNode.clientWidth")
            == 0
        )
    box = view.locator("#box").evaluate(
        "box => [box.scrollWidth > box.clientWidth, box.scrollHeight > box.clientHeight]"
    )
    assert box == [True, True]


def test_the_head_of_the_table_stays(opened, reports):
    view = opened(many(reports["edit"], 200))
    top = view.locator("#box thead").bounding_box()["y"]
    view.locator("#box").evaluate("box => { box.scrollTop = 3000; box.scrollLeft = 300; }")
    assert view.locator("#box thead").bounding_box()["y"] == top
    assert view.locator("#box").evaluate("box => [box.scrollTop, box.scrollLeft]") == [3000, 300]


def test_details_hold_the_rest_of_the_report(opened, reports):
    report = reports["sfgs"]
    layers = {"*self_attn*": {"min_update": 0.1}}
    report = {**report, "arguments": {**report["arguments"], "layers": layers}}
    view = opened(report)
    for details in view.locator("details").all():
        details.locator("summary").first.click()
    text = view.locator("#details").inner_text()
    assert view.locator("#details details > summary").all_inner_texts() == [
        "Options",
        "Environment",
        "Inputs",
        "Timing",
        "Output",
        "Selection",
    ]
    files = [file for source in (*report["inputs"], report["output"]) for file in source["files"]]
    expected = [file.get("sha256") or file["header_sha256"] for file in files]
    expected += [f"{file['bytes']:,}" for file in files]
    expected += ["*self_attn*\nmin update\n0.1"]
    expected += [report["environment"]["torch"], "threshold\n0.1\n", report["selection"]["members"][0]]
    assert [each for each in expected if each not in text] == []


def test_hostile_names_are_text(opened, tmp_path):
    content = {name: torch.eye(3) for name in HOSTILE}
    save_file(content, tmp_path / "base.safetensors")
    normal = normals(0)
    save_file({name: normal(3, 3) for name in HOSTILE}, tmp_path / "<img src=x onerror=alert(3)>.safetensors")
    report = monosoup_cli.edit(
        tmp_path / "base.safetensors", tmp_path / "<img src=x onerror=alert(3)>.safetensors", tmp_path / "out"
    )
    view = opened(report, ["<script>alert(4)</script>"])
    assert sorted(names(view)) == sorted(HOSTILE.values())
    for shown in HOSTILE.values():
        row(view, shown).hover()
        assert in_hand(view)[0] == shown
    for details in view.locator("details").all():
        details.locator("summary").first.click()
    assert view.locator("body script").count() == 3
    assert view.locator("img").count() == view.locator("em").count() == 0
    assert "onerror=alert(3)" in view.locator("#head").inner_text()
    assert not set("\x1b\u202e\u2028\u2029") & set(Path(view.url.removeprefix("file://")).read_text("utf-8"))


def test_nothing_but_the_page_is_loaded(opened, reports):
    view = opened(reports["edit"])
    assert view.evaluate("performance.getEntriesByType('resource').length") == 0
    policy = view.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert policy.startswith("default-src 'none';")
    source = view.content()
    assert "The MIT License (MIT)" in source
    assert not re.search(r"<(link|iframe|object|embed|base)\b|@import|\bsrc=", source)


def test_without_javascript_it_says_so(browser, reports, tmp_path):
    (tmp_path / "page.html").write_text(page(reports["edit"], []), "utf-8")
    with browser.new_context(java_script_enabled=False) as context:
        view = context.new_page()
        view.goto((tmp_path / "page.html").as_uri())
        assert "JavaScript" in view.locator("noscript").inner_text()


def many(report, count):
    """The report with as many layers, each like one of its own."""
    edited = [layer for layer in report["layers"] if layer["reason"] is None and "slices" not in layer]
    layers = [
        {
            **edited[number % len(edited)],
            "name": f"model.layers.{number // 8}.part_{number % 8}.weight",
            "rho": number**2 % 997 / 997,
        }
        for number in range(count)
    ]
    return {**report, "layers": layers}


def test_two_thousand_layers(opened, reports):
    report = many(reports["edit"], 2000)
    view = opened(report)
    assert len(names(view)) == 2000
    view.locator("th[data-column=rho] button").click()
    assert names(view) == [
        layer["name"] for layer in sorted(report["layers"], key=lambda layer: layer["rho"])
    ]
    view.locator("#search").fill("part_3")
    assert view.locator("#count").inner_text() == "showing 250 of 2,000"
    last = names(view)[-1]
    view.locator("#box tr[tabindex='0']").focus()
    view.keyboard.press("End")
    assert in_hand(view)[0] == last
    assert figures(view) == ["λ_high and λ_low over depth", "k/r in model.layers"]


@pytest.mark.parametrize("width", [1200, 360])
def test_two_reports_side_by_side(opened, reports, width):
    first, second = reports["edit"], changed(reports["edit"], {"lambda_low": 0.9})
    del second["layers"][0]
    second["arguments"]["energy"] = 0.8
    hostile = "<img src=x onerror=alert(1)>"
    found = compare_reports(first, second)
    view = opened(None, text=comparison_page(found, (first, second), ("a", hostile)), width=width)
    assert view.locator("img, script").count() == 0
    assert view.evaluate("document.documentElement.scrollWidth") == width
    rows = sum(row["k"] is not None for row in rows_of(second))
    assert view.title() == f"a and {hostile} · monosoup compare"
    opening_words = view.locator(".opening").inner_text()
    assert opening_words.startswith(f"a and {hostile} differ in {len(found['changed'])} of the ")
    assert len(found["changed"]) == rows
    tables = {
        section.locator("h2").inner_text(): [
            line.locator("th, td").all_inner_texts() for line in section.locator("tbody tr").all()
        ]
        for section in view.locator("section").all()
    }
    assert tables["Settings that differ"] == [["energy", "not set", "0.8"]]
    assert ["k/r", *[f"{first['summary']['means']['k_ratio']:.4g}"] * 2, "none"] in tables[
        "Means over the layers"
    ]
    expected = sorted(
        (
            each
            for each in rows_of(first)
            if each["k"] is not None and each["name"] != first["layers"][0]["name"]
        ),
        key=lambda each: -abs(0.9 - each["lambda_low"]),
    )
    shown = tables["Tensors that differ"]
    assert [line[0] for line in shown] == [each["name"] for each in expected]
    assert [line[1] for line in shown] == [f"{0.9 - each['lambda_low']:.3g} in λ_low" for each in expected]
    bars = view.locator("section").last.locator(".bar").all()[:2]
    lengths = [bar.evaluate("bar => bar.firstChild.getBoundingClientRect().width") for bar in bars]
    shares = [0.9 - each["lambda_low"] for each in expected[:2]]
    assert lengths[1] / lengths[0] == pytest.approx(shares[1] / shares[0], rel=0.02)
    assert view.locator("li", has_text=first["layers"][0]["name"]).count() == 1
