"The `llmdata` command beyond one run: several languages at once, what it lists and copies, and the doctor."
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from scripted_server import said, serve, translator_and_judge, wrote

from llmdata_nb import cli
from llmdata_nb.cli import _result, main, parameters, pipelines, summary
from llmdata_nb.compare import read_runs
from llmdata_nb.run import run

def quick(rows=12):
    "The cells of a notebook that asks a word for each of its rows, and draws nothing"
    parameters = new_code_cell('language: str = "it"  # code\nmodel: str = ""\nout_dir: str = ""\nbudget: str = ""\nper_day: int = 0', metadata={"tags": ["parameters"]})
    return [parameters, new_code_cell(f"""from llmdata_nb.run import run
async def word(row, ask, language):
    row["word"] = (await ask(f"{{language}}: {{row['id']}}")).text
    return row
run([{{"id": str(i)}} for i in range({rows})], word, model=model, out=out_dir, language=language, budget=budget, per_day=per_day or None, concurrency=2)""")]


@pytest.fixture
def notebook(project):
    "The path of that notebook"
    nbformat.write(new_notebook(cells=quick(), metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}), project / "words.ipynb")
    return "words.ipynb"


def languages(bodies): return {body["messages"][0]["content"].split(":")[0] for body in bodies}


def calls(project): return sqlite3.connect(project / "outputs" / "store.sqlite").execute("select count(*) from calls").fetchone()[0]


def table(text): return [line.split() for line in text.split("language ")[1].splitlines()[1:]]


@pytest.mark.parametrize("parallel", ["1", "3"])
def test_one_budget_and_one_limit_for_three_languages(project, notebook, capsys, parallel):
    "Each language alone would take 12 calls; then a limit of 24 requests a day leaves 7 more, for all"
    with serve(lambda body, n: "word", seconds=0.3 if parallel == "1" else 1.0) as (model, bodies):  # three processes do not start at the same moment
        run = [notebook, "--language", "it,nl,es", "--parallel", parallel, "-p", f"model={model}", "-p"]
        assert main([*run, "budget=17 calls"]) == (1 if parallel == "1" else 0)  # in sequence, nothing is left for the last one
        shown = capsys.readouterr()
        assert len(bodies) == 17 and "\nBudget: 17 spent of 17 calls\n" in shown.out
        assert [line[0] for line in table(shown.out)[:3]] == ["it", "nl", "es"] and sum(int(line[2]) for line in table(shown.out)[:3]) == 17
        assert not {"\r", "\x1b"} & set(shown.err) and "Traceback" not in shown.err
        if parallel == "3": assert languages(bodies) == {"it", "nl", "es"} and all(f"\n{code}   done: 12 in, " in shown.err for code in ("it", "nl", "es")), shown.err
        assert main([*run, "per_day=24"]) == (1 if parallel == "1" else 0)
    shown = capsys.readouterr().out
    assert len(bodies) == 24 == calls(project) and sum(int(line[5]) for line in table(shown)) == 7 and sum(int(line[6]) for line in table(shown)) == 17 and "Budget" not in shown


def test_a_budget_in_dollars_is_shared_too(project, notebook, capsys):
    "Each process learns first what a call costs; at most the calls under way are spent beyond"
    def dear(body, n): return 200, said("word") | {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.01}}
    with serve(dear, seconds=0.3) as (model, bodies): assert main([notebook, "--language", "it,nl,es", "--parallel", "3", "-p", f"model={model}", "-p", "budget=0.15"]) in (0, 1)
    assert len(bodies) == 15 and "Budget: $0.15 spent of $0.15" in capsys.readouterr().out


@pytest.mark.parametrize("parallel", ["1", "2"])
def test_a_language_that_fails_does_not_stop_the_others(project, notebook, capsys, parallel):
    es = project / "outputs" / "es" / "words"
    es.mkdir(parents=True)
    (es / "manifest.json").write_text('{"source": "other.jsonl"}')
    with serve(lambda body, n: "word") as (model, bodies): assert main([notebook, "--language", "es,it", "--parallel", parallel, "-p", f"model={model}"]) == 1
    it, failed = table(capsys.readouterr().out)
    assert it[:7] == ["it", "12", "12", "0", "0", "12", "0"] and it[-1] == "outputs/it/words"
    assert failed[:2] == ["es", "ValueError:"] and "holds the dataset made from other.jsonl" in " ".join(failed)
    assert (project / "outputs" / "it" / "words" / "run.ipynb").exists() and json.loads((es / "manifest.json").read_text()) == {"source": "other.jsonl"}


