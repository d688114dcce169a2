"""A census of Python's standard library, taken by runners.

Every module of the running interpreter's standard library is parsed and measured:
functions, longest function, deepest nesting, docstring coverage and cyclomatic
complexity. The same file runs on a laptop, where runners are local processes, and in
a pod, where they are pods made from this pod's own manifest:

    python examples/census.py                 # ranked table
    FLAME_BACKEND=local python examples/census.py --runners 4 --top 20
"""

from __future__ import annotations

import argparse
import ast
import sys
import sysconfig
import time
from collections import Counter
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

import flame_backend as flame

# Test packages are left out: distributions strip them, so counting them would give
# other figures on other machines.
SKIPPED_FOLDERS = {
    "__pycache__", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages",
    "test", "tests", "tkinter", "turtledemo", "ensurepip",
}  # fmt: skip
BATCH_MODULES = 6
SAMPLE_EVERY = 12

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NESTING = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try,
    ast.TryStar, ast.Match,
)  # fmt: skip
# McCabe: one path, and one more for each place where the flow can fork.
BRANCHES = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp,
    ast.comprehension, ast.match_case, ast.Assert,
)  # fmt: skip


@dataclass(frozen=True)
class Measures:
    """What one module's source says about itself."""

    module: str
    lines: int
    functions: int
    longest: int
    longest_name: str
    nesting: int
    documentable: int
    documented: int
    complexity: int
    complexity_name: str


def source_files(library: Path) -> list[Path]:
    """List the modules of the standard library, in a fixed order."""
    return sorted(
        path
        for path in library.rglob("*.py")
        if not SKIPPED_FOLDERS.intersection(path.relative_to(library).parts)
        # Flags of the interpreter's build: present or not, as its packager likes.
        and not path.parent.name.startswith("config-")
    )


def nesting_depth(node: ast.AST, depth: int = 0) -> int:
    """Return how deep blocks stand inside blocks; elif counts as its if."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and node.orelse == [child]
        inner = isinstance(child, NESTING) and not (
            is_elif and isinstance(child, ast.If)
        )
        deepest = max(deepest, nesting_depth(child, depth + inner))
    return deepest


def complexity(function: ast.AST) -> int:
    """Return the cyclomatic complexity of one function, nested ones included."""
    forks = sum(isinstance(node, BRANCHES) for node in ast.walk(function))
    operators = sum(
        len(node.values) - 1
        for node in ast.walk(function)
        if isinstance(node, ast.BoolOp)
    )
    return 1 + forks + operators


def measure(path: Path, module: str) -> Measures:
    """Parse one module and measure it."""
    text = path.read_bytes()
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    lengths = [
        ((node.end_lineno or node.lineno) - node.lineno + 1, node.name)
        for node in functions
    ]
    paths = [(complexity(node), node.name) for node in functions]
    documentable = [tree, *functions, *classes]
    longest, longest_name = max(lengths, default=(0, "-"))
    hardest, hardest_name = max(paths, default=(0, "-"))
    return Measures(
        module=module,
        lines=text.count(b"\n"),
        functions=len(functions),
        longest=longest,
        longest_name=longest_name,
        nesting=nesting_depth(tree),
        documentable=len(documentable),
        documented=sum(ast.get_docstring(node) is not None for node in documentable),
        complexity=hardest,
        complexity_name=hardest_name,
    )


def measure_batch(names: list[str]) -> list[Measures]:
    """Measure a few modules, named relative to the runner's own standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    return [measure(library / name, name) for name in names]


