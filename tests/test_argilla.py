"""Rows to Argilla and annotations back: the pure functions always; with a real server when LLMDATA_ARGILLA is the python of an environment for it.

    python3.11 -m venv argilla_env
    argilla_env/bin/pip install argilla==2.8.0 argilla-server==2.8.0 fakeredis==2.40.0 "click<8.2" "huggingface_hub<1"
    LLMDATA_ARGILLA=argilla_env/bin/python pytest tests/test_argilla.py

The server, its database (SQLite) and its package are real. Elasticsearch is `search_stand_in`, and Redis is fakeredis with nobody who takes up the jobs.
"""
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from datetime import datetime, timezone
from itertools import permutations
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdata_nb.annotate import answers_to_show, new_annotation, resolve
from llmdata_nb.argilla_bridge import _check_layout, annotation_of, escape_html, layout, push, record_of, unescape_html

ROOT, PYTHON = Path(__file__).parents[1], os.environ.get("LLMDATA_ARGILLA") and os.path.abspath(os.environ["LLMDATA_ARGILLA"])
BAD = "Use `<b>` or:\n```html\n<img src=x onerror=alert(1)>\n```\n<script>alert(1)</script> 1 < 2 && <!-- x -->"


def row_of(i, answers=2, scores=True):
    dice = random.Random(i)
    row = {"id": f"row {i}", "prompt": [{"role": "user", "content": f"Vraag {i}: waarom? <i>日本</i>"}], "responses": [f"{BAD} {k}" if i % 7 == 0 else f"Antwoord {k} op {i}" for k in range(answers)],
           "models": ["mens", "org/model"] + ["other"] * (answers - 2), "detected_language": "nl", "detected_confidence": round(dice.random(), 3)}
    if scores: row |= {"scores": [dice.randint(2, 10) / 2 for _ in range(answers)], "feedbacks": [f"reason {k}" for k in range(answers)], "outcome": dice.choice(["ranked", "tie"])}
    return row


def annotation(row, annotator, dice, status="submitted", seen=True):
    "What someone says of a row, at random"
    n = len(row["responses"])
    full = status == "submitted"
    return {"id": row["id"], "annotator": annotator, "ratings": [dice.choice([None, 1, 2, 3, 4, 5]) for _ in range(n)], "preference": dice.choice(["tie", *range(n)]) if full else dice.choice([None, 0]),
            "rationale": dice.choice(["", "Beter.\n\"Zo\" <b>is</b> het 日本"]), "improved": dice.choice([None, f"Beter: {BAD}"]), "improved_of": None, "flag": "",
            "skipped": not full, "seen_judge": seen, "seconds": None, "answers": answers_to_show(row)["hash"]} | ({"draft": True} if status == "draft" else {})


def answered(said, order):
    "The annotation as the page of Argilla sends it, with the answers in the order in which they are shown"
    prefers = said["preference"] if said["preference"] in ("tie", None) else str(order.index(said["preference"]) + 1)
    values = {f"rating_{k}": said["ratings"][i] for k, i in enumerate(order, 1)} | {"preference": prefers, "rationale": said["rationale"] or None, "improved": said["improved"] and escape_html(said["improved"])}
    return {name: {"value": v} for name, v in values.items() if v is not None}


@given(st.text(alphabet="<>ab/!? `\n&;script[]():@w.", max_size=60))
def test_no_tag_is_left_and_nothing_is_lost(text):
    assert not re.search("<[a-zA-Z/!?]", escape_html(text)) and unescape_html(escape_html(text)) == text and escape_html(escape_html(text)) == escape_html(text)


