"What trainers get is what the rows say, whichever way it is written; nothing is written of rows that cannot be trained on; and what goes to the Hub arrives whole."
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import datasets
import hub_push_server
import hub_server
import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from llmdata_nb.export import write_card
from llmdata_nb.formats import FORMATS, HELD_FIELDS, convert, hub_files, in_test, write_format
from llmdata_nb.models import CallFailed
from llmdata_nb.rerank import rerank_preferences
from llmdata_nb.rowfile import RowFile
from llmdata_nb.rows import load_rows
from llmdata_nb.run import run

ROOT = Path(__file__).parents[1]
SFT = [f for f, (kind, _) in FORMATS.items() if kind == "conversation"]
PAIRS = [f for f, (kind, _) in FORMATS.items() if kind == "preference" and not f.endswith("kto")]
KTO = [f for f in FORMATS if f.endswith("kto")]
NASTY = ["two\nlines\r\nand\u2028more\x85", "\x00\x1b[31m", "שלום \u202eevil\u202c", "👩‍🚀 é e\u0301", '{"role": "system"}', "---\n", "'\"\\", "null", "1.0"]


def user(text): return {"role": "user", "content": text}
def assistant(text): return {"role": "assistant", "content": text}
def system(text): return {"role": "system", "content": text}


def talk(id="t", turns=1, rules="", text="ciao", **columns):
    said = [f(f"{text} {n}") for n in range(turns) for f in (user, assistant)]
    return {"id": id, "messages": [system(rules)] * bool(rules) + said} | columns


def pair(id="p", turns=1, rules="", text="ciao", **columns):
    return {"id": id, "prompt": talk("", turns, rules, text)["messages"][:-1], "chosen": [assistant(f"{text} good")], "rejected": [assistant(f"{text} bad")],
            "chosen_score": 4, "rejected_score": 2, "margin": 2.0, "outcome": "kept", "chosen_model": "m"} | columns


# what a trainer makes of a line, by its documentation: the messages before the answer, and the answers

def read_alpaca(line, columns):
    line = {ours: line[theirs] for ours, theirs in columns.items()}
    before = [m for request, answer in line["history"] for m in (user(request), assistant(answer))]
    prompt = [system(line["system"])] * bool(line["system"]) + before + [user("\n".join(filter(None, [line["prompt"], line["query"]])))]
    return prompt, [line[k] for k in ("response", "chosen", "rejected") if k in line]


def read_sharegpt(line, columns):
    line = {ours: line[theirs] for ours, theirs in columns.items()}
    assert {m["from"] for m in line["messages"][::2]} == {"human"} and {m["from"] for m in line["messages"][1::2]} <= {"gpt"}  # else it is skipped
    said = [{"human": user, "gpt": assistant}[m["from"]](m["value"]) for m in line["messages"]]
    prompt = [system(line["system"])] * bool(line["system"]) + said
    if "chosen" in line:
        assert line["chosen"]["from"] == line["rejected"]["from"] == "gpt" and len(said) % 2 == 1
        return prompt, [line["chosen"]["value"], line["rejected"]["value"]]
    assert len(said) % 2 == 0
    return prompt[:-1], [prompt[-1]["content"]]


def read_orpo(line, _):
    assert "prompt" not in line and len(line["chosen"]) % 2 == len(line["rejected"]) % 2 == 0 and line["chosen"][:-1] == line["rejected"][:-1]
    return [system(line["system"])] * bool(line["system"]) + line["chosen"][:-1], [line[k][-1]["content"] for k in ("chosen", "rejected")]


def read_messages(line, _): return line["messages"][:-1], [line["messages"][-1]["content"]]
def read_conversations(line, _): return line["chosen"][:-1], [line[k][-1]["content"] for k in ("chosen", "rejected") if line[k][:-1] == line["chosen"][:-1]]
def read_parts(line, _): return line["prompt"], [line[k][0]["content"] for k in ("completion", "chosen", "rejected") if k in line]
def read_plain(line, _): return [user(line["prompt"])], [line[k] for k in ("completion", "chosen", "rejected") if k in line]
def read_dpo(line, _): return line["messages"], [line[k]["content"] for k in ("chosen", "rejected") if line[k]["role"] == "assistant"]


READERS = {"trl_sft": read_messages, "handbook_sft": read_messages, "axolotl_sft": read_messages, "trl_sft_completion": read_parts, "trl_preference": read_parts, "trl_kto": read_parts,
           "trl_sft_plain": read_plain, "trl_preference_plain": read_plain, "handbook_preference": read_conversations, "axolotl_dpo": read_dpo, "axolotl_orpo": read_orpo}
READERS |= {f: read_alpaca if "alpaca" in f else read_sharegpt for f in FORMATS if f.startswith("llamafactory")}


def meaning(row):
    if "messages" in row: return row["messages"][:-1], [row["messages"][-1]["content"]]
    return row["prompt"], [row[k][0]["content"] for k in ("chosen", "rejected")]


def read_files(paths, cache):
    "The lines of the files as `load_dataset` gives them, and the columns that a dataset_info.json names"
    info = next((json.loads(p.read_text()) for p in paths if p.name == "dataset_info.json"), None)
    columns = info and info[paths[0].stem]["columns"]
    lines = [line for p in paths if p.suffix == ".jsonl" for line in datasets.load_dataset("json", data_files=str(p), split="train", cache_dir=str(cache))]
    return lines, columns


@pytest.mark.parametrize("format", FORMATS)
def test_a_trainer_reads_what_the_row_says(format, tmp_path):
    make = pair if FORMATS[format][0] == "preference" else talk
    kinds = [dict()] if "plain" in format else [dict(), dict(turns=3), dict(rules="Be brief."), dict(turns=2, rules="Be brief.")]
    rows = [make(f"r{n}-{k}", text=text, **kind) for n, text in enumerate(NASTY) for k, kind in enumerate(kinds)]
    lines, columns = read_files(write_format(rows, tmp_path / "out", format), tmp_path / "cache")
    found, expected = {}, {row["id"]: meaning(row) for row in rows}
    for line in lines: found[line["id"]] = READERS[format](line, columns)
    if format in KTO: expected = {f"{id}-{side}": (prompt, [answers[i]]) for id, (prompt, answers) in expected.items() for i, side in enumerate(("chosen", "rejected"))}
    assert found == expected and len(lines) == len(expected)