def processes(project):
    "The words of the command of each process that works in the folder, by its number"
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/cwd") == str(project) and int(pid) != os.getpid(): found[int(pid)] = open(f"/proc/{pid}/cmdline").read().split("\0")
        except OSError: continue  # it has ended
    return found


def test_a_kernel_that_is_killed_is_a_language_that_failed(project, notebook, capsys):
    "As by a system that is short of memory"
    def answer(body, n):
        if languages([body]) == {"es"}:
            here = processes(project)
            parents = {pid for pid, words in here.items() if "--language" in words and words[words.index("--language") + 1] == "es"}
            for pid, words in here.items():
                if "ipykernel_launcher" in words and int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1]) in parents: os.kill(pid, signal.SIGKILL)
        return "word"
    with serve(answer) as (model, bodies): assert main([notebook, "--language", "es,it", "--parallel", "2", "-p", f"model={model}"]) == 1
    it, failed = table(capsys.readouterr().out)
    assert it[:3] == ["it", "12", "12"] and failed[0] == "es" and "died" in failed


@pytest.mark.parametrize("end", ["Ctrl-C", "kill"])
def test_what_ends_the_command_ends_all_languages(project, notebook, end):
    "Ctrl-C in a real terminal; or the command is killed, and those it started see it"
    with serve(lambda body, n: "word", seconds=2) as (model, bodies):
        pid, terminal = pty.fork()
        if pid == 0: os.execv(sys.executable, [sys.executable, "-m", "llmdata_nb", notebook, "--language", "it,nl,es", "--parallel", "3", "-p", f"model={model}"])
        shown = []
        reader = threading.Thread(target=lambda: shown.extend(read_all(terminal)))
        reader.start()
        while languages(bodies) != {"it", "nl", "es"} or len(bodies) < 9: time.sleep(0.1)
        os.write(terminal, b"\x03") if end == "Ctrl-C" else os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        reader.join(30)
        last = time.time() + 60
        while time.time() < last and (left := processes(project)): time.sleep(0.2)
        assert not left and len(bodies) < 36  # the kernels are gone too
    assert calls(project) >= 3
    text = b"".join(shown).decode()
    assert end == "kill" or status == 130 and text.count("   stopped") == 3 and "run again to go on" in text and "Traceback" not in text, text
    assert re.search("\x1b\\[3A\r\x1b\\[Jit   [^\n]*\r\nnl   [^\n]*\r\nes   [^\n]*\r\n", text)  # three lines, drawn anew in place


def planned(argv): return cli.plan(cli._parse_arguments(argv))


def test_what_is_typed_reaches_each_of_several_languages_as_it_was(project, monkeypatch):
    "Commas, spaces, equals signs and numbers; two varieties of a language have files of their own"
    (project / "a b.jsonl").write_text("{}")
    (project / "c.jsonl").write_text("{}")
    typed = {"source": "a b.jsonl:0.5,c.jsonl:0.5", "where": "quality>=4 and name=='a, b'", "columns": "prompt=the question,response=answer",
             "min_score": "3.5", "multi_turn": "TRUE", "sample": "20", "skip_checks": "length_ratio, lost_numbers", "budget": "2.50"}
    runs = planned(["translate_and_judge", "--language", "pt,pt-BR", "--wait", *(word for name, text in typed.items() for word in ("-p", f"{name}={text}"))])
    started = []
    monkeypatch.setattr(cli.subprocess, "Popen", lambda command, **_: started.append(command[3:]))
    running = [cli._start_run(run, project) for run in runs]
    assert [run.tag for run in running] == ["pt", "pt-BR"] and running[0].log != running[1].log
    assert [planned(command) for command in started] == [[run] for run in runs]
    assert runs[0][2]["min_score"] == 3.5 and runs[0][2]["multi_turn"] is True and runs[0][2]["where"] == typed["where"]
    running[1].line.write_text("translate_and_judge pt-BR  3/9 rows")
    assert cli._progress_text(running[1]) == "3/9 rows" and cli._progress_text(running[0]).startswith("starting")


