//go:build tools

// Package build pins etcd.
package build

import _ "go.etcd.io/etcd/server/v3"
