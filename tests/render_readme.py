"Render README.md from nbs/index.ipynb: what `nbdev_readme` does, without Quarto."
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]


def render() -> str:
    "The text of README.md"
    nb = nbformat.read(ROOT / "nbs" / "index.ipynb", 4)
    nb.metadata.language_info = {"name": "python"}  # nbdev_clean drops it; it gives ```python fences
    nb.cells = [c for c in nb.cells if not c.source.startswith("#| hide")]
    for c in nb.cells: c.source = re.sub(r"^#\|.*\n", "", c.source, flags=re.M)
    text, resources = MarkdownExporter().from_notebook_node(nb)
    assert not resources["outputs"], "images of the README belong in nbs/images, linked by path"
    text = re.sub(r"\]\((?!https?:|#)", "](nbs/", text)  # links and images are written as seen from nbs/
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__": (ROOT / "README.md").write_text(render(), encoding="utf-8")
