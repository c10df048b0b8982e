"""Loading: whatever lies in a source, each record ends as exactly one row, good or failed, in its place."""
import ast, bz2, csv, gzip, json, lzma, os, re, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from hub_server import serve
from llmdata_nb import files as files_module
from llmdata_nb import rows as rows_module
from llmdata_nb.rows import DEMOS, OUR_COLUMNS, SHAPES, Unreadable, load_rows, single_turn, stream_rows, to_messages

DATA = Path(__file__).parents[2]/"shared"/"data"
GOOD = {"instruction": "Say hi", "output": "Hi"}


def user(text): return {"role": "user", "content": text}
def assistant(text): return {"role": "assistant", "content": text}

def write(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() if isinstance(line, str) else json.dumps(line).encode() for line in lines))
    return path

def failed(rows): return [r["failed"] for r in rows if "failed" in r]


# shapes

HI = [user("Say hi"), assistant("Hi")]

@pytest.mark.parametrize("record", [
    {"messages": HI},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "hi"}]}, HI[1]]},
    {"messages": json.dumps(HI)},
    *[{"conversations": [{"from": a, "value": "Say hi"}, {"from": b, "value": "Hi"}]} for a, b in
      [("human", "gpt"), ("user", "assistant"), ("User", "Assistant"), ("human", "chatgpt"), ("human", "bing"), ("human", "bard"), ("user", "bot"), ("user", "model")]],
    {"conversations": HI, "system": ""}, {"conversations": HI, "system": None},
    {"instruction": "Say hi", "input": "", "output": "Hi"}, {"instruction": "Say hi", "context": None, "response": "Hi"},
    {"prompt": "Say hi", "completion": "Hi"}, {"prompt": "Say hi", "response": "Hi"}, {"prompt": HI[:1], "completion": HI[1:]},
    {"instruction": "Say hi", "response": "Hi"}, {"question": "Say hi", "answer": "Hi"}, {"inputs": "Say hi", "targets": "Hi"}])
def test_one_conversation_in_many_shapes(record):
    before = json.dumps(record)
    assert to_messages({**record, "topic": "t"}) == {"messages": HI, "topic": "t"}
    assert json.dumps(record) == before, "the record was changed"


def test_system_column_goes_first():
    told = {"role": "system", "content": "Be kind"}
    for record in ({"conversations": HI}, {"instruction": "Say hi", "output": "Hi"}, {"prompt": "Say hi", "response": "Hi"}):
        assert to_messages({**record, "system": "Be kind"})["messages"] == [told, *HI]
    both = to_messages({"messages": [told, *HI], "system": "Other"})
    assert both == {"messages": [told, *HI], "system": "Other"}, "a conversation's own system message stays, and so does the column"


@pytest.mark.parametrize("record", [
    {"prompt": "Say hi", "chosen": "Hi", "rejected": "No"},
    {"prompt": "Say hi", "chosen": [*HI], "rejected": [HI[0], assistant("No")], "messages": HI},
    {"chosen": [*HI], "rejected": [HI[0], assistant("No")]},
    {"prompt": HI[:1], "chosen": [HI[1]], "rejected": [assistant("No")]}])
def test_preferences(record):
    row = to_messages(record)
    assert row == {"messages": HI[:1], "chosen": "Hi", "rejected": "No"}
    assert to_messages(row) == row


@pytest.mark.parametrize("record, reason", [
    ({"messages": []}, "empty conversation"), ({"messages": None}, "messages is null"), ({"conversations": "hello"}, "not a list"),
    ({"messages": [user("a"), assistant(None)]}, "message 2 (assistant) is null"), ({"messages": [user(" ")]}, "message 1 (user) is empty"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "(tool) answers no call"), ({"messages": [1]}, "not an object"), ({"messages": [{"role": "critic", "content": "x"}]}, "role 'critic'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "only text"),
    ({"instruction": "a", "output": None}, "output is null"), ({"question": "a", "answer": 18}, "answer is not text but int: 18"),
    ({"text": ""}, "text is empty"), ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected is null"),
    ({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]}, "different conversations")])
