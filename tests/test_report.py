"Every plot draws whatever a run may leave, with no pyplot, in any thread, and says what it has no data for."
import gzip
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.colors import to_hex
from test_export import NASTY, make_manifest, make_row, write_run

from llmdata_nb import figures, report
from llmdata_nb import run as runs
from llmdata_nb.backinstruct import STYLES, TASKS
from llmdata_nb.export import dataset_card, read_folder, write_card
from llmdata_nb.report import (COLORS, HATCHES, OUTCOMES, label, plot_calls, plot_categories, plot_funnel, plot_labels, plot_languages, plot_lengths, plot_margins, plot_min_scores, plot_models, plot_outcomes,
                               plot_repeats, plot_requests, plot_scores, plot_tags, plot_tasks, plot_turns, run_plots, save_plots, table, to_png)
from llmdata_nb.rows import OUR_COLUMNS, load_rows

ALL = ["funnel", "repeats", "labels", "scores", "lengths", "languages", "calls"]


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
    for figure in (plot_scores(rows, min_score=3), plot_scores(rows, "fidelity_score"), plot_labels(rows), plot_lengths(rows), plot_languages(rows, "it"), plot_models(rows, "it")): draw(figure)
    for plot in (plot_repeats, plot_min_scores, plot_tasks, plot_categories, plot_requests, plot_outcomes, plot_margins, plot_tags, plot_turns): draw(plot(rows))


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
    assert texts(draw(plot_calls(manifest))) == ["unknown", "2 s, 1 calls\nprice unknown"]


def test_saved_plots_are_on_the_card(tmp_path, capsys):
    folder = write_run(tmp_path / "run", [full_row(i) for i in range(3)], [full_row(3, reason="instruction: judged low")])
    plots = [name for name in ALL if name != "repeats"]
    assert [p.stem for p in save_plots(folder)] == plots and capsys.readouterr().out == "no plots/repeats.png: no row repeats another\n"
    card = write_card(folder).read_text(encoding="utf-8")
    assert all(f"![{name}](plots/{name}.png)" in card for name in plots)
    assert sum(p.stat().st_size for p in folder.glob("plots/*.png")) < 300_000
    before = (folder / "plots/funnel.png").read_bytes()
    save_plots(folder)
    assert (folder / "plots/funnel.png").read_bytes() == before


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


def native(i, **columns):
    "A row of `back_instruct`"
    row = dict(id=f"po-{i}", task=list(TASKS)[i % 4], style=list(STYLES)[i % 3], response="Il Po.", instruction=f"Che cosa è il numero {i}?", alignment_score=1 + i % 5, detected_language="it", detected_confidence=0.9)
    return row | dict(messages=[dict(role="user", content=row["instruction"]), dict(role="assistant", content="Il Po.")]) | columns


def test_back_instruct_has_plots_of_its_own(tmp_path):
    kept, low = [native(i) for i in range(30) if i % 5 > 1], [native(i, reason="alignment: judged too low (1, kept from 3)", messages=None) for i in range(30) if i % 5 < 2]
    copied = [dict(id=f"po-{i}", response="Il Po.", reason=f"passage: near-duplicate (of po-{i % 2}, 0.83)") for i in range(40, 45)]
    folder = write_run(tmp_path / "run", kept, low + copied, recipe="back_instruct")
    assert [p.stem for p in save_plots(folder)] == ["funnel", "repeats", "tasks", "scores", "min_scores", "requests", "languages", "calls"]
    plots = run_plots(read_folder(folder))
    for figure in plots.values(): draw(figure)
    assert plots["tasks"].get_suptitle() == "Tasks and styles: 18 of 30 rows kept (5 had none)" and plots["repeats"].get_suptitle() == "Repeats: 5 of 35 rows repeat another"
    assert sorted(t for t in texts(plots["tasks"]) if " of " in t) == sorted(f"{sum(k % 5 > 1 for k in some)} of {len(some)}" for t in range(4) for s in range(3) for some in [[k for k in range(30) if (k % 4, k % 3) == (t, s)]])
    assert [t.get_text().split("\n")[1] for t in plots["min_scores"].axes[0].get_xticklabels()] == ["30 rows", "24 rows", "18 rows", "12 rows", "6 rows"]
    assert plots["scores"].get_suptitle() == "Alignment score: 30 of 35 rows judged" and "kept from 3" in texts(plots["scores"])


