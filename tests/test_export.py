"The folder of a run is a dataset that loads, with a card that is valid whatever the rows say, and true."
import json
from importlib.resources import files

import datasets
import mistune
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from llmdata_nb.compare import read_runs
from llmdata_nb.export import data_files, dataset_card, escaped, fenced, read_folder, reason_groups, write_card
from llmdata_nb.formats import hub_files
from llmdata_nb.report import save_plots
from llmdata_nb.rowfile import file_digest

NASTY = ["---\nlicense: mit\n---", "a | b |\n| --- |", "```\n# heading\n````", "<script>alert(1)</script><img src=x onerror=alert(1)>", "![x](http://x.y/z.png) [a](javascript:b)",
         "שלום \u202eevil\u202c عربي", "👩‍🚀 emoji", "\x00\x1b[31m", "two\r\nlines\rand\u2028more", "~~~\n</details>\n\n# heading", "$$\\frac{1}{2}$$ `code` **bold**", "# heading", ""]


def make_row(i, text="ciao", **columns):
    return dict(id=f"d{i}", messages=[dict(role="user", content=text), dict(role="assistant", content=text)], instruction_label="high",
                instruction_rationale=text, response_score=4, **columns)


def make_manifest(kept=0, reasons=(), **changes):
    lost = {state: sum(r["rows"] for r in reasons if r["state"] == state) for state in ("dropped", "failed")}
    return dict(dict(recipe="translate_and_judge", language="it", source="demo", models=dict(default="embedded"), arguments=dict(min_score=3), seed=0,
                     rows={"in": kept + sum(lost.values()), "kept": kept, **lost}, reasons=list(reasons),
                     calls=[dict(step="translate", model="embedded", calls=1, replayed=0, retries=0, failed=0, prompt_tokens=9, completion_tokens=3, seconds=1.5, usd=0.0)],
                     seconds=2.5, created="2026-11-21T10:00:00+00:00", versions=dict(llmdata_nb="0.1.0")), **changes)


def write_run(folder, kept=(), dropped=(), failed=(), **changes):
    reasons = [dict(state=state, reason=row["reason"], rows=1) for state, rows in (("dropped", dropped), ("failed", failed)) for row in rows]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(kept)), folder / "data/train-00000-of-00001.parquet")
    for state, rows in (("dropped", dropped), ("failed", failed)):
        if rows: pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"{state}.parquet")
    (folder / "manifest.json").write_text(json.dumps(make_manifest(len(kept), reasons, **changes)), encoding="utf-8")
    return folder


def html(card): return mistune.create_markdown(escape=False, plugins=["table", "url", "strikethrough", "math"])(card.split("\n---\n", 1)[1])


def test_load_dataset_gives_the_kept_rows(tmp_path):
    kept = [make_row(i) for i in range(3)]
    folder = write_run(tmp_path / "language=it", kept, [make_row(3, reason="instruction: judged low")], [dict(id="d4", reason="load: line 4: not JSON")])
    write_card(folder)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"] and list(loaded["train"]) == kept
    assert "language" not in read_folder(folder).kept[0]


def test_folders_of_one_name_load_their_own_rows_and_new_rows(tmp_path):
    "What load_dataset caches must not be found again under another language, or after another run"
    def load(folder): return datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))["id"][:]
    it, es = tmp_path / "it" / "made", tmp_path / "es" / "made"
    for folder, rows in ((it, [make_row(0)]), (es, [make_row(1), make_row(2)])): write_card(write_run(folder, rows))
    assert (load(it), load(es)) == ([make_row(0)["id"]], [make_row(1)["id"], make_row(2)["id"]])
    write_card(write_run(it, [make_row(i) for i in range(3)]))
    assert len(load(it)) == 3


def test_no_row_kept_is_a_valid_card_that_says_so(tmp_path):
    folder = write_run(tmp_path / "run", dropped=[make_row(0, reason="instruction: judged low")])
    card = write_card(folder).read_text(encoding="utf-8")
    assert "0 of 1 rows kept" in card and "No row was kept." in card and "nothing to load yet" in card
    assert DatasetCard(card).data.size_categories == ["n<1K"] and read_folder(folder).kept == []


