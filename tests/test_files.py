"Files and folders as people have them: every kind is read or told, and no two splits, subsets or meanings of a quote are mixed."
import bz2
import gzip
import json
import lzma
import os
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest
from datasets import Dataset, DatasetDict

from llmdata_nb import sources
from llmdata_nb.rows import load_rows
from llmdata_nb.sources import HubSource, check_source, hub_source

RECORDS = [{"prompt": f"Dimmi {n}; \"{n}\",\tperché?", "completion": f"Così è {n}"} for n in range(30)]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def asked(rows): return [row["messages"][0]["content"] for row in rows]
def texts(*args, **kw): return [row["text"] for row in load_rows(*args, **kw)]


# kinds

def zst(data): return pa.compress(data, codec="zstd", asbytes=True)


def as_stream(table, path):
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, table.schema) as writer: writer.write_table(table)


def test_the_same_rows_in_every_kind_of_file(tmp_path):
    table, want = pa.Table.from_pylist(RECORDS), load_rows(RECORDS)
    for name in ("a.jsonlines", "a.jl"): write(tmp_path/name, LINES)
    for name, pack in (("a.jsonl.zst", zst), ("b.csv.zst", zst), ("c.jsonl.gz", gzip.compress), ("d.jl.xz", lzma.compress), ("e.jsonlines.bz2", bz2.compress)):
        data = pd.DataFrame(RECORDS).to_csv(index=False) if ".csv" in name else LINES
        write(tmp_path/name, pack(data.encode()))
    as_stream(table, tmp_path/"a.arrow")
    pa.feather.write_feather(table, str(tmp_path/"a.feather"), compression="lz4")
    pd.DataFrame(RECORDS).to_parquet(tmp_path/"p.parquet")
    write(tmp_path/"p.parquet.zst", zst((tmp_path/"p.parquet").read_bytes()))
    write(tmp_path/"pretty.jsonl", "\n".join(json.dumps(record, indent=1) for record in RECORDS))
    write(tmp_path/"array.jsonl", json.dumps(RECORDS))
    write(tmp_path/"viewer.json", json.dumps({"features": [], "rows": [{"row_idx": n, "row": record} for n, record in enumerate(RECORDS)]}))
    write(tmp_path/"columns.json", pd.DataFrame(RECORDS).to_json())
    for file in tmp_path.iterdir(): assert load_rows(file) == want, file.name
    for name in ("a.jsonl.zst", "b.csv.zst"):
        data = (tmp_path/name).read_bytes()
        with pytest.raises(ValueError, match="cannot be read to its end"): load_rows(write(tmp_path/f"cut-{name}", data[:-20]))
        with pytest.raises(ValueError, match="cannot be read to its end"): load_rows(write(tmp_path/f"not-{name}", b"plain text"))
    with pytest.raises(ValueError, match="it is compressed: name it packed.jsonl.gz"): load_rows(write(tmp_path/"packed.jsonl", gzip.compress(LINES.encode())))
    cut = {"rows": [{"row": RECORDS[0], "truncated_cells": ["completion"]}, {"row": RECORDS[1], "truncated_cells": []}]}
    assert "the viewer has cut completion" in load_rows(write(tmp_path/"cut.json", json.dumps(cut)))[0]["failed"]
    with pytest.raises(ValueError, match="not an Arrow or Feather file"): load_rows(write(tmp_path/"no.feather", b"plain text"))


