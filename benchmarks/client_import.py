"""What `import kubetls` costs beside `import urllib3`: pairs of fresh interpreters.

    python benchmarks/client_import.py [PAIRS]

Prints the median of the differences within pairs, and what is loaded too early.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

BASE = "import urllib3"
DOOR = "import urllib3, kubetls"
OURS = "import kubetls; kubetls.session, kubetls.KubeTLSError"
LATE = ("cryptography", "pyasn1", "pyasn1_modules", "yaml", "cloudpickle")
LOADED = f"{OURS}; import sys; print(*(m for m in {LATE} if m in sys.modules))"


def milliseconds(program: str) -> float:
    """Return the CPU time of a program in a new interpreter; others do not count."""
    child = subprocess.Popen([sys.executable, "-c", program])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = status
    return 1000 * (usage.ru_utime + usage.ru_stime)


def main() -> None:
    """Measure and print."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    for program in (BASE, DOOR, OURS):
        milliseconds(program)  # bytecode and page cache
    empty, base, doors, differences = [], [], [], []
    for _ in range(pairs):
        empty.append(milliseconds("pass"))
        base.append(milliseconds(BASE))
        doors.append(milliseconds(DOOR) - base[-1])
        differences.append(milliseconds(OURS) - base[-1])
    floor = statistics.median(empty)
    early = subprocess.check_output([sys.executable, "-c", LOADED], text=True).strip()
    print(f"import urllib3          {statistics.median(base) - floor:6.1f} ms")
    print(f"import kubetls: more by {statistics.median(doors):6.1f} ms (goal 25)")
    print(f"and kubetls.session:    {statistics.median(differences):6.1f} ms")
    print(f"loaded before the first verification: {early or 'none of ' + str(LATE)}")


if __name__ == "__main__":
    main()
