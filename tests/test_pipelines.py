"The pipeline notebooks, through papermill and the `llmdata` command, on the real small model."
import ast
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill as pm
import pytest
from datasets import load_dataset
from scripted_server import serve, translator_and_judge, wrote

from llmdata_nb.cli import main, parameters, pipelines

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "nbs" / "pipelines" / "translate_and_judge.ipynb"
PARAMETERS = ["language", "source", "split", "subset", "revision", "encoding", "columns", "model", "judge_model", "limit", "where", "sample", "sample_by", "min_quality", "min_score", "multi_turn", "english_rubrics", "fidelity", "near", "skip_checks", "prompts", "license", "tags", "out_dir", "seed", "concurrency", "budget", "per_day", "per_minute", "wait"]


def manifest(folder): return json.loads((folder / "manifest.json").read_text())


def test_parameters_have_types_and_defaults():
    found = pm.inspect_notebook(str(NOTEBOOK))
    assert list(found) == PARAMETERS and all(p["inferred_type_name"] in ("str", "int", "bool", "float") for p in found.values())


FIRST = "globals().update(check_parameters(globals()))"


def given(recipe, values):
    "What the first cells of a pipeline make of `values`, put between them as papermill does"
    cells = [cell for cell in nbformat.read(pipelines()[recipe], 4).cells if cell.cell_type == "code"]
    assert "parameters" in cells[0].metadata.tags
    lines = ast.parse(cells[1].source).body
    first = next(line for line in lines if not isinstance(line, ast.Import | ast.ImportFrom))
    assert ast.unparse(first) == FIRST, f"{recipe}: a parameter is used before all are checked"
    space = {}
    for source in (cells[0].source, values, f"from llmdata_nb.parameters import check_parameters\n{FIRST}"):
        exec(source, space) if isinstance(source, str) else space.update(source)
    return space


@pytest.mark.parametrize("recipe", pipelines())
def test_each_pipeline_reads_its_parameters_by_their_types(recipe):
    space = given(recipe, {"out_dir": 2024})
    assert space["out_dir"] == "2024"
    assert list(space["__annotations__"]) == list(parameters(pipelines()[recipe])), "papermill does not see a line whose comment has an ="
    switches = {name: "false" for name, kind in space["__annotations__"].items() if kind is bool}
    numbers = {name: "3" for name, kind in space["__annotations__"].items() if kind in (int, float)}
    space = given(recipe, switches | numbers)
    assert all(space[name] is False for name in switches) and all(space[name] == 3 for name in numbers)
    if "min_score" in numbers: assert given(recipe, {"min_score": 3.5})["min_score"] == 3.5


@pytest.mark.parametrize("values, reads", [
    ({"multi_turn": "TRUE", "limit": 2.0, "seed": "7", "min_score": "3.5"}, {"multi_turn": True, "limit": 2, "seed": 7, "min_score": 3.5}),
    ({"budget": 2.50, "source": ["a.jsonl", "b c.jsonl"], "judge_model": None, "wait": None, "limit": None}, {"budget": "2.5", "source": "a.jsonl,b c.jsonl", "judge_model": "", "wait": False, "limit": 0}),
    ({"prompts": Path("mine.toml"), "skip_checks": ()}, {"prompts": "mine.toml", "skip_checks": ""})])
def test_what_can_only_mean_one_thing_is_read_so(values, reads):
    space = given("translate_and_judge", values)
    assert {name: space[name] for name in reads} == reads and all(type(space[name]) is type(value) for name, value in reads.items())


@pytest.mark.parametrize("values, message", [
    ({"multi_turn": 1}, "parameter multi_turn: expected true or false, got 1"), ({"limit": 2.5}, "parameter limit: expected int, got 2.5"),
    ({"limit": True}, "limit: expected int, got True"), ({"limit": ""}, "expected int, got ''"), ({"min_score": "nan"}, "expected float, got 'nan'"),
    ({"min_score": [3]}, r"expected float, got \[3\]"), ({"language": False}, "expected text, got False .YAML takes no"), ({"skip_checks": ["a", True]}, "YAML takes no"),
    ({"source": ["a, b.jsonl"]}, "no text may have a comma"), ({"source": {"a": 1}}, "expected text, got {'a': 1}")])
def test_what_fits_no_type_is_an_error_in_one_line(values, message):
    with pytest.raises(ValueError, match=message) as caught: given("translate_and_judge", values)
    assert "\n" not in str(caught.value)


