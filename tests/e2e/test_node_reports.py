"""What `medr3 drain` says where Ray cannot tell what runs on its nodes."""

from __future__ import annotations

import pytest

from medr3.errors import UserError
from medr3.ops.nodes import node_reports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def test_a_ray_without_its_dashboard_is_told_in_one_line(ray_session: None) -> None:
    with pytest.raises(UserError, match=r"^the Ray at [\d.]+:\d+ does not tell what runs on its nodes") as refused:
        node_reports()
    assert "\n" not in str(refused.value)
