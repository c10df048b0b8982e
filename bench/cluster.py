"""The same rows by `run` and on a Ray cluster of two nodes on this machine: run by hand against a fast OpenAI-compatible server.

    python bench/cluster.py pace --model http://127.0.0.1:8901/v1#mock --rows 1000,5000,20000
    python bench/cluster.py dedup --rows 100000,1000000

`pace` sends each number of rows through a recipe of two calls, first by `run`, then on the cluster (whose start is timed apart), and says
whether the rows are the same. `dedup` looks for near-duplicates among made-up requests, one in ten of them a copy with some words changed,
here and on the cluster, and says whether they found the same ones, in what time and memory."""
import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from llmdata_nb import cluster
from llmdata_nb.dedup import near_duplicates
from llmdata_nb.run import drop, run


async def two_calls(row, ask):
    row["answer"] = (await ask(f"Say something about {row['id']}", max_tokens=100, step="say")).text
    if row["id"].endswith("9"): drop("an id that ends in nine")
    row["opinion"] = (await ask(f"What do you think of this: {row['answer']}", max_tokens=100, step="judge")).text
    return row


def content(rows): return sorted(json.dumps(row, sort_keys=True) for row in rows)


def pace(model, n, folder, concurrency):
    rows, took = [{"id": f"{i:07}"} for i in range(n)], {}
    for name, way, options in (("run", run, dict(store=folder / f"{n}.sqlite")), ("cluster", cluster.run, {})):
        started = time.time()
        outcome = way(rows, two_calls, model=model, out=folder / f"{name}-{n}", concurrency=concurrency, **options)
        took[name] = time.time() - started, [content(getattr(outcome, state)) for state in ("kept", "dropped", "failed")]
    (alone, rows_alone), (many, rows_many) = took.values()
    print(f"{n:>7,} rows: run {alone:.1f} s, cluster {many:.1f} s ({many / alone:.2f} times as long), rows {'the same' if rows_alone == rows_many else 'DIFFER'}", flush=True)


def requests(n):
    "Made-up requests: of 40 to 120 words drawn from 20,000, every tenth a copy of an earlier one with up to a fifth of its words changed"
    draw, words = random.Random(7), ["".join(random.Random(i).choices("abcdefghijklmnopqrstuvwxyz", k=3 + i % 8)) for i in range(20_000)]
    texts = []
    for i in range(n):
        if i % 10 == 9:
            text = draw.choice(texts[-5000:]).split()
            for place in draw.sample(range(len(text)), draw.randint(0, len(text) // 5)): text[place] = draw.choice(words)
        else: text = draw.choices(words, k=draw.randint(40, 120))
        texts.append(" ".join(text))
    return texts


def dedup(n):
    texts, me, took = requests(n), psutil.Process(), {}
    for name, find in (("cluster", cluster.near_duplicates), ("one process", near_duplicates)):
        before, started = me.memory_info().rss, time.time()
        took[name] = find(texts)
        print(f"{n:>9,} texts, {name}: {time.time() - started:.1f} s, {(me.memory_info().rss - before) / 2**20:+.0f} MB in the driver, {sum(c is not None for c in took[name]):,} copies", flush=True)
    print("the same ones" if took["cluster"] == took["one process"] else "DIFFERENT ones")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["pace", "dedup"])
    p.add_argument("--model")
    p.add_argument("--rows", default="1000,5000")
    p.add_argument("--concurrency", type=int, default=64)
    a = p.parse_args()
    started = time.time()
    nodes = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
    nodes.add_node(num_cpus=1)
    ray.init(nodes.address, log_to_driver=False, logging_level="error")
    print(f"a cluster of two nodes started in {time.time() - started:.1f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for n in map(int, a.rows.split(",")): pace(a.model, n, Path(folder), a.concurrency) if a.what == "pace" else dedup(n)
    ray.shutdown()
    nodes.shutdown()
