"""Which version of this package it is; parent and runner must be of one."""

from __future__ import annotations

VERSION = "0.1.0"
