# One verb per job.  `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help book pdf test nightly bench serve notebooks coursework live format constraints clean

help:  ## list the verbs
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

book: $(VENV)/.book  ## execute every chapter and build the site; warnings are errors
	$(BIN)/jupyter-book build . --all -W -n --keep-going
	@echo "The site: file://$(CURDIR)/_build/html/index.html"

pdf: $(VENV)/.test  ## print the whole book, and the cheat sheet alone, as PDF; needs Chromium
	$(BIN)/jupyter-book build . --all -W -n --keep-going --builder singlehtml --path-output _build/pdf
	$(BIN)/python book/_ext/print_pdf.py

test: $(VENV)/.test  ## run everything that must pass, one line per stage
	$(BIN)/python -m tests

nightly: $(VENV)/.test  ## run the slow sweeps that `make test` leaves out
	$(BIN)/python -m pytest -m slow
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest tests/test_densities.py tests/test_divergences.py

bench: $(VENV)/.bench $(VENV)/.book  ## measure speed against other code on this machine; nothing else should run
	$(BIN)/python -m tests.benchmarks --output _build/benchmarks.json

serve: book  ## build the site and serve it on this machine
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html

notebooks: $(VENV)/.test  ## bring notebooks to normal form and refresh the outputs that nbval compares
	$(BIN)/python -m tests.notebook_rules --fix --execute book/*.ipynb

coursework: $(VENV)/.book  ## write the student notebooks of the problem sets
	$(BIN)/vaecourse release

live: $(VENV)/.test  ## train the models behind the live figures and write their weights, ten minutes
	$(BIN)/python book/_ext/live_models.py

format: $(VENV)/.test  ## format and lint, notebooks too
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: $(VENV)/.test  ## write down the versions that are installed now
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test,coursework,bench]"
	$(BIN)/python -m pip freeze --all --exclude pip --exclude-editable | sed 's/+.*//' > constraints.txt

clean:  ## remove everything that was built, the environment too
	rm -rf _build $(VENV)

# A stamp per extra: nothing is installed twice, and a change of either file installs again.
$(VENV)/.book $(VENV)/.test $(VENV)/.bench: $(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
