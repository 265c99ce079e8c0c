"""What a run will do: every backend on every task, one of them under two names, in an order drawn from the seed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from crosslens.adapters import InputError
from crosslens.benchmarks.plan import AGAIN, Cell, Plan, implementation, make_plan


def a_plan(**more: object) -> Plan:
    return make_plan("smoke", backend=["nnsight", "hooks"], task=["ioi", "facts"], model=["tiny-llama"], **more)  # type: ignore[arg-type]


def backend_cells(plan: Plan) -> list[Cell]:
    return [cell for cell in plan.cells() if cell.kind == "backend"]


def test_one_backend_runs_under_two_names_on_every_task_with_as_many_processes() -> None:
    plan = a_plan(repeats=3)
    assert plan.again == "hooks (A/A)"
    names = [cell.backend for cell in backend_cells(plan)]
    assert {name: names.count(name) for name in names} == {"nnsight": 6, "hooks": 6, "hooks (A/A)": 6}
    again = [cell for cell in backend_cells(plan) if cell.backend == plan.again]
    assert {cell.implementation for cell in again} == {"hooks"}
    assert {(cell.task, cell.repeat) for cell in again} == {(task, n) for task in plan.tasks for n in (1, 2, 3)}


def test_without_hooks_the_first_backend_runs_under_two_names() -> None:
    plan = replace(a_plan(), backends=("nnsight", "pyvene"))
    assert plan.again == "nnsight (A/A)"
    assert replace(plan, backends=()).again is None
    assert [cell.kind for cell in replace(plan, backends=()).cells()] == ["reference", "reference"]


def test_ids_are_unique_file_names_and_the_second_name_has_one_of_its_own() -> None:
    ids = [cell.id for cell in a_plan(repeats=2).cells()]
    assert len(set(ids)) == len(ids) == 2 + 2 * 3 * 2
    assert "ioi.tiny-llama.hooks-again.2" in ids
    assert not any(set(name) & set("/ ()") for name in ids)


def test_references_come_first_and_the_rest_in_an_order_drawn_from_the_seed() -> None:
    plan, other = a_plan(repeats=4), a_plan(repeats=4, seed=1)
    assert [cell.kind for cell in plan.cells()[:2]] == ["reference", "reference"]
    assert all(cell.implementation is None for cell in plan.cells()[:2])
    order = [cell.id for cell in backend_cells(plan)]
    assert order == [cell.id for cell in backend_cells(a_plan(repeats=4))]
    assert order != [cell.id for cell in backend_cells(other)]
    assert sorted(order) == sorted(cell.id for cell in backend_cells(other))
    assert order != sorted(order)


def test_a_plan_is_read_back_from_what_it_wrote() -> None:
    plan = a_plan(repeats=2, seed=7)
    assert Plan.of(json.loads(json.dumps(plan.facts()))) == plan
    with pytest.raises(InputError, match="another version"):
        Plan.of({"backends": []})


def test_a_name_of_ones_own_is_its_own_implementation() -> None:
    assert [implementation(name) for name in ("hooks", f"hooks{AGAIN}", "nnsight")] == ["hooks", "hooks", "nnsight"]