def test_varieties_of_a_language_have_folders_of_their_own(project, capsys):
    "And are found there, each under its own name"
    runs = planned(["magpie", "--language", "pt,pt-BR,zh,zh-Hant,Chinese (Traditional)"])
    assert [out.parts[-2:] for _, out, _ in runs] == [(tag, "magpie") for tag in ("pt", "pt-BR", "zh", "zh-Hant")]
    async def same(row, ask, language): return row
    for _, out, values in runs[:2]: run([{"id": "1"}], same, model="http://127.0.0.1:9/v1#m", out=out, language=values["language"])
    assert [(found["language"], found["rows"]["kept"]) for found in read_runs(project / "outputs")] == [("pt-BR", 1), ("pt", 1)]
    assert [found["language"] for found in read_runs(project / "outputs", languages="pt-BR")] == ["pt-BR"]


def read_all(terminal):
    while True:
        try: part = os.read(terminal, 65536)
        except OSError: return  # it was closed
        if not part: return
        yield part


def test_the_recipes_and_their_parameters_are_told(project, capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in pipelines()) and "A dataset out of nothing but a model" in listed
    for recipe in pipelines():
        assert main([recipe, "--help"]) == 0
        told = capsys.readouterr().out
        for name, p in parameters(pipelines()[recipe]).items():
            line = next(line for line in told.splitlines() if line.startswith(f"  {name} ")).split()
            assert line[1] == p["type"] and p["default"].split()[0] in line[2] and (not p["help"] or line[3] == p["help"].split()[0])
    assert main(["--help"]) == 0 and "llmdata doctor [MODEL ...]" in capsys.readouterr().out
    assert not list(project.iterdir())


@pytest.mark.parametrize("argv, message", [
    (["magpies", "--help"], "no recipe 'magpies'"), (["magpie", "--langage", "it"], "unrecognized arguments: --langage it"),
    (["magpie", "--parallel", "0"], "--parallel 0: expected 1 or more"), (["magpie", "--parallel", "two"], "invalid int value: 'two'"),
    (["magpie", "-p", "budget=lots"], "budget 'lots': expected an amount"), (["--language", "it"], "which recipe? "),
    (["translate_and_judge", "--language", "it,nl", "-p", "source=missing.jsonl"], "missing.jsonl: no such file"), (["rerank_preferences", "-p", "source="], "source is empty"),
    (["magpie", "-p", "prompts=mine.toml"], "prompts mine.toml: "), (["notebooks"], "expected a folder"), (["magpie", "--parallel", "2", "-p", "model=embedded:gpt"], "'embedded:gpt': expected qwen")])
def test_wrong_arguments_are_one_line(project, capsys, argv, message):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not list(project.iterdir())


def test_notebooks_are_copied_and_changed_ones_run(project, capsys):
    assert main(["notebooks", "mine"]) == 0
    assert {p.name for p in (project / "mine").iterdir()} == {p.name for p in pipelines().values()}
    mine = project / "mine" / "translate_and_judge.ipynb"
    mine.write_text(mine.read_text().replace("# Translate and judge", "# My own way").replace("limit: int = 14", "limit: int = 2"))
    capsys.readouterr()
    assert main(["notebooks", "mine"]) == 1 and main(["notebooks", str(mine)]) == 2  # the latter is no folder
    assert "mine/translate_and_judge.ipynb differs from ours, and is left as it is" in capsys.readouterr().err and "# My own way" in mine.read_text()
    with serve(translator_and_judge) as (model, bodies): main(["mine/translate_and_judge.ipynb", "-p", f"model={model}"])
    made = project / "outputs" / "it" / "translate_and_judge"
    assert "# My own way" in (made / "run.ipynb").read_text() and json.loads((made / "manifest.json").read_text())["rows"]["in"] == 2


