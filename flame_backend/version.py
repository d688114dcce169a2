"""Which version of this package it is; parent and runner must be of one."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
