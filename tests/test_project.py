"The project around the notebooks: imports stay quick, generated files are fresh, the wheel carries what it needs."
import re
import os
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
    "CPU seconds that `import module` takes, in a fresh process that may keep what it compiled, as a user's does"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    code = f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
    return min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout) for _ in range(3))


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


def locked_requirements():
    "The lines of constraints.txt, as requirements"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def test_constraints_name_one_version_of_each_package_and_no_place():
    from packaging.utils import canonicalize_name
    locked = locked_requirements()
    for requirement in locked:
        (pin,) = requirement.specifier
        assert pin.operator == "==" and not requirement.url, f"{requirement}: run make lock"
    versions = {}
    for requirement in locked: versions.setdefault(requirement.name, []).append(next(iter(requirement.specifier)).version)
    wanted = " ".join(value for name, value in CFG.items() if name.endswith("requirements"))
    for requirement in map(Requirement, wanted.split()):
        pinned = versions.get(canonicalize_name(requirement.name), [])
        assert pinned and all(map(requirement.specifier.contains, pinned)), f"{requirement}: run make lock"


@pytest.mark.parametrize("target, extra", [("test", "dev"), ("test-ray", "ray")])
def test_make_installs_the_constraints_where_it_is_told_to(target, extra, tmp_path):
    (tmp_path / ".venv").mkdir()
    for name in ("Makefile", "settings.ini", "pyproject.toml", "setup.py", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    def installs(*switch):
        commands = subprocess.run(["make", "-n", target, *switch], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        return [line for line in commands.splitlines() if f"-e '.[{extra}]'" in line]
    assert all("-c constraints.txt" in line for line in installs("LOCKED=1")) and installs("LOCKED=1")
    assert not any("constraints" in line for line in installs()) and installs()


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_take_actions_by_commit_and_few_rights(path):
    text = path.read_text()
    for line in re.findall(r"^.*\buses:.*$", text, re.M):
        assert re.search(r"uses: [\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+$", line), f"{path.name}: {line.strip()}"
    flow = yaml.safe_load(text)
    assert flow["permissions"] == {"contents": "read"}, "what more a job needs stands in that job"
    for job in flow["jobs"].values():
        runs_code = any("run" in step for step in job["steps"])
        assert not (runs_code and "permissions" in job), f"{path.name}: packages run with the rights of this job"
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""): assert step["with"]["persist-credentials"] is False


def test_packages_are_audited_every_week():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "audit.yml").read_text())
    (job,) = flow["jobs"].values()
    assert "pip-audit -r constraints.txt" in job["steps"][-1]["run"] and flow[True]["schedule"]  # YAML reads `on` as true


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