def sheet(rows):
    "A workbook of one sheet, as the smallest that spreadsheets write"
    def cell(value): return f"<c><v>{value}</v></c>" if isinstance(value, (int, float)) else f'<c t="inlineStr"><is><t>{value}</t></is></c>' if value is not None else "<c/>"
    body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    spread = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    return {"[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            '<Override PartName="/xl/workbook.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/><Override PartName="/xl/worksheets/sheet1.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>',
            "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="xl/workbook.xml"/></Relationships>',
            "xl/workbook.xml": f'<workbook xmlns="{spread}" xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"><sheets><sheet name="a" sheetId="1" r:id="r"/></sheets></workbook>',
            "xl/_rels/workbook.xml.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
            "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{spread}"><sheetData>{body}</sheetData></worksheet>'}


def test_sheets_of_excel(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path/"a.xlsx", "w") as book:
        for name, text in sheet([["prompt", "completion", "score", None], ["Perché?", "Così.", 3, None], [None, None, None, None], ["E poi?", "Dopo.", 2.5, None]]).items(): book.writestr(name, text)
    rows = load_rows(tmp_path/"a.xlsx")
    assert asked(rows) == ["Perché?", "E poi?"] and [row["score"] for row in rows] == [3, 2.5]
    with pytest.raises(ValueError, match="no.xlsx: not a file of Excel"): load_rows(write(tmp_path/"no.xlsx", "text"))
    with zipfile.ZipFile(tmp_path/"bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as bomb: bomb.writestr("xl/worksheets/sheet1.xml", b"0" * 300_000_000)
    with pytest.raises(ValueError, match="a workbook of more than 256 MB, unpacked"): load_rows(tmp_path/"bomb.xlsx")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-32-be", "utf-8"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "json", "txt", "jsonl.gz"])
def test_an_encoding_that_is_named(encoding, kind, tmp_path):
    text = {"csv": "prompt;completion\nPerché?;Così.\n", "json": json.dumps([{"prompt": "Perché?", "completion": "Così."}], ensure_ascii=False), "txt": "Perché?\n"}.get(kind, '{"prompt": "Perché?", "completion": "Così."}\n')
    data = text.encode(encoding)
    file = write(tmp_path/f"a.{kind}", gzip.compress(data) if kind.endswith("gz") else data)
    rows = load_rows(file, encoding=encoding)
    assert (texts(file, encoding=encoding) if kind == "txt" else asked(rows)) == ["Perché?"]
    if encoding == "utf-8": assert load_rows(file) == rows
    else:
        with pytest.raises(ValueError, match=f'give (its|the) encoding, such as encoding="{encoding}"'): load_rows(file)


def test_an_encoding_that_does_not_fit(tmp_path):
    file = write(tmp_path/"a.jsonl", b'{"text": "caf\x81"}\n{"text": "tea"}\n')
    rows = load_rows(file, encoding="cp1252")
    assert "byte 0x81 at character 14 is not cp1252" in rows[0]["failed"] and rows[1]["text"] == "tea"
    with pytest.raises(ValueError, match="encoding 'klingon': there is none of this name"): load_rows(file, encoding="klingon")
    with pytest.raises(ValueError, match="no text file"): load_rows(write(tmp_path/"a.parquet", b""), encoding="cp1252")
    with pytest.raises(ValueError, match="only text files have an encoding"): load_rows([{"text": "a"}], encoding="cp1252")
    for mark in ("utf-16", "utf-32", "utf-8-sig"): assert texts(write(tmp_path/"b.txt", "Perché".encode(mark))) == ["Perché"]


# tables

@pytest.mark.parametrize("table", [
    "instruction;output;;\nche?;sì;;\n;;;\n", "sep=;\ninstruction;output\nche?;sì\n", '"sep=|"\ninstruction|output\nche?|sì\n', "instruction, output\nche?, sì\n\n", " instruction , output \nche?, sì\n",
    '"instruction"|"output"\n"che?"|"sì"\n', "instruction\toutput\t\nche?\tsì\t\n", '\ufeffinstruction;output;\nche?;sì;\n;;\n', '"instruction";"output";"a,b,c,d"\nche?;sì;x\n', "INSTRUCTION,Output\nche?,sì\n"])
def test_tables_as_spreadsheets_write_them(table, tmp_path):
    (row,) = load_rows(write(tmp_path/"a.csv", table))
    assert [m["content"] for m in row["messages"]] == ["che?", "sì"] and {*row} <= {"id", "messages", "a,b,c,d"}


def test_a_value_without_a_name_is_kept(tmp_path):
    rows = load_rows(write(tmp_path/"a.csv", "instruction;output;;\nche?;sì;;x\nche?;no;;;;\nche?;no;;;;y\n"))
    assert rows[0]["Unnamed: 3"] == "x" and {*rows[1]} == {"id", "messages"} and "6 cells, but the header names 2 columns" in rows[2]["failed"]
    assert load_rows(write(tmp_path/"b.csv", ",instruction,output\n0,che?,sì\n"))[0][""] == "0"
    with pytest.raises(ValueError, match="carriage returns alone"): load_rows(write(tmp_path/"c.csv", "instruction,output\rche?,sì\r"))


def test_quotes_are_what_the_file_means_by_them(tmp_path):
    frame = pd.DataFrame({"prompt": ['"Ciao" disse.', "Una riga\ne un'altra", "a\tb", "piano"], "completion": ['Il disco da 5"', "sì", "no", '"'], "n": range(4)})
    for name, options in (("a.tsv", dict(sep="\t")), ("b.csv", {}), ("c.csv", dict(sep="\t")), ("d.tsv", dict(sep="\t", quoting=1))):
        frame.to_csv(tmp_path/name, index=False, **options)
        assert asked(load_rows(tmp_path/name)) == list(frame["prompt"]), name
    for name, sep in (("s.csv", ","), ("s.tsv", "\t")):
        frame.to_csv(tmp_path/name, index=False, sep=sep, escapechar="\\", doublequote=False)
        assert asked(load_rows(tmp_path/name)) == list(frame["prompt"]), name
    paths = write(tmp_path/"p.csv", 'prompt,completion\n"C:\\","D:\\"\n')
    assert [m["content"] for m in load_rows(paths)[0]["messages"]] == ["C:\\", "D:\\"]
    plain = write(tmp_path/"e.tsv", 'prompt\tcompletion\n"Ciao" disse.\tsì\n"Tutto"\tIl disco da 5"\n"Mai chiusa\tno\n')
    assert asked(load_rows(plain)) == ['"Ciao" disse.', '"Tutto"', '"Mai chiusa']
    slashes = write(tmp_path/"f.csv", 'prompt,completion\n"Di\' \\"ciao\\", dai","sì"\n"b","c\\\\d"\n')
    assert [m["content"] for row in load_rows(slashes) for m in row["messages"]] == ['Di\' "ciao", dai', "sì", "b", "c\\d"]
    broken = load_rows(write(tmp_path/"g.csv", 'prompt,completion\nche?,sì\n"mai chiusa,no\n'))
    assert "not CSV" in broken[1]["failed"]


# folders

def folder(tmp_path, **files):
    for name, text in files.items(): write(tmp_path/name.replace("__", "/").replace("_jsonl", ".jsonl"), json.dumps({"text": text}))
    return tmp_path


def test_splits_in_names_and_folders(tmp_path):
    for names in (["train.jsonl", "test.jsonl"], ["train/a.jsonl", "test/a.jsonl"], ["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"], ["my_train_part1.jsonl", "test-b.jsonl"]):
        here = tmp_path/names[0].replace("/", "-")
        for name in names: write(here/name, json.dumps({"text": name}))
        for info in ("dataset_info.json", "dataset_infos.json", ".hidden.jsonl", "._a.jsonl", "README.md", ".cache/x.jsonl"): write(here/info, "{}")
        write(here/"~$open.csv", "x")
        assert texts(here) == names[:1] and texts(here, split="test") == names[1:], names


def test_splits_with_endings_are_not_mixed(tmp_path):
    for split in ("train_sft", "train_prefs", "test_sft"): pd.DataFrame({"text": [split]}).to_parquet(write(tmp_path/f"data/{split}-00000-of-00001.parquet", b""))
    for split in ("train_sft", "test_sft"): assert texts(tmp_path, split=split) == [split]
    with pytest.raises(ValueError, match="no split 'train': there are test_sft, train_prefs, train_sft"): load_rows(tmp_path)
    both = DatasetDict(train_sft=Dataset.from_list([{"text": "sft"}]), test_sft=Dataset.from_list([{"text": "test"}]))
    both.save_to_disk(tmp_path/"saved")
    assert texts(tmp_path/"saved", split="test_sft") == ["test"]
    for name in ("a/validation.jsonl", "b/dev.jsonl"): assert texts(write(tmp_path/name, '{"text": "v"}').parent, split="validation") == ["v"]
    nested = write(tmp_path/"nested.json", json.dumps({"train": [{"text": "a"}], "test": [{"text": "b"}]}))
    assert texts(nested) == ["a"] and texts(nested, split="test") == ["b"]
    with pytest.raises(ValueError, match="no split 'dev': there are train, test"): load_rows(nested, split="dev")


def test_subsets_are_named_or_told(tmp_path):
    for language in ("de", "it"): write(tmp_path/f"plain/{language}/train.jsonl", json.dumps({"text": language}))
    assert texts(tmp_path/"plain", subset="it") == ["it"]
    with pytest.raises(ValueError, match="several subsets, .* named in `subset`: de, it"): load_rows(tmp_path/"plain")
    with pytest.raises(ValueError, match="no subset 'fr': there are de, it"): load_rows(tmp_path/"plain", subset="fr")
    header = "---\nlicense: mit\nconfigs:\n- config_name: all\n  default: true\n  data_files:\n  - split: train\n    path: [de/*.jsonl, it/*.jsonl]\n  - split: test\n    path: x/t.jsonl\n- config_name: it\n  data_files: it/train.jsonl\n---\n# Title\n"
    write(tmp_path/"plain/README.md", header)
    write(tmp_path/"plain/x/t.jsonl", '{"text": "t"}')
    assert texts(tmp_path/"plain") == ["de", "it"] and texts(tmp_path/"plain", split="test") == ["t"] and texts(tmp_path/"plain", subset="it") == ["it"]
    with pytest.raises(ValueError, match="no split 'dev': there are train, test"): load_rows(tmp_path/"plain", split="dev")
    write(tmp_path/"plain/README.md", "---\nconfigs:\n- config_name: all\n  data_files: ../*.jsonl\n---\n")
    with pytest.raises(ValueError, match="its README names files outside of it"): load_rows(tmp_path/"plain")
    write(tmp_path/"plain/README.md", "---\n: [\n---\n")
    with pytest.raises(ValueError, match="its header is not YAML"): load_rows(tmp_path/"plain", subset="it")
    for source in ([{"text": "a"}], write(tmp_path/"one.jsonl", '{"text": "a"}')):
        with pytest.raises(ValueError, match="only datasets on the Hub, and folders, have subsets"): load_rows(source, subset="it")
        with pytest.raises(ValueError, match="only datasets on the Hub have revisions"): load_rows(source, revision="main")


# addresses

PAGE = "https://huggingface.co/datasets/me/set"

@pytest.mark.parametrize("typed, wanted", [
    ("me/set", HubSource("me/set")), ("me/set@v1.0", HubSource("me/set", revision="v1.0")), ("datasets/me/set", HubSource("me/set")), (PAGE, HubSource("me/set")), (f"{PAGE}/", HubSource("me/set")),
    (f"{PAGE}/tree/main", HubSource("me/set", revision="main")), (f"{PAGE}/viewer/it/train_sft?row=3", HubSource("me/set", subset="it", split="train_sft")), (f"{PAGE}/blob/main/data/a%20b.jsonl", HubSource("me/set", revision="main", file="data/a b.jsonl")),
    (f"{PAGE}/resolve/refs%2Fconvert%2Fparquet/it/0.parquet", HubSource("me/set", revision="refs/convert/parquet", file="it/0.parquet")), ("https://hf.co/datasets/squad", HubSource("squad")),
    ("hf://datasets/me/set", HubSource("me/set")), ("hf://datasets/me/set@v1/data/a.jsonl", HubSource("me/set", revision="v1", file="data/a.jsonl")), ("data/rows.jsonl", None), ("rows.csv.gz", None), ("./me/set/x", None)])
def test_addresses_as_people_paste_them(typed, wanted):
    assert hub_source(typed) == wanted


@pytest.mark.parametrize("typed, words", [("https://example.com/rows.jsonl", "download it, and give its path"), ("s3://bucket/rows.jsonl", "download it"), ("https://huggingface.co/me/model", "not the page of a dataset"),
                                          (f"{PAGE}/tree/main/data", "not the page of a dataset or of a file in one; give me/set"), ("hf://spaces/me/x", "expected hf://datasets/owner/name")])
def test_addresses_of_other_things_are_told_whole(typed, words):
    for ask in (check_source, load_rows):
        with pytest.raises(ValueError, match=words) as e: ask(typed)
        assert typed in str(e.value)


def test_what_an_address_says_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "_read_hub_dataset", lambda wanted, split, stream: asked.append((wanted, split, stream)) or iter([("row 1", "", {"text": "a"})]))
    load_rows(f"{PAGE}/viewer/it/test")
    load_rows("me/set", revision="v2", subset="it", split="dev", limit=3)
    load_rows("me/set@v2", revision="v2")
    assert asked == [(HubSource("me/set", subset="it"), "test", False), (HubSource("me/set", "v2", "it"), "dev", True), (HubSource("me/set", "v2"), "train", False)]
    with pytest.raises(ValueError, match="revision='v3': the address names another, 'v2'"): load_rows("me/set@v2", revision="v3")
    with pytest.raises(ValueError, match="only text files have an encoding"): load_rows("me/set", encoding="cp1252")


def test_a_file_address_is_a_path(tmp_path):
    file = write(tmp_path/"con spazi è.jsonl", '{"text": "a"}')
    check_source(file.as_uri())
    assert texts(file.as_uri()) == ["a"] == texts(os.path.relpath(file))