@pytest.mark.parametrize("format", FORMATS)
def test_columns_are_the_documented_ones_and_the_id(format, tmp_path):
    expected = {"trl_sft": {"messages"}, "trl_sft_completion": {"prompt", "completion"}, "trl_sft_plain": {"prompt", "completion"}, "trl_preference": {"prompt", "chosen", "rejected"},
                "trl_preference_plain": {"prompt", "chosen", "rejected"}, "trl_kto": {"prompt", "completion", "label"}, "handbook_sft": {"messages"}, "handbook_preference": {"chosen", "rejected"},
                "llamafactory_alpaca_sft": {"instruction", "input", "output", "system", "history"}, "llamafactory_alpaca_preference": {"instruction", "input", "chosen", "rejected", "system", "history"},
                "llamafactory_alpaca_kto": {"instruction", "input", "output", "system", "history", "kto_tag"}, "llamafactory_sharegpt_sft": {"conversations", "system"},
                "llamafactory_sharegpt_preference": {"conversations", "chosen", "rejected", "system"}, "llamafactory_sharegpt_kto": {"conversations", "system", "kto_tag"},
                "axolotl_sft": {"messages"}, "axolotl_dpo": {"messages", "chosen", "rejected"}, "axolotl_orpo": {"system", "chosen", "rejected"}}
    made = convert(pair() if FORMATS[format][0] == "preference" else talk(), format)
    assert all({*line} == expected[format] | {"id"} for line in made) and len(made) == (2 if format in KTO else 1)


def test_dataset_info_is_as_llama_factory_documents_it(tmp_path):
    def entry(format, rows): return json.loads(write_format(rows, tmp_path, format, name="x")[1].read_text())["x"]
    alpaca = {"prompt": "instruction", "query": "input", "system": "system", "history": "history"}
    shares = {"messages": "conversations", "system": "system"}
    both = {"chosen": "chosen", "rejected": "rejected"}
    assert entry("llamafactory_alpaca_sft", [talk()]) == {"file_name": "x.jsonl", "formatting": "alpaca", "columns": alpaca | {"response": "output"}}
    assert entry("llamafactory_alpaca_preference", [pair()]) == {"file_name": "x.jsonl", "formatting": "alpaca", "ranking": True, "columns": alpaca | both}
    assert entry("llamafactory_alpaca_kto", [pair()]) == {"file_name": "x.jsonl", "formatting": "alpaca", "columns": alpaca | {"response": "output", "kto_tag": "kto_tag"}}
    assert entry("llamafactory_sharegpt_sft", [talk()]) == {"file_name": "x.jsonl", "formatting": "sharegpt", "columns": shares}
    assert entry("llamafactory_sharegpt_preference", [pair()]) == {"file_name": "x.jsonl", "formatting": "sharegpt", "ranking": True, "columns": shares | both}
    assert entry("llamafactory_sharegpt_kto", [pair()]) == {"file_name": "x.jsonl", "formatting": "sharegpt", "columns": shares | {"kto_tag": "kto_tag"}}


def test_dataset_info_keeps_other_entries(tmp_path):
    info = tmp_path / "dataset_info.json"
    info.write_text('{"identity": {"file_name": "identity.json"}, "x": {"old": 1}}')
    write_format([talk()], tmp_path, "llamafactory_sharegpt_sft", name="x")
    assert list(json.loads(info.read_text())) == ["identity", "x"] and json.loads(info.read_text())["x"]["file_name"] == "x.jsonl"
    info.write_text("{")
    (tmp_path / "x.jsonl").unlink()
    with pytest.raises(ValueError, match="dataset_info.json: not JSON"): write_format([talk()], tmp_path, "llamafactory_sharegpt_sft", name="x")
    assert info.read_text() == "{" and {p.name for p in tmp_path.iterdir()} == {"dataset_info.json"}


@pytest.mark.parametrize("format, rl, type", [("axolotl_sft", None, "chat_template"), ("axolotl_dpo", "dpo", "chat_template.default"), ("axolotl_orpo", "orpo", "chat_template.argilla")])
def test_axolotl_lines_are_a_configuration(format, rl, type, tmp_path):
    folder = tmp_path / "my: rows #1"
    file, lines = write_format([talk() if rl is None else pair()], folder, format)
    config = yaml.safe_load(lines.read_text())
    assert config["datasets"] == [{"path": file.as_posix(), "ds_type": "json", "split": "train", "type": type}] and config.get("rl") == rl
    assert ("orpo_alpha" in config) == (rl == "orpo") and Path(config["datasets"][0]["path"]).exists()


@pytest.mark.parametrize("format", FORMATS)
def test_load_dataset_reads_the_folder(format, tmp_path):
    rows = [(pair if FORMATS[format][0] == "preference" else talk)(f"r{i}") for i in range(30)]
    write_format(rows, tmp_path / "out", format)
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    task = {"handbook_sft": "_sft", "handbook_preference": "_prefs"}.get(format)
    assert {*loaded} == ({f"train{task}", f"test{task}"} if task else {"train"})
    assert sum(map(len, loaded.values())) == (60 if format in KTO else 30)


def test_a_history_far_down_the_file_still_loads(tmp_path):
    rows = [talk(f"r{i}", text="x" * 2000) for i in range(3000)] + [talk("last", turns=2)]
    path = write_format(rows, tmp_path / "out", "llamafactory_alpaca_sft")[0]
    assert path.stat().st_size > 11e6  # datasets looks at 10 MB to tell the types
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["id"] == "last" and loaded[0]["history"] == [["ciao 0", "ciao 0"]] and len(loaded) == 3001


