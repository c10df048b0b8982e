"Rows are chosen before anything is paid for: by a condition, by a sample that stays the same, from several sources."
import json
import operator
from collections import Counter
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from itertools import count

import pandas as pd
import pytest
from hypothesis import example, given, settings, strategies as st

from llmdata_nb import choose
from llmdata_nb.export import title
from llmdata_nb.choose import check_sources, choose_rows, describe_source, load_chosen, stream_chosen
from llmdata_nb.rows import load_rows

PAIR = {"instruction": "Say hi", "output": "Hi"}
ROWS = [{"id": str(n), **found} for n, found in enumerate([
    {"quality": 5, "language": "pt-BR", "tags": {"safe": True, "topics": ["sea", "tea"]}, "my column": "a (b)"},
    {"quality": "4", "language": " en ", "tags": {"safe": False, "topics": []}, "my column": None},
    {"quality": "high", "language": "or", "tags": {"safe": "true", "topics": None}, "my column": "it's"},
    {"quality": None, "language": "en", "tags": None, "my column": 7},
    {"language": "007", "my column": 'say "b"'}])]


def ids(rows): return "".join(row["id"] for row in rows)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def many(size, /, **columns): return [{"id": str(n), **PAIR, **{name: value(n) for name, value in columns.items()}} for n in range(size)]


# conditions

@pytest.mark.parametrize("where, chosen", [
    ("quality>=4", "01"), ("quality == 4.0", "1"), ("quality != 4", "0"), ("not quality==4", "0"), ('quality == "4"', "1"),
    ("quality == high", "2"), ("quality == null", "34"), ("quality != null", "012"), ("quality in (4, high)", "12"), ("quality not in (4, 3)", "0"),
    ("language==pt-BR", "0"), ("language == or or language==en", "123"), ("language in (or, pt-BR)", "02"), ("language == 7", "4"), ('language == "7"', None),
    ("tags.safe==true", "02"), ("tags.topics contains tea", "0"), ("tags.topics not contains tea", "1"), ("language contains n", "13"),
    ("`my column` == 'a (b)'", "0"), ('`my column` contains "it\'s"', "2"), (r'`my column` == "say \"b\""', "4"), ("`my column` >= 7", "3"),
    ("quality>=4 and language==en or language==or", "12"), ("quality>=4 and (language==en or language==or)", "1"),
    ("not (quality>=4 or language==en)", "") , ("NOT language==en AND quality>4", "0")])
def test_a_condition_chooses(where, chosen):
    if not chosen:
        with pytest.raises(ValueError, match="no row is left of 5 rows"): choose_rows(ROWS, where)
    else: assert ids(choose_rows(ROWS, where)) == chosen


def test_how_many_rows_did_not_compare_is_said(capsys):
    choose_rows([*ROWS, {"id": "x", "dropped": "dedup: …"}], "quality>=4 and language!=it")
    said = capsys.readouterr().out
    assert said == "where quality>=4 and language!=it: 2 of 5 rows (3 without a quality that compares); 1 row failed or dropped before, and stay\n"
    choose_rows(ROWS, "language==en and quality==4")
    assert "(1 without" in capsys.readouterr().out, "rows in another language are out whatever their quality"


@pytest.mark.parametrize("where, place, expected", [
    ("quality = 4", "quality ▸= 4", "=="), ("quality >", "quality >▸", "value"), ("quality >= 4 language==en", "4 ▸language", "and, or"), ("(a==1", "1▸", ")"),
    ("a==1)", "1▸)", "the end"), ("a in en", "▸en", "("), ("a in (en it)", "▸it", "comma"), ("a in ()", "(▸)", "value"), ("a < null", "▸null", "number"),
    ('a == "en', '▸"en', "ends"), ("a == “en”", "▸“en”", "straight"), ("and a==1", "▸and", "column"), ("a not == 1", "▸==", "in, not in"), ("not " * 99 + "a==1", "▸not", "at most")])
def test_a_slip_is_shown_where_it_is_with_an_example(where, place, expected):
    with pytest.raises(ValueError) as e: choose_rows(ROWS, where)
    assert place in str(e.value) and expected in str(e.value) and 'where="quality>=4' in str(e.value)


@pytest.mark.parametrize("where, near", [("qualty>=4", "quality"), ("tags.saef==true", "tags.safe"), ("language==en or trns==1", "turns")])
def test_a_column_that_no_row_has_names_those_there_are(where, near):
    with pytest.raises(ValueError, match=f"did you mean {near}.*my column"): choose_rows(ROWS, where)


