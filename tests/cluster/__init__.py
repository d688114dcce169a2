"""A real Kubernetes for the tests, built from Go modules and Debian packages."""