# what is refused

def change(row, **columns): return {k: v for k, v in (row | columns).items() if v is not ...}


BAD_TALKS = [
    (change(talk(), messages=[]), "expected a list of messages"), (change(talk(), messages="ciao"), "expected a list of messages"), (change(talk(), messages=["ciao"]), "expected a list of messages"),
    (change(talk(), messages=...), "no messages"), (change(talk(), id=...), "id is NoneType"), (change(talk(), id=" "), "id is empty"), (change(talk(), id=7), "id is int"), (change(talk(), id="a\ud800"), "id has half a character"),
    (change(talk(), messages=[user("a")]), "the last message is of the role user"), (change(talk(), messages=[system("a")]), "the last message is of the role system"),
    (change(talk(), messages=[assistant("a")]), "message 1 is of the role assistant, expected user"),
    (change(talk(), messages=[system("s"), assistant("a")]), "message 2 is of the role assistant, expected user"),
    (change(talk(), messages=[user("a"), user("b"), assistant("c")]), "message 2 is of the role user, expected assistant"),
    (change(talk(), messages=[system("s"), system("s"), user("b"), assistant("c")]), "message 2 is of the role system"),
    (change(talk(), messages=[user("a"), system("s"), assistant("c")]), "message 2 is of the role system"),
    (change(talk(), messages=[user("a"), {"role": "tool", "content": "c"}]), "message 2 is of the role tool, expected assistant"), (change(talk(), messages=[user("a"), {"role": "critic", "content": "c"}]), "message 2 has the role 'critic'"), (change(talk(), messages=[user("a"), {"content": "c"}]), "message 2 has the role None"),
    (change(talk(), messages=[user("a"), assistant("\n")]), r"message 2 \(assistant\) is empty"), (change(talk(), messages=[user("a"), assistant(None)]), "NoneType, expected a text"),
    (change(talk(), messages=[user("a"), assistant([{"type": "text", "text": "c"}])]), "list, expected a text"),
    (change(talk(), messages=[user("a\udcff"), assistant("c")]), "half a character at position 2"), (change(talk(), messages=[user("a"), assistant("c") | {"tool_calls": [1]}]), "expected a list of calls"),
    (change(talk(), messages=[user("a"), assistant("c") | {"audio": {"id": 1}}]), "has audio, which would be lost"), (change(talk(), messages=[user("a") | {"weight": 0}, assistant("c")]), r"message 1 \(user\) has weight, which would be lost"),
    (change(talk(), messages=[user("a"), assistant("c") | {"weight": 0.5}]), "weight is 0.5, expected 0"), (change(talk(), messages=[user("a"), assistant("c") | {"name": 3}]), "name is int"),
    (change(talk(), rejected="b"), "a rejected answer, which a conversation would lose"), (change(talk(), tools="[{"), "tools: not JSON"), (change(talk(), tools=["search"]), "expected a list of tools"),
    (change(talk(), dropped="judged low"), "dropped: judged low"), (change(talk(), failed="429"), "failed: 429"),
]
BAD_PAIRS = [
    (change(pair(), prompt=...), "no prompt"), (change(pair(), rejected=...), "no rejected"), (change(pair(), prompt="ciao"), "prompt: expected a list"),
    (change(pair(), prompt=[user("a"), assistant("b")]), "prompt: the last message is of the role assistant, expected user"), (change(pair(), prompt=[system("a")]), "prompt: the last message is of the role system"),
    (change(pair(), chosen="a"), "chosen: expected one message"), (change(pair(), chosen=[]), "chosen: expected one message"), (change(pair(), chosen=[user("q"), assistant("a")]), "chosen: expected one message"),
    (change(pair(), rejected=[user("a")]), "rejected: message 2 is of the role user"), (change(pair(), rejected=[assistant("")]), "rejected: message 2 .assistant. is empty"),
    (change(pair(), rejected=[assistant("ciao  good \n")]), "the same answer"), (change(pair(), chosen=[assistant("a b\n")], rejected=[assistant("a b")]), "the same answer"), (change(pair(), chosen=[assistant("é")], rejected=[assistant("e\u0301")]), "the same answer"),
    (change(pair(), margin=0, chosen_score=2), "a tie that nobody decided"), (change(pair(), margin=None, chosen_score=2, outcome=None), "a tie that nobody decided"),
    (change(pair(), margin=..., chosen_score=1, outcome=...), r"the rejected answer is the better one \(margin -1\)"), (change(pair(), margin=1.5, outcome="tie"), "a tie, but its margin is 1.5"),
    (change(pair(), decided_by="people", margin=-1), "the rejected answer is the better one"),
    (change(pair(), outcome="tie", margin=0.0, rejected=[assistant("ciao good")]), "the same answer"),
]


@pytest.mark.parametrize("format, bad, reason", [(f, *case) for fs, cases in ((SFT, BAD_TALKS), (PAIRS + KTO, BAD_PAIRS)) for f in (fs[0], fs[-1], fs[5]) for case in cases if not (f in KTO and case[1] == "no rejected")])
def test_a_bad_row_is_named_and_nothing_is_written(format, bad, reason, tmp_path):
    good = [(talk if format in SFT else pair)(f"g{i}") for i in range(3)]
    with pytest.raises(ValueError, match=reason) as e: write_format([*good, bad], tmp_path / "out", format, test=0)
    assert str(e.value).startswith(f"row 4 ({bad.get('id')!r}): ") and str(e.value).endswith("nothing was written") and not (tmp_path / "out").exists()


