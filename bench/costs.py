"""What a row costs: calls and tokens of finished runs, and what ten thousand such rows would cost elsewhere.

    python bench/costs.py outputs openai:gpt-4.1-mini openrouter:qwen/qwen-2.5-72b-instruct

Reads the manifests under the folder; rows are those that a model was asked about. Prices are those of genai-prices, for all tokens, none cached."""
import json
import os
import sys
from pathlib import Path

from llmdata_nb.models import endpoint, price


def asked(step): return step["calls"] + step["replayed"]


def main(folder, *models):
    for name in ("OPENAI_API_KEY", "OPENROUTER_API_KEY"): os.environ.setdefault(name, "not used")
    for path in sorted(Path(folder).rglob("manifest.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        steps = run["calls"]
        rows = run["rows"]["in"] if run["recipe"] in ("aya_preferences", "rerank_preferences", "rerank") else max(map(asked, steps))  # a judge is asked twice about each row there
        tokens = {k: sum(s[k] or 0 for s in steps) for k in ("prompt_tokens", "completion_tokens")}
        usd = [price(endpoint(m), tokens | {"cached_tokens": 0}) for m in models]
        print(f"{run['recipe']:22}{run.get('language', ''):4}{rows:5} rows, each {sum(map(asked, steps)) / rows:4.1f} calls, {tokens['prompt_tokens'] / rows:5.0f} tokens read, {tokens['completion_tokens'] / rows:4.0f} written; 10,000 rows "
              + ", ".join(f"{m} {'unknown' if u is None else f'${u / rows * 10_000:.2f}'}" for m, u in zip(models, usd)))


if __name__ == "__main__": main(*sys.argv[1:])