LINKS = ["![x](http://a.it/p)", "[a](javascript:alert(1))", "[a](<http://a.it> 'title')", "![x][b]\n\n[b]: http://a.it", "[b]\n\n[b]:\n  http://a.it", "[b][]\n\n[b]: <javascript:x>",
         "[^1]\n\n[^1]: http://a.it", "<http://a.it>", "<me@a.it>", "http://a.it", "HTTPS://A.it/x?y", "ftp://a.it", "www.a.it", "WWW.a.it", "me@a.it", "mailto:me@a.it", "//a.it/x",
         "<img src=http://a.it>", "<a href=javascript:x>a</a>", "[![x](http://a.it)](http://b.it)", "[a](//a.it)", "[a\\]](http://a.it)", "> - [a](data:text/html;x)", "|[a](x:y)|\n|-|\n|![b](x:y)|",
         "`x` [a](http://a.it)", "```\n![x](http://a.it)\n```\n![x](http://a.it)", "![a](x)" * 3, "[a]  \n[a]: x:y"]


@pytest.mark.parametrize("text", LINKS)
def test_no_link_and_no_image_is_left(text):
    "By a reader of Markdown that lets HTML through, and by the marks of bare addresses in another (marked, which Argilla shows with)"
    import mistune
    shown = escape_html(text)
    page = mistune.create_markdown(escape=False, plugins=["url", "table", "footnotes"])(shown)
    assert not re.search("<(a|img)\\b", page), page
    assert not re.search(r"(?i)(ftp|https?)://|www\.|[\w.+-]@[\w-]+\.", shown)
    assert shown.replace("\u2060", "") == text == unescape_html(shown) and escape_html(shown) == shown


def test_code_is_read_and_copied_as_it_was():
    "The characters that are put in have no width, and are none of those that come back"
    code = "```js\n// see https://a.it\ncells[0](x)\n```\n`d[k]: int`, `a@b.it`, a < b, 3 / 4, list[int], x @ y"
    assert escape_html(code).replace("\u2060", "") == code == unescape_html(escape_html(code))
    typed = "Better: [a](http://a.it), a\u2060b, me@a.it"
    assert unescape_html(typed) == typed  # of a person, who put nothing in
    assert unescape_html("<\u2060b> of an earlier version") == "<b> of an earlier version"


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_every_order_comes_back_as_the_order_of_the_row(order):
    row, order = row_of(7, 3), list(order)
    record, dice = record_of(row, order=order), random.Random(1)
    assert [unescape_html(record["fields"][f"answer_{k}"]) for k in (1, 2, 3)] == [row["responses"][i] for i in order]
    suggested = {s["question_name"]: s["value"] for s in record["suggestions"]}
    assert [suggested[f"rating_{k}"] for k in (1, 2, 3)] == [int(row["scores"][i] + 0.5) for i in order]
    for status in ["submitted"] * 50 + ["draft", "discarded"]:
        said = annotation(row, "ana", dice, status)
        there = {"external_id": row["id"], "fields": record["fields"], "metadata": record["metadata"], "suggestions": [{"inserted_at": "2026-01-01T00:00:00"}]}
        assert annotation_of(there, {"values": answered(said, order), "status": status, "updated_at": "2026-01-01T00:00:01Z"}, "ana") == said | {"time": "2026-01-01T00:00:01+00:00"}


def test_the_shape_is_that_of_the_annotator():
    row, there = row_of(1), {"external_id": "row 1", "metadata": record_of(row_of(1))["metadata"], "fields": {}}
    assert annotation_of(there, {"values": {}, "status": "submitted", "updated_at": "2026-01-01T00:00:00"}, "ana").keys() == new_annotation(row, "ana").keys()


def test_a_pair_without_an_id_is_a_record_too():
    row = {"messages": [{"role": "system", "content": "Be <b>brief</b>."}, {"role": "user", "content": "Why?"}], "chosen": "So.", "rejected": "Thus.", "chosen_score": 5}
    record, told = record_of(row, order=[1, 0]), answers_to_show(row)
    assert record["id"] == told["id"] and record["metadata"] == {"order": [1, 0], "answers": told["hash"]} and [s["question_name"] for s in record["suggestions"]] == ["rating_2"]
    assert record["fields"] == {"prompt": "[system] Be <\u2060b>brief<\u2060/b>.\n\n[user] Why?", "answer_1": "Thus.", "answer_2": "So."}