def test_errors_of_the_whole(tmp_path):
    with pytest.raises(ValueError, match="row 2 .'t'.: the id stands on an earlier row.* and 1 more that cannot be written"): write_format([talk(), talk(), talk()], tmp_path / "o", "trl_sft")
    with pytest.raises(TypeError, match="a row is str, expected a dict"): write_format("outputs/it/x", tmp_path / "o", "trl_sft")
    with pytest.raises(ValueError, match="no rows to write"): write_format([], tmp_path / "o", "trl_sft")
    with pytest.raises(ValueError, match="format 'alpaca': expected trl_sft"): write_format([talk()], tmp_path / "o", "alpaca")
    with pytest.raises(ValueError, match="name '../x'"): write_format([talk()], tmp_path / "o", "trl_sft", name="../x")
    with pytest.raises(ValueError, match="no messages: expected a conversation row"): write_format([pair()], tmp_path / "o", "trl_sft")
    for share in (-0.1, 1, 10):
        with pytest.raises(ValueError, match="expected a share"): write_format([talk()], tmp_path / "o", "handbook_sft", test=share)
    with pytest.raises(ValueError, match="all 1 rows fall into the train split"): write_format([talk()], tmp_path / "o", "handbook_sft", test=0.01)
    for format in ("trl_sft_plain", "trl_preference_plain"):
        row = (talk if format in SFT else pair)(rules="Be brief.")
        with pytest.raises(ValueError, match="the prompt has 2 messages, and plain text holds one"): write_format([row], tmp_path / "o", format)
    assert not (tmp_path / "o").exists()


def test_what_stops_in_the_middle_leaves_the_earlier_files(tmp_path):
    class Rows(list):
        passes = 0
        def __iter__(self):
            Rows.passes += 1
            yield from list.__iter__(self)
            if Rows.passes > 1: raise OSError("disk full")
    write_format([talk("old")], tmp_path, "llamafactory_sharegpt_sft", name="x")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(OSError, match="disk full"): write_format(Rows([talk("new")]), tmp_path, "llamafactory_sharegpt_sft", name="x")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_ties_that_the_recipe_decided_are_written(tmp_path):
    async def even(prompt, parse, **options): return SimpleNamespace(parsed=parse('{"ratings": [{"rationale": "x", "score": 4}, {"rationale": "x", "score": 4}]}'))
    async def first(prompt, parse, **options): return SimpleNamespace(parsed=parse('{"ratings": [{"rationale": "x", "score": 5}, {"rationale": "x", "score": 1}]}'))
    import asyncio
    source = {"messages": [user("Why?")], "chosen": "Since it is so.", "rejected": "So."}
    rows = [asyncio.run(rerank_preferences({"id": f"{judge.__name__}-{tie}", **source}, judge, tie=tie)) for judge in (even, first) for tie in ("shorter", "original")]
    assert {r["outcome"] for r in rows} == {"tie"}
    lines = [json.loads(line) for line in write_format(rows, tmp_path, "trl_preference")[0].read_text().splitlines()]
    assert [line["chosen"][0]["content"] for line in lines] == ["So.", "Since it is so."] * 2


def test_pairs_that_people_decided_are_written(tmp_path):
    people = [pair("vote", chosen_score=4, rejected_score=4, margin=0.0, outcome=..., decided_by="people"), pair("better", chosen_score=None, margin=None, outcome=..., decided_by="people"),
              pair("human", chosen_score=None, rejected_score=None, margin=None, outcome="human")]
    assert len(write_format([change(row) for row in people], tmp_path, "trl_preference")[0].read_text().splitlines()) == 3


# KTO

@pytest.mark.parametrize("format", KTO)
def test_a_score_decides_the_label(format, tmp_path):
    rows = [pair("a"), pair("b", chosen_score=2, rejected_score=1, margin=1), pair("c", chosen_score=5, rejected_score=4, margin=1)]
    def labels(**options): return [line.get("label", line.get("kto_tag")) for line in map(json.loads, write_format(rows, tmp_path, format, **options)[0].read_text().splitlines())]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labels() == [True, False, False, False, True, True] and labels(min_score=2) == [True, True, True, False, True, True]
        assert labels(min_score=4.5) == [False] * 4 + [True, False]
        with pytest.raises(ValueError, match="all 6 answers are good at min_score=1"): labels(min_score=1)
    rows[1] |= {"chosen_score": None, "margin": None}
    del rows[2]["chosen_score"], rows[2]["rejected_score"], rows[2]["margin"]
    with pytest.warns(UserWarning, match="3 of 6 answers have no score: those chosen count as good"): assert labels() == [True, False, True, False, True, False]


# splits

def test_a_row_stays_in_its_split(tmp_path):
    ids = [f"{random.Random(i).random()}" for i in range(400)]
    def splits(n, share):
        paths = write_format([talk(id) for id in ids[:n]], tmp_path, "handbook_sft", test=share)
        return [{json.loads(line)["id"] for line in p.read_text().splitlines()} for p in paths]
    train, test = splits(200, 0.1)
    more_train, more_test = splits(400, 0.1)
    assert train | test == {*ids[:200]} and not train & test and train <= more_train and test <= more_test
    assert test <= splits(200, 0.3)[1] and 20 < len(more_test) < 65
    assert splits(200, 0) == [{*ids[:200]}] and [p.name for p in (tmp_path / "data").iterdir()] == ["train_sft-00000-of-00001.jsonl"]  # the old test split would repeat rows of train
    first = {f"demo-{i:02}": int(hashlib.sha256(f"demo-{i:02}".encode()).hexdigest()[:4], 16) / 0x10000 for i in range(1, 7)}
    assert all(in_test(id, share + 1e-4) and not in_test(id, share) for id, share in first.items())


def test_rows_come_in_any_way(tmp_path):
    rows = [talk(f"r{i}") for i in range(3000)]
    file = RowFile(tmp_path / "rows.parquet")
    for row in rows: file.append(row)
    file.close()
    ways = dict(list=rows, generator=(r for r in rows), parquet=file.rows())
    assert len({write_format(way, tmp_path / name, "llamafactory_alpaca_sft")[0].read_bytes() for name, way in ways.items()}) == 1


