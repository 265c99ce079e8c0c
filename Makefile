# Every target sets up .venv by itself. `make` alone says what there is.

PYTHON := python3 python3.14 python3.13 python3.12 python3.11
TORCH := torch==2.13.0
OUT := runs/$(shell date -u +%Y%m%d-%H%M%S)
ARGS :=
WORKERS := 8

BIN := .venv/bin
READY := .venv/ready
TYPED := .venv/typed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-build-isolation

# .venv can be used if it was not moved (it holds absolute paths), its Python runs, and no package in it is half
# installed: pip writes INSTALLER after the package's own files.
SOUND := { test ! -e $(READY) || test "$$(cat $(READY))" = "$(CURDIR)"; } && $(BIN)/python -I -c \
    'import sys; from importlib.metadata import distribution, distributions; distribution("pip"); \
    sys.exit(sys.version_info < (3, 11) or not all(d.read_text("INSTALLER") for d in distributions()))' 2>/dev/null

STOPPED := echo "setup: pip stopped for the reason above; the next make goes on from here" >&2; exit 1

unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help bench reproduce paper test outcomes lint format setup clean broken

help:
	@echo "crosslens: one Inspector over the interpretability libraries, and a benchmark of them"
	@echo
	@echo "  make bench    compare the backends on a real language model; ends by saying where the tables are"
	@echo "  make test     run the tests on all cores"
	@echo "  make reproduce  run everything that results/ holds on this machine, and say what agrees (hours; goes on if cut)"
	@echo "  make paper    render the paper from results/ and build paper/crosslens.pdf (needs latexmk: see the README)"
	@echo "  make outcomes prove every backend and keep what came of it: the feature table (crosslens backends)"
	@echo "  make lint     ruff, formatting, and mypy on the installed package"
	@echo "  make format   rewrite the code as ruff wants it"
	@echo "  make setup    only create or update .venv (each target above does this when needed)"
	@echo "  make clean    remove .venv, caches and build products; keep runs/ and downloaded models"
	@echo
	@echo "  make bench OUT=runs/mine ARGS='--backend hooks --task ioi'    choose the folder, pass options on"
	@echo "  make test ARGS='-k hooks -x'                                  pass options to pytest"
	@echo "  make test WORKERS=2                                           at most so many processes (8)"
	@echo "  make clean setup PYTHON=python3.12                            choose the Python (3.11 or newer)"
	@echo
	@echo "Needed beforehand: Python 3.11 or newer with venv, make, git, about 3 GB of disk and a route to PyPI."

bench: $(READY)
	@echo "bench: writing to $(OUT)"
	@$(BIN)/crosslens run --suite default --out "$(OUT)" $(ARGS)

# The same folder each time, so that a run that was cut goes on.
REPRODUCED := runs/reproduced
reproduce: $(READY)
	@$(BIN)/crosslens run $$(test -e $(REPRODUCED)/run.json && echo --resume || echo --suite full) --out $(REPRODUCED) $(ARGS)
	@$(BIN)/crosslens diff "$$(ls -d results/*/ | tail -n 1)" $(REPRODUCED) || test $$? = 1  # 1: something differs, as it said

LATEX := max_print_line=1000 latexmk -pdf -silent -outdir=build -interaction=nonstopmode -halt-on-error
paper: $(READY)
	@command -v latexmk >/dev/null || { echo "paper: latexmk is not there; on Debian and Ubuntu: apt install latexmk" \
	    "texlive-latex-extra texlive-fonts-recommended texlive-bibtex-extra" >&2; exit 1; }
	@$(BIN)/crosslens paper
	@cd paper && mkdir -p build && { $(LATEX) crosslens.tex >build/latexmk.log 2>&1 || \
	    { tail -n 30 build/latexmk.log >&2; exit 1; }; }
	@$(BIN)/python -m crosslens.benchmarks.paper.proof paper/build/crosslens.log
	@cp paper/build/crosslens.pdf paper/crosslens.pdf
	@$(BIN)/crosslens paper --check

# Workers share the cores, so each keeps to one thread.
test: $(READY)
	@echo "test: pytest, a process per core, at most $(WORKERS)"
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses $(WORKERS) --dist worksteal $(ARGS)

# One process a backend, two at a time. `make test` fails where the kept outcomes are not these.
outcomes: $(READY)
	@$(BIN)/python -c 'from crosslens.adapters import backends; print(*backends())' | tr ' ' '\n' | \
	    OMP_NUM_THREADS=1 xargs -P 2 -I NAME $(BIN)/crosslens check NAME --save adapters/conformance/kept

# mypy cannot see through an editable install, so it reads a real one, made anew each time from a copy: nothing
# stale is checked, and nothing is built inside the tree. It runs there so that its paths are those of the tree.
lint: $(READY)
	@echo "lint: ruff"
	@$(BIN)/ruff check --output-format concise
	@$(BIN)/ruff format --check
	@echo "lint: mypy on the installed package"
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/source
	@cp -R pyproject.toml README.md LICENSE adapters tasks benchmarks $(TYPED)/source
	@$(PIP) --no-deps --target $(TYPED)/installed $(TYPED)/source
	@cd $(TYPED)/installed/crosslens && MYPYPATH=.. "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" \
	    --cache-dir "$(CURDIR)/.mypy_cache" -p crosslens.adapters -p crosslens.tasks -p crosslens.benchmarks

format: $(READY)
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean:
	@echo "clean: removing .venv, caches and build products; runs/ and downloaded models stay"
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find adapters tasks benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(READY)

$(READY): pyproject.toml constraints.txt $(if $(shell $(SOUND) && echo sound),,broken)
	@if test -e .venv && ! { $(SOUND); }; then \
	    echo "setup: .venv is half-made, broken or was moved: removing it"; rm -rf .venv; \
	fi
	@test -e .venv || { \
	    for python in $(PYTHON); do \
	        if ! command -v $$python >/dev/null; then why="not found"; \
	        elif ! $$python -c '' 2>/dev/null; then why="does not run"; \
	        elif ! $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	            why="too old, $$($$python --version 2>&1)"; \
	        elif ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
	            why="has no venv (on Debian and Ubuntu: apt install python3-venv)"; \
	        else echo "setup: creating .venv with $$($$python --version)"; exec $$python -m venv .venv; fi; \
	        echo "setup: $$python: $$why" >&2; \
	    done; \
	    echo "setup: crosslens needs Python 3.11 or newer with venv; install one, or name it:" >&2; \
	    echo "  make $(MAKECMDGOALS) PYTHON=PROGRAM" >&2; exit 1; }
	@echo "setup: installing $(TORCH) (large: the first time takes minutes)"
	@$(PIP) $(TORCH) || { $(STOPPED); }
	@echo "setup: installing crosslens, its backends and its tools, in the versions of constraints.txt"
	@$(PIP) -c constraints.txt -e '.[all,dev]' || { $(STOPPED); }
	@$(PIP) --no-deps -c constraints.txt inseq || { $(STOPPED); }  # beside TransformerLens: see pyproject.toml
	@rm -rf build crosslens.egg-info  # left by the build; Python would find this second copy of our metadata
	@echo "$(CURDIR)" > $@.new && mv $@.new $@
	@echo "setup: done"