def test_bad_content_fails_its_row_only(record, reason):
    rows = load_rows([GOOD, {"id": "x", **record}, GOOD])
    assert [r["id"] for r in rows][1] == "x" and len(rows) == 3
    assert failed(rows) == [rows[1]["failed"]] and rows[1]["failed"].startswith("load: row 2: ") and reason in rows[1]["failed"]


def test_unknown_shape_lists_what_is_there_and_what_is_expected():
    with pytest.raises(Unreadable, match="columns found are title, body"): to_messages({"title": "a", "body": "b"})
    with pytest.raises(ValueError) as e: load_rows([{"instruction": "a", "reply": "b"}] * 30)
    assert "instruction, reply" in str(e.value) and 'columns="prompt=instruction,response=reply"' in str(e.value)
    assert all(column in str(e.value) for column in ("messages", "chosen", "question", "answer", "completions", "text"))
    rows = load_rows([{"title": "a"}, GOOD])
    assert len(rows) == 2 and "columns found are title" in rows[0]["failed"]


def test_single_turn():
    system = {"role": "system", "content": "s"}
    assert single_turn([system, *HI, user("more"), assistant("x")]) == [system, *HI]
    assert single_turn([assistant("Welcome"), *HI]) == HI
    assert single_turn([user("a"), user("b"), assistant("c")]) == [user("a\n\nb"), assistant("c")]
    assert single_turn([user("a")]) == [user("a")] and single_turn([]) == []


# ids and values

def test_ids_are_the_sources_own_or_depend_on_the_content_and_are_unique(tmp_path):
    rows = load_rows([{"id": 1, **GOOD}, {"id": "1", **GOOD}, {"uuid": "u", **GOOD}, GOOD, GOOD, {"id": None, **GOOD}, {"id": "1-2", **GOOD}])
    ids = [r["id"] for r in rows]
    assert ids[:3] == ["1", "1-2", "u"] and len({*ids}) == len(ids) and all(isinstance(i, str) for i in ids)
    assert ids[4:6] == [f"{ids[3]}-2", f"{ids[3]}-3"] and ids[6] == "1-2-2"
    assert load_rows([{"text": "new first row"}, {**GOOD, "score": 1}])[1]["id"] == ids[3]


def test_values_can_be_written_again(tmp_path):
    file = write(tmp_path/"a.jsonl", r'{"text": "half \ud83d, whole \ud83d\ude00", "score": NaN, "top": Infinity, "words": ["\udc80"]}')
    row = load_rows(file)[0]
    assert row["text"] == "half �, whole 😀" and row["score"] is None and row["top"] == float("inf") and row["words"] == ["�"]
    json.dumps(row, ensure_ascii=False).encode()


def test_rows_of_an_earlier_run_stay_settled():
    rows = [{"id": "d7", "dropped": "dedup: same request as d3", "messages": HI}, {"id": "d8", "failed": "load: row 2: null", "raw": "…"}]
    assert load_rows([*rows, {**GOOD, "id": "9", "failed": None}]) == [*rows, {"id": "9", "messages": HI}]
    with pytest.raises(ValueError, match="rename it"): load_rows([{**GOOD, "failed": True}])


# files

def test_broken_lines_keep_their_place_and_count_towards_the_limit(tmp_path):
    file = write(tmp_path/"a.jsonl", b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), '{"instruction": "cut', "", "[1, 2]", "null", b'{"text": "caf\xe9"}',
                 b'{"text": "crlf"}\r', "[" * 100_000, '{"n": ' + "1" * 5000 + "}", {"text": "end"})
    rows = load_rows(file)
    assert [("failed" in r) for r in rows] == [False, True, True, True, True, False, True, True, False]
    assert rows[0]["messages"] == HI and rows[5]["text"] == "crlf"
    for row, line, words in zip(rows[1:5], (2, 4, 5, 6), ("not JSON", "not an object but list", "not an object but NoneType", "byte 0xe9 at character 14")):
        assert row["failed"].startswith(f"load: a.jsonl line {line}: ") and words in row["failed"] and {*row} == {"id", "failed", "raw"}
    assert rows[1]["raw"] == '{"instruction": "cut' and len(rows[6]["raw"]) == 2000
    assert load_rows(file, limit=3) == rows[:3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(
    st.text(st.characters(exclude_characters="\n"), max_size=30).map(str.strip).filter(bool),
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3), max_leaves=6).map(json.dumps),
    st.fixed_dictionaries({"id": st.sampled_from(["a", "b", 1, None]), "messages": st.lists(st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "gpt", "System", "tool", None]), "content": st.text(max_size=8) | st.none()}), max_size=3)}).map(json.dumps)), max_size=12))
