# One task runner; CI runs these targets and nothing else. Needs python3 (3.11 or newer, with venv), pip and make.
PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
DATA ?= data
RUN ?= runs/piano
MODEL ?= exported/nocturne
TAG ?= nocturne
ATTRIBUTION ?= $(shell cat exported/ATTRIBUTION.txt 2>/dev/null)
bin := $(VENV)/bin
export ORT_DISABLE_TELEMETRY = 1
export HOST PORT

.DEFAULT_GOAL := help
.PHONY: help serve setup test fuzz check format prepare train resume evaluate export report examples bench soak image audit clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: $(VENV)/.core  ## install the service and run it on http://$HOST:$PORT
	$(bin)/gunicorn -c service/gunicorn.conf.py

setup: $(VENV)/.all  ## install everything, training and development included

test: $(VENV)/.all  ## run the whole test suite
	$(bin)/python -m pytest $(PYTEST_ARGS)

fuzz: $(VENV)/.all  ## 100,000 random requests of each kind: half an hour
	$(bin)/python -m pytest tests/contract/test_hostile.py --hypothesis-profile=fuzz

check: $(VENV)/.all  ## format, lint, types, imports
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports

format: $(VENV)/.all  ## format the code
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

prepare: $(VENV)/.all  ## DATA=folder of music files -> data/train.npz
	$(bin)/python -m training prepare $(DATA) --out data/train.npz

train: $(VENV)/.all  ## train on data/train.npz into RUN
	$(bin)/python -m training fit data/train.npz --out $(RUN)

resume: $(VENV)/.all  ## go on with a training that was stopped
	$(bin)/python -m training fit --resume $(RUN)

evaluate: $(VENV)/.all  ## nats per note of RUN beside the baselines
	$(bin)/python -m training evaluate $(RUN) --data data/train.npz --baselines data/train.npz

export: $(VENV)/.all  ## RUN -> MODEL.onnx and its card
	$(bin)/python -m training export $(RUN) --out $(MODEL) --data data/train.npz --attribution "$(ATTRIBUTION)"

report: $(VENV)/.all  ## what MODEL's music is like beside that of data/train.npz: pictures, and a part of its card
	$(bin)/python -m training report $(MODEL).onnx --data data/train.npz

examples: $(VENV)/.core  ## the melodies of exported/examples again, by their curl lines
	HOST=127.0.0.1 PORT=8000 sh -c '$(bin)/gunicorn -c service/gunicorn.conf.py & service=$$!; trap "kill $$service" EXIT; \
		until curl -sf http://127.0.0.1:8000/readyz > /dev/null; do kill -0 $$service && sleep 0.2 || exit 1; done; \
		grep "^curl " exported/examples/README.md | sed "s/^curl /curl -sf /" | sh -ex'

bench: $(VENV)/.all  ## speed and exactness, as ratios and bounds: half an hour, each also alone
	$(bin)/python -m bench.representation
	$(bin)/python -m bench.lstm
	OMP_NUM_THREADS=1 $(bin)/python -m bench.step
	OMP_NUM_THREADS=1 $(bin)/python -m bench.roofline
	$(bin)/python -m bench.request
	$(bin)/python -m bench.engine
	$(bin)/python -m bench.http
	$(bin)/python -m bench.peers

soak: $(VENV)/.all  ## thirty minutes of load: answers, memory, threads, descriptors
	$(bin)/python -m bench.soak

image:  ## build the container image (TAG=its name, GPU=1 for CUDA, BASE=its base) and list its packages in nocturne.cdx.json
	docker build --build-arg GPU=$(or $(GPU),0) $(if $(BASE),--build-arg BASE=$(BASE)) -t $(TAG) .
	container=$$(docker create $(TAG)) && { docker cp $$container:/app/sbom.cdx.json nocturne.cdx.json; status=$$?; \
		docker rm $$container > /dev/null; exit $$status; }

# Without --strict, a version that cannot be looked up would count as one without faults. What it prints last says it all.
audit: $(VENV)/audit/.done  ## look constraints.txt up among the known vulnerabilities; fails if that cannot be done
	@cd $(VENV)/audit && rm -f found && if bin/pip-audit --strict --progress-spinner off --no-deps --disable-pip -o found \
		$(AUDIT_ARGS) -r $(CURDIR)/constraints.txt 2> log; then tail -n 1 log; else tail -n 1 log >&2; \
		cat found 2> /dev/null || echo "make audit: no answer from the index of vulnerabilities, so nothing is known" >&2; exit 1; fi

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamps make a second `make` install nothing. The core is a part of everything: where that is installed, it is too.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	PYTHONWARNINGS=ignore $(bin)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(VENV)/bin/python
	PYTHONWARNINGS=ignore $(bin)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(VENV)/.core $@

$(VENV)/audit/.done: constraints.txt | $(VENV)/bin/python
	$(bin)/python -m venv $(VENV)/audit
	PYTHONWARNINGS=ignore $(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip-audit
	touch $@