words = st.text(min_size=1).filter(str.strip)

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=4), st.none() | words, words)
def test_any_text_comes_through(turns, rules, other):
    said = [m for request, answer in turns for m in (user(request), assistant(answer))]
    row = {"id": "x", "messages": [system(rules)] * (rules is not None) + said}
    both = {"id": "x", "prompt": row["messages"][:-1], "chosen": row["messages"][-1:], "rejected": [assistant(f"{turns[-1][1]}{other}+")]}
    columns = lambda format: {"prompt": "instruction", "query": "input", "response": "output"} | {k: k for k in ("system", "history", "chosen", "rejected")} if "alpaca" in format else \
        {"messages": "conversations"} | {k: k for k in ("system", "chosen", "rejected")}
    for format in FORMATS:
        source = row if format in SFT else both
        if "plain" in format and len(source.get("prompt", source.get("messages")[:-1] if "messages" in source else [])) > 1: continue
        made = json.loads(json.dumps(convert(source, format)))
        prompt, answers = meaning(source)
        for i, line in enumerate(made):
            used = {k: v for k, v in columns(format).items() if v in line}
            assert READERS[format](line, used) == (prompt, [answers[i]] if format in KTO else answers), format


# fields of messages, tools, rows left out

CALLED = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Øslo"}'}}
OSLO = [user("Fa freddo a Oslo?") | {"name": "Anna"}, assistant("") | {"tool_calls": [CALLED], "reasoning_content": "I look it up."}, {"role": "tool", "content": "4 °C", "tool_call_id": "1"}, assistant("Sì.") | {"weight": 1, "audio": None}]
WEATHER = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]


@pytest.mark.parametrize("format", ["trl_sft", "trl_sft_completion", "handbook_sft", "axolotl_sft"])
def test_fields_of_messages_and_tools_are_written(format, tmp_path):
    row = {"id": "oslo", "messages": OSLO, "tools": WEATHER}
    paths = write_format([row], tmp_path, format, test=0)
    line = json.loads(paths[0].read_text())
    messages = line.get("messages") or line["prompt"] + line["completion"]
    assert messages[:3] == OSLO[:3] and messages[3] == assistant("Sì.") | ({"weight": 1} if format == "axolotl_sft" else {})
    tools = line["tools"] if format == "axolotl_sft" else json.loads(line["tools"])
    parameters = tools[0]["function"]["parameters"]
    assert (json.loads(parameters) if format == "axolotl_sft" else parameters) == WEATHER[0]["function"]["parameters"]


def test_calls_of_tools_in_the_words_of_llama_factory(tmp_path):
    messages = [OSLO[0] | {"name": None}, assistant(None) | {"tool_calls": [CALLED]}, *OSLO[2:]]
    path, info = write_format([talk("plain"), {"id": "oslo", "messages": messages, "tools": json.dumps(WEATHER)}], tmp_path, "llamafactory_sharegpt_sft")
    oslo, plain = sorted(map(json.loads, path.read_text().splitlines()), key=lambda line: line["id"])
    assert [m["from"] for m in oslo["conversations"]] == ["human", "function_call", "observation", "gpt"]
    assert json.loads(oslo["conversations"][1]["value"]) == {"name": "weather", "arguments": {"city": "Øslo"}} and json.loads(oslo["tools"]) == WEATHER and plain["tools"] == ""
    assert json.loads(info.read_text())["llamafactory_sharegpt_sft"]["columns"]["tools"] == "tools"


def test_what_must_not_be_trained_on_is_told_to_axolotl_alone(tmp_path):
    row = talk("w", turns=2)
    row["messages"][1]["weight"] = 0
    path, lines = write_format([talk("x" * 3), row], tmp_path, "axolotl_sft")
    assert yaml.safe_load(lines.read_text())["datasets"][0]["message_field_training"] == "weight"
    assert [m.get("weight") for m in json.loads(path.read_text().splitlines()[0])["messages"]] == [None, 0, None, None]  # the rows with more come first
    for format in SFT:
        if format == "axolotl_sft": continue
        with pytest.raises(ValueError, match="messages: message 2 has weight, which this format cannot hold: take axolotl_sft"): convert(row, format)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("field", [{"reasoning_content": "hm"}, {"name": "Anna"}, {"weight": 0}, {"tools": WEATHER}])
def test_no_field_is_lost_in_silence(field, format):
    row = (talk if format in SFT else pair)(turns=2 if "plain" not in format else 1)
    if "tools" in field: row |= field
    else: (row["messages"] if "messages" in row else row["chosen"])[-1].update(field)
    try: made = json.dumps(convert(row, format))
    except ValueError as e: assert [*field][0] in str(e) and "which this format cannot hold" in str(e)
    else: assert [*field][0] in made