def test_every_line_ends_as_exactly_one_row(tmp_path_factory, lines):
    file = tmp_path_factory.mktemp("any")/"any.jsonl"
    file.write_bytes("\n".join([json.dumps({"id": "first", "text": "…"}), *lines]).encode("utf-8", "surrogatepass"))
    rows = load_rows(file)
    assert len(rows) == len(lines) + 1 and len({r["id"] for r in rows}) == len(rows)
    for row in rows:
        assert ("failed" in row) != ("messages" in row or "text" in row)
        json.dumps(row, ensure_ascii=False).encode()
        for m in row.get("messages", []): assert m["role"] in ("system", "user", "assistant", "tool") and m["content"].strip()


def test_the_same_rows_in_every_kind_of_file(tmp_path):
    records = [{"id": str(i), "prompt": f'Say "{i}",\nloud; perché?', "completion": "Sì, 好"} for i in range(40)]
    frame = pd.DataFrame(records)
    lines = "".join(json.dumps(r) + "\n" for r in records)
    want = load_rows(records)
    frame.to_parquet(tmp_path/"a.parquet")
    frame.to_csv(tmp_path/"a.csv", index=False)
    frame.to_csv(tmp_path/"semicolon.csv", index=False, sep=";", encoding="utf-8-sig", lineterminator="\r\n")
    frame.to_csv(tmp_path/"a.tsv", index=False, sep="\t", encoding="utf-16")
    for name, text in {"a.jsonl": lines, "lines.json": lines, "list.json": json.dumps(records), "data.json": json.dumps({"data": records}, indent=1)}.items():
        (tmp_path/name).write_text(text)
    (tmp_path/"wide.jsonl").write_text(lines, encoding="utf-16")
    for file in [*tmp_path.iterdir()]:
        assert load_rows(file) == load_rows(str(file)) == want, file.name
        for suffix, pack in {".gz": gzip, ".bz2": bz2, ".xz": lzma}.items():
            (tmp_path/(file.name + suffix)).write_bytes(pack.compress(file.read_bytes()))
            assert load_rows(tmp_path/(file.name + suffix), limit=7) == want[:7], file.name + suffix


def test_csv(tmp_path):
    table = write(tmp_path/"a.csv", "question,answer", "1+1?,007", "", "a,b,c", '"open,x', "2+2?,4")
    rows = load_rows(table)
    assert rows[0]["messages"][1]["content"] == "007"
    assert [f.split(":")[1] for f in failed(rows)] == [" a.csv line 4", " a.csv line 5"] and "unexpected end of data" in failed(rows)[1]
    long = "x" * 200_000
    assert load_rows(write(tmp_path/"b.csv", "question,answer", f"{long},{long}"))[0]["messages"][1]["content"] == long
    with pytest.raises(ValueError, match="names a column twice"): load_rows(write(tmp_path/"c.csv", "text,text", "a,b"))


def test_text_is_a_row_a_line(tmp_path):
    assert [r["text"] for r in load_rows(write(tmp_path/"a.txt", b"uno\r", b"", b"  due"))] == ["uno", "  due"]


def test_wrong_files_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"): load_rows(tmp_path/"none.jsonl")
    with pytest.raises(FileNotFoundError, match="no such file"): load_rows("data/none.jsonl")
    with pytest.raises(ValueError, match="empty.jsonl is empty"): load_rows(write(tmp_path/"empty.jsonl", "", ""))
    with pytest.raises(ValueError, match="unknown kind of file, expected .jsonl"): load_rows(write(tmp_path/"a.docx", "x"))
    with pytest.raises(ValueError, match="not a Parquet file"): load_rows(write(tmp_path/"a.parquet", "x"))
    with pytest.raises(ValueError, match="not one of the first records .* not JSON"): load_rows(write(tmp_path/"b.jsonl", "a,b", "c,d"))
    with pytest.raises(ValueError, match="b.json: not JSON"): load_rows(write(tmp_path/"b.json", "[1,", "2"))
    for suffix, pack in {".gz": gzip, ".bz2": bz2, ".xz": lzma}.items():
        whole = pack.compress(b'{"text": "a"}\n' * 1000)
        with pytest.raises(ValueError, match="cannot be read to its end"): load_rows(write(tmp_path/f"cut.jsonl{suffix}", whole[:-12]))
        with pytest.raises(ValueError, match="cannot be read to its end"): load_rows(write(tmp_path/f"not.jsonl{suffix}", "plain text"))
    for limit in (0, -1):
        with pytest.raises(ValueError, match="expected at least 1"): load_rows([GOOD], limit=limit)
    for source in ({"text": "a"}, 5, None):
        with pytest.raises(TypeError, match="give a list of dicts"): load_rows(source)