def test_lengths_and_turns_are_counted_unless_a_column_is_called_so():
    long = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "d"}, {"role": "user", "content": "ef"}, {"role": "assistant", "content": "ghij"}]
    rows = [{"id": "0", "messages": long}, {"id": "1", "messages": long[:1], "chosen": "ok", "rejected": "longer"}, {"id": "2", "text": "native text"}]
    for where, chosen in {"letters==10": "0", "letters==3": "1", "letters==11": "2", "request_letters==5": "0", "answer_letters==2": "1",
                          "answer_letters==4": "0", "turns==2": "0", "turns<=1": "12"}.items(): assert ids(choose_rows(rows, where)) == chosen
    named = [row | {"turns": "many"} for row in rows]
    assert ids(choose_rows(named, "turns==many")) == "012"
    late = [*many(1000), {"id": "late", **PAIR, "letters": 3}]
    with pytest.raises(ValueError, match="row late.*column 'letters'"): choose_rows(late, "letters<=9")


def test_dates_decimals_and_what_is_no_number(capsys):
    found = [date(2024, 5, 31), datetime(2024, 6, 1, 12), Decimal("4.5"), float("nan"), pd.NaT, ["4"], {"n": 4}]
    rows = [{"id": str(n), "found": value} for n, value in enumerate(found)]
    for where, chosen in {"found >= 2024-06": "1", "found == 2024-05-31": "0", "found > 4": "2", "found == null": "34", "found contains 4": "5"}.items():
        assert ids(choose_rows(rows, where)) == chosen
    assert "(6 without a found that compares)" in capsys.readouterr().out


def test_what_rows_hold_cannot_write_to_the_terminal(capsys):
    rows = [{"id": "1", "a\x1b[2J": 1, "kind": "\x9b2J\u202e"}, {"id": "2", "kind": "x\n"}]
    with pytest.raises(ValueError) as e: choose_rows(rows, "b==1")
    choose_rows(rows, sample=2, sample_by="kind")
    assert (str(e.value) + capsys.readouterr().out.rstrip("\n")).isprintable()


def test_no_condition_changes_nothing_and_says_nothing(capsys):
    assert choose_rows(ROWS) == ROWS and choose_rows(ROWS, " ") == ROWS and not capsys.readouterr().out


# against a plain reading of the same conditions

COLUMNS = ["a", "b.c", "my d"]
VALUES = st.one_of(st.integers(-3, 3), st.sampled_from(["x", "pt-BR", "or", "two words", 'a "q" \\', "4", "-1.5", ""]), st.booleans(), st.none())
COMPARED = st.tuples(st.sampled_from(COLUMNS), st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), st.one_of(st.integers(-3, 3), st.sampled_from(["x", "pt-BR", "or", "two words", 'a "q" \\'])))
TREES = st.recursive(COMPARED, lambda inside: st.one_of(st.tuples(st.just("not"), inside), st.tuples(st.sampled_from(["and", "or"]), inside, inside)), max_leaves=8)
PLAIN = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def written(tree):
    if tree[0] == "not": return f"not ({written(tree[1])})"
    if tree[0] in ("and", "or"): return f"({written(tree[1])}) {tree[0]} ({written(tree[2])})"
    column, name, value = tree
    quoted = str(value) if isinstance(value, int) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"`{column}` {name}{quoted}"


def plainly(tree, row):
    "True, False, or None where it cannot be told"
    if tree[0] == "not": return {True: False, False: True, None: None}[plainly(tree[1], row)]
    if tree[0] in ("and", "or"):
        results, decisive = {plainly(part, row) for part in tree[1:]}, tree[0] == "or"
        return decisive if decisive in results else None if None in results else not decisive
    column, name, value = tree
    found = row["b"]["c"] if column == "b.c" else row[column]
    if found is None or isinstance(found, bool): return None
    if isinstance(found, str) and isinstance(value, int):
        try: found = float(found)
        except ValueError: return None
    return PLAIN[name](found, value) if isinstance(found, str) == isinstance(value, str) else None


