"""The golden run: all pipelines on a store that is filled make no call, and the same files as when it was filled.

What was paid for must be replayed by every later version. So the store, `golden/store.sqlite`, stays as it is; the expected files may
change with a reason. `python tests/test_golden.py` writes these anew; with `--calls`, for a new run or a prompt that was changed on
purpose, it first asks the scripted model what the store does not have, and adds that."""
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scripted_server import serve, wrote

GOLDEN = Path(__file__).parent / "golden"
PORT = 18399  # part of the key of a call; nobody listens there when the calls are replayed
MODEL = f"http://127.0.0.1:{PORT}/v1#m"
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
DRAW = 1  # another number, other answers of the scripted model: where a changed prompt leaves a run without a kept row
RUNS = {
    "it/translate_and_judge": ["fidelity=true"],
    "es/translate_and_judge": ["multi_turn=true", "english_rubrics=true", "limit=6"],
    "it/rerank_preferences": ["tie=shorter"],
    "it/magpie": ["n=8", "template=chat.jinja", "min_score=2", "tags=true", "answers=2", "concurrency=1"],
    "it/aya_preferences": ["aspects=true", "tie=shorter"],
    "it/back_instruct": ["second_round=true"],
}

TEXTS = {
    "Italian": ["Come si prepara una buona torta di mele senza usare lo zucchero?", "Perché le foglie degli alberi cambiano colore durante l'autunno?",
                "Quali sono le regole principali del gioco degli scacchi?", "Che cosa si può coltivare in un piccolo orto sul balcone di casa?",
                "Quanto dura il viaggio in treno da Milano a Lisbona, e quanto costa?", "Mi racconti una favola sulla volpe e il corvo, con un finale diverso?",
                "Si comincia dalle cose più semplici, e poi si aggiunge il resto con calma.", "Dipende dalla stagione: in montagna il freddo arriva prima che in pianura.",
                "La risposta è breve: conviene provare più volte e annotare gli errori.", "Ecco una spiegazione chiara, con un esempio preso dalla vita di tutti i giorni."],
    "Spanish": ["¿Cómo se prepara una buena tarta de manzana sin usar azúcar?", "¿Por qué las hojas de los árboles cambian de color durante el otoño?",
                "Se empieza por las cosas más sencillas, y después se añade el resto con calma.", "Depende de la estación: en la montaña el frío llega antes que en el llano."],
    "English": ["How does one make a good apple cake without any sugar?", "Why do the leaves of the trees change their colour in autumn?",
                "One begins with the simplest things, and then adds the rest with care.", "That depends on the season: in the mountains the cold comes first."]}


def draw(body, *more):
    "A number that depends on the request alone"
    return int.from_bytes(hashlib.sha256(json.dumps([DRAW, body, *more], sort_keys=True).encode()).digest()[:4], "big")


