"""Each step of clonekit.steps.memory does what it says, and says what the kernel refused."""

from __future__ import annotations

import pytest
from step_cases import Case, Room, cases_of, check


@pytest.mark.usefixtures("needs")
@pytest.mark.parametrize("case", cases_of("memory"), ids=str)
def test_a_step_does_what_its_case_says(case: Case, room: Room) -> None:
    check(case, room)
