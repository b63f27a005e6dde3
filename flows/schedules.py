"""Scheduled runs: from a YAML to a Prefect deployment that is served here; what was missed; what died unseen."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from datetime import datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, field_validator, model_validator

from deepcompression.errors import RecipeError, RunError
from flows.recipe import load as recipes
from flows.recipe.schema import Name, Strict
from tasks.console import say
from tasks.machine.deadline import within
from tasks.machine.environment import opener
from tasks.root import CODE, ROOT
from tasks.secrets import masked, with_password
from tasks.upkeep.liveness import ALIVE

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

SILENCE_SECONDS, PENDING_SECONDS = 90, 600
ZOMBIES = "deep-compression: a run that is not heard of any more is Crashed"
NEVER_BEGUN = "deep-compression: a run that was submitted and never began is Crashed"
TAG = "deep-compression"
INTERVAL = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([smhd])\s*$")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Schedule(Strict):
    """One YAML in conf/schedules/: a recipe, when it runs, what is changed in it."""

    name: Name
    recipe: str | dict[str, Any] = Field(description="path or URL of a recipe, or the recipe itself")
    overrides: dict[str, Any] = Field({}, description="dotted key -> value, as on the command line")
    cron: str | None = Field(None, description="minute hour day month weekday, such as 0 3 * * *")
    interval: str | float | None = Field(None, description="seconds, or a text such as 6h")
    timezone: str = Field("UTC", description="of cron, such as Europe/Berlin")
    concurrency: int = Field(1, ge=1, description="runs of this schedule at once")
    on_conflict: Literal["skip", "wait"] = Field("skip", description="what a run does while so many are running")
    active: bool = True

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        from prefect.client.schemas.schedules import CronSchedule

        if value is not None:
            try:
                CronSchedule(cron=value)
            except ValueError:
                raise ValueError("expected five fields: minute hour day month weekday, such as 0 3 * * *") from None
        return value

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError("expected a time zone such as UTC or Europe/Berlin")
        return value

    @field_validator("interval")
    @classmethod
    def _seconds(cls, value: str | float | None) -> float | None:
        if isinstance(value, str):
            found = INTERVAL.match(value)
            if not found:
                raise ValueError("expected seconds, or a text such as 90s, 30m, 6h, 1d")
            value = float(found[1]) * UNITS[found[2]]
        if value is not None and value < 1:
            raise ValueError("expected at least a second")
        return value

    @model_validator(mode="after")
    def _one_time(self) -> Schedule:
        if (self.cron is None) == (self.interval is None):
            raise ValueError("expected exactly one of cron and interval")
        return self


def load(path: str) -> Schedule:
    """The schedule of a YAML file; its recipe, with the overrides, is checked too.

    Raises:
        RecipeError: in one line, with file, line and key.
    """
    schedule = recipes.load_as(Schedule, path)
    if with_password([schedule.recipe, schedule.overrides]):
        raise RecipeError(
            f"{path}: a URL has a password, which Prefect's server would store; write ${{oc.env:NAME}} in its place"
        )
    recipes.load(schedule.recipe, schedule.overrides)
    return schedule


def deployment(schedule: Schedule) -> RunnerDeployment:
    """The Prefect deployment of a schedule. Its parameters are those of the flow: a recipe, as path or mapping."""
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
    from prefect.deployments.runner import EntrypointType

    from flows.compress import compress

    when: Any
    if schedule.cron:
        when = CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    else:
        start = datetime(2026, 1, 1, tzinfo=ZoneInfo(schedule.timezone))
        when = IntervalSchedule(interval=timedelta(seconds=float(schedule.interval or 0)), anchor_date=start)
    strategy = ConcurrencyLimitStrategy.CANCEL_NEW if schedule.on_conflict == "skip" else None
    limit = ConcurrencyLimitConfig(
        limit=schedule.concurrency, collision_strategy=strategy or ConcurrencyLimitStrategy.ENQUEUE
    )
    where = EntrypointType.FILE_PATH if ROOT == CODE else EntrypointType.MODULE_PATH
    made: RunnerDeployment = compress.to_deployment(
        name=schedule.name,
        schedules=[when],
        paused=not schedule.active,
        concurrency_limit=limit,
        parameters={"recipe": schedule.recipe, "overrides": schedule.overrides},
        description="Deep Compression of the recipe, with the overrides. Run it once with others by Custom run.",
        tags=[TAG],
        entrypoint_type=where,
    )
    return made


def serve(schedules: Sequence[Schedule]) -> None:
    """Registers schedules with the Prefect server, and runs what is due, until it is interrupted.

    Raises:
        RunError: there is no server at ``PREFECT_API_URL``.
    """
    import prefect
    from prefect.runner import Runner

    # Prefect's own handler never awaits its stop: a warning, and schedules that are not paused. Ctrl-C's way is right.
    Runner.handle_sigterm = lambda *_: signal.raise_signal(signal.SIGINT)
    os.chdir(ROOT)  # a clone: Prefect looks for flows/compress.py there
    url = _server()
    _watch_heartbeats()
    made = [deployment(schedule) for schedule in schedules]
    for schedule in schedules:
        when = schedule.cron or f"every {schedule.interval:g} s"
        what = schedule.recipe if isinstance(schedule.recipe, str) else "a recipe"
        say(f"serving [bold]compress/{schedule.name}[/]: {what}, {when} ({schedule.timezone})")
    say(f"look at {url.removesuffix('/api')}/deployments; Ctrl-C ends serving, the schedules are then paused")
    prefect.serve(*made, limit=sum(schedule.concurrency for schedule in schedules), print_starting_message=False)


def _server() -> str:
    """The server's URL, if it answers."""
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    hint = "start one here: make servers; or name one: export PREFECT_API_URL=http://HOST:4200/api"
    if not url:
        raise RunError(f"schedules need a Prefect server, and none of this clone is running; {hint}")
    try:
        within(6, opener(url).open, f"{url}/health", timeout=5).close()
    except (OSError, ValueError, RunError, HTTPException) as error:
        raise RunError(f"no Prefect server answers at {masked(url)}: {masked(str(error))}; {hint}") from None
    return str(url)


def _watch_heartbeats() -> None:
    """Automations on the server: a run that died with its machine, or before it began, is Crashed, its slot free."""
    _crash_silent(ZOMBIES, ALIVE, SILENCE_SECONDS, {})
    # What a worker submits may pull an image first; and runs of other deployments are not ours to judge.
    ours = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
    _crash_silent(NEVER_BEGUN, "prefect.flow-run.Pending", PENDING_SECONDS, ours)


def _crash_silent(name: str, after: str, seconds: int, related: dict[str, str]) -> None:
    """An automation: a flow run of which nothing is heard for so long after this event becomes Crashed."""
    from prefect.automations import Automation
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture

    trigger = EventTrigger(
        after={after},
        expect={ALIVE, "prefect.flow-run.*"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=related,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=seconds),
    )
    gone = f"Not heard of for {seconds} s: its process is gone."
    crash = ChangeFlowRunState(state=StateType.CRASHED, name=None, message=gone)
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(name):
            Automation(name=name, trigger=trigger, actions=[crash]).create()


def paths_of(words: Sequence[str]) -> list[str]:
    """Files as they are, folders as the YAML files in them.

    Raises:
        RecipeError: a folder without any.
    """
    paths = []
    for word in words:
        inside = sorted(Path(word).glob("*.yaml")) if Path(word).is_dir() else [Path(word)]
        if not inside:
            raise RecipeError(f"{word}: no schedule (*.yaml) in this folder")
        paths += [str(path) for path in inside]
    return paths
