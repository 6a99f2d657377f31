# make demo      set up, train ConvLSTM and MotionRNN-ConvLSTM on moving digits, print the table, draw what they predict
# make test      set up, run the quick tests (a C++ compiler is all they need; an nvcc adds the CUDA kernels, no GPU)
# make test-all  set up, run every test but the longest; what a missing tool leaves out is printed as a skip, with the reason
# make test-nightly  set up, run every test, and GPU kernels on whole tables of cases
# make lint      set up, check style (ruff, clang-format) and types (mypy)
# make docs      build the documentation site into build/site, in an environment of its own that needs no PyTorch
# make clean     remove what was built here; runs/ and .venv stay

# Empty is as unset, in the environment and on make's command line.
override PYTHON := $(or $(PYTHON),python3)
override TORCH := $(or $(TORCH),torch==2.13.0)
override VENV := $(or $(VENV),.venv)
# Two architectures in machine code and a portable form of the newer: enough for every GPU, and for tests without one. A
# plain `pip install` compiles more of them.
export TORCH_CUDA_ARCH_LIST := $(or $(TORCH_CUDA_ARCH_LIST),8.0;9.0+PTX)

RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip --disable-pip-version-check
DOCS_VENV := build/docs-environment
BUILD_TOOLS := 'setuptools>=64' wheel 'pybind11>=2.12' ninja 'cmake>=3.24'
NATIVE := CMakeLists.txt setup.py $(shell find csrc -type f)

# Prints the folders and the version of the PyTorch that $(PYTHON) has, if it is new enough. The package's metadata is
# read, because an import takes seconds.
define FIND_TORCH
import importlib.metadata, pathlib, re, sys
if sys.version_info < (3, 10):
    sys.exit(f"error: Python >= 3.10 is needed, this is {sys.version.split()[0]}; name another: make PYTHON=python3.11")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("error: this Python cannot make virtual environments (on Debian or Ubuntu: apt install python3-venv)")
try:
    torch = importlib.metadata.distribution("torch")
except importlib.metadata.PackageNotFoundError:
    sys.exit()
if tuple(map(int, re.findall(r"\d+", torch.version)[:2])) >= (2, 10):
    folders = {str(pathlib.Path(entry).resolve()): None for entry in sys.path if entry.endswith("-packages")}
    print(f"torch=={torch.version}", *folders, sep="\n")
endef
export FIND_TORCH

.PHONY: demo test test-all test-nightly lint docs setup clean

demo: setup
	$(RUN) motionrnn_ext.cli demo

test: setup
	$(RUN) pytest -m "not slow"

# As many processes as cores; a file's tests stay in one. Two threads each, because the CPU kernels cut images into bands
# for them; passive: a thread that waits leaves its core to others.
test-all test-nightly: setup
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive $(RUN) pytest --numprocesses auto --maxprocesses 4 \
	  --dist loadscope --no-loadscope-reorder $(if $(filter test-nightly,$@),--nightly)

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(shell find csrc benchmarks tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
	$(RUN) mypy

# A warning is an error. (`--quiet` would hide warnings. The variable silences a notice about the generator's future.)
docs: $(DOCS_VENV)/installed
	PATH="$(CURDIR)/$(DOCS_VENV)/bin:$$PATH" NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	@echo "built build/site/index.html"

$(DOCS_VENV)/installed: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --requirement docs/requirements.txt
	@touch $@

setup: $(VENV)/installed

# A PyTorch that is there already is used as it is: .venv then sees the packages of its environment behind its own, and
# changes nothing there. Either way the version is pinned, so that no later installation replaces it.
$(VENV)/torch.txt:
	@$(PYTHON) -c "$$FIND_TORCH" > /dev/null
	$(PYTHON) -m venv $(VENV)
	@$(PYTHON) -c "$$FIND_TORCH" > $(VENV)/found
	@if [ -s $(VENV)/found ]; then \
	  echo "using $$(head -n 1 $(VENV)/found) of $$(command -v $(PYTHON))"; \
	  tail -n +2 $(VENV)/found > "$$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch_environment.pth"; \
	else \
	  echo "installing $(TORCH)"; \
	  $(PIP) install '$(TORCH)'; \
	fi
	@$(VENV)/bin/python -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' > $@.part
	@mv $@.part $@

# The tools are looked up through PATH as well: those of the environment that PyTorch comes from stay in its bin folder.
$(VENV)/installed: $(VENV)/torch.txt pyproject.toml $(NATIVE)
	@echo "installing the tools and packages of the tests and the demo, building motionrnn_ext (minutes the first time)"
	@$(PIP) install --quiet --constraint $(VENV)/torch.txt $(BUILD_TOOLS)
	@PATH="$$(dirname "$$(command -v $(PYTHON))"):$$PATH" \
	  $(PIP) install --quiet --constraint $(VENV)/torch.txt --no-build-isolation --editable '.[dev]'
	@if [ -f motionrnn_ext/_build_skipped.txt ]; then echo "no native library: $$(cat motionrnn_ext/_build_skipped.txt)"; fi
	@touch $@

clean:
	rm -rf build dist *.egg-info motionrnn_ext/lib motionrnn_ext/_build.*.so motionrnn_ext/_build_skipped.txt
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks $(VENV)/installed
	find benchmarks csrc motionrnn_ext tests -name __pycache__ -type d -prune -exec rm -rf {} + 2> /dev/null || true