def test_folders_of_run_are_read(tmp_path):
    from llmdata_nb.run import run
    async def translate_and_judge(row, ask, language): return row
    for kept in ([make_row(0)], []):
        rows = [*kept, make_row(1) | {"dropped": "response: wrong language (en, 0.9)"}, dict(id="d2", failed="load: line 3: not JSON")]
        outcome = run(rows, translate_and_judge, model="http://127.0.0.1:9/v1#m", language="it", out=tmp_path, store=tmp_path.parent / "s.sqlite")
        found = read_folder(tmp_path)
        assert (found.kept, found.dropped, found.failed) == (outcome.kept, outcome.dropped, outcome.failed)
        assert DatasetCard.load(write_card(tmp_path)).data.pretty_name == "Italian rows, by translate_and_judge"
    with pytest.raises(ValueError, match='^Instruction "train" corresponds to no data!$'): datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert 'corresponds to no data!' in (tmp_path / "README.md").read_text(encoding="utf-8")  # as the card says


@pytest.mark.parametrize("text", NASTY)
def test_text_of_strangers_is_only_shown(text):
    dull = html(dataset_card(make_manifest(1, [dict(state="failed", reason="x: y", rows=1)]), [make_row(0)]))
    manifest = make_manifest(1, [dict(state="failed", reason=f"x: {text}", rows=1)], source=f"s{text}", models={"default": "embedded", f"r{text}": text}, arguments=dict(a=text))
    manifest["calls"][0].update(step=f"s {text}", model=text)
    card = dataset_card(manifest, [make_row(0, text)], prompts={f"p{text}": text})
    data = DatasetCard(card).data
    assert (data.language, data.license) == (["it"], None) and "configs" not in data.to_dict()
    found = html(card)
    for tag in ("<script", "<img", "<a ", "<details", "<h1", "<h2", "<hr", "<strong", "<em", "<del", "math"): assert found.count(tag) == dull.count(tag), tag
    assert found.count("<tr>") == dull.count("<tr>") + 3 and "\u202e" not in card and "\x00" not in card  # a role more, and the prompts' table
    card.encode("utf-8")


def test_lone_surrogates_can_be_written():
    for shown in (escaped("a\ud800b"), fenced("a\ud800b")): shown.encode("utf-8")


@pytest.mark.parametrize("code", ["it", "no", "ar"])
def test_metadata_is_what_the_hub_knows(code):
    known = {name: json.loads(files("datasets.utils.resources").joinpath(f"{name}.json").read_text()) for name in ("size_categories", "languages")}
    data = DatasetCard(dataset_card(make_manifest(language=code), [], license="apache-2.0")).data
    assert data.language == [code] and code in known["languages"]
    assert data.size_categories[0] in known["size_categories"] and data.license == "apache-2.0" and "synthetic" in data.tags


def test_licence_not_stated_is_said():
    sentence = "Licence of the source: not stated"
    assert sentence in dataset_card(make_manifest(), []) and sentence not in dataset_card(make_manifest(), [], license="mit")


@pytest.mark.parametrize("given, said", [("Apache-2.0", {"license": "apache-2.0"}), ("mit", {"license": "mit"}), ("llama3.3", {"license": "llama3.3"}), ("ODC-By-1.0", {"license": "odc-by"}),
                                         ("EUPL-1.0", {"license": "other", "license_name": "eupl-1.0", "license_link": "https://spdx.org/licenses/EUPL-1.0.html"}), ("", {}), (None, {})])
def test_a_licence_is_written_as_the_hub_spells_it(given, said):
    data = DatasetCard(dataset_card(make_manifest(), [], license=given)).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == said


@pytest.mark.parametrize("given, meant", [("Apache License 2.0", "'apache-2.0'"), ("Apache 2", "'apache-2.0'"), ("MIT License", "'mit'"), ("CC BY 4.0 International", "'cc-by-4.0'"), ("cc-by", "'cc-by-4.0' or 'cc-by-3.0'"),
                                          ("GPL v3", "'gpl-3.0'"), ("Llama 3 license", "'llama3'"), ("MIT OR Apache-2.0", "one identifier"), ("proprietary", "such as 'apache-2.0'"), ("LicenseRef-mine", "one identifier")])
def test_a_licence_that_nobody_knows_is_an_error_with_a_suggestion(given, meant, tmp_path):
    folder = write_run(tmp_path / "run", [make_row(0)])
    with pytest.raises(ValueError, match="license .*: expected one identifier of the Hub") as e: write_card(folder, license=given)
    assert meant in str(e.value) and "\n" not in str(e.value) and not (folder / "README.md").exists()