@settings(max_examples=150, deadline=None)
@given(TREES, st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=5))
def test_conditions_mean_what_a_plain_reading_says(tree, values):
    rows = [{"id": str(n), "a": a, "b": {"c": c}, "my d": d} for n, (a, c, d) in enumerate(values)]
    wanted = [row for row in rows if plainly(tree, row) is True]
    if wanted: assert choose_rows(rows, written(tree)) == wanted
    else:
        with pytest.raises(ValueError, match="no row is left"): choose_rows(rows, written(tree))


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(["a", "b.c", "and", "or", "not", "in", "(", ")", ",", "==", ">=", "4", '"x"', "'", "`", "null", "true", "contains", "\\"]), max_size=12).map(" ".join)))
@example("(" * 5000)
@example("a==" + "9" * 5000)
def test_whatever_is_written_only_ever_a_value_error(where):
    try: choose_rows([{"id": "1", "a": "x", "b": {"c": 1}}], where)
    except ValueError: pass


# samples

@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdefg"), st.integers(1, 60), min_size=1), st.integers(1, 250))
def test_a_sample_has_each_value_in_proportion(sizes, sample):
    rows = [{"id": f"{value}{n}", "value": value} for value, size in sizes.items() for n in range(size)]
    total = len(rows)
    got = Counter(row["value"] for row in choose_rows(rows, sample=sample, sample_by="value"))
    assert sum(got.values()) == min(sample, total)
    if sample >= total: return
    exact = {value: sample * size / total for value, size in sizes.items()}
    raised = sum(max(0, 1 - part) for part in exact.values()) if sample >= len(sizes) else 0
    assert all(got[value] <= size for value, size in sizes.items())
    if sample >= len(sizes): assert set(got) == set(sizes)
    for value, part in exact.items(): assert -1 - raised < got[value] - part < 1 + (part < 1), "a part is off by what the rare values were given"