def pair(outcome, a, b): return dict(outcome=outcome, scores=[a, b], scores_by_order=[[a, b], [a, b]], position_consistent=True, responses=["short", "rather longer"])


def test_each_recipe_has_its_plots(tmp_path):
    rows = [pair("kept", 5, 2), pair("swapped", 2, 5), pair("kept", 4, 2)]
    for name in ("rerank_preferences", "rerank"):  # the latter in manifests of earlier versions
        assert list(run_plots(read_folder(write_run(tmp_path / "r", rows, recipe=name)))) == ["funnel", "outcomes", "margins", "judged_by_length", "calls"]
    made = [make_row(i, category="math", detected_language="it", detected_confidence=1.0) for i in range(3)]
    assert list(run_plots(read_folder(write_run(tmp_path / "m", made, recipe="magpie", arguments=dict(categories=True, min_score=3))))) == ["funnel", "repeats", "scores", "categories", "turns", "languages", "calls"]
    assert list(run_plots(read_folder(write_run(tmp_path / "n", made, recipe="magpie", arguments={})))) == ["funnel", "repeats", "turns", "languages", "calls"]


def test_shares_of_pairs_have_their_intervals():
    figure = draw(plot_outcomes([pair("kept", 5, 2)] * 7 + [pair("swapped", 2, 5)] * 3))
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()][:3] == ["kept (7)", "swapped (3)", "tie (0)"] and figure.get_suptitle() == "What became of 10 pairs (rows: 10)"
    low, high = ax.lines[0].get_xdata()
    assert 0.39 < low < 0.40 and 0.89 < high < 0.90  # Wilson, 7 of 10


def test_groups_of_repeats_follow_their_chain():
    rows = [dict(id="a"), dict(id="b", reason="dedup: same request as a"), dict(id="c", reason="dedup: near-duplicate of b (0.91)"), dict(id="d", reason="instruction: means the same as z 1 (0.95)"),
            dict(id="e", reason="response: too short (a)")]
    figure = draw(plot_repeats(rows))
    assert figure.get_suptitle() == "Repeats: 3 of 5 rows repeat another"
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["2 rows alike", "3 rows alike"] and [t.get_text() for t in figure.axes[1].get_legend().get_texts()] == ["by text (2)", "by meaning (1)"]
    assert draw(plot_repeats([dict(id="a", reason="dedup: near-duplicate of b (0.91)"), dict(id="b", reason="dedup: near-duplicate of a (0.91)")])).axes  # a circle ends


def test_first_words_and_lengths_for_each_group():
    figure = draw(plot_requests([native(i) for i in range(8)]))
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["all (8)", *(f"{name} (2)" for name in list(TASKS)[:4])]
    assert texts(figure) == ["che 100%"] * 5 and figure.get_suptitle() == "Requests of 8 rows, by task"