def test_fields_far_down_the_file_still_load(tmp_path):
    rows = [talk(f"r{i}", text="x" * 2000) for i in range(3000)] + [{"id": "last", "messages": OSLO, "tools": WEATHER}]
    path = write_format(rows, tmp_path / "out", "trl_sft")[0]
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert path.stat().st_size > 11e6 and len(loaded) == 3001 and loaded[0]["messages"][1]["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize("format", ["trl_sft", "handbook_sft", "llamafactory_alpaca_sft"])
def test_bad_rows_are_left_out_and_listed(format, tmp_path, capsys):
    bad = [change(talk("two"), messages=[user("a"), user("b"), assistant("c")]), talk("g1"), change(talk("empty"), messages=[user("a"), assistant("")]), talk("f", failed="429\nslow"), talk("r0", rejected="no")]
    rows = [row for i in range(5) for row in (talk(f"g{i}"), bad[i])]
    paths = write_format((row for row in rows), tmp_path, format, test=0, skip=True)
    assert sorted(json.loads(line)["id"] for line in paths[0].read_text().splitlines()) == [f"g{i}" for i in range(5)]
    listed = paths[-1].read_text().splitlines()
    assert paths[-1].name == f"{format}.left_out.log" and [line.split(":")[0] for line in listed] == ["row 2 ('two')", "row 4 ('g1')", "row 6 ('empty')", "row 8 ('f')", "row 10 ('r0')"]
    out = capsys.readouterr().out
    assert out.startswith(f"5 of 10 rows were left out, listed in {format}.left_out.log: row 2 ('two'): messages: message 2") and out.endswith("; and 2 more\n")
    assert sum(map(len, datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache")).values())) == 5 and all("failed" not in row for row in load_rows(paths[0]))
    assert write_format(rows[::2], tmp_path, format, test=0, skip=True)[-1] != paths[-1] and not paths[-1].exists()
    with pytest.raises(ValueError, match="no rows to write: all 5 had to be left out, the first as row 1"): write_format(bad[:1] * 5, tmp_path / "none", format, skip=True)


def test_a_single_answer_is_written_for_kto(tmp_path):
    rows = [pair("both"), change(pair("good"), rejected=...), {"id": "bad", "messages": [user("Why?")], "rejected": "Dunno."}]
    for format in KTO:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lines = list(map(json.loads, write_format(rows, tmp_path / format, format)[0].read_text().splitlines()))
        assert [(line["id"], line.get("label", line.get("kto_tag"))) for line in lines] == [("both-chosen", True), ("both-rejected", False), ("good-chosen", True), ("bad-rejected", False)]
    for format in PAIRS:
        with pytest.raises(ValueError, match="no rejected: expected a preference row"): convert(rows[1], format)
    assert convert({"id": "p", "messages": pair()["prompt"], "chosen": "ciao good", "rejected": "ciao bad"}, "trl_preference") == convert(pair(), "trl_preference")


# the round trip

said = st.one_of(st.sampled_from(NASTY).map("so: {}".format), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip))
CALL = {"type": "function", "function": {"name": "look_up", "arguments": '{"word": "é\\u2028", "n": 2}'}}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}}}]


@st.composite
def conversations(draw):
    "A conversation with what it may have: a system message, several turns, calls of a tool, fields of messages"
    messages = [system(draw(said))] * draw(st.booleans())
    special = draw(st.sampled_from(["", "", "", "calls", "reasons", "weights", "names"]))
    for n in range(draw(st.integers(1, 3))):
        messages.append(user(draw(said)) | ({"name": "Anna"} if special == "names" else {}))
        if special == "calls" and n == 0: messages += [assistant("") | {"tool_calls": [CALL]}, {"role": "tool", "content": draw(said)}]
        messages.append(assistant(draw(said)) | ({"reasoning_content": draw(said)} if special == "reasons" else {"weight": draw(st.integers(0, 1))} if special == "weights" else {}))
    return {"messages": messages} | ({"tools": TOOLS} if special == "calls" else {})