@settings(max_examples=40, deadline=None)
@given(st.sets(st.text(max_size=4), min_size=2, max_size=60), st.integers(1, 30), st.integers(0, 9), st.randoms())
def test_a_chosen_row_stays_chosen_until_a_new_one_takes_its_place(names, sample, seed, random):
    names = sorted(names)
    before = names[: len(names) // 2]
    chosen = [row["id"] for row in choose_rows([{"id": name} for name in before], sample=sample, seed=seed)]
    shuffled = random.sample(names, len(names))
    later = [row["id"] for row in choose_rows([{"id": name} for name in shuffled], sample=sample, seed=seed)]
    assert {*later} & {*before} <= {*chosen}
    assert len({*chosen} - {*later}) <= len({*later} - {*before})
    assert chosen == [name for name in before if name in chosen] and later == [name for name in shuffled if name in later]


def test_another_seed_is_another_sample_and_more_than_there_are_is_all_of_them(capsys):
    rows = [*many(300, language=lambda n: None if n % 10 == 0 else "en"), {"id": "lost", "failed": "load: …"}]
    assert ids(choose_rows(rows, sample=30)) != ids(choose_rows(rows, sample=30, seed=1))
    capsys.readouterr()
    assert choose_rows(rows, sample=500) == rows
    assert "sample: all 300 rows (500 asked for); 1 row failed or dropped before, and stay" in capsys.readouterr().out
    assert choose_rows(rows, "turns==0", sample=20, sample_by="language")[-1]["id"] == "lost"
    assert "300 of 300 rows; sample: 20 of them, by language: en 18, null 2" in capsys.readouterr().out


@pytest.mark.parametrize("slip, why", [
    (dict(sample=-1), "sample=-1"), (dict(sample=1.5), "sample=1.5"), (dict(sample=True), "whole number"), (dict(sample_by="language"), "sample as well"),
    (dict(sample=2, sample_by="langage"), "did you mean language"), (dict(where=4), "expected a text"), (dict(seed="x"), "seed='x'")])
def test_wrong_parameters_are_told(slip, why):
    with pytest.raises(ValueError, match=why): choose_rows(ROWS, **slip)


# sources

@pytest.fixture
def sources(tmp_path, monkeypatch):
    "Three files: 300, 100 and 40 rows, all with ids that begin at 0"
    monkeypatch.chdir(tmp_path)
    for name, n in {"a.jsonl": 300, "b.jsonl": 100, "c.jsonl": 40}.items(): write(tmp_path / name, many(n, half=lambda n: n % 2))
    return tmp_path


def test_of_each_source_it_is_said_how_many_rows_are_left(sources, capsys):
    write(sources / "d.jsonl", many(3, half=lambda n: 2))
    load_chosen(["a.jsonl", "d.jsonl"], where="half==1", sample=20)
    assert "where half==1: 150 of 303 rows; sample: 20 of them; mixed: 20 from a.jsonl, 0 from d.jsonl" in capsys.readouterr().out
    with pytest.raises(ValueError, match="d.jsonl: no row is left"): load_chosen("a.jsonl:1,d.jsonl:1", where="half==1")


def origins(rows): return Counter(row["from_source"] for row in rows)


def test_sources_without_shares_give_all_their_rows_interleaved(sources):
    rows = load_chosen(["a.jsonl", "b.jsonl"])
    assert origins(rows) == {"a.jsonl": 300, "b.jsonl": 100} and len({row["id"] for row in rows}) == 400
    assert "7-2" in {row["id"] for row in rows if row["from_source"] == "b.jsonl"}
    for start in range(0, 400, 40): assert origins(rows[start:start + 40]) == {"a.jsonl": 30, "b.jsonl": 10}
    assert rows == load_chosen("a.jsonl, b.jsonl") == list(stream_chosen(["a.jsonl", "b.jsonl"]))
    assert origins(load_chosen(["a.jsonl", "b.jsonl"], where="half==1", limit=20)) == {"a.jsonl": 10, "b.jsonl": 10}


@pytest.mark.parametrize("source, size, expected", [
    ("a.jsonl:0.7,b.jsonl:0.3", dict(sample=100), {"a.jsonl": 70, "b.jsonl": 30}), ("a.jsonl:70%, b.jsonl:30%", dict(limit=100), {"a.jsonl": 70, "b.jsonl": 30}),
    (["a.jsonl:7", "c.jsonl:3"], {}, {"a.jsonl": 95, "c.jsonl": 40}), (["a.jsonl:1", "b.jsonl:1", "c.jsonl:2"], dict(sample=999), {"a.jsonl": 20, "b.jsonl": 20, "c.jsonl": 40}),
    (["a.jsonl:1", "b.jsonl:1"], dict(where="from_source==a.jsonl and half==0 or half==1", sample=60), {"a.jsonl": 30, "b.jsonl": 30})])
def test_shares_are_kept(sources, capsys, source, size, expected):
    rows = load_chosen(source, **size)
    assert origins(rows) == expected and rows == load_chosen(source, **size)
    assert f"mixed {sum(expected.values())} rows" in capsys.readouterr().out


def test_a_part_is_the_sample_of_its_source_in_proportion_to_a_column(sources):
    rows = load_chosen("a.jsonl:1,b.jsonl:1", sample=40, sample_by="half")
    assert Counter((row["from_source"], row["half"]) for row in rows) == {(name, half): 10 for name in ("a.jsonl", "b.jsonl") for half in (0, 1)}
    alone = choose_rows(load_rows("a.jsonl"), sample=20, sample_by="half")
    assert {row["id"] for row in rows if row["from_source"] == "a.jsonl"} == {row["id"] for row in alone}


@pytest.mark.parametrize("source, why", [
    ("a.jsonl:0.7,b.jsonl", "b.jsonl has no share"), (["a.jsonl", "a.jsonl"], "twice"), ("a.jsonl:0,b.jsonl:1", "leave that source out"), ("a.jsonl,", "empty"),
    ("a.jsonl:0.5", "sample"), (["a.jsonl:50%", "b.jsonl:1"], "percent"), (["a.jsonl:1", "gone.jsonl:1"], "gone.jsonl: no such file"), ("", "empty")])
def test_wrong_sources_are_told_before_anything_is_read(sources, monkeypatch, source, why):
    monkeypatch.setattr(choose, "stream_rows", None)
    for call in (check_sources, load_chosen, stream_chosen):
        with pytest.raises((ValueError, FileNotFoundError), match=why): call(source)


@pytest.mark.parametrize("name", [r"C:\data\x.jsonl", "owner/name", "owner/name@v1.0", "https://host:8080", "https://host/x.jsonl", "hf://datasets/a/b@main/c.jsonl", "demo"])
def test_names_with_colons_are_not_shares(name):
    assert describe_source([name]) == name
    if ":" in name or "/" in name: assert [(part.source, part.share) for part in choose._parts_of([f"{name}/d:0.7", "e:0.3"])][0] == (f"{name}/d", Fraction("0.7"))


def test_a_file_that_is_called_like_a_mix_is_one_source(sources):
    (sources / "a:0.7,b:0.3").mkdir()
    write(sources / "a:0.7,b:0.3" / "rows.jsonl", many(3))
    assert load_chosen("a:0.7,b:0.3") == load_chosen(["a:0.7,b:0.3"]) == load_rows("a:0.7,b:0.3")


def test_a_column_from_source_of_the_source_is_kept(sources, capsys):
    write(sources / "d.jsonl", many(2, from_source=lambda n: "web", source=lambda n: "x", source_from_source=lambda n: "older"))
    rows = [row for row in load_chosen(["a.jsonl", "d.jsonl"]) if row["from_source"] == "d.jsonl"]
    assert [(row["source_source_from_source"], row["source"], row["source_from_source"]) for row in rows] == [("web", "x", "older")] * 2
    assert "from_source → source_source_from_source" in capsys.readouterr().out


def test_no_folder_of_this_machine_goes_into_rows_or_card(sources):
    (sources / "it").mkdir()
    write(sources / "it" / "a.jsonl", many(2))
    whole = [str(sources / "a.jsonl"), sources / "it" / "a.jsonl"]
    assert origins(load_chosen(whole)) == {"a.jsonl": 300, "a.jsonl-2": 2}
    described = [describe_source(source, where="turns==1") for source in (whole, whole[:1], whole[1:])]
    assert len({*described}) == 3, "two files of one name are not the same source"
    manifest = {"language": "it", "recipe": "keep", "source": described[0]}
    assert title(manifest) == "Italian rows from a.jsonl, a.jsonl"


def test_rows_that_were_lost_stay_and_limit_counts_what_comes_out(sources):
    write(sources / "e.jsonl", [PAIR | {"n": 1}, {"instruction": "?", "output": None}, *many(50, n=lambda n: n)])
    rows = load_chosen("e.jsonl", where="n>=40", limit=3)
    assert ["failed" in row for row in rows] == [True, False, False] and [row["n"] for row in rows[1:]] == [40, 41]
    mixed = load_chosen("a.jsonl:1,e.jsonl:1", sample=20)
    assert sum("failed" in row for row in mixed) == 1 and len(mixed) == 21


def test_reading_stops_when_there_are_enough():
    endless = ({**PAIR, "n": n} for n in count())
    assert [row["n"] for row in stream_chosen(endless, where="n in (5, 1500)", limit=2)] == [5, 1500]
    assert next(endless)["n"] == 1501
    with pytest.raises(ValueError, match="first 1,000 rows"): stream_chosen(({**PAIR, "n": n} for n in count()), where="m==null")
    late = [*many(1500), {"id": "late", **PAIR, "note": "x"}]
    assert ids(load_chosen(late, where="note==x")) == "late", "a list is looked through to its end"


def test_only_what_is_given_is_passed_on(monkeypatch):
    passed = []
    def read(source, **options): passed.append(options); return iter(many(2))
    for name in ("stream_rows", "load_rows"): monkeypatch.setattr(choose, name, read)
    load_chosen("owner/name")
    load_chosen("owner/name", where="id==0", limit=1, revision="abc", columns={"q": "question"}, encoding="latin-1")
    assert passed[0] == dict(split="train", limit=None)
    assert passed[1].pop("limit") > 10**9, "a limit, so that the Hub dataset is streamed"
    assert passed[1] == dict(split="train", revision="abc", columns={"q": "question"}, encoding="latin-1")


def test_what_the_card_says():
    assert describe_source("demo") == "demo" and describe_source("a:0.7,b:0.3") == "a:0.7,b:0.3"
    assert describe_source(["a:7", "b:3"], sample=1000, seed=2) == "a:7, b:3 (sample 1,000, seed 2)"
    assert describe_source("o/n", revision="abc", columns={"prompt": "q"}, where=" a==1 ") == "o/n (revision abc, columns prompt=q, where a==1)"
    assert describe_source([PAIR]) == "a list"


def test_a_column_that_loading_moved_is_found_by_its_own_name(capsys):
    rows = [{"text": f"row {n}", "category": "ab"[n % 2], "tags": {"level": n}} for n in range(4)]
    assert [row["text"] for row in load_chosen(rows, where="category==a and tags.level>=2")] == ["row 2"]
    assert len(load_chosen(rows, sample=2, sample_by="category")) == 2


def test_the_card_says_what_was_chosen_of_the_source(tmp_path):
    from llmdata_nb.export import write_card
    from llmdata_nb.run import run
    async def keep(row, ask, language="it"): return row
    source = describe_source("me/set", subset="all", where="quality > 3")
    rows = load_rows([{"id": str(n), "text": f"riga {n}"} for n in range(3)])
    run(rows, keep, model="http://localhost:9/v1#none", out=tmp_path / "out", store=tmp_path / "s.db", language="it", source=source)
    write_card(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# Italian rows from me/set\n" in card and "Chosen of the source: subset all, where quality &gt; 3." in card