def test_folders_patterns_and_splits(tmp_path):
    for name in ("train-a", "train-b", "test"): write(tmp_path/f"{name}.jsonl", {"text": name})
    write(tmp_path/"README.md", "# not data")
    texts = lambda *a, **kw: [r["text"] for r in load_rows(*a, **kw)]
    assert texts(tmp_path) == ["train-a", "train-b"] and texts(str(tmp_path), split="test") == ["test"]
    assert texts(f"{tmp_path}/*-[ab].jsonl") == ["train-a", "train-b"]
    with pytest.raises(ValueError, match="no split 'dev': there are test, train"): load_rows(tmp_path, split="dev")
    with pytest.raises(ValueError, match="no split 'test': this source has no splits"): load_rows(tmp_path/"test.jsonl", split="test")
    with pytest.raises(ValueError, match="no subset .it.: there are none"): load_rows(tmp_path, subset="it")
    (tmp_path/"data").mkdir()
    with pytest.raises(FileNotFoundError, match="no data files"): load_rows(tmp_path)
    pd.DataFrame({"text": ["inside"]}).to_parquet(tmp_path/"data"/"train-00000.parquet")
    assert texts(tmp_path) == ["inside"]


def test_frames_and_datasets_objects(tmp_path):
    from datasets import Dataset, DatasetDict
    frame = pd.DataFrame({"id": [1, 2], "question": ["a", "b"], "answer": ["c", None], "score": [0.5, None], "when": pd.to_datetime(["2026-01-01", None])})
    rows = load_rows(frame)
    assert rows[0]["score"] == 0.5 and rows[1]["id"] == "2" and "answer is null" in rows[1]["failed"]
    data = Dataset.from_list([{"conversations": [{"from": "human", "value": "Say hi"}, {"from": "gpt", "value": "Hi"}], "n": n} for n in range(3)])
    both = DatasetDict(train=data, test=data.select([2]))
    want = load_rows(data)
    assert want[0]["messages"] == HI and [r["n"] for r in want] == [0, 1, 2]
    assert load_rows(data.to_iterable_dataset()) == load_rows(both) == load_rows(data.to_pandas()) == want
    assert [r["n"] for r in load_rows(both, split="test")] == [2]
    with pytest.raises(ValueError, match="no split 'dev': there are train, test"): load_rows(both, split="dev")
    both.save_to_disk(tmp_path/"saved")
    assert load_rows(tmp_path/"saved") == want


# the Hub: huggingface_hub reads HF_ENDPOINT when imported, hence a process of its own

ASK = """
import json, sys
from llmdata_nb.rows import load_rows
def ask(name, kw):
    try: return load_rows(name, **kw)
    except Exception as e: return f"{type(e).__name__}: {e}"
print(json.dumps([ask(*q) for q in json.loads(sys.argv[1])]))
"""

def ask_hub(home, url, *questions, **env):
    mine = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    env = {**mine, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **env}
    done = subprocess.run([sys.executable, "-c", ASK, json.dumps(questions)], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)

