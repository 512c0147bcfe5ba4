"""Which cells of the error matrix are wanted."""

from __future__ import annotations

import pytest

from t2v_core.config import MetaTaskRule
from t2v_core.errors import ConfigError
from t2v_core.matrix import wanted_cells

TASKS = [f"a/{i}" for i in range(30)] + [f"b/{i}" for i in range(30)]
EXPERTS = ["generic", *(f"a__{i}" for i in range(10)), *(f"b__{i}" for i in range(10))]


def test_without_rules_every_expert_is_tried_on_every_task() -> None:
    assert wanted_cells([], EXPERTS, TASKS) == dict.fromkeys(EXPERTS, tuple(TASKS))


def test_meta_tasks_are_blocks_and_the_generic_column() -> None:
    rules = [
        MetaTaskRule(name="one", tasks=["a/*"], experts=["a__*"], n_tasks=5, n_experts=4),
        MetaTaskRule(name="two", tasks=["*"], experts=["*"], n_tasks=6, n_experts=3),
    ]
    cells = wanted_cells(rules, EXPERTS, TASKS)
    alone = [wanted_cells([rule], EXPERTS, TASKS) for rule in rules]
    assert [sum(bool(t) for t in c.values()) for c in alone] == [5, 4]  # with the generic one
    assert {len(t) for t in alone[0].values()} == {0, 5}
    assert all(t.startswith("a/") for own in alone[0].values() for t in own)
    for expert in EXPERTS:
        assert set(cells[expert]) == set(alone[0][expert]) | set(alone[1][expert])
        assert list(cells[expert]) == [t for t in TASKS if t in set(cells[expert])]
    assert set(cells["generic"]) == {t for own in cells.values() for t in own}


def test_a_sample_does_not_depend_on_what_else_there_is() -> None:
    rule = MetaTaskRule(name="one", tasks=["a/*"], experts=["a__*"], n_tasks=5, n_experts=4)
    few = wanted_cells([rule], EXPERTS[:11], TASKS[:30])
    assert {e: t for e, t in wanted_cells([rule], EXPERTS, TASKS).items() if t} == {e: t for e, t in few.items() if t}


@pytest.mark.parametrize(("change", "said"), [({"tasks": ["c/*"]}, "no task"), ({"experts": ["c*"]}, "no expert")])
def test_a_rule_that_matches_nothing(change: dict[str, list[str]], said: str) -> None:
    rule = MetaTaskRule.model_validate({"name": "one", "tasks": ["a/*"], "experts": ["a__*"], **change})
    with pytest.raises(ConfigError, match=f"meta-task 'one': {said} matches c"):
        wanted_cells([rule], EXPERTS, TASKS)