def test_papermill_on_the_real_small_model(project):
    "SmolLM2 knows no Italian, so the checks have work to do; the whole pipeline runs all the same"
    out = project / "made"
    pm.execute_notebook(str(NOTEBOOK), str(project / "run.ipynb"), progress_bar=False, kernel_name="python3",
                        parameters=dict(model="embedded:smollm2-135m", limit=11, out_dir=str(out)))
    rows = manifest(out)["rows"]
    assert rows["in"] == 11 == rows["kept"] + rows["dropped"] + rows["failed"]
    reasons = {r["id"]: r["reason"] for r in load_dataset("parquet", data_files=str(out / "dropped.parquet"), split="train")}
    assert reasons["demo-06"] == "dedup: same request as demo-01" and reasons["demo-11"].startswith("dedup: near-duplicate of demo-07")
    (broken,) = [r for r in load_dataset("parquet", data_files=str(out / "failed.parquet"), split="train") if r["reason"].startswith("load:")]
    assert "demo.jsonl line 9" in broken["reason"]
    assert (out / "README.md").read_text().startswith("---\n") and (out / "plots" / "funnel.png").stat().st_size > 5000
    assert (project / "outputs" / "store.sqlite").exists()
    calls = manifest(out)["calls"]
    assert sum(c["calls"] for c in calls) > 8 and all(c["usd"] == 0 for c in calls)


def progress_outputs(notebook):
    cells = [c for c in nbformat.read(notebook, 4).cells if c.cell_type == "code" and "outcome = run(" in c.source]
    return [o for o in cells[0].outputs if "rows" in o.get("data", {}).get("text/plain", "")]


def test_command_makes_a_dataset_for_each_language(project, capsys):
    "Two languages, one store; the folder is a dataset, the executed notebook has one line of progress"
    source = project / "rows.jsonl"
    source.write_text("\n".join(json.dumps({"instruction": f"Please tell me about the number {i} and why people like it", "output": f"People like the number {i} because of its many friends {i}"}) for i in range(6)))
    with serve(translator_and_judge, seconds=0.2) as (model, bodies):
        options = ["-p", f"source={source}", "-p", f"model={model}", "-p", "limit=0", "-p", "concurrency=2"]
        assert main(["translate_and_judge", "--language", "it,Spanish", *options]) == 1  # nothing was kept in Spanish
    it, es = project / "outputs" / "it" / "translate_and_judge", project / "outputs" / "es" / "translate_and_judge"
    assert manifest(it)["rows"]["kept"] == 6 and manifest(es)["rows"] == {"in": 6, "kept": 0, "dropped": 6, "failed": 0}  # the server knows only Italian
    assert all("wrong language (it" in r for r in load_dataset("parquet", data_files=str(es / "dropped.parquet"), split="train")["reason"])
    kept = load_dataset(str(it), split="train")
    assert len(kept) == 6 and kept[0]["messages"][0]["content"].startswith("Questa è la traduzione")
    assert len(progress_outputs(it / "run.ipynb")) == 2  # the line of progress and the outcome
    shown = capsys.readouterr().out
    assert "6 rows kept of 6" in shown and "6  dropped: instruction: wrong language" in shown
    assert (it / "README.md").read_text().startswith("---\nlanguage:\n- it\n")


@pytest.mark.parametrize("argv, message", [
    (["translate_and_judge", "--language", "xx"], "unknown language 'xx'"),
    (["translate_and_judge", "-p", "min_scor=4"], "no parameter 'min_scor', did you mean 'min_score'?"),
    (["translate_and_judge", "-p", "limit=few"], "parameter limit: expected int, got 'few'"),
    (["translate_and_judge", "-p", "limit"], "expected name=value"),
    (["translate_and_judges"], f"no recipe 'translate_and_judges'; there are: {', '.join(sorted(p.stem for p in NOTEBOOK.parent.glob('*.ipynb')))}"),
    (["translate_and_judge", "--language", "it,es", "-p", "out_dir=x"], "one language only"),
    (["translate_and_judge", "--language", "it", "-p", "language=es"], "given twice"),
    (["translate_and_judge", "--language", ""], "unknown language ''"),
    (["translate_and_judge", "-p", "multi_turn=yes"], "expected true or false")])
def test_wrong_arguments_are_one_line(project, capsys, argv, message):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not list(project.iterdir())


def test_a_run_that_fails_says_why_in_one_line(project, capsys):
    (project / "empty.jsonl").write_text("\n")
    assert main(["translate_and_judge", "-p", "source=empty.jsonl"]) == 1
    err = capsys.readouterr().err
    assert "empty.jsonl is empty: no rows in it" in err and "Traceback" not in err