def luminance(color):
    channels = [int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    return sum(w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for w, c in zip((0.2126, 0.7152, 0.0722), channels))


@pytest.mark.parametrize("states", [["kept", "dropped"], ["kept", "dropped", "failed"], ["kept", "swapped", "other"]])
def test_states_side_by_side_differ_in_grey_too(states):
    for i, a in enumerate(states):
        for b in states[i + 1:]: assert HATCHES.get(a) != HATCHES.get(b) or abs(luminance(COLORS[a]) - luminance(COLORS[b])) > 0.1, (a, b)
    figure = plot_margins([pair(name, 5 - i, 2) for i, name in enumerate(["kept", "swapped", "tie"])])
    assert {c.get_label().split()[0]: c.patches[0].get_hatch() for c in figure.axes[0].containers} == {name: HATCHES.get(name) for name in ("kept", "swapped", "tie")} and set(OUTCOMES) >= {"kept", "swapped", "tie"}


def test_what_no_font_has_is_a_box_and_said(monkeypatch):
    from matplotlib.font_manager import fontManager
    monkeypatch.setattr(fontManager, "ttflist", [])
    figures.font_for.cache_clear()
    figure = draw(plot_funnel(make_manifest(1, [dict(state="dropped", reason="response: refusal: データ", rows=1)])))
    figures.font_for.cache_clear()
    assert figure.axes[0].get_yticklabels()[1].get_text() == "response: refusal: □□□" and figure.get_supxlabel() == "□ a character that no font found here has"


@pytest.mark.parametrize("text", ["データ", "النص أعلاه", "क्या", "ทำไม"])
def test_other_scripts_are_drawn_with_the_font_that_has_them(text):
    "Whatever fonts there are: no glyph is missing, and □ only where no font has the character"
    (name,) = [t for t in draw(plot_funnel(make_manifest(1, [dict(state="dropped", reason=f"x: {text}", rows=1)]))).axes[0].get_yticklabels() if t.get_text().startswith("x: ")]
    assert name.get_text() == f"x: {text}" or any(figures.font_for(c) is None for c in text)
    assert set(filter(None, map(figures.font_for, text))) <= set(name.get_fontfamily())


def test_a_table_goes_in_the_direction_of_each_text():
    shown = table([{"عنوان <i>": "استخدم <b> للخط", "plain": 'a "quoted" <script>'}]).data
    assert shown.count('dir="auto"') == 4 and shown.count("text-align:right") == 2 == shown.count("text-align:left") and "<b>" not in shown and "<i>" not in shown and "<script>" not in shown


def test_preferences_are_called_answers():
    rows = [dict(kind="preference", human=0, judged="tie"), dict(kind="preference", human=1, judged=1)]
    ax = draw(report.plot_agreement(SimpleNamespace(rows=rows))).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["answer 1", "answer 2"] and [t.get_text() for t in ax.get_xticklabels()] == ["answer 2", "tie"]


def test_a_recipe_without_a_record_gets_the_plots_of_any_rows(tmp_path):
    rows = [make_row(i, detected_language="it", detected_confidence=1.0) for i in range(3)]
    assert list(run_plots(read_folder(write_run(tmp_path / "a", rows, recipe="simplify")))) == ["funnel", "scores", "requests", "languages", "calls"]
    assert list(run_plots(read_folder(write_run(tmp_path / "b", [dict(id="a")], recipe="simplify")))) == ["funnel", "calls"]


def test_a_plot_of_ones_own_is_one_line(tmp_path, monkeypatch):
    from llmdata_nb.recipes import RECIPES, Recipe
    monkeypatch.setitem(report.PLOTS, "charm", (plot_scores, "kept", "score_column"))
    monkeypatch.setitem(RECIPES, "haiku", Recipe("haiku", main_score="charm_score", score_columns=dict(charm_score=[3, 2, 1]), plots=("funnel", "charm")))
    run = read_folder(write_run(tmp_path / "run", [dict(id="a", charm_score=3)], recipe="haiku"))
    figure = draw(run_plots(run)["charm"])
    assert figure.get_suptitle() == "Charm score: 1 of 1 rows judged" and texts(figure) == ["0", "0", "1"]
    monkeypatch.setitem(RECIPES, "haiku", Recipe("haiku", plots=("wit",)))
    with pytest.raises(ValueError, match="no plot is called 'wit': add it to report.PLOTS, or take one of funnel"): run_plots(run)


def test_plots_of_records_are_there():
    from llmdata_nb.recipes import RECIPES
    named = {name for record in RECIPES.values() if not callable(record.plots) for name in record.plots}
    assert named <= set(report.PLOTS) and all(getattr(report, f"plot_{name}") is plot for name, (plot, *_) in report.PLOTS.items())


@pytest.mark.parametrize("nb", ["21b_tables", "21c_figures", "21d_plots", "21e_judge_plots", "21f_compare", "22_report"])
def test_notebooks_with_plots_stay_small(nb):
    path = Path(__file__).parents[1] / "nbs" / f"{nb}.ipynb"
    assert path.stat().st_size < 300_000, "draw fewer or smaller pictures"


# Columns of the source with names of ours

ODD = ["spam", "", 5, 2.5, -1, 10**30, float("nan"), float("inf"), True, None, [], ["a"], [1, None], [[1, 2], [3]], [[1]], {}, {"a": 1}, [{"role": "user"}], [{"a": None}], [None]]


def golden_run(recipe):
    "The run of a recipe in the golden files"
    files = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "files.json.gz").read_bytes()))
    of_run = {name.split("/", 2)[2]: content for name, content in files.items() if name.startswith(f"it/{recipe}/")}
    rows = {state: of_run[name]["rows"] for state, name in (("kept", "data/train-00000-of-00001.parquet"), ("dropped", "dropped.parquet"), ("failed", "failed.parquet"))}
    return SimpleNamespace(manifest=of_run["manifest.json"] | {"seconds": 1.0, "created": "2026-12-01T10:00:00+00:00", "versions": {"llmdata_nb": "1"}}, **rows)