@pytest.mark.parametrize("row, expected", [({"responses": ["a"]}, "two or more answers"), ({"responses": ["a", None]}, "as texts"), ({"responses": []}, "expected responses"), ({"prompt": []}, "expected the prompt")])
def test_rows_that_cannot_be_records(row, expected):
    with pytest.raises(ValueError, match=expected): record_of(row_of(1) | row)


@pytest.mark.parametrize("scores", [[0, 5.5], [None, None], None])
def test_scores_outside_of_the_stars_are_no_ratings(scores):
    assert not [s for s in record_of(row_of(1) | {"scores": scores})["suggestions"] if s["question_name"].startswith("rating")]


def test_room_for_more_answers_is_no_difference():
    for there in (2, 3, 4): _check_layout("x", layout(there), 2, 1)
    with pytest.raises(ValueError, match="answer_4: missing"): _check_layout("x", layout(3), 4, 1)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "argilla", None)
    with pytest.raises(ModuleNotFoundError, match=r"^the package argilla is missing: pip install 'llmdata_nb\[argilla\]'$"): push([row_of(1)], "x")


# ------------------------------------------------------------------ a real server

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(ready, process, log, seconds=90):
    end = time.time() + seconds
    while time.time() < end and process.poll() is None:
        try: return ready()
        except (OSError, URLError): time.sleep(0.3)
    raise RuntimeError(f"it does not run:\n{log.read_text()[-3000:]}")


class Server:
    "The address of a server, and the keys of its users"
    keys = {"olga": "owner-key-123", "anton": "annotator-key-456"}

    def __init__(self, url, search): self.url, self.search = url, search

    def rest(self, path, user="olga", body=None):
        request = Request(f"{self.url}/api/v1/{path}", data=None if body is None else json.dumps(body).encode(), headers={"X-Argilla-Api-Key": self.keys[user], "Content-Type": "application/json"})
        with urlopen(request, timeout=60) as reply: return json.load(reply)

    def python(self, code, **given):
        "What `code` leaves in `result`, run in the environment of Argilla's package; its last line where it fails"
        program = f"import json, sys; given = json.load(sys.stdin)\nfrom llmdata_nb.argilla_bridge import push, pull\nimport argilla\n{code}\nprint('\\n' + json.dumps(result))"
        env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHONPATH": str(ROOT), "ARGILLA_API_URL": self.url, "ARGILLA_API_KEY": self.keys["olga"], "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([PYTHON, "-c", program], input=json.dumps(given), capture_output=True, text=True, env=env, timeout=300)
        assert not any(key in done.stdout + done.stderr for key in self.keys.values())
        if done.returncode: raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return json.loads(done.stdout.strip().splitlines()[-1])

    def push(self, rows, name="judged", **options): return self.python("result = push(given['rows'], given['name'], **given['options'])", rows=rows, name=name, options=options)
    def pull(self, name="judged"): return self.python("result = pull(given['name'])", name=name)

    def records(self, name="judged"):
        (dataset,) = [d for d in self.rest("me/datasets")["items"] if d["name"] == name]
        items = self.rest(f"datasets/{dataset['id']}/records?limit=1000&include=suggestions&include=responses")["items"]
        return dataset["id"], {r["external_id"]: r for r in items}

    def answer(self, said, record, status="submitted"):
        body = {"values": answered(said, record["metadata"]["order"]), "status": status}
        return self.rest(f"records/{record['id']}/responses", said["annotator"], body)