def test_a_failed_run_leaves_the_last_one_as_it_was(project, capsys):
    "Neither a bad parameter nor another source writes over a dataset and its notebook"
    source = project / "a.jsonl"
    source.write_text(json.dumps({"instruction": "Please tell me about the number 1 and why people like it", "output": "People like the number 1 because of its many friends 1"}))
    (project / "b.jsonl").write_text(source.read_text())
    with serve(translator_and_judge) as (model, bodies):
        run = ["translate_and_judge", "-p", f"model={model}", "-p"]
        assert main([*run, "source=a.jsonl"]) == 0
        out = project / "outputs" / "it" / "translate_and_judge"
        before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        assert main([*run, "source=a.jsonl", "-p", "min_score=9"]) == 1
        assert main([*run, "source=b.jsonl"]) == 1
    err = capsys.readouterr().err
    assert "min_score 9: expected 1 to 5" in err and "holds the dataset made from a.jsonl" in err and "Traceback" not in err
    assert all(p.read_bytes() == data for p, data in before.items()) and (out / "run-unfinished.ipynb").exists() and len(bodies) == 4


def answers_and_judges(body, n=0):
    "Answers a request; rates the longer of two answers higher"
    if "ratings" not in str(body.get("response_format")): return "Roma è la capitale d'Italia, e la sua città più grande."
    return json.dumps({"ratings": [{"rationale": "Va bene.", "score": 2 + i} for i in range(2)]})


