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

from llmdata_nb.cli import main, parameters, pipelines

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
    assert code == 0 and found[-1].startswith("ok  works for: all recipes but magpie, for which it can answer and judge (responder_model, judge_model) (7 requests, ") and len(bodies) == 7
    told = "\n".join(found)
    assert "ok  structured output: none; JSON is read out of plain text" in told and "no  raw text: its server refuses raw text (404 unknown path). Magpie needs" in told
    assert "no  log-probabilities: not reported" in told and "no  price: not known" in told and 'budget="300 calls"' in told


def wraps(body, n=0):
    "A service that puts raw text into its chat template, and never writes JSON"
    return wrote("Hello!", prompt_tokens=21) if "prompt" in body else "Blue."


@pytest.mark.parametrize("answer, models, reason", [
    (lambda body, n: "Blue.", 401, "refuses the key (401)"),
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
