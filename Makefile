# medlearn: `make course` runs every chapter, `make test` everything CI runs, `make lab` opens JupyterLab.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Who installs: uv, which takes a third of the time, or pip, which is also what remains where uv cannot be had.
INSTALLER ?= uv
PIP = $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: course prove measure pretend-gpu colab-lane test lab lab-source export lock clean

course: $(READY)
	$(BIN)/medlearn run --profile smoke

# Break every chapter that trains on purpose, and list the claims that fell: each chapter has to notice.
prove: $(READY)
	$(BIN)/medlearn run foundations imaging sequences molecules trust --sabotage answers

# Measure again, in full, what is on record and has changed since: hours; interrupted, it goes on from there.
measure: $(READY)
	$(BIN)/medlearn measure --stale

# The chapters that train, by the rules of a GPU, where there is none: tests/pretended_gpu/rules.py says which rules.
pretend-gpu: $(READY)
	PYTHONPATH=tests/pretended_gpu $(BIN)/medlearn run foundations imaging sequences molecules trust --profile smoke

# Every chapter beside Colab's packages at Colab's versions, which the chapters' set-up cells must not move: in .colab, 6 GB
colab-lane: $(READY)
	$(BIN)/python tests/colab_lane.py

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# A working copy of the chapters, in work/: made once, never overwritten
lab: $(READY)
	$(BIN)/medlearn lab

# The notebooks that are the source; what is saved loses its outputs
lab-source: $(READY)
	$(BIN)/medlearn lab --source

# Notebooks are the source: write the library and the README from them, and strip what should not be committed.
export: $(READY)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python -c 'from medlearn.kit.readme import write_readme; write_readme()'

lock:
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --all-extras -q -o requirements.lock pyproject.toml

clean:
	rm -rf .venv .colab runs build dist *.egg-info

$(READY): requirements.lock settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medlearn needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the locked requirements into .venv (about 6 GB, a few minutes the first time)"
	@sed -n '/^uv==/,/# via/p' requirements.lock > .venv/uv.txt
	@test $(INSTALLER) != uv || $(PIP) -q --require-hashes --no-deps -r .venv/uv.txt || echo "uv cannot be had: pip installs"
	@if test $(INSTALLER) = uv && test -x $(BIN)/uv; then \
	  $(BIN)/uv pip install --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock && exit; \
	  echo "uv could not install: pip tries"; \
	fi; $(PIP) -q --require-hashes -r requirements.lock
	$(PIP) -q --no-deps --no-build-isolation -e .
	@touch $@
