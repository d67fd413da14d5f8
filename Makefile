# One verb per job.  `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help book pdf test check nightly bench serve notebooks coursework live format constraints clean

help:  ## list the verbs
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

# After a warning every page is read again: those that are not would keep theirs to themselves.
book: $(VENV)/.book  ## execute every chapter and build the site; warnings are errors
	$(BIN)/jupyter-book build . -W -n --keep-going || { rm -rf _build/.doctrees; exit 1; }
	@echo "The site: file://$(CURDIR)/_build/html/index.html"

pdf: $(VENV)/.test  ## print the whole book, and the cheat sheet alone, as PDF; needs Chromium
	$(BIN)/jupyter-book build . --all -W -n --keep-going --builder singlehtml --path-output _build/pdf
	$(BIN)/python book/_ext/print_pdf.py

test: $(VENV)/.test  ## run everything that must pass, one line per stage
	$(BIN)/python -m tests

check: $(VENV)/.test  ## what a commit needs, in a minute: form, types, imports, and the fast tests of the package
	$(BIN)/python -m tests --check

nightly: $(VENV)/.test  ## run the slow sweeps that `make test` leaves out
	$(BIN)/python -m pytest -m slow
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -n 2 tests/core/test_densities.py tests/core/test_divergences.py

bench: $(VENV)/.bench $(VENV)/.book  ## measure speed against other code on this machine; nothing else should run
	$(BIN)/python -m tests.benchmarks --output _build/benchmarks.json

serve: book  ## build the site and serve it on this machine
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html

notebooks: $(VENV)/.test  ## bring notebooks to normal form and refresh the outputs that nbval compares
	$(BIN)/python -m tests.book.notebook_rules --fix --execute book/*.ipynb

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
# Of pip's many lines only the names are shown, so that one sees that it goes on; the rest is in the log.
NAMES := import sys; [print(w[1], end=" ", flush=True) for w in map(str.split, sys.stdin) if w[:1] == ["Collecting"]]
$(VENV)/.book $(VENV)/.test $(VENV)/.bench: $(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing what [$*] needs into $(VENV), one to four minutes:"
	@{ $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$*]" 2>&1; \
	echo $$? > $@.status; } | tee $@.log | $(BIN)/python -c '$(NAMES)'
	@echo; [ "$$(cat $@.status)" = 0 ] || { tail -n 40 $@.log; exit 1; }
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