def test_a_machine_without_a_home_and_rows_that_are_no_answers(project, monkeypatch, capsys):
    "A lone message and a bare text fail, with the reason, and stop nothing; the last cell needs no cache"
    monkeypatch.setenv("HOME", "/proc/nohome")
    for name in ("HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "IPYTHONDIR"): monkeypatch.delenv(name, raising=False)
    def talk(*texts): return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts)]
    rows = [{"id": f"{i}", "language": "it", "grade": i, "messages": talk(f"Qual è la capitale numero {i}?", "Roma.")} for i in range(3)]
    rows += [{"id": "lone", "language": "it", "messages": talk("Ciao?")}, {"id": "bare", "language": "it", "text": "Un testo."}]
    rows += [{"id": "nl", "language": "nl", "grade": 2, "messages": talk("Wat is de hoofdstad?", "Rome.")}]
    (project / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with serve(answers_and_judges) as (model, bodies):
        main(["aya_preferences", "-p", f"model={model}", "-p", "source=a.jsonl", "-p", "license=cc0-1.0", "-p", "tags=law", "-p", "tie=shorter"])
    out = project / "outputs" / "it" / "aya_preferences"
    shown = capsys.readouterr()
    assert "3 rows kept of 5" in shown.out, shown
    assert {r["id"] for r in load_dataset("parquet", data_files=str(out / "failed.parquet"), split="train", cache_dir=str(project / "cache"))} == {"lone", "bare"}
    assert "Dataset({\n    features: ['id'" in nbformat.read(out / "run.ipynb", 4).cells[-1].outputs[0].text
    assert "license: cc0-1.0" in (out / "README.md").read_text() and "- law\n" in (out / "README.md").read_text()


def test_checks_left_out_by_name(project, capsys):
    "A name that no check has is refused before anything is paid; one that is left out keeps what it would have dropped"
    row = {"instruction": "Please tell me about the number 1 and why people like it", "output": "People like the number 1 because of its many friends 1"}
    (project / "a.jsonl").write_text(json.dumps(row))
    with serve(translator_and_judge) as (model, bodies):
        run = ["translate_and_judge", "--language", "es", "-p", "source=a.jsonl", "-p", f"model={model}", "-p"]
        assert main([*run, "skip_checks=wrong_langage"]) == 1 and not bodies
        assert "no check is named 'wrong_langage', there are" in capsys.readouterr().err
        assert main([*run, "skip_checks="]) == 1  # the server answers in Italian
        out = project / "outputs" / "es" / "translate_and_judge"
        assert "skip_checks" not in manifest(out)["arguments"]
        assert main([*run, "skip_checks=wrong_language, wrong_script"]) == 0
    assert manifest(out)["rows"]["kept"] == 1 and "wrong_language" in manifest(out)["arguments"]["skip_checks"]


def test_ctrl_c_stops_in_one_line_and_keeps_the_calls(project):
    (project / "a.jsonl").write_text("\n".join(json.dumps({"instruction": f"Tell me about the number {i}", "output": f"People like the number {i}"}) for i in range(40)))
    with serve(translator_and_judge, seconds=0.5) as (model, bodies):
        command = [sys.executable, "-m", "llmdata_nb", "translate_and_judge", "-p", "source=a.jsonl", "-p", f"model={model}", "-p", "limit=0", "-p", "concurrency=2"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        while len(bodies) < 6: time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        err = process.communicate(timeout=30)[1]
        time.sleep(1)
        sent = len(bodies)
        time.sleep(1.5)
        assert len(bodies) == sent  # the kernel is gone too
    assert process.returncode == 130 and "run again to go on" in err and "Traceback" not in err, err
    assert sqlite3.connect(project / "outputs" / "store.sqlite").execute("select count(*) from calls").fetchone()[0] >= 4


def test_python_m(project):
    done = subprocess.run([sys.executable, "-m", "llmdata_nb", "translate_and_judge", "--language", "klingonish"], capture_output=True, text=True)
    assert done.returncode == 2 and "unknown language 'klingonish'" in done.stderr and "Traceback" not in done.stderr


def test_a_limit_per_day_holds_over_languages_and_says_when_to_go_on(project, capsys):
    "Two languages, one address, five requests a day: the command ends at once, and the reason says when there is room"
    with serve(translator_and_judge) as (model, bodies):
        main(["translate_and_judge", "--language", "it,es", "-p", f"model={model}", "-p", "limit=3", "-p", "per_day=5", "-p", "concurrency=2"])
    (reason, *_) = {r["reason"] for r in load_dataset("parquet", data_files=str(project / "outputs" / "es" / "translate_and_judge" / "failed.parquet"), split="train")}
    assert len(bodies) == 5 and "the budget of 5 requests per day is used up" in reason and "can be asked again at 2" in reason and "--wait" in reason


def test_magpie_on_the_real_small_model(project, capsys):
    "SmolLM2 knows English: four rows, made until they are four; the second run calls nothing and gives the same file; more rows begin with these"
    run = ["magpie", "--language", "en", "-p", "model=embedded:smollm2-135m", "-p", "steering=plain", "-p", "temperature=0.7", "-p", "response_max_tokens=150", "-p"]
    assert main([*run, "n=4"]) == 0
    out = project / "outputs" / "en" / "magpie"
    first, data = manifest(out), (out / "data" / "train-00000-of-00001.parquet").read_bytes()
    assert first["rows"]["kept"] == 4 == first["until"] and "gave_up" not in first
    rows = load_dataset(str(out), split="train")
    assert all([m["role"] for m in r["messages"]] == ["user", "assistant"] and r["user_turns"][0]["seed"] == r["number"] for r in rows)
    card = (out / "README.md").read_text()
    assert "Rows were made until 4 were kept." in card and "No judge and no person read the rows" in card and {p.name for p in (out / "plots").iterdir()} == {"funnel.png", "turns.png", "languages.png", "calls.png"}
    assert main([*run, "n=4"]) == 0
    assert sum(c["calls"] for c in manifest(out)["calls"]) == 0 and (out / "data" / "train-00000-of-00001.parquet").read_bytes() == data
    assert main([*run, "n=5"]) == 0
    assert load_dataset(str(out), split="train")["id"][:4] == rows["id"]


def test_magpie_that_keeps_nothing_says_what_to_try(project, capsys):
    "A chat service is found out by its first call, and a model that writes English only ends the run after a hundred rows"
    (project / "chat.jinja").write_text("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    with serve(lambda body, n: "Hello! How can I help you today?") as (model, bodies):
        assert main(["magpie", "-p", f"model={model}", "-p", "template=chat.jinja"]) == 1
    assert len(bodies) <= 3 and "puts the prompt into a chat template (one letter became 20 tokens)" in capsys.readouterr().err
    with serve(lambda body, n: wrote("b" if body["prompt"] == "a" else f"What is the {body['seed']}th prime number, and how do you find it?")) as (model, bodies):
        assert main(["magpie", "-p", f"model={model}", "-p", "template=chat.jinja", "-p", "n=500", "-p", "concurrency=8", "-p", "out_dir=none"]) == 1
    assert "Ended before 500 were kept: of the last 100 rows 0 were kept" in capsys.readouterr().out and len(bodies) <= 110
    notebook = nbformat.read(project / "none" / "run.ipynb", 4)
    assert any("see with compare_steering" in o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))


def test_prompts_edited_in_the_playground_are_used_and_told(project):
    "A file of prompts reaches the judge through the pipeline, the card has its hash, and what is not edited is not paid again"
    from llmdata_nb.playground import save_prompts
    save_prompts(project / "prompts.toml", {"it": {"instruction.task": "Giudica la richiesta come un maestro severo."}})
    with serve(translator_and_judge) as (model, bodies):
        run = ["translate_and_judge", "-p", f"model={model}", "-p", "limit=3"]
        main(run)
        paid, out = len(bodies), project / "outputs" / "it" / "translate_and_judge"
        assert "prompts" not in manifest(out)
        main([*run, "-p", "prompts=prompts.toml"])
        assert len(bodies) == paid + 3 and all("come un maestro severo" in str(body["messages"]) for body in bodies[paid:])
        assert len(manifest(out)["prompts"]) == 12 and manifest(out)["arguments"]["language"] == "it"
    assert main([*run, "-p", "prompts=nowhere.toml"]) == 2
