# make demo: a small Italian dataset, made by a local model. make test: all tests but those of the cluster. make test-ray: those. make lab: JupyterLab.
# make lint: ruff and types, over the package. make docs: the site, into _docs, with its links checked.
# Each does its own set-up, with uv where it is installed, else with venv and pip. With LOCKED=1 it installs the very
# versions of constraints.txt, which make lock renews.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready$(if $(LOCKED),-locked)
RAY := .venv/ray$(if $(LOCKED),-locked)
VERSIONS := $(if $(LOCKED),-c constraints.txt)

.PHONY: demo test test-ray lint docs lab readme lock clean
demo: $(READY)
	$(BIN)/llmdata translate_and_judge --language it

test: $(READY)
	$(BIN)/pytest --ignore=tests/ray

test-ray: $(RAY)
	$(BIN)/pytest tests/ray

lint: $(READY)
	$(BIN)/ruff check llmdata_nb
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/smalldocs check nbs
	rm -rf _docs
	$(BIN)/smalldocs render --quiet --strict nbs
	mv nbs/_docs _docs

lab: $(READY)
	$(BIN)/jupyter lab --ServerApp.root_dir=. nbs/pipelines/translate_and_judge.ipynb

readme: $(READY)
	$(BIN)/python tests/render_readme.py

lock: $(READY)
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --upgrade --all-extras --no-annotate \
	  --no-emit-index-url --custom-compile-command "make lock" -o constraints.txt setup.py

$(READY): settings.ini pyproject.toml setup.py $(if $(LOCKED),constraints.txt)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("llmdata_nb needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@echo "setting up .venv: a minute or more, the first time"
	@if command -v uv >/dev/null 2>&1; then \
	  test -x $(BIN)/python || uv venv -q --python $(PYTHON) .venv && uv pip install -q --python $(BIN)/python $(VERSIONS) -e '.[dev]'; \
	else \
	  test -x $(BIN)/python || $(PYTHON) -m venv .venv && $(BIN)/python -m pip install -q $(VERSIONS) -e '.[dev]'; \
	fi
	@touch $@

$(RAY): $(READY)
	@if command -v uv >/dev/null 2>&1; then uv pip install -q --python $(BIN)/python $(VERSIONS) -e '.[ray]'; else $(BIN)/python -m pip install -q $(VERSIONS) -e '.[ray]'; fi
	@touch $@

clean:
	rm -rf .venv _docs build *.egg-info .pytest_cache