def show_progress(done: int, total: int, started: float) -> None:
    """One line that redraws itself on a terminal, a line now and then elsewhere."""
    seconds = time.monotonic() - started
    line = f"census: {done}/{total} modules, {seconds:.1f} s"
    if sys.stderr.isatty():
        bar = "#" * (30 * done // total)
        end = "\n" if done == total else ""
        print(f"\r[{bar:<30}] {line}", end=end, file=sys.stderr, flush=True)
    elif done == total or done % (BATCH_MODULES * 20) == 0:
        print(line, file=sys.stderr, flush=True)


def take_census(
    names: list[str], runners: int
) -> tuple[list[Measures], Counter[str], float]:
    """Measure all modules on runners; return figures, modules per runner, seconds."""
    batches = [
        names[start : start + BATCH_MODULES]
        for start in range(0, len(names), BATCH_MODULES)
    ]
    measured: list[Measures] = []
    share: Counter[str] = Counter()
    started = time.monotonic()
    with flame.Pool("census", max=runners, result_types=(Measures,)) as pool:
        futures = [pool.submit(measure_batch, batch) for batch in batches]
        for future in as_completed(futures):
            rows = future.result()
            measured += rows
            share[future.call.runner] += len(rows)
            show_progress(len(measured), len(names), started)
    return measured, share, time.monotonic() - started


def print_table(measured: list[Measures], top: int) -> None:
    """Print the modules with the most complex functions, and the library's totals."""
    head = ("module", "lines", "functions", "longest", "nesting", "documented")
    print(
        f"\n{head[0]:<34}{head[1]:>7}{head[2]:>10}{head[3]:>9}{head[4]:>9}"
        f"{head[5]:>12}  most complex function"
    )
    ranked = sorted(measured, key=lambda row: (-row.complexity, row.module))
    for row in ranked[:top]:
        print(
            f"{row.module:<34.34}{row.lines:>7}{row.functions:>10}{row.longest:>9}"
            f"{row.nesting:>9}{row.documented / row.documentable:>12.0%}"
            f"  {row.complexity:>4} {row.complexity_name}"
        )
    longest = max(measured, key=lambda row: (row.longest, row.module))
    nested = max(measured, key=lambda row: (row.nesting, row.module))
    documented = sum(row.documented for row in measured)
    documentable = sum(row.documentable for row in measured)
    print(
        f"\n{len(measured)} modules, {sum(row.lines for row in measured):,} lines, "
        f"{sum(row.functions for row in measured):,} functions; "
        f"{documented / documentable:.1%} of what can have a docstring has one\n"
        f"longest function: {longest.longest_name} in {longest.module}, "
        f"{longest.longest} lines; deepest nesting: {nested.nesting} in {nested.module}"
    )


def print_effort(
    names: list[str], share: Counter[str], seconds: float, estimate: float
) -> None:
    """Say who did how much, and what one process alone would have taken."""
    print(f"\n{len(share)} runners measured {len(names)} modules in {seconds:.1f} s:")
    for runner, modules in sorted(share.items()):
        print(f"  {runner:<34}{modules:>5} modules")
    print(
        f"one process alone: about {estimate:.1f} s (estimate: every "
        f"{SAMPLE_EVERY}th module measured here, scaled by size)"
    )


def estimate_alone(library: Path, names: list[str]) -> float:
    """Estimate one process' time from a sample, scaled by bytes of source."""
    sample = names[::SAMPLE_EVERY]
    started = time.perf_counter()
    for name in sample:
        measure(library / name, name)
    seconds = time.perf_counter() - started
    sampled = sum((library / name).stat().st_size for name in sample)
    total = sum((library / name).stat().st_size for name in names)
    return seconds * total / sampled


def main() -> None:
    """Take the census and print it."""
    parser = argparse.ArgumentParser(description="Measure Python's standard library.")
    parser.add_argument("--runners", type=int, default=2, help="runners (default 2)")
    parser.add_argument("--top", type=int, default=15, help="rows to print")
    options = parser.parse_args()
    library = Path(sysconfig.get_path("stdlib"))
    names = [str(path.relative_to(library)) for path in source_files(library)]
    print(
        f"census: {len(names)} modules of Python {sys.version.split()[0]}, "
        f"{options.runners} runners",
        file=sys.stderr,
    )
    measured, share, seconds = take_census(names, options.runners)
    print_table(measured, options.top)
    print_effort(names, share, seconds, estimate_alone(library, names))


if __name__ == "__main__":
    main()