def test_tags_are_words_and_tasks_have_a_field_of_their_own(tmp_path):
    folder = write_run(tmp_path / "run", [make_row(0)])
    for tags in ("law, question-answering,synthetic", ["law", "question-answering", "synthetic"]):
        data = DatasetCard.load(write_card(folder, tags=tags)).data
        assert data.task_categories == ["text-generation", "question-answering"] and data.tags.count("synthetic") == 1 and "law" in data.tags and "question-answering" not in data.tags
    for tags, reason in (("language:it", "language in a field of its own"), ("Text Generation", "the Hub's task 'text-generation'"), (["a\nb"], "one line"), ([""], "no word"), ("x" * 65, "at most 64")):
        with pytest.raises(ValueError, match=reason): write_card(folder, tags=tags)


def test_unknown_price_is_never_zero():
    manifest = make_manifest()
    manifest["calls"].append(dict(manifest["calls"][0], step="judge", model="openai:x", usd=None, prompt_tokens=None))
    lines = dataset_card(manifest, []).splitlines()
    assert next(line for line in lines if line.startswith("| judge")).endswith("| unknown | 3 | 1.5 | price unknown |")
    assert next(line for line in lines if line.startswith("| **all**")).endswith(r"| unknown | 6 | 3.0 | price unknown for 1 of 2 steps, the others \$0.00 |")


def test_counts_that_disagree_are_an_error(tmp_path):
    kept = [make_row(0), make_row(1)]
    with pytest.raises(ValueError, match="2 rows kept, but 1 were found"): dataset_card(make_manifest(2), kept[:1])
    with pytest.raises(ValueError, match="5 rows in, but kept"): dataset_card(make_manifest(2, rows={"in": 5, "kept": 2, "dropped": 0, "failed": 0}), kept)
    folder = write_run(tmp_path / "run", kept, failed=[dict(id="d2", reason="x: y")])
    (folder / "data/train-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"data/\*\.parquet.*2 rows kept, but 0 were found"): read_folder(folder)
    with pytest.raises(FileNotFoundError, match="manifest.json: no such file"): write_card(tmp_path)


def test_reasons_are_grouped_and_none_is_lost():
    reasons = [dict(state="dropped", reason=f"dedup: same request as d{i}", rows=1) for i in range(50)] + [dict(state="failed", reason="load: a.jsonl line 7: not JSON", rows=2)]
    assert reason_groups(make_manifest(0, reasons)) == [("dropped", "dedup: same request as …", 50), ("failed", "load: a.jsonl line …: not JSON", 2)]


# Files that are true together

def with_digests(folder):
    "The folder of a run, whose manifest lists its files"
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(manifest | {"files": {name: file_digest(folder / name) for name in data_files(folder)}}), encoding="utf-8")
    return folder


def small_run(folder, text="ciao"):
    return with_digests(write_run(folder, [make_row(i, text) for i in range(3)], [make_row(3, text, reason="instruction: judged low")], [dict(id="d4", reason="load: line 4: not JSON")]))


def readers(folder):
    "Everything that reads the folder of a run, by name"
    return dict(read_folder=lambda: read_folder(folder), hub_files=lambda: hub_files(folder), write_card=lambda: write_card(folder), save_plots=lambda: save_plots(folder),
                read_runs=lambda: read_runs(folder))


@pytest.mark.parametrize("name", ["data/train-00000-of-00001.parquet", "dropped.parquet", "failed.parquet"])
@pytest.mark.parametrize("change", ["other rows", "one byte", "gone"])
def test_a_file_of_another_run_is_told_by_every_reader(tmp_path, capsys, name, change):
    folder, other = small_run(tmp_path / "run"), small_run(tmp_path / "other", "addio")
    write_card(folder)
    new = bytearray((folder / name).read_bytes())
    new[7] ^= 1
    if change == "gone": (folder / name).unlink()
    else: (folder / name).write_bytes((other / name).read_bytes() if change == "other rows" else new)
    same = change == "other rows" and name == "failed.parquet"  # the same bytes
    for reader, read in readers(folder).items():
        if same: read()
        elif reader == "read_runs":
            with pytest.raises(FileNotFoundError): read()
            assert name in capsys.readouterr().out
        else:
            with pytest.raises(ValueError, match=name + ".*run again, no call is paid twice"): read()


def test_a_part_that_an_earlier_run_left_is_no_part_of_this_one(tmp_path, capsys):
    folder = small_run(tmp_path / "run")
    write_card(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "data" / "train-00001-of-00002.parquet").write_bytes((folder / "data" / "train-00000-of-00001.parquet").read_bytes())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"rows": {"in": 8, "kept": 6, "dropped": 1, "failed": 1}}))  # even where the counts agree
    for reader, read in readers(folder).items():
        if reader == "read_runs": continue
        with pytest.raises(ValueError, match="train-00001-of-00002.parquet is of another run"): read()