def test_hub(tmp_path):
    lines = [{"id": i, "prompt": f"p{i}", "completion": "c"} for i in range(30)]
    for name in ("plain/train.jsonl", "plain/test.jsonl", "two/it/a.jsonl", "two/es/a.jsonl", "secret/train.jsonl", "broken/train.jsonl"):
        (tmp_path/"datasets"/"me"/name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path/"datasets"/"me"/name, *lines, *(["{"] if "broken" in name else []))
    write(tmp_path/"datasets/me/two/README.md", "---\nconfigs:\n" + "".join(f"- config_name: {c}\n  data_files: {c}/*\n" for c in ("it", "es")) + "---\n")
    with serve(tmp_path, private=["me/secret"]) as url:
        whole, few, test, subset, *errors = ask_hub(tmp_path/"home", url, ("me/plain", {}), ("me/plain", {"limit": 3}), ("me/plain", {"split": "test"}),
            ("me/two", {"subset": "es"}), ("me/two", {}), ("me/two", {"subset": "xx"}), ("me/plain", {"split": "dev"}), ("me/plain", {"split": "dev", "limit": 2}),
            ("me/nothing", {}), ("me/secret", {}), ("me/broken", {}), ("me/broken", {"limit": 3}))
        assert [r["id"] for r in whole] == [str(i) for i in range(30)] and whole[2]["messages"] == [user("p2"), assistant("c")]
        assert few == whole[:3] and test == whole and subset == whole
        for error in errors[:2]: assert error.startswith("ValueError: me/two") and "'it', 'es'" in error and "\n" not in error
        for error in errors[2:4]: assert error.startswith("ValueError: me/plain") and "'train', 'test'" in error
        for error in errors[4:6]: assert error.startswith("FileNotFoundError: me/") and "doesn't exist" in error and "HF_TOKEN" in error
        for error in errors[6:8]: assert error.startswith("ValueError: me/broken cannot be read: JSON parse error") and "give their path" in error
        assert len(ask_hub(tmp_path/"home", url, ("me/secret", {}), HF_TOKEN="hf_test")[0]) == 30
    cached, missing = ask_hub(tmp_path/"home", url, ("me/plain", {}), ("me/nothing", {}), HF_HUB_OFFLINE="1")
    assert cached == whole and missing.startswith("ConnectionError: me/nothing") and "path of a local copy" in missing


# the package's demo, and real data where it lies beside the checkout

def test_demo():
    rows = load_rows("demo")
    assert len(rows) == 40 and [n for n, r in enumerate(rows, 1) if "failed" in r] == [9]
    assert rows[8]["failed"].startswith("load: demo.jsonl line 9: not JSON")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside this checkout")
@pytest.mark.parametrize("name, count, roles", [
    ("dolly_15k_en", 383, {"ua"}), ("oasst_en_100/ranked_pairs.jsonl", 90, {"u", "uau"}), ("sharegpt_format", 330, None), ("aya_like/aya_schema_sample.jsonl", 309, {"ua"}),
    ("gpteacher_neardup", 600, {"ua"}), ("rakuda_ja", 52, {"ua"}), ("magpie_examples", 5, {"u"}), ("monolingual/it_wikipedia.jsonl", 101, {""})])
def test_real_data(name, count, roles):
    rows = load_rows(DATA/name)
    assert len(rows) == count and not failed(rows) and len({r["id"] for r in rows}) == count
    if roles: assert {"".join(m["role"][0] for m in r.get("messages", [])) for r in rows} == roles


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside this checkout")
def test_answers_that_are_no_texts_fail_with_their_column():
    rows = load_rows(DATA/"pandalm_testset")
    reasons = [r["failed"].split(": ", 2)[-1] for r in rows if "failed" in r]
    assert len(rows) == 349 and 0 < len(reasons) < 40 and all(re.fullmatch(r"response[12] is (empty|not text but bool: True)", r) for r in reasons)
    assert {len(r["responses"]) for r in rows if "failed" not in r} == {2}


def test_several_answers_come_after_complete_conversations():
    "A column of that name beside a pair, or one that holds something else, is no shape"
    pair = {"instruction": "2+2?", "output": "4", "generations": 3}
    assert [m["content"] for m in to_messages(pair)["messages"]] == ["2+2?", "4"] and to_messages(pair)["generations"] == 3
    texts = to_messages({"prompt": "2+2?", "completions": [{"text": "4"}, {"text": "5"}], "models": ["a", "b"]})
    assert texts["responses"] == ["4", "5"] and texts["models"] == ["a", "b"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside this checkout")
def test_real_data_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match="no known shape: the columns found are"): load_rows(DATA/"self_instruct/seed_tasks.jsonl")


# Columns of the source with names of ours

