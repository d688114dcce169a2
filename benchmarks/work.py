"""What the benchmarks run on runners, which load this to call it: no imports."""


def nothing() -> None:
    """Do nothing."""


def length(data: bytes) -> int:
    """Take a large argument."""
    return len(data)