def doctor(capsys, *models):
    "The exit code, and the findings as one line each"
    code = main(["doctor", *models])
    return code, capsys.readouterr().out.replace("\n    ", " ").splitlines()


def test_doctor_finds_the_small_model_fit_for_all(project, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    code, found = doctor(capsys, "embedded:smollm2-135m")
    assert code == 0 and not [line for line in found if line.startswith("no ")] and not list(project.iterdir())
    assert found[-1].startswith("ok  works for: all recipes (4 requests, ")
    assert "ok  structured output: json_schema, the strictest form" in found and any("chat template from embedded:smollm2-135m /props" in line for line in found)
    assert any("keys in the environment: OPENAI_API_KEY" in line for line in found) and "sk-secret" not in str(found)


def test_doctor_says_what_a_language_does_without(project, capsys):
    code, found = doctor(capsys, "--language", "Swahili", "--language", "sv", "http://127.0.0.1:9/v1#m")
    text = " ".join(found)
    assert code == 1 and "There is no pack for Swahili" in text and "ok  its pack has all parts" in text  # the model is not there
    assert main(["doctor", "--language"]) == 2
    assert main(["doctor", "--language", "klingonish"]) == 2 and "unknown language" in capsys.readouterr().err


def test_doctor_sees_what_is_wrong_with_this_machine(project, capsys, monkeypatch):
    "Nothing is fetched; a file is where the folder should be; a store is damaged; a key has a line end"
    monkeypatch.setenv("LLMDATA_CACHE", str(project / "cache"))
    code, found = doctor(capsys)
    assert code == 0 and any("1.1 GB) not here yet: its first run fetches them" in line for line in found) and found[-1].startswith("embedded: not tried") and not list(project.iterdir())
    (project / "outputs").write_text("")
    (project / "store").write_text("no store, " * 1000)
    monkeypatch.setenv("LLMDATA_STORE", "store")
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    code, found = doctor(capsys)
    wrong = [line for line in found if line.startswith("no ")]
    assert code == 1 and len(wrong) == 3 and "is not a folder" in wrong[0] and "Move the file away" in wrong[1] and "HF_TOKEN has a space or a line end" in wrong[2] and "hf_secret" not in str(found)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 500_000_000}))
    assert any("it takes 2.2 GB: make room" in line for line in doctor(capsys)[1])


def chat_only(body, n=0):
    "A hosted chat service: no raw text, no JSON mode, no log-probabilities; its answers are JSON all the same"
    if "prompt" in body: return 404, {"error": {"message": "unknown path"}}
    for word in ("response_format", "logprobs"):
        if word in body: return 400, {"error": {"message": f"{word} is not supported"}}
    return '{"colour": "blue"}'


def test_doctor_tells_what_a_chat_service_is_good_for(project, capsys):
    with serve(chat_only) as (model, bodies): code, found = doctor(capsys, model)
    assert code == 0 and found[-1].startswith("ok  works for: all recipes but magpie, for which it can answer and judge (responder_model, judge_model) (6 requests, ") and len(bodies) == 6
    told = "\n".join(found)
    assert "ok  structured output: none; JSON is read out of plain text" in told and "no  raw text: its server refuses raw text (404 unknown path). Magpie needs" in told
    assert "no  log-probabilities: not reported" in told and "no  price: not known" in told and 'budget="300 calls"' in told


def wraps(body, n=0):
    "A service that puts raw text into its chat template, and never writes JSON"
    return wrote("Hello!", prompt_tokens=21) if "prompt" in body else "Blue."


@pytest.mark.parametrize("answer, models, reason", [
    (lambda body, n: (401, {"error": {"message": "no"}}), 401, "refuses the key (401)"),
    (lambda body, n: (401, {"error": {"message": "Incorrect API key provided"}}), ["m"], "chat: 401 Incorrect API key provided"),
    (lambda body, n: (404, {"error": {"message": "the model 'm' does not exist"}}), ["m-large"], "has no 'm' (404 the model 'm' does not exist); It lists m-large"),
    (lambda body, n: said(""), ["m"], "chat: no text within 100 tokens"),
    (wraps, ["m"], "puts the prompt into a chat template (one letter became 21 tokens)")])