def written_columns():
    "The columns that recipes, checks and the people's part write, by what stands in their source"
    from llmdata_nb.recipes import RECIPES
    modules = {record.function.split(".")[1] for record in RECIPES.values()} | {"people", "passages"}
    package = Path(rows_module.__file__).parent
    found = set()
    for module in modules:
        for node in ast.walk(ast.parse((package / f"{module}.py").read_text(encoding="utf-8"))):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for each in (part for target in targets for part in ast.walk(target) if isinstance(part, ast.Subscript)):
                names_row = isinstance(each.value, ast.Name) and each.value.id == "row"
                if names_row and isinstance(each.slice, ast.Constant): found.add(each.slice.value)
            adds_to_row = isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id == "row"
            for each in ast.walk(node.value) if adds_to_row else []:
                if isinstance(each, ast.Dict): found |= {key.value for key in each.keys if isinstance(key, ast.Constant)}
    return {name for name in found if isinstance(name, str)}


# what a source brings and a recipe may write anew: the conversation, its answers and their authors
TAKEN_IN = {column for shape in SHAPES for column in shape} | {"id", "models", "chosen_model", "rejected_model", "raw", "dropped", "failed", "split", "human"}


def test_every_column_that_a_recipe_writes_is_known_at_load():
    from llmdata_nb.recipes import RECIPES
    assert len(written_columns()) > 25
    not_known = written_columns() - OUR_COLUMNS.keys() - TAKEN_IN - {"model", "reason"}  # of an answer that was left out
    assert not not_known, f"add {sorted(not_known)} to OUR_COLUMNS in nbs/02a_rows.ipynb"
    for record in RECIPES.values():
        scored = {*record.score_columns, record.main_score} - {""}
        assert scored <= OUR_COLUMNS.keys(), f"add {sorted(scored - OUR_COLUMNS.keys())} to OUR_COLUMNS in nbs/02a_rows.ipynb"


def test_every_column_of_the_golden_run_is_known_at_load():
    import gzip
    golden = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "files.json.gz").read_bytes()))
    of_the_demos = {column for demo in DEMOS for row in load_rows(demo) for column in row}
    columns = {column for name, content in golden.items() if name.endswith(".parquet") for column in content["columns"]}
    assert len(columns) > 60
    assert columns - OUR_COLUMNS.keys() - TAKEN_IN - of_the_demos == set()


@pytest.mark.parametrize("suffix", ["list", "jsonl", "json", "csv", "parquet"])
def test_columns_with_names_of_ours_move_and_are_said_once(tmp_path, capsys, suffix):
    records = [{"id": str(n), "prompt": "Ciao?", "response": "Ciao!", "topic": "tea", "reason": "spam", "response_score": 5 + n,
                "source_reason": "a person"} for n in range(30)]
    source, frame = tmp_path / f"a.{suffix}", pd.DataFrame(records)
    if suffix == "list": source = records
    if suffix == "jsonl": frame.to_json(source, orient="records", lines=True)
    if suffix == "json": frame.to_json(source, orient="records")
    if suffix == "csv": frame.to_csv(source, index=False)
    if suffix == "parquet": frame.to_parquet(source)
    rows = load_rows(source)
    assert [set(row) for row in rows] == [{"id", "messages", "topic", "source_source_reason", "source_response_score", "source_reason"}] * 30
    assert (rows[0]["source_source_reason"], rows[0]["source_reason"], str(rows[0]["source_response_score"])) == ("spam", "a person", "5")
    said = capsys.readouterr().out
    assert said.count("were renamed") == 1 and "reason → source_source_reason, response_score → source_response_score" in said
    assert [row["id"] for row in stream_rows(source)] == [str(n) for n in range(30)]
    assert capsys.readouterr().out == said
    assert load_rows([{"id": "1", "prompt": "Ciao?", "response": "Ciao!", "topic": "tea"}])[0].keys() == {"id", "messages", "topic"}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("column", sorted(rows_module.OUR_COLUMNS))
def test_no_value_in_a_column_of_ours_is_lost_or_read(column):
    for value in ("5", None, [1], {"a": 1}, 5):
        row = load_rows([{"id": "1", "prompt": "Ciao?", "response": "Ciao!", column: value}])[0]
        assert column not in row and row[f"source_{column}" if f"source_{column}" not in OUR_COLUMNS else f"source_source_{column}"] == value
        assert rows_module.well_formed({"id": "1", column: value}).keys() == {"id", column}