@pytest.fixture(scope="module")
def many_rows():
    "300 conversations, and pairs made of them"
    drawn = []

    @settings(max_examples=300, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(conversations(), said)
    def draw(row, other): drawn.append((row, other))

    draw()
    talks = [row | {"id": f"c{n}"} for n, (row, _) in enumerate(drawn)]
    pairs = []
    for n, (row, other) in enumerate(drawn):
        *prompt, last = row["messages"]
        sides = {"chosen": [assistant(last["content"])], "rejected": [assistant(f"{other} or not")]}
        pairs.append(change(row | {"messages": ..., "id": f"p{n}", "prompt": prompt} | sides))
    assert len(talks) >= 300
    return talks, pairs


def refused_by(format, row):
    "What of `row` a format cannot hold, by its documented limits; None where it holds all"
    messages = [*row.get("messages", row.get("prompt", [])), *row.get("chosen", []), *row.get("rejected", [])]
    before = row.get("prompt", row.get("messages", [])[:-1])
    fields = {key for message in messages for key in message} - {"role", "content"}
    if all(message.get("weight", 1) for message in messages): fields.discard("weight")
    held = {"trl": {"name", "reasoning_content", "tool_calls"}, "handbook": {"name", "reasoning_content", "tool_calls"}}.get(format.split("_")[0], set())
    if format == "axolotl_sft": held = {"name", "reasoning_content", "tool_calls", "weight"}
    if "sharegpt" in format: held = {"tool_calls"}
    if format.endswith("plain"): held = set()
    if fields - held or row.get("tools") and not held: return "which this format cannot hold"
    return "plain text holds one, of the user" if format.endswith("plain") and len(before) > 1 else None


def as_said(messages, format):
    "Messages with all that a format keeps of them: calls as function and arguments, and a weight of 1 as none"
    found = []
    for message in messages:
        message = {key: value for key, value in message.items() if value not in (None, "", []) and (key, value) != ("weight", 1)}
        calls = [call.get("function", call) for call in message.pop("tool_calls", [])]
        calls = [(call["name"], call["arguments"] if isinstance(call["arguments"], dict) else json.loads(call["arguments"])) for call in calls]
        found.append(message | ({"calls": calls} if calls else {}))
    return found


def read_back(row, format):
    "id → what a loaded row says: the messages before the answer, and the answers by side"
    messages = as_said(row["messages"], format)
    sides = {side: row[side] for side in ("chosen", "rejected") if row.get(side) is not None}
    if not sides: sides = {"chosen": messages.pop()}
    return {row["id"]: (messages, {side: {"role": "assistant", "content": answer} if isinstance(answer, str) else answer for side, answer in sides.items()})}


def expected_of(row, format):
    "The same of the row that was written"
    if "messages" in row:
        *before, last = as_said(row["messages"], format)
        return {row["id"]: (before, {"chosen": last})}
    before, sides = as_said(row["prompt"], format), {side: as_said(row[side], format)[0] for side in ("chosen", "rejected")}
    if format in KTO: return {f"{row['id']}-{side}": (before, {side: answer}) for side, answer in sides.items()}
    return {row["id"]: (before, sides)}



@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read_back_the_same(format, many_rows, tmp_path, capsys):
    "Every row comes back as it was, or is left out for a limit of the format that its reason names"
    rows = many_rows[FORMATS[format][0] == "preference"]
    limits = {row["id"]: refused_by(format, row) for row in rows}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = write_format(rows, tmp_path, format, skip=True, test=0)
    reasons = paths.pop().read_text(encoding="utf-8").splitlines() if any(limits.values()) else []
    assert len(reasons) == sum(map(bool, limits.values())) and len(reasons) < len(rows) * 0.9
    for reason in reasons: assert limits[re.search(r"\('(\w+)'\)", reason)[1]] in reason
    expected, found = {}, {}
    for row in rows:
        if not limits[row["id"]]: expected |= expected_of(row, format)
    for row in load_rows(paths[0]):
        assert "failed" not in row, row["failed"]
        found |= read_back(row, format)
    assert found == expected
    if "tool_calls" in HELD_FIELDS.get(format, ()):
        assert {json.dumps(json.loads(row["tools"]) if isinstance(row["tools"], str) else row["tools"])[:40] for row in load_rows(paths[0]) if row.get("tools")}


# the Hub

@pytest.fixture
def folder(tmp_path):
    "The folder of a run, with a card, a plot and things that are nobody's business"
    async def keep(row, ask, language="it"): return row
    out = tmp_path / "outputs" / "it" / "keep"
    made = random.Random(0)
    run([talk(f"r{i}", text=str(made.random())) for i in range(500)], keep, model="http://localhost:9/v1#none", out=out, store=tmp_path / "store.db", language="it")
    (out / "plots").mkdir()
    (out / "plots" / "funnel.png").write_bytes(made.randbytes(300_000))
    write_card(out, license="mit")
    for name in ("run-unfinished.ipynb", "run.ipynb", "annotations.jsonl", "store.db", ".env", "data/notes.txt", "manifest.json.new"): (out / name).write_text("secret")
    return out


SENT = ["README.md", "manifest.json", "data/train-00000-of-00001.parquet", "dropped.parquet", "failed.parquet", "plots/funnel.png"]


def push(hub, folder, repo="anna/cielo", token="hf_anna", xet=False, home=None, **options):
    "What a process of its own says that pushes `folder` to `hub` (whose waits between attempts are short)"
    code = f"import time; sleep = time.sleep; time.sleep = lambda s: sleep(min(s, 0.01))\nfrom llmdata_nb.formats import push_to_hub\nprint('url:', push_to_hub({str(folder)!r}, {repo!r}, **{options!r}))"
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "OIDC")) and "proxy" not in k.lower()}
    env = keep | {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / ".." / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | ({"HF_TOKEN": token} if token else {}) | ({} if xet else {"HF_HUB_DISABLE_XET": "1"})
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return SimpleNamespace(ok=done.returncode == 0, said=done.stdout, error=done.stderr)


def puts(hub): return [line for line in hub.seen if line.startswith("PUT")]
def stored(folder): return {hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SENT if name.endswith(("parquet", "png"))}  # three: no row was dropped or failed


@pytest.mark.parametrize("xet", [False, True])  # with hf_xet another part of huggingface_hub makes the commits; its transfer of large files is not tried, so here all go into the commit
def test_a_push_arrives_whole_and_private(folder, tmp_path, xet):
    with hub_push_server.serve(tmp_path / "hub", large=() if xet else hub_push_server.LFS) as hub:
        done = push(hub, folder, xet=xet)
        assert done.ok, done.error
        assert f"url: {hub.url}/datasets/anna/cielo" in done.said and "(private, new): 6 files" in done.said and all(name in done.said for name in SENT)
        assert hub.private == {"anna/cielo": True} and hub.files("anna/cielo") == {name: (folder / name).read_bytes() for name in sorted(SENT)} and len(hub.commits) == 1
        before, sent = hub.head("anna/cielo"), len(puts(hub))
        again = push(hub, folder, xet=xet)  # nothing is new
        assert again.ok and "(private, there already)" in again.said and hub.head("anna/cielo") == before and len(hub.commits) == 1 and len(puts(hub)) == sent and {*hub.lfs} == (set() if xet else stored(folder))
    code = "import sys, datasets; rows = datasets.load_dataset('anna/cielo', split='train'); print(len(rows), rows[7]['id'])"
    with hub_server.serve(tmp_path / "hub") as url:
        env = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "reader")}
        assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120).stdout == "500 r7\n"


def test_the_notebook_goes_only_on_request(folder, tmp_path):
    assert hub_files(folder) == SENT and hub_files(folder, notebook=True) == [*SENT, "run.ipynb"]
    with hub_push_server.serve(tmp_path / "hub") as hub:
        assert push(hub, folder, repo="cielo", notebook=True, private=False).ok  # under one's own name
        assert "run.ipynb" in hub.files("anna/cielo") and not hub.private["anna/cielo"]
        assert not {"run-unfinished.ipynb", "store.db", ".env", "annotations.jsonl", "data/notes.txt"} & {*hub.files("anna/cielo")}
        assert push(hub, folder, private=False).ok and "run.ipynb" not in hub.files("anna/cielo")


def test_a_broken_connection_is_tried_again(folder, tmp_path):
    with hub_push_server.serve(tmp_path / "hub") as hub:
        hub.cut = {"PUT /lfs": 2, "POST /api/datasets/anna/cielo/preupload": 1}
        done = push(hub, folder)
        assert done.ok, done.error
        assert len(puts(hub)) > len({*puts(hub)}) + 1 and {*hub.lfs} == stored(folder) and {*hub.files("anna/cielo")} == {*SENT} and len(hub.commits) == 1


