"""Our side of the benchmark beside the peers: translate, judge, filter, twice, with store, checks, ledger and Parquet on.

Takes the arguments of the harness's adapters (rows in as JSONL of id, instruction, response; survivors out as JSONL of id,
instruction_pl, response_pl). Copy it into the harness's folder `tools`, and name it in `tools.json`, as the README there says."""
import argparse
import json
import sys
import time
from pathlib import Path

START = time.time()
sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))
from content import p_judge, p_translate  # noqa: E402

from llmdata_nb.checks import translation_problem  # noqa: E402
from llmdata_nb.judge import parse_verdict  # noqa: E402
from llmdata_nb.run import drop, run  # noqa: E402


def mark(event): print("MARK " + json.dumps({"t": time.time() - START, "ev": event}), flush=True)


async def workload(row, ask):
    def verdict(text):
        found = parse_verdict(text)
        if found.status != "ok": raise ValueError("no verdict")
        return found.score
    for part in ("instruction", "response"):
        row[f"{part}_pl"] = (await ask(p_translate(row[part]), step=f"translate {part}")).text
        translation_problem(row[part], row[f"{part}_pl"], "pl")  # its time counts; its opinion of the server's made-up Polish does not
        score = (await ask(p_judge(row[part], row[f"{part}_pl"]), step=f"judge {part}", parse=verdict)).parsed
        if score < 4: drop(f"{part}: judged {score}")
    return row


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    for name in ("input", "out", "workdir", "base-url"): p.add_argument(f"--{name}")
    p.add_argument("--concurrency", type=int)
    for name in ("timeout", "resume", "opt"): p.add_argument(f"--{name}")
    a = p.parse_args()
    mark("imported")
    rows = [json.loads(line) for line in open(a.input)]
    mark("start")
    outcome = run([{**r, "id": str(r["id"])} for r in rows], workload, model=f"{a.base_url}#mock", concurrency=a.concurrency,
                  store=Path(a.workdir)/"store.sqlite", out=Path(a.workdir)/"out", timeout=float(a.timeout))
    ids = {str(r["id"]): r["id"] for r in rows}
    with open(a.out, "w") as f:
        for r in outcome.kept: f.write(json.dumps({"id": ids[r["id"]], "instruction_pl": r["instruction_pl"], "response_pl": r["response_pl"]}) + "\n")
    mark("done")