def text(body, *path, length=60):
    "About as many characters as wanted, in the language that the prompt speaks of; now and then in English, or a refusal"
    prompt, number = str(body.get("messages") or body["prompt"]), draw(body, *path)
    if number % 11 == 0: return "Mi dispiace, ma non posso aiutarti con questa richiesta."
    english = "into English" in prompt or path == ("instruction",) or number % 13 == 0
    parts = TEXTS["English" if english else "Spanish" if "Spanish" in prompt else "Italian"]
    texts = [parts[draw(body, i) % len(parts)] for i in range(1 + length // 80)]
    return " ".join(texts)


def value(schema, body, *path):
    "Something that fits `schema`"
    number = draw(body, *path)
    if "enum" in schema: return schema["enum"][-1 if number % 3 else number % len(schema["enum"])]
    if schema["type"] == "object": return {name: value(part, body, *path, name) for name, part in schema["properties"].items()}
    if schema["type"] == "array": return [value(schema["items"], body, *path, i) for i in range(schema.get("minItems", 1))]
    if schema["type"] in ("integer", "number"): return schema.get("minimum", 1) + number % (schema.get("maximum", 5) - schema.get("minimum", 1) + 1)
    return text(body, *path, length=len(body["messages"][-1]["content"].split("<message>")[-1]))


def answer(body, n=0):
    "A model that says all kinds of things, but the same to the same request"
    body = dict(body)
    if "prompt" in body: return wrote("b" if body["prompt"] == "a" else text(body, length=100))
    if "response_format" not in body: return text(body, length=90)
    answered = json.dumps(value(body["response_format"]["json_schema"]["schema"], body), ensure_ascii=False)
    return f"Let me see.\n```json\n{answered}\n```" if draw(body) % 5 == 0 else answered


def pipelines(folder):
    "Run all of them in `folder`, as a user would; what the command printed, by run"
    (folder / "chat.jinja").write_text(TEMPLATE)
    command = [sys.executable, "-m", "llmdata_nb"]
    env = {name: text for name, text in os.environ.items() if not name.startswith(("LLMDATA_", "IN_TEST"))}
    running, printed = {}, {}
    def start(run, arguments): running[run] = subprocess.Popen(arguments, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    def finish(run):
        printed[run] = running[run].communicate(timeout=600)[0]
        assert running[run].returncode == 0, printed[run]
    for run, parameters in RUNS.items():
        language, recipe = run.split("/")
        options = [part for p in [f"model={MODEL}", *parameters] for part in ("-p", p)]
        start(run, [*command, recipe, "--language", language, *options])
    for run in RUNS: finish(run)
    start("compare_languages", [*command, "compare_languages"])
    finish("compare_languages")
    return printed


def without_times(manifest):
    "The manifest but for what no two runs share"
    kept = {name: part for name, part in manifest.items() if name not in ("created", "seconds", "versions")}
    for line in [*kept.get("calls", []), *(line for lines in kept.get("calls_by_state", {}).values() for line in lines)]: line["seconds"] = 0
    return kept


def named_files(path):
    "The data files that the manifest at `path` names, and whether each is the one it means; another pyarrow writes other bytes"
    digests = json.loads(path.read_text())["files"]
    return {name: hashlib.sha256((path.parent / name).read_bytes()).hexdigest() == digest for name, digest in digests.items()}


def content(path):
    "What a file says, as something that JSON can hold"
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return {"columns": {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types)}, "rows": table.to_pylist()}
    if path.name == "manifest.json": return without_times(json.loads(path.read_text())) | {"files": named_files(path)}
    text = re.sub(r"of llmdata_nb \S+ on \S+ in \d+ seconds", "of llmdata_nb", path.read_text())
    return re.sub(r"manifest.json: sha256 [0-9a-f]{64}", "manifest.json: sha256", text).splitlines()  # it has the time of the run


def files(folder):
    "Name → content of all files that the runs made, but pictures, notebooks and the store"
    found = sorted(p for p in (folder / "outputs").rglob("*") if p.suffix in (".parquet", ".json", ".jsonl", ".md", ".csv", ".tex", ".txt"))
    return {str(p.relative_to(folder / "outputs")): json.loads(json.dumps(content(p), default=str)) for p in found}


def replay(folder):
    "The files of all pipelines on the golden store"
    (folder / "outputs").mkdir()
    shutil.copy(GOLDEN / "store.sqlite", folder / "outputs" / "store.sqlite")
    printed = pipelines(folder)
    return files(folder), printed


@pytest.fixture(scope="module")
def replayed(tmp_path_factory): return replay(tmp_path_factory.mktemp("golden"))


def expected(): return json.loads(gzip.decompress((GOLDEN / "files.json.gz").read_bytes()))


def test_nothing_is_paid_again(replayed):
    made, printed = replayed
    manifests = {name: made[name] for name in made if name.endswith("/manifest.json")}
    assert len(manifests) == len(RUNS), printed
    for name, manifest in manifests.items():
        assert sum(line["replayed"] for line in manifest["calls"]) > 10, name
        assert sum(line["calls"] + line["retries"] for line in manifest["calls"]) == 0, (name, printed[name.removesuffix("/manifest.json")])


@pytest.mark.parametrize("name", expected() if (GOLDEN / "files.json.gz").exists() else [])
def test_the_files_are_the_same(replayed, name):
    made, _ = replayed
    assert made[name] == expected()[name]


def test_there_are_no_other_files(replayed): assert sorted(replayed[0]) == sorted(expected())


def record(calls=False):
    "Write what the tests expect; with `calls`, add to the store what it does not have, from the scripted model"
    if calls:
        with tempfile.TemporaryDirectory() as folder, serve(answer, port=PORT):
            replay(Path(folder))
            shutil.copy(Path(folder) / "outputs" / "store.sqlite", GOLDEN / "store.sqlite")
    with tempfile.TemporaryDirectory() as folder:
        made, printed = replay(Path(folder))
        print("\n".join(printed.values()))
        (GOLDEN / "files.json.gz").write_bytes(gzip.compress(json.dumps(made, ensure_ascii=False, indent=0).encode(), mtime=0))


if __name__ == "__main__": record("--calls" in sys.argv)
