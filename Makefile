# Two commands do everything on a fresh Debian or Ubuntu machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
# processes that run tests; more than two cores can keep busy, because tests wait for servers and disks
TEST_PROCESSES ?= 3
# e.g. make demo TORCH_ARGS="--index-url <PyTorch's index of CPU builds>"
TORCH_ARGS ?=
BIN := $(VENV)/bin

.PHONY: demo test test-fast faults check wheel setup test-setup peers clean

demo: setup ## set up and run the demo: PACS -> node -> SEG and SR -> PACS, with a table and a picture
	$(BIN)/dicom-node demo $(if $(SERIES),--series "$(SERIES)") $(if $(MODEL),--model "$(MODEL)")

test: test-setup peers ## set up and run all tests; fails if branch coverage is below its minimum
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-fast: test-setup ## the tests that need no peers and no trained model; takes a few minutes
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile tests/unit $(PYTEST_ARGS)

faults: test-setup peers ## every fault in its long form, on loopback: about 45 minutes; renews the record and its page
	$(BIN)/python -m tests.faults $(FAULTS); status=$$?; $(BIN)/python -m tests.faults.report; exit $$status

check: test-setup ## lint, types, imports, declared dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry dicom_node inference
	$(BIN)/deptry tests benchmarks --ignore DEP002,DEP004

wheel: test-setup ## build the wheel and test it outside the checkout
	.ci/wheel

setup: $(VENV)/.runtime
test-setup: $(VENV)/.tests

$(VENV)/.python:
	deploy/python-venv.sh "$(PYTHON)" "$(VENV)"
	touch $@

# torch first: packages that depend on it would otherwise install another build
$(VENV)/.runtime: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH_ARGS) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,research]'
	touch $@

$(VENV)/.tests: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,research,test,postgresql]'
	touch $@

peers: ## the DICOM peers that the tests talk to
	deploy/test-peers.sh

clean:
	rm -rf $(VENV) demo-output test-results .pytest_cache .mypy_cache .ruff_cache .hypothesis