def test_doctor_tells_what_does_not_work(project, capsys, answer, models, reason):
    with serve(lambda body, n: (200, result) if isinstance(result := answer(body, n), dict) else result, models=models) as (model, bodies): code, found = doctor(capsys, model)
    assert any(line.startswith("no ") and reason in line for line in found), found
    assert code == (0 if answer is wraps else 1) and "works for: no recipe" in found[-1]
    if answer is wraps: assert any("unparseable" in line or "take a stronger model" in line for line in found)
    else: assert len(bodies) <= 1


@pytest.mark.parametrize("model, reason", [("http://127.0.0.1:9/v1#m", "cannot be reached"), ("openai:gpt-5", "set OPENAI_API_KEY"), ("gpt-5", "expected embedded, hf:NAME"), ("embedded:nowhere.gguf", "no such file")])
def test_doctor_on_a_model_that_is_not_there(project, capsys, monkeypatch, model, reason):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, found = doctor(capsys, model)
    assert code == 1 and any(line.startswith("no ") and reason in line for line in found) and found[-1].startswith("no  works for: no recipe")


def test_doctor_in_a_terminal(project):
    done = subprocess.run([sys.executable, "-m", "llmdata_nb", "doctor", "http://127.0.0.1:9/v1#m"], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and max(map(len, done.stdout.split("Each model")[1].splitlines())) <= 80


# clear the screen, set the title, write to the clipboard, a link; C1 controls, bell, backspace, carriage return, an override of direction
STEERS = "\x1b[2J\x1b]0;title\x07\x1b]52;c;aGk=\x07\x1b]8;;x:y\x1b\\z\x9b2J\x90q\x9c\x08\rdone\u202eeno"
OURS = re.compile(r"\r\x1b\[2K|\x1b\[\d+A\r\x1b\[J|\r(?=\n)")  # the lines of progress, and what a terminal makes of a line end


def steering(text):
    "The characters in `text` that a terminal obeys, but for those of ours"
    return set(re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", OURS.sub("", text)))


def in_terminal(*argv):
    "The exit code of the command in a real terminal, and all that it showed"
    pid, terminal = pty.fork()
    if pid == 0: os.execv(sys.executable, [sys.executable, "-m", "llmdata_nb", *argv])
    shown = b"".join(read_all(terminal))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode(errors="surrogateescape")


HOSTILE_RECIPE = """
from llmdata_nb.rows import load_rows
from llmdata_nb.run import drop, run
async def word(row, ask, language):
    where = int(row["line"])
    if where == 1: drop(f"{row['kind']}: no such column, there are {', '.join(row)}")
    if where == 2: row[row["kind"]]["no such column"]
    row["word"] = (await ask(f"{language}: {where}")).text
    if where == 3: drop(row["word"])
    return row
outcome = run(load_rows(source, limit=None), word, model=model, out=out_dir, language=language, concurrency=1)
print(outcome)
if ends: raise ValueError(f"no such column: {outcome.dropped[0]['reason']}")
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    "A folder, a notebook and a source whose names, columns and texts steer a terminal; the paths of the two"
    folder = tmp_path / f"a {STEERS.replace('/', '')} b"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LLMDATA_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "2000")  # a narrow terminal would cut the line of progress
    head = 'language: str = "it"  # code\nmodel: str = ""\nsource: str = ""\nout_dir: str = ""\nends: bool = False'
    cells = [new_code_cell(head, metadata={"tags": ["parameters"]}), new_code_cell(HOSTILE_RECIPE)]
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    name, source = f"words {STEERS}.ipynb", f"rows {STEERS}.jsonl"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), name)
    rows = [{"instruction": f"Why {STEERS}?", "response": "So.", "line": str(n), "kind": STEERS, STEERS: "x"} for n in range(6)]
    (folder / source).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name, source


def hostile_answer(body, n):
    "A server that asks to wait, refuses, and answers, each in words that steer a terminal"
    where = body["messages"][0]["content"][-1]
    if where == "0" and not n: return 429, {"error": {"message": f"slow down {STEERS}"}}, {"Retry-After": "3"}
    if where == "4": return 400, {"error": {"message": f"no {STEERS}"}}
    return STEERS


@pytest.mark.parametrize("language, ends", [("it", False), ("it", True), ("it,nl", False)])
def test_no_text_of_others_steers_the_terminal(hostile, language, ends):
    "Reasons, columns, answers and refusals of the server, paths, and the error that ends a notebook"
    name, source = hostile
    with serve(hostile_answer) as (model, bodies):
        code, shown = in_terminal(name, "--language", language, "--parallel", "2", "-p", f"model={model}", "-p", f"source={source}", "-p", f"ends={ends}")
    assert code == int(ends) and not steering(shown), shown
    assert "429 slow down \\u001b[2J" in shown or language != "it"
    if ends: assert "ValueError: no such column: " in shown and "the notebook stopped at the cell marked in " in shown
    elif language == "it": assert "2 rows kept of 6" in shown and "\\u009b2J" in shown
    else: assert len(table(shown)) == 2


@pytest.mark.parametrize("argv", [["{name}", "--help"], ["{name}", "-p", "source={steers}.jsonl"], ["{name}", "-p", "{steers}=1"], ["{steers}"], ["--{steers}"], ["--language", "{steers}", "{name}"],
                                  ["translate_and_judge", "-p", "source={steers}.jsonl"], ["magpie", "-p", "prompts={steers}.toml"], ["notebooks", "{steers}"], ["doctor", "embedded:{steers}.gguf"], ["doctor", "--language", "{steers}"]])
def test_no_word_of_the_command_comes_back_as_it_is(hostile, capsys, argv):
    main([word.format(name=hostile[0], steers=STEERS) for word in argv])
    shown = capsys.readouterr()
    assert (shown.out or shown.err) and not steering(shown.out + shown.err)


@pytest.mark.parametrize("models", [[STEERS, f"m{STEERS}"], ["m"]])
@pytest.mark.parametrize("answer", [lambda body, n: (400, {"error": {"message": f"no {STEERS}"}}), lambda body, n: STEERS,
                                    lambda body, n: (500, {"detail": STEERS}), lambda body, n: wrote(STEERS) if "prompt" in body else '{"colour": "blue"}'])
def test_doctor_shows_no_text_of_a_server_as_it_is(hostile, capsys, models, answer):
    "What it lists, its answers, and what it refuses with"
    with serve(answer, models=models) as (model, bodies): main(["doctor", model])
    shown = capsys.readouterr().out
    assert "works for: " in shown and not steering(shown), shown


def test_a_fault_of_ours_steers_nothing_either(project, capsys, monkeypatch):
    def fails(*_): raise RuntimeError(STEERS)
    monkeypatch.setattr("llmdata_nb.cli.run_all", fails)
    assert main(["compare_languages"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "RuntimeError" in err and not steering(err)


def test_a_damaged_manifest_is_named(project, notebook, capsys):
    "Something else wrote over it before the command could read it"
    found = nbformat.read(notebook, 4)
    found.cells.append(new_code_cell("from pathlib import Path\nPath(out_dir, 'manifest.json').write_text('{\"rows\": ')"))
    nbformat.write(found, notebook)
    with serve(lambda body, n: "word") as (model, bodies): assert main([notebook, "-p", f"model={model}"]) == 1
    err = capsys.readouterr().err
    assert "outputs/it/words/manifest.json is damaged" in err and "run again, no call is paid twice" in err and "Traceback" not in err


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"rows": {"in": 1}, "reasons": []}', '{"rows": {"in": "x", "kept": [], "dropped": 0, "failed": 0}, "reasons": [1]}', "[" * 100_000, None])
def test_a_manifest_that_is_none_is_an_error_of_that_language(project, text):
    "Also a folder in its place; the summary goes on with the others"
    if text is None: (project / "manifest.json").mkdir()
    else: (project / "manifest.json").write_text(text)
    result = _result(None, project, time.monotonic(), 0)
    assert result["code"] == 1 and result["made"] is None and "manifest.json" in result["error"] and "\n" not in result["error"]
    assert "manifest.json" in summary([result | {"language": "it"}])