needs_server = pytest.mark.skipif(not PYTHON, reason="LLMDATA_ARGILLA names no Python with argilla and argilla-server")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from search_stand_in import serve
    folder, port, redis = tmp_path_factory.mktemp("argilla"), free_port(), free_port()
    log, started = folder / "log.txt", []
    with serve() as (search_url, search), open(log, "w") as out:
        env = {"PATH": os.environ["PATH"], "HOME": str(folder), "ARGILLA_HOME_PATH": str(folder), "ARGILLA_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/argilla.db?check_same_thread=False",
               "ARGILLA_ELASTICSEARCH": search_url, "ARGILLA_REDIS_URL": f"redis://127.0.0.1:{redis}/0", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        start = lambda *args: started.append(subprocess.Popen([PYTHON, *args], env=env, cwd=folder, stdout=out, stderr=out)) or started[-1]
        tell = lambda *args: subprocess.run([PYTHON, "-m", "argilla_server", "database", *args], env=env, cwd=folder, stdout=out, stderr=out, check=True)
        try:
            until(lambda: socket.create_connection(("127.0.0.1", redis)).close(), start("-c", f"from fakeredis import TcpFakeServer; TcpFakeServer(('127.0.0.1', {redis}), server_type='redis').serve_forever()"), log)
            tell("migrate")
            for name, role in (("olga", "owner"), ("anton", "annotator")):
                tell("users", "create", "--first-name", name, "--username", name, "--role", role, "--password", "password-1234", "--api-key", Server.keys[name], "--workspace", "people")
            running, here = start("-m", "argilla_server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-access-log"), Server(f"http://127.0.0.1:{port}", search)
            until(lambda: here.rest("me"), running, log)
            yield here
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(30)
    assert "Error in bulk operation" not in log.read_text()


def by_id(annotations): return sorted(annotations, key=lambda a: (a["id"], a["annotator"]))

def without_time(annotations): return [{k: v for k, v in a.items() if k != "time"} for a in by_id(annotations)]


@needs_server
def test_round_trip(server):
    rows, dice, began = [row_of(i, 2 + (i % 3 == 0)) for i in range(50)], random.Random(0), datetime.now(timezone.utc)
    assert server.push(rows, judge="org/judge@7b") == {"added": 50, "updated": 0, "changed": []}

    dataset, records = server.records()
    questions = {q["id"]: q["name"] for q in server.rest(f"datasets/{dataset}/questions")["items"]}
    for row in rows:  # all is there, no HTML is, and the suggestions name their agent
        record, wanted = records[row["id"]], record_of(row, "org/judge@7b")
        assert {k: v for k, v in record["fields"].items() if v is not None} == wanted["fields"] and record["metadata"] == wanted["metadata"]
        assert not re.search("<[a-zA-Z/!?]", "".join(v or "" for v in record["fields"].values()))
        assert {questions[s["question_id"]]: (s["value"], s["agent"]) for s in record["suggestions"]} == {s["question_name"]: (s["value"], "org/judge-7b") for s in wanted["suggestions"]}

    # an annotator's page shows the records (over the stand-in), and not who wrote the answers
    page = server.rest(f"me/datasets/{dataset}/records/search?limit=50", "anton", {})
    assert page["total"] == 50 and {item["record"]["external_id"] for item in page["items"]} == set(records)
    assert {name for item in page["items"] for name in item["record"]["metadata"]} == {"language", "language_score"}

    expected = []
    for i, row in enumerate(rows):
        statuses = {"olga": "submitted", "anton": ("submitted" if i < 20 else "draft" if i < 25 else "discarded") if i < 30 else None}
        for user, status in statuses.items():
            if status is None: continue
            expected.append(annotation(row, user, dice, status))
            server.answer(expected[-1], records[row["id"]], status)
    pulled = server.pull()
    assert len(expected) == 80 and without_time(pulled) == without_time(expected)
    assert all(began <= datetime.fromisoformat(a["time"]) <= datetime.now(timezone.utc) for a in pulled)

    # they decide the pairs, as those of the notebook's annotator do
    pairs, others = resolve(rows, pulled, tie="shorter")
    assert {tuple(sorted(p["people"])) for p in pairs} == {("olga",), ("anton", "olga")} and all(set(p["people"]) == {"olga"} for p in pairs if int(p["id"][4:]) >= 20) and not any("flagged" in r["reason"] for r in others)

    # a second push: ten new rows, other scores, and one row with another answer
    again = [row | {"scores": [6 - s for s in row["scores"]], "outcome": "ranked", "detected_language": "fr"} for row in rows]
    again[3] = again[3] | {"responses": ["Something else.", *again[3]["responses"][1:]]}
    new = [row_of(i, 2, scores=False) for i in range(50, 60)]
    assert server.push(again + new, judge="second") == {"added": 10, "updated": 49, "changed": ["row 3"]}
    assert by_id(server.pull()) == by_id(pulled)
    (changed,) = [a for a in pulled if a["id"] == "row 3" and a["annotator"] == "olga"]
    assert changed["answers"] == answers_to_show(rows[3])["hash"] != answers_to_show(again[3])["hash"]
    _, after = server.records()
    assert after["row 3"]["fields"] == records["row 3"]["fields"] and after["row 3"]["suggestions"] == records["row 3"]["suggestions"]
    assert {s["agent"] for i, r in after.items() for s in r["suggestions"] if i != "row 3"} == {"second"} and after["row 4"]["metadata"]["language"] == "fr"
    for row in again[4:]:
        want = {s["question_name"]: s["value"] for s in record_of(row, order=records[row["id"]]["metadata"]["order"])["suggestions"]}
        assert {questions[s["question_id"]]: s["value"] for s in after[row["id"]]["suggestions"]} == want

    # suggestions that came after the answer were not seen
    unseen = annotation(new[0], "anton", dice, seen=False)
    server.answer(unseen, after["row 50"])
    server.push([row_of(50)])
    assert [a for a in without_time(server.pull()) if a["id"] == "row 50"] == [unseen]

    # other settings are refused, with what differs; all stays as it was
    before = by_id(server.pull())
    with pytest.raises(RuntimeError, match="'judged' is there with other settings.*answer_4: missing, expected text field; rating_4: missing.*choose another name"): server.push([row_of(99, 4)])
    with pytest.raises(RuntimeError, match="annotators: 1, expected 2"): server.push(new, annotators=2)
    with pytest.raises(RuntimeError, match="other guidelines"): server.push(new, guidelines="Be kind.")
    assert by_id(server.pull()) == before and len(server.records()[1]) == 60


@needs_server
def test_what_is_refused(server):
    server.python("""
client = argilla.Argilla(api_url=given["url"], api_key=given["key"])
settings = argilla.Settings(fields=[argilla.TextField("text")], questions=[argilla.LabelQuestion("mood", ["good", "bad"])])
argilla.Dataset("moods", workspace="people", settings=settings, client=client).create()
result = None""", url=server.url, key=server.keys["olga"])
    with pytest.raises(RuntimeError, match="mood: label_selection good bad, required, expected none"): server.push([row_of(1)], "moods")
    with pytest.raises(RuntimeError, match="'moods' is there with other settings"): server.pull("moods")
    assert server.records("moods")[1] == {}
    with pytest.raises(RuntimeError, match="no dataset 'none' in the workspace 'people'; there are .*moods"): server.pull("none")
    with pytest.raises(RuntimeError, match="workspace 'here': expected one of people"): server.push([row_of(1)], "x", workspace="here")
    with pytest.raises(RuntimeError, match="Credentials"): server.push([row_of(1)], "x", api_key="wrong-key-000")


@needs_server
def test_made_with_all_options_and_pushed_twice(server):
    rows = [row_of(i) for i in range(210)]  # more than one batch
    for known in (0, 210):
        assert server.push(rows, "many", workspace="people", annotators=2, guidelines="# Be kind") == {"added": 210 - known, "updated": known, "changed": []}
    dataset, records = server.records("many")
    assert len(records) == 210 and server.rest(f"datasets/{dataset}")["guidelines"] == "# Be kind" and server.pull("many") == []
    one = records["row 1"]
    for user, status in (("olga", "pending"), ("anton", "completed")):
        server.answer(annotation(rows[1], user, random.Random(1)), one)
        assert server.rest(f"records/{one['id']}")["status"] == status
    with pytest.raises(HTTPError, match="422"): server.rest(f"records/{records['row 2']['id']}/responses", "anton", {"values": {"rating_1": {"value": 5}}, "status": "submitted"})  # no preference