def test_what_a_run_wrote_can_be_the_source_of_another():
    pair = {"id": "1", "prompt": [{"role": "user", "content": "Ciao?"}], "chosen": [{"role": "assistant", "content": "Ciao!"}],
            "rejected": [{"role": "assistant", "content": "No."}], "responses": ["Ciao!", "No."], "models": ["a", "b"],
            "chosen_model": "a", "rejected_model": "b", "scores": [5.0, 1.0], "outcome": "kept", "margin": 4.0, "source_messages": []}
    row = load_rows([pair])[0]
    assert row["messages"] == pair["prompt"] and (row["chosen"], row["rejected"]) == ("Ciao!", "No.")
    assert (row["chosen_model"], row["models"], row["source_scores"]) == ("a", ["a", "b"], [5.0, 1.0])
    assert row["source_source_messages"] == [] and not row.keys() & {"scores", "outcome", "margin", "source_messages"}


# One odd row

def nested_list(depth):
    value = 1
    for _ in range(depth): value = [value]
    return value


@pytest.mark.parametrize("depth", [480, 600, 2_000, 10_000])
def test_a_row_that_is_nested_deep_fails_alone(tmp_path, depth):
    good, deep = '{"id": "a", "text": "one"}', '{"id": "b", "text": "two", "x": %s}' % ("[" * depth + "]" * depth)
    as_object = '{"id": "c", "text": "three", "x": %s}' % ('{"a": ' * depth + "1" + "}" * depth)
    (tmp_path / "a.jsonl").write_text("\n".join([good, deep, as_object, '{"id": "d", "text": "four"}']))
    (tmp_path / "a.json").write_text(f'{{"name": "x", "data": [{good}, {deep}, {as_object}, {{"id": "d", "text": "four"}}]}}')
    (tmp_path / "b.json").write_text(f'[{good}, {deep}, {as_object}, {{"id": "d", "text": "four"}}]')
    cells = [["id", "messages"], ["a", '[{"role": "user", "content": "one"}]'], ["b", "[" * depth + "]" * depth], ["d", '[{"role": "user", "content": "four"}]']]
    with open(tmp_path / "a.csv", "w", newline="") as f: csv.writer(f).writerows(cells)
    for source in (tmp_path / "a.jsonl", tmp_path / "a.json", tmp_path / "b.json", tmp_path / "a.csv"):
        rows = load_rows(source)
        assert rows[0]["id"] == "a" and "failed" not in rows[0] and rows[-1]["id"] == "d" and "failed" not in rows[-1]
        for row in rows[1:-1]: assert depth < 500 or row["failed"].startswith("load: ") and "nested too deep" in row["failed"] or source.suffix == ".csv"
    rows = load_rows([{"id": "a", "text": "one"}, {"id": "b", "text": "two", "x": nested_list(depth)}, {"id": "d", "text": "four"}])
    assert [row["id"] for row in rows] == ["a", "b", "d"] and (depth < 500 or rows[1]["failed"] == f"load: row 2: {rows_module.NESTED}")


def test_odd_values_fail_or_load_alone():
    itself = {"id": "e", "text": "five"}
    itself["x"] = itself
    class Odd:
        def __str__(self): raise OSError("no text")
    odd = [{"id": {"a": 1}, "text": "one"}, {"id": ["x"], "text": "two"}, {"id": 10**6000, "text": "three"}, {"text": "four", "\ud83d": 1, "x": 10**6000},
           itself, {"id": "f", "text": "six", Odd(): 1}, {f"c{n}": n for n in range(6000)} | {"text": "seven"}, {f"c{n}": n for n in range(6000)},
           {"id": "i", "text": ["\ud83d"]}, {"id": "j", "prompt": "p" * 100, "x" * 1_000_000: 1}]
    rows = load_rows([{"id": "first", "text": "fine"}, *odd, {"id": "last", "text": "fine"}])
    assert len(rows) == 12 and rows[0]["id"] == "first" and rows[-1]["id"] == "last"
    assert len({row["id"] for row in rows}) == 12 and all(isinstance(row["id"], str) for row in rows)
    assert len(rows[7]) == 6002 and "and 5,970 more" in rows[8]["failed"]
    for row in rows: assert len(row.get("failed", "")) <= 2000
    json.dumps([row for row in rows if "failed" in row], ensure_ascii=False).encode()


