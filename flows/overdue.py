"""Scheduled runs that were missed because the machine slept: one makes up for all of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


def skip_missed(flow_run_id: str | None) -> None:
    """Skips the other overdue runs of the schedule that this run belongs to; nothing where it belongs to none."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled

    if not flow_run_id:
        return
    with get_client(sync_client=True) as client:
        mine = client.read_flow_run(flow_run_id)
        for one in _overdue(client, mine):
            message = f"Missed while this machine was away; {mine.name} makes up for it."
            client.set_flow_run_state(one.id, Cancelled(name="Skipped", message=message))


def _overdue(client: Any, mine: FlowRun) -> list[FlowRun]:
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    if mine.deployment_id is None or not mine.auto_scheduled:
        return []
    scheduled = filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    found = client.read_flow_runs(
        deployment_filter=filters.DeploymentFilter(id=filters.DeploymentFilterId(any_=[mine.deployment_id])),
        flow_run_filter=filters.FlowRunFilter(
            state=scheduled,
            expected_start_time=filters.FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
        ),
    )
    # a run that waits for its turn (on_conflict: wait) was not missed
    return [
        one for one in found if one.id != mine.id and one.auto_scheduled and one.state_name != "AwaitingConcurrencySlot"
    ]
