"""Runners as pods: manifest, listener, admission, monitor, causes."""
