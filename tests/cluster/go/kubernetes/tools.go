//go:build tools

// Package build pins the programs of a Kubernetes release. The staging modules are
// replaced by their published twins in go.mod, as the module proxy serves them.
package build

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver/app"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	_ "k8s.io/kubernetes/cmd/kube-scheduler/app"
	_ "k8s.io/kubernetes/cmd/kubelet/app"
)
