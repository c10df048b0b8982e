"The project around the notebooks: imports stay quick, generated files are fresh, the wheel carries what it needs."
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import llmdata_nb

ROOT = Path(__file__).parents[1]
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
CFG = SETTINGS["DEFAULT"]
MODULES = sorted(p.stem for p in (ROOT / "llmdata_nb").glob("*.py") if not p.stem.startswith("_"))


def import_seconds(module):
    "CPU seconds that `import module` takes, in a fresh process"
    code = f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
    return min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3))


@pytest.mark.parametrize("module, limit", [("llmdata_nb", 0.1)] + [(f"llmdata_nb.{m}", 0.5) for m in MODULES])
def test_imports_are_quick(module, limit):
    assert import_seconds(module) < limit


def test_version_is_the_same_everywhere():
    assert llmdata_nb.__version__ == CFG["version"]
    assert f"## {CFG['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_is_rendered_from_the_index_notebook():
    from render_readme import render
    assert (ROOT / "README.md").read_text() == render(), "run: make readme"


def test_links_and_images_of_the_readme():
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if not link.startswith(("http", "#")): assert (ROOT / link).exists(), link
    images = re.findall(r"!\[([^]]*)\]\(([^)]+)\)", text)
    assert len(images) >= 2 and all(len(alt) > 40 for alt, _ in images), "each picture says in words what it shows"


def test_the_readme_names_every_notebook_and_recipe():
    from llmdata_nb.recipes import RECIPES
    text = (ROOT / "README.md").read_text()
    missing = [nb.name for nb in (ROOT / "nbs").glob("[0-9]*.ipynb") if nb.stem not in text]
    missing += [name for name, record in RECIPES.items() if record.pipeline and name not in text]
    assert not missing, f"add to nbs/index.ipynb, then make readme: {missing}"


def test_requirements_can_be_read():
    for line in (CFG["requirements"] + " " + CFG["dev_requirements"]).split(): Requirement(line)


def test_environment_yml_takes_its_packages_from_settings():
    env = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = env["dependencies"]
    assert python.removeprefix("python=") == CFG["min_python"] and pip == "pip" and packages == {"pip": ["-e .[dev]"]}


def test_wheel_carries_notebooks_packs_and_demo(tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    pipelines = [f"pipelines/{path.name}" for path in (ROOT / "nbs" / "pipelines").glob("*.ipynb")]
    packs = [f"packs/{path.name}" for path in (ROOT / "llmdata_nb" / "packs").glob("*.toml")]
    data = [f"data/{path.name}" for path in (ROOT / "llmdata_nb" / "data").iterdir()]
    assert len(pipelines) >= 6 and len(packs) >= 16 and "data/demo.jsonl" in data
    for name in (*pipelines, *packs, *data, "py.typed", "translate.py", "__main__.py"): assert f"llmdata_nb/{name}" in names
    assert not [n for n in names if n.startswith("tests")]


def test_load_rows_at_the_top():
    from llmdata_nb import load_rows
    from llmdata_nb.models import load_rows as same
    assert load_rows is same
    with pytest.raises(AttributeError): llmdata_nb.nothing


def test_the_picture_of_the_architecture_is_drawn_from_its_floors():
    from draw_architecture import FLOORS, PICTURE, draw
    modules = [module for *_, names in FLOORS for module in names.split()]
    assert sorted(modules) == MODULES, "a module belongs to one floor, in tests/draw_architecture.py"
    assert PICTURE.read_text(encoding="utf-8") == draw(), "run: python tests/draw_architecture.py"
