# medlearn: `make course` runs every chapter, `make test` everything CI runs, `make lab` opens JupyterLab.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: course prove measure pretend-gpu test lab export lock clean

course: $(READY)
	$(BIN)/medlearn run --profile smoke

# Break every chapter that trains on purpose, and list the claims that fell: each chapter has to notice.
prove: $(READY)
	$(BIN)/medlearn run foundations imaging sequences --sabotage answers --jobs 2

# Measure again, in full, what is on record and has changed since: hours; interrupted, it goes on from there.
measure: $(READY)
	$(BIN)/medlearn measure --stale

# The chapters that train, by the rules of a GPU, where there is none: tests/pretended_gpu/rules.py says which rules.
pretend-gpu: $(READY)
	PYTHONPATH=tests/pretended_gpu $(BIN)/medlearn run foundations imaging sequences --profile smoke --jobs 2

test: $(READY)
	$(BIN)/python -m pytest

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir nbs --ip 127.0.0.1

# Notebooks are the source: write the library and the README from them, and strip what should not be committed.
export: $(READY)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python -c 'from medlearn.kit.readme import write_readme; write_readme()'

lock:
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --all-extras -q -o requirements.lock pyproject.toml

clean:
	rm -rf .venv runs build dist *.egg-info

$(READY): requirements.lock settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medlearn needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the locked requirements into .venv (about 6 GB, a few minutes the first time)"
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
