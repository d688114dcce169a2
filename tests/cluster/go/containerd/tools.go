//go:build tools

// Package build pins containerd.
package build

import _ "github.com/containerd/containerd/v2/version"
