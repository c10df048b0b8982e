"The tutorial runs, by papermill, on a cluster that is there."
from pathlib import Path

import nbformat
import papermill
from datasets import load_dataset
from scripted_server import serve

NB = Path(__file__).parents[2] / "nbs" / "tutorials" / "cluster.ipynb"


def test_the_tutorial(nodes):
    assert set(papermill.inspect_notebook(NB)) == {"address", "model", "n", "shards", "out_dir"}
    with serve(lambda body, n: '{"city": "' + body["messages"][0]["content"].split()[5].strip("?").title() + 'ville"}', seconds=0.01) as (model, bodies):
        papermill.execute_notebook(NB, "run.ipynb", dict(address=nodes.address, model=model, n=9, out_dir="out"), progress_bar=False)
    assert len(bodies) == 9 and load_dataset("out", split="train").num_rows == 9
    said = [output["data"]["text/plain"] for cell in nbformat.read("run.ipynb", 4).cells for output in cell.get("outputs", []) if "text/plain" in output.get("data", {})]
    assert "(0, 9)" in said and "[1996, 1997, 18, 17]" not in said[0]


def test_a_small_model_in_each_worker(nodes):
    papermill.execute_notebook(NB, "run.ipynb", dict(address=nodes.address, n=4, shards=2, out_dir="out"), progress_bar=False)
    rows = [*load_dataset("out", split="train")]
    assert 0 < len(rows) <= 4 and all(row["city"].istitle() for row in rows)
