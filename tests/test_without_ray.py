"Nothing of Ray is imported, installed or needed unless it is asked for."
import subprocess
import sys

CODE = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray": raise ModuleNotFoundError("No module named 'ray'", name="ray")
sys.meta_path.insert(0, Nothing())
import importlib, pkgutil, llmdata_nb
for module in pkgutil.iter_modules(llmdata_nb.__path__):
    if module.name != "__main__": importlib.import_module("llmdata_nb." + module.name)
from llmdata_nb import cluster
assert cluster.near_duplicates(["a", "b", "a"]) == [None, None, 0]  # so few need no cluster
async def keep(row, ask): return row
try: cluster.run([{"id": "a"}], keep, model="http://127.0.0.1:9/v1#m", out="out")
except ImportError as e: print(e)
"""


def test_no_module_needs_ray(project):
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert result.stdout == "a cluster needs Ray: pip install 'llmdata_nb[ray]', on all its machines\n", result.stderr
    assert not (project / "out").exists()