def test_manifests_of_earlier_versions_are_read(tmp_path):
    folder = write_run(tmp_path / "run", [make_row(0)])
    assert len(read_folder(folder).kept) == 1
    card = write_card(folder)
    assert hub_files(folder)
    card.write_text(card.read_text(encoding="utf-8").partition("<!--")[0], encoding="utf-8")  # as earlier versions wrote it
    assert hub_files(folder)


def test_a_card_goes_with_its_manifest_alone(tmp_path):
    folder = small_run(tmp_path / "run")
    card = write_card(folder)
    text = card.read_text(encoding="utf-8")
    assert text.rstrip().endswith("-->") and "manifest.json" in text.rstrip().rpartition("\n")[2] and sorted(folder.glob("*.new")) == []
    assert "sha256" not in html(text.replace(text.rstrip().rpartition("\n")[2], "")) and hub_files(folder)

    for added in (text.replace("## Known limits", "Read by Anna.\n\n## Known limits"), text + "\nRead by Anna.\n"):
        card.write_text(added, encoding="utf-8")
        assert hub_files(folder)  # what a person adds is hers
    for half in (text[:100], text[:len(text) // 2], text[:-20], text.rpartition("<!--")[0], ""):
        card.write_text(half, encoding="utf-8")
        with pytest.raises(ValueError, match="README.md .*write_card"): hub_files(folder)
    card.write_text(text, encoding="utf-8")
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match="README.md is of another run than manifest.json"): hub_files(folder)
    small_run(folder, "addio")
    card.write_text(text, encoding="utf-8")  # a run anew, stopped before its card was written
    with_digests(folder)
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + "\n")
    with pytest.raises(ValueError, match="README.md is of another run than manifest.json"): hub_files(folder)
    write_card(folder)
    assert hub_files(folder)


def test_a_card_that_is_not_whole_never_takes_the_place_of_one(tmp_path, monkeypatch):
    folder = small_run(tmp_path / "run")
    text = write_card(folder).read_text(encoding="utf-8")
    def full_disk(path, text, encoding):
        path.write_bytes(text.encode()[:100])
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(type(folder), "write_text", full_disk)
    with pytest.raises(OSError): write_card(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("text", ["", '{"recipe": "transl', "[1]", "[" * 100_000, "null", '{"rows": 5, "reasons": 7}', "\x00"])
def test_a_damaged_manifest_is_named(tmp_path, text):
    folder = small_run(tmp_path / "run")
    write_card(folder)
    (folder / "manifest.json").write_text(text)
    for reader, read in readers(folder).items():
        if reader == "read_runs": continue
        with pytest.raises(ValueError, match="manifest"): read()


def test_files_that_are_no_list_are_refused(tmp_path):
    folder = small_run(tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    for files_listed in (["data"], 5, "all", {"data/train-00000-of-00001.parquet": None}, {}):
        (folder / "manifest.json").write_text(json.dumps(manifest | {"files": files_listed}))
        with pytest.raises(ValueError, match="run again|move it away"): read_folder(folder)


def test_a_run_that_was_stopped_while_it_wrote_is_told(tmp_path):
    "New rows lie under the manifest of the run before, or new rows and a new manifest under its card"
    from llmdata_nb.run import run
    folder = tmp_path / "run"
    async def translate_and_judge(row, ask, language): return row
    def write(text):
        run([make_row(i, text) for i in range(3)], translate_and_judge, model="http://127.0.0.1:9/v1#m", language="it", out=folder, store=tmp_path / "s.sqlite")
        return {name: (folder / name).read_bytes() for name in ("data/train-00000-of-00001.parquet", "manifest.json")}
    before = write("ciao")
    card = write_card(folder).read_bytes()
    assert hub_files(folder)
    after = write("addio")
    with pytest.raises(ValueError, match="README.md is of another run"): hub_files(folder)
    (folder / "manifest.json").write_bytes(before["manifest.json"])
    for read in (read_folder, hub_files, write_card):
        with pytest.raises(ValueError, match="train-00000-of-00001.parquet is not the file that manifest.json was written with: run again"): read(folder)
    (folder / "manifest.json").write_bytes(after["manifest.json"])
    assert [row["messages"][0]["content"] for row in read_folder(folder).kept] == ["addio"] * 3 and write_card(folder).read_bytes() != card and hub_files(folder)
