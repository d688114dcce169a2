.PHONY: cluster-build cluster-up cluster-down cluster-kubeconfig

cluster-build: $(STAMP) ## Build Kubernetes for the tests into the cache folder
	@$(PY) -m tests.cluster build

cluster-up: $(STAMP) ## Start a cluster that stays (root, Linux)
	@$(PY) -m tests.cluster up

cluster-down: $(STAMP) ## Remove it
	@$(PY) -m tests.cluster down

cluster-kubeconfig: $(STAMP) ## Print the path of its kubeconfig
	@$(PY) -m tests.cluster kubeconfig
