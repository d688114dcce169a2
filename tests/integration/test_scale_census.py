"""The census in an app pod with the shipped Role and nothing else: 0, 8, 0 runners."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.integration.faults import Timeline
from tests.integration.programs import HEAD, finish, told

if TYPE_CHECKING:
    from tests.integration.space import Space

pytestmark = pytest.mark.cluster

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RUNNERS = 8

# The node of the tests has two CPUs: eight runners are to fit beside each other.
CENSUS = (
    HEAD
    + """
sys.path.insert(0, '/app/examples')
from collections import Counter
from pathlib import Path
import sysconfig
from census import Measures, measure_batch, source_files

library = Path(sysconfig.get_path('stdlib'))
names = [str(path.relative_to(library)) for path in source_files(library)]
batches = [names[start:start + 6] for start in range(0, len(names), 6)]
small = {'requests': {'cpu': '20m', 'memory': '32Mi'}}
backend = KubernetesBackend(resources=small)
with Pool('census', max=8, idle_shutdown_after=4, boot_timeout=120,
          backend=backend, result_types=(Measures,)) as pool:
    tell('cold', lambda: len(pool.status().runners))
    calls = [pool.submit(measure_batch, batch) for batch in batches]
    rows = [row for call in calls for row in call.result()]
    tell('modules', lambda: [len(names), len({row.module for row in rows}), len(rows)])
    tell('runners', lambda: len({call.call.runner for call in calls}))
    while pool.status().runners:
        time.sleep(0.2)
    tell('idle', lambda: len(pool.status().runners))
    time.sleep(3)
    tell('warm again', pool.call, abs, -1)
"""
)


def shipped(space: Space) -> None:
    """Apply the accounts and the Role of deploy/, as they are, in this namespace."""
    for name in ("serviceaccounts.yaml", "role.yaml"):
        found: list[dict[str, Any]] = []
        for item in yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")):
            text = json.dumps(item).replace(
                '"namespace": "words"', f'"namespace": "{space.name}"'
            )
            found.append(json.loads(text))
        space.apply(*found)


def test_census_scales_from_none_to_eight_and_back(
    space: Space, tmp_path: Path
) -> None:
    """By demand and by idleness, while the app lives; every module is counted once."""
    shipped(space)
    with Timeline(space, tmp_path / "timeline.txt") as timeline:
        space.start(CENSUS, account_name="words")
        finish(space, 240)
        timeline.await_gone()
    found = told(space)
    assert 0 == found["cold"]["value"]
    counted = found["modules"]["value"]
    assert [counted[0]] * 3 == counted
    assert counted[0] > 300
    assert RUNNERS == found["runners"]["value"] == timeline.most("Running")
    assert 0 == found["idle"]["value"]
    assert 1 == found["warm again"]["value"]
    lives = timeline.runners()
    assert RUNNERS + 1 == len(lives), timeline.lines()
    for name, events in lives.items():
        assert "DELETED" == events[-1][1], timeline.lines()
        # It ended because it was told to, by its parent or by the kubelet.
        assert {0, 143} >= timeline.exit_codes(name), timeline.lines()