@pytest.mark.parametrize("recipe", ["translate_and_judge", "rerank_preferences", "magpie", "aya_preferences", "back_instruct", "on_policy", "of_my_own"])
def test_odd_values_in_our_columns_end_no_plot_and_no_card(recipe):
    "Rows given to a run directly, and folders of earlier versions, may hold anything"
    run = golden_run({"on_policy": "rerank_preferences", "of_my_own": "translate_and_judge"}.get(recipe, recipe))
    for state in ("kept", "dropped"):
        rows = getattr(run, state)
        odd = [rows[i % len(rows)] | {column: value} for column in OUR_COLUMNS for i, value in enumerate(ODD)] if rows else []
        setattr(run, state, rows + [row | {"id": f"{state}-{i}"} for i, row in enumerate(odd)])
    counts = {state: len(getattr(run, state)) for state in ("kept", "dropped", "failed")}
    reasons = [dict(state=state, reason="instruction: judged low", rows=counts[state]) for state in ("dropped", "failed")]
    run.manifest |= {"recipe": recipe, "rows": {"in": sum(counts.values()), **counts}, "reasons": reasons}
    for figure in run_plots(run).values(): to_png(figure)
    assert f"{counts['kept']:,} of" in dataset_card(run.manifest, run.kept, dropped=run.dropped)
    rows = run.kept + run.dropped
    for plot in (plot_repeats, plot_min_scores, plot_tasks, plot_categories, plot_requests, plot_outcomes, plot_margins, plot_tags, plot_turns, plot_scores, plot_labels, plot_lengths, report.plot_judged_by_length): plot(rows)
    for plot in (plot_languages, plot_models): plot(rows, "it")
    for column in OUR_COLUMNS: plot_requests(rows[:50], column)
    report.position_bias(rows)


def bars(figure, color): return sum(patch.get_height() for patch in figure.axes[0].patches if figures.COLORS[color] == to_hex(patch.get_facecolor()).upper())


def test_the_file_tells_what_was_kept_not_a_column(tmp_path):
    kept = [full_row(i, reason="spam" if i else None, task="qa", style="plain") for i in range(4)]
    dropped = [full_row(i, reason="instruction: judged low", task="qa", style="plain") for i in range(4, 6)]
    run = read_folder(write_run(tmp_path / "run", kept, dropped))
    assert [row["reason"] for row in run.kept] == [None, "spam", "spam", "spam"]
    drawn = run_plots(run)
    for name in ("labels", "scores"): assert (bars(drawn[name], "kept"), bars(drawn[name], "dropped")) == (4, 2)
    assert figures.COLORS["kept"] in [to_hex(c).upper() for c in drawn["languages"].axes[1].collections[0].get_facecolors()]


def test_what_no_judge_said_is_not_judged(tmp_path):
    rows = [make_row(i) | {"response_score": value, "instruction_label": value} for i, value in enumerate([5, "5", [5], {"a": 5}, True, 9, None])]
    figure = plot_scores(rows)
    assert "1 of 7 rows judged" in figure._suptitle.get_text() and texts(draw(figure)) == ["0", "0", "0", "0", "1"]
    assert "0 of 7 rows judged" in plot_labels(rows)._suptitle.get_text()
    card = dataset_card(make_manifest(7), rows)
    assert "| not judged | 6 |" in card and "| 5 | 1 |" in card


def test_a_loaded_source_leaves_no_verdict_in_our_columns(tmp_path):
    "From the source to the card: what stands there is in no figure"
    source = [dict(id=f"s{i}", prompt="Ciao?", response="Ciao!", reason="spam", response_score=5, outcome="kept", detected_language=["it"]) for i in range(30)]
    async def translate_and_judge(row, ask, language): return row
    runs.run(load_rows(source), translate_and_judge, model="http://127.0.0.1:9/v1#m", language="it", out=tmp_path / "run", store=tmp_path / "s.sqlite")
    run = read_folder(tmp_path / "run")
    assert run.kept[0]["source_reason"] == "spam" and run.kept[0]["source_response_score"] == 5
    assert "0 of 30 rows judged" in run_plots(run)["scores"]._suptitle.get_text()
    card = dataset_card(run.manifest, run.kept)
    assert "No judge and no person read the rows" in card and "The judge gave" not in card and "What the judge" not in card
