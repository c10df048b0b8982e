"""Kinds of request on the same native texts, beside requests that were translated and requests made by templates: run by hand, beside the shared data.

    python bench/back_instruct.py --model embedded --rows 6 --tasks question,explanation,how to,story

Italian Wikipedia gives the texts, each kind of request (`backinstruct.TASKS`) is written for all of them, scored and translated back; nothing is dropped for its
score. Beside them: as many English requests of Dolly, translated by the same model, and requests by three templates around the beginning of each text."""
import argparse
import json
from itertools import islice
from pathlib import Path

from llmdata_nb.backinstruct import TASKS, compare_tasks, only
from llmdata_nb.passages import select
from llmdata_nb.rows import stream_rows
from llmdata_nb.run import run
from llmdata_nb.translate import translate

DATA = Path(__file__).parents[2] / "shared" / "data"
TEMPLATES = ["Scrivi un testo che comincia così: «{}»", "Continua questo testo: «{}»", "Scrivi un paragrafo di enciclopedia che comincia con «{}»"]


async def translated(row, ask, language):
    row["instruction"] = await translate(row["text"], ask, language, part="instruction", row=row)
    return row


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="embedded")
    p.add_argument("--rows", type=int, default=6)
    p.add_argument("--tasks", default="")
    p.add_argument("--store", default="bench.sqlite")
    args = p.parse_args()
    options = dict(model=args.model, language="it", store=args.store, concurrency=4)
    passages = (row for row in select(stream_rows(DATA / "monolingual" / "it_wikipedia.jsonl"), "it", 150, 400, per_document=1) if not row.get("dropped"))
    rows = list(islice(passages, args.rows))
    dolly = [json.loads(line) for path in sorted((DATA / "dolly_15k_en").glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    english = [{"id": str(r["id"]), "text": r["instruction"]} for r in dolly if not r["context"]][:args.rows]
    others = {"translated": [r["instruction"] for r in run(english, translated, **options).kept],
              "template": [TEMPLATES[i % 3].format(" ".join(row["response"].split()[:4])) for i, row in enumerate(rows)]}
    for line in compare_tasks(rows, others, only(args.tasks, TASKS), min_score=1, **options):
        print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__": main()
