# make demo: a small Italian dataset, made by a local model. make test: all tests but those of the cluster. make test-ray: those. make lab: JupyterLab.
# make lint: ruff and types, over the package. make docs: the site, into _docs, with its links checked.
# Each does its own set-up, with uv where it is installed, else with venv and pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-ray lint docs lab readme clean
demo: .venv/ready
	$(BIN)/llmdata translate_and_judge --language it

test: .venv/ready
	$(BIN)/pytest --ignore=tests/ray

test-ray: .venv/ray
	$(BIN)/pytest tests/ray

lint: .venv/ready
	$(BIN)/ruff check llmdata_nb
	$(BIN)/mypy

docs: .venv/ready
	$(BIN)/smalldocs check nbs
	rm -rf _docs
	$(BIN)/smalldocs render --quiet --strict nbs
	mv nbs/_docs _docs

lab: .venv/ready
	$(BIN)/jupyter lab --ServerApp.root_dir=. nbs/pipelines/translate_and_judge.ipynb

readme: .venv/ready
	$(BIN)/python tests/render_readme.py

.venv/ready: settings.ini pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("llmdata_nb needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@echo "setting up .venv: a minute or more, the first time"
	@if command -v uv >/dev/null 2>&1; then \
	  test -x $(BIN)/python || uv venv -q --python $(PYTHON) .venv && uv pip install -q --python $(BIN)/python -e '.[dev]'; \
	else \
	  test -x $(BIN)/python || $(PYTHON) -m venv .venv && $(BIN)/python -m pip install -q -e '.[dev]'; \
	fi
	@touch $@

.venv/ray: .venv/ready
	@if command -v uv >/dev/null 2>&1; then uv pip install -q --python $(BIN)/python -e '.[ray]'; else $(BIN)/python -m pip install -q -e '.[ray]'; fi
	@touch $@

clean:
	rm -rf .venv _docs build *.egg-info .pytest_cache
