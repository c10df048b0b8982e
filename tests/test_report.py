"Every plot draws whatever a run may leave, with no pyplot, in any thread, and says what it has no data for."
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from test_export import NASTY, make_manifest, make_row, write_run

from llmdata_nb.export import read_folder, write_card
from llmdata_nb.report import label, plot_calls, plot_funnel, plot_labels, plot_languages, plot_lengths, plot_scores, run_plots, save_plots, to_png

ALL = ["funnel", "labels", "scores", "lengths", "languages", "calls"]


def full_row(i, **columns):
    row = make_row(i, detected_language="it", detected_confidence=0.9, **columns)
    return dict(row, source_messages=[dict(role=m["role"], content="hello") for m in row["messages"]])


def draw(figure):
    "Draw `figure` with every warning an error: missing glyphs, bad layout"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_png(figure).startswith(b"\x89PNG")
    return figure


def texts(figure): return [t.get_text() for ax in figure.axes for t in ax.texts]


@pytest.mark.parametrize("rows", [[], [dict(id="d0", messages=None)], [make_row(0)], [full_row(0)], [full_row(i, reason="x: y") for i in range(3)]],
                         ids=["none", "bare", "untranslated", "one", "dropped"])
def test_every_plot_draws_any_rows(rows):
    for figure in (plot_scores(rows, min_score=3), plot_scores(rows, "fidelity_score"), plot_labels(rows), plot_lengths(rows), plot_languages(rows, "it")): draw(figure)


def test_all_failed_and_nothing_in():
    assert texts(draw(plot_funnel(make_manifest(0, [dict(state="failed", reason="load: not JSON", rows=7)])))) == ["7 in", "7 failed", "0 kept"]
    assert texts(draw(plot_funnel(make_manifest()))) == ["no rows"]
    assert texts(draw(plot_calls(make_manifest(calls=[])))) == ["no calls"]


def test_many_reasons_keep_their_sum():
    reasons = [dict(state="dropped", reason=f"{chr(97 + i)}: reason", rows=i + 1) for i in range(20)]
    shown = texts(draw(plot_funnel(make_manifest(5, reasons))))
    assert sum(int(t.split()[0]) for t in shown[1:]) == int(shown[0].split()[0]) == 215


@pytest.mark.parametrize("text", [*NASTY, "データ", "$x^$ $", "_" * 500])
def test_any_text_can_be_a_label(text):
    draw(plot_funnel(make_manifest(1, [dict(state="dropped", reason=f"x: {text}", rows=1)])))
    assert label(text).count("\n") < 2 and len(label(text)) < 80
    manifest = make_manifest()
    manifest["calls"][0].update(step=text, model=text)
    draw(plot_calls(manifest))


def test_unjudged_rows_are_not_zeros():
    figure = plot_scores([make_row(0), dict(make_row(1), response_score=None, reason="x: y")])
    assert figure.get_suptitle() == "Response score: 1 of 2 rows judged" and texts(figure) == ["0", "0", "0", "1", "0"]


def test_unknown_price_and_tokens_are_said():
    manifest = make_manifest()
    manifest["calls"][0].update(usd=None, completion_tokens=None)
    assert texts(draw(plot_calls(manifest))) == ["unknown", "2 s\nprice unknown"]


def test_saved_plots_are_on_the_card(tmp_path, capsys):
    folder = write_run(tmp_path / "run", [full_row(i) for i in range(3)], [full_row(3, reason="instruction: judged low")])
    assert [p.stem for p in save_plots(folder)] == ALL
    card = write_card(folder).read_text(encoding="utf-8")
    assert all(f"![{name}](plots/{name}.png)" in card for name in ALL)
    assert sum(p.stat().st_size for p in folder.glob("plots/*.png")) < 300_000
    before = (folder / "plots/funnel.png").read_bytes()
    save_plots(folder)
    assert (folder / "plots/funnel.png").read_bytes() == before and capsys.readouterr().out == ""


def test_plots_without_data_are_left_out_and_said(tmp_path, capsys):
    folder = write_run(tmp_path / "run", failed=[dict(id="d0", reason="load: not JSON")], calls=[])
    (folder / "plots").mkdir()
    (folder / "plots/scores.png").write_bytes(b"of an earlier run")
    assert [p.name for p in save_plots(folder)] == ["funnel.png"]
    assert not (folder / "plots/scores.png").exists()
    assert capsys.readouterr().out.splitlines() == [f"no plots/{name}.png: {'no calls' if name == 'calls' else 'no rows'}" for name in ALL[1:]]


def test_jupyter_shows_a_figure():
    from IPython.core.formatters import DisplayFormatter
    assert DisplayFormatter().format(plot_labels([make_row(0)]))[0]["image/png"].startswith(b"\x89PNG")


def test_import_is_light_and_threads_draw_without_pyplot():
    code = """
import sys, llmdata_nb.export, llmdata_nb.report as report
assert not {"matplotlib", "pyarrow", "datasets", "pandas", "huggingface_hub"} & set(sys.modules)
from concurrent.futures import ThreadPoolExecutor
rows = [dict(id=str(i), response_score=i % 5 + 1) for i in range(50)]
with ThreadPoolExecutor(4) as pool: drawn = list(pool.map(lambda _: report.to_png(report.plot_scores(rows)), range(8)))
assert len(set(drawn)) == 1 and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_run_plots_names_what_it_draws(tmp_path):
    assert list(run_plots(read_folder(write_run(tmp_path / "run", [full_row(0)])))) == ALL