# Sizes

def packed(path, start, filling, end, size=1_000_000_000):
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[path.suffix]
    with opener(path, "wb") as f:
        f.write(start)
        for _ in range(size // 10_000_000): f.write(filling * (10_000_000 // len(filling)))
        f.write(end)
    return path


LOADING = """
import resource, sys
from llmdata_nb.rows import load_rows
try: said = [row.get("failed", "fine") for row in load_rows(sys.argv[1])]
except ValueError as e: said = ["error: " + str(e)]
status = "/proc/self/status"  # where there is one: elsewhere the most that its parent took counts too
try: most = int(open(status).read().partition("VmHWM:")[2].split()[0])
except OSError: most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(most // 1000, *said, sep="\\n")
"""


def load_in_a_child(path):
    "Megabytes that loading `path` took, and what became of its rows"
    ran = subprocess.run([sys.executable, "-c", LOADING, str(path)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    megabytes, *said = ran.stdout.splitlines()
    return int(megabytes), said


@pytest.mark.parametrize("name, start, filling, end, expected", [
    ("a.jsonl.gz", b'{"text": "', b"a", b'"}\n{"text": "fine"}\n', ["failed", "fine"]),
    ("a.txt.bz2", b"", b"\xff", b"\nfine\n", ["failed", "fine"]),
    ("a.csv.gz", b"id,text\n1,", b"a", b"\n2,fine\n", ["failed", "fine"]),
    ("b.csv.gz", b'id,text\n1,"', b"a\n", b'"\n2,fine\n', ["error"]),
    ("a.json.gz", b'[{"text": "', b"a", b'"}]', ["error"])])
def test_a_bomb_takes_little_memory(tmp_path, name, start, filling, end, expected):
    megabytes, said = load_in_a_child(packed(tmp_path / name, start, filling, end))
    assert megabytes < 500, said
    assert [next(word for word in ("error", "fine", "failed") if line.startswith({"failed": "load: "}.get(word, word))) for line in said] == expected
    assert "256 MB, unpacked" in said[0] or "quotation mark" in said[0]


def test_a_parquet_bomb_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a" * 300_000_000, "fine"]}), path, compression="zstd", use_dictionary=False)
    megabytes, said = load_in_a_child(path)
    assert megabytes < 500 and "column text" in said[0] and "unpack to 300,000," in said[0]


def test_a_long_line_is_read_without_many_copies(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"a" * 50_000_000 + b'"}\n{"text": "fine"}\n')
    megabytes, said = load_in_a_child(tmp_path / "a.jsonl")
    assert said == ["fine", "fine"] and megabytes < 400


def test_whole_texts_have_a_limit_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "MOST", 1000)
    path = packed(tmp_path / "a.txt.gz", b"", b"a\n", b"", 20_000_000)
    with pytest.raises(rows_module.Unreadable, match="unpacked"): rows_module.file_text(path)
    (tmp_path / "b.txt").write_text("a\n" * 5000)
    assert len(rows_module.file_text(tmp_path / "b.txt")) == 10_000


@pytest.mark.parametrize("length, filling, said", [(60_000_000, "a", "unpack to 60,000,"), (2_000_000, None, "values that repeat would take 2,000,"), (1000, None, None)])
@pytest.mark.parametrize("nested", [False, True])
def test_one_long_value_named_by_every_row(tmp_path, length, filling, said, nested):
    import pyarrow as pa
    import pyarrow.parquet as pq
    text = filling * length if filling else os.urandom(length // 2).hex()
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([text]))
    if nested: column = pa.ListArray.from_arrays(pa.array(range(1001), pa.int32()), pa.StructArray.from_arrays([column], ["value"]))
    table = pa.table({"more": column, "text": ["fine"] * 1000})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", store_schema=False, dictionary_pagesize_limit=200_000_000)
    megabytes, lines = load_in_a_child(tmp_path / "a.parquet")
    assert megabytes < 500 and (said in lines[0] if said else lines == ["fine"] * 1000)