def test_a_second_push_completes_the_first(folder, tmp_path):
    with hub_push_server.serve(tmp_path / "hub") as hub:
        plot = hashlib.sha256((folder / "plots" / "funnel.png").read_bytes()).hexdigest()
        hub.cut = {f"PUT /lfs/{plot}": 1000}  # the connection breaks in the middle of this file, however often it is tried
        done = push(hub, folder)
        assert not done.ok and "anna/cielo is not complete: run push_to_hub again" in done.error and not hub.commits and hub.files("anna/cielo") == {}
        assert {*hub.lfs} == stored(folder) - {plot}  # the others have arrived
        hub.cut, before = {}, len(puts(hub))
        done = push(hub, folder)
        assert done.ok, done.error
        assert puts(hub)[before:] == [f"PUT /lfs/{plot}"] and len(hub.commits) == 1 and hub.files("anna/cielo") == {name: (folder / name).read_bytes() for name in sorted(SENT)}


@pytest.mark.parametrize("xet", [False, True])
def test_a_commit_whose_answer_is_lost(folder, tmp_path, xet):
    with hub_push_server.serve(tmp_path / "hub", large=() if xet else hub_push_server.LFS) as hub:
        hub.deaf = {"POST /api/datasets/anna/cielo/commit": 1}
        first = push(hub, folder, xet=xet)
        assert first.ok is xet and len(hub.commits) == (2 if xet else 1)  # with hf_xet it is tried again at once: the same commit a second time
        assert push(hub, folder, xet=xet).ok and len(hub.commits) == (2 if xet else 1) and {*hub.files("anna/cielo")} == {*SENT}


def test_a_push_that_breaks_at_the_commit(folder, tmp_path):
    with hub_push_server.serve(tmp_path / "hub") as hub:
        hub.cut = {"POST /api/datasets/anna/cielo/commit": 1}
        assert not push(hub, folder).ok and hub.files("anna/cielo") == {} and {*hub.lfs} == stored(folder)
        before = len(puts(hub))
        assert push(hub, folder).ok and len(puts(hub)) == before and {*hub.files("anna/cielo")} == {*SENT}


def test_a_later_push_takes_back_what_is_gone(folder, tmp_path):
    with hub_push_server.serve(tmp_path / "hub") as hub:
        assert push(hub, folder).ok
        hub.write("anna/cielo", hub.files("anna/cielo") | {"data/train-00001-of-00002.parquet": b"old", "LICENSE": b"mine", ".gitattributes": b"x"})
        (folder / "plots" / "funnel.png").unlink()
        card = folder / "README.md"
        card.write_text(card.read_text() + "\nMore.\n")
        assert push(hub, folder).ok
        assert {*hub.files("anna/cielo")} == {*SENT, "LICENSE", ".gitattributes"} - {"plots/funnel.png"} and hub.files("anna/cielo")["README.md"].endswith(b"More.\n")
        assert sorted(hub.commits[-1]) == [("deletedFile", "data/train-00001-of-00002.parquet"), ("deletedFile", "plots/funnel.png"), ("file", "README.md")]


def test_nothing_is_sent_when_something_is_wrong(folder, tmp_path):
    with hub_push_server.serve(tmp_path / "hub") as hub:
        assert "no token for the Hub: set HF_TOKEN" in (done := push(hub, folder, token=None)).error and not done.ok and hub.seen == []
        done = push(hub, folder, token="hf_wrong")
        assert not done.ok and "whoami" in done.error and hub.seen == ["GET /api/whoami-v2"]
        done = push(hub, folder, repo="bert/cielo")
        assert not done.ok and "anna may not make bert/cielo" in done.error and "run push_to_hub again" not in done.error
        hub.add("anna/open", private=False)
        assert "anna/open is there and public" in push(hub, folder, repo="anna/open").error
        hub.add("anna/thesis", private=True)
        hub.write("anna/thesis", {"thesis.csv": b"a,b", "README.md": b"Mine"})
        assert "anna/thesis holds files that are not of a run (thesis.csv)" in push(hub, folder, repo="anna/thesis").error
        (folder / "dropped.parquet").write_bytes((folder / "data" / "train-00000-of-00001.parquet").read_bytes())
        seen = len(hub.seen)
        error = push(hub, folder).error  # the manifest and the rows disagree
        assert ("0 rows dropped, but 500 were found" in error or "dropped.parquet is not the file" in error) and len(hub.seen) == seen
        assert not [line for line in hub.seen if line.startswith("PUT") or "preupload" in line] and not hub.commits and hub.files("anna/thesis") == {"README.md": b"Mine", "thesis.csv": b"a,b"}
    (folder / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match="write the card before"): hub_files(folder)


def test_what_is_written_aside_never_goes_to_the_hub(folder):
    for name in (".lock", "README.md.new", "manifest.json.new", "data/.lock", "dropped.parquet.new", "data/train-00000-of-00001.parquet.new", "data/train-00000-of-00001.parquet.77.new", "plots/.lock"):
        (folder / name).write_bytes(b"half")
    assert hub_files(folder) == SENT


def test_paths_of_this_machine_are_named(folder, tmp_path):
    manifest = json.loads((folder / "manifest.json").read_text()) | {"source": "/home/anna/rows.jsonl"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="README.md is of another run than manifest.json, or manifest.json was changed since"): hub_files(folder)
    write_card(folder)
    with hub_push_server.serve(tmp_path / "hub") as hub: assert "manifest.json names paths of this machine: /home/anna/rows.jsonl" in push(hub, folder).said


@pytest.mark.skipif("TRL_PYTHON" not in os.environ, reason="TRL_PYTHON names no Python with torch and trl")
def test_trainers_take_two_steps(tmp_path):
    script = str(ROOT / "bench" / "train_formats.py")
    subprocess.run([sys.executable, script, "write", str(tmp_path)], check=True, cwd=ROOT)
    done = subprocess.run([os.environ["TRL_PYTHON"], script, "train", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and len(re.findall(r"^\w+: \d+ rows of .* (?:SFT|DPO|ORPO|KTO) loss \[", done.stdout, re.M)) == 11, done.stderr[-3000:]
