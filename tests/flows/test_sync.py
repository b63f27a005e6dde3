from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from deepcompression.errors import InputError, StorageError
from flows import upkeep
from tasks.storage.places import inside, place_at
from tasks.storage.store import Store
from tasks.tracking import journal
from tasks.tracking.runs import Tracker

START = {"kind": "start", "time": 1, "name": "run", "tags": {}, "parent": None}
FINISH = {"kind": "finish", "time": 2, "status": "FINISHED"}
Left = Callable[..., Path]


@pytest.fixture
def database(tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server that this user's environment names."""
    path = tmp_path / "mlflow.db"
    path.write_bytes(mlflow_template.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    return f"sqlite:///{path}"


@pytest.fixture
def left(tmp_path: Path, database: str) -> Left:
    """A run that another machine left in the shared store: its recipe's tracking, its journal, its files."""

    def make(
        name: str = "run",
        tracking: Mapping[str, Any] | None = None,
        lines: Sequence[Any] = (),
        files: Mapping[str, str] | None = None,
    ) -> Path:
        folder = tmp_path / "store" / "unsent" / name
        folder.mkdir(parents=True)
        told = {"uri": database, "experiment": "e"} if tracking is None else tracking
        (folder / "recipe.yaml").write_text(yaml.safe_dump({"tracking": told}))
        written = [one if isinstance(one, str) else json.dumps(one) for one in (START, *lines, FINISH)]
        (folder / "tracking.jsonl").write_text("\n".join(written) + "\n")
        for path, text in (files or {}).items():
            (folder / path).write_text(text)
        return folder

    return make


def _sync(tmp_path: Path, *words: str, uri: str | None = None) -> list[str]:
    return upkeep.sync(words, str(tmp_path / "runs"), str(tmp_path / "store"), uri)


def _artifacts(database: str) -> dict[str, list[str]]:
    """Of every run in experiment ``e`` the names of its artifacts."""
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("e")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return {one.info.run_name: [file.path for file in client.list_artifacts(one.info.run_id)] for one in runs}


def _artifact(path: str, into: str | None = None) -> dict[str, Any]:
    return {"kind": "artifact", "time": 1, "path": path, "into": into}


@pytest.mark.usefixtures("nothing_known")  # else a secret of another test hides the names of files
def test_a_run_of_another_machine_is_sent_but_no_file_outside_of_its_folder(
    left: Left, database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Absolute paths, ``..``, folders that lead elsewhere, damaged lines: one word each, the rest is sent."""
    secret = tmp_path / "secret.txt"
    secret.write_text("x")
    bad = [
        _artifact(str(secret)),
        _artifact("../../../secret.txt"),
        _artifact("f.txt", "../../elsewhere"),
        _artifact("f.txt", "/elsewhere"),
        "[" * 5000,
        "[]",
        "{",
        {"kind": "tags", "time": 1},
        {"kind": "metrics", "time": 1, "values": [["a", "b", "c"]]},
        {"kind": "metrics", "time": 1, "values": [["a", 1, 10**30]]},
        {"kind": "shell", "time": 1},
        {"kind": "finish", "time": 1, "status": "x"},
    ]
    left(lines=[*bad, _artifact("f.txt", "reports")], files={"f.txt": "mine"})
    assert _sync(tmp_path) == []
    assert _artifacts(database) == {"run": ["reports"]}
    said = capsys.readouterr().err
    assert said.count("is not sent") == len(bad) and said.count("secret.txt' is no file of the run's own") == 2, said
    assert not (tmp_path / "store" / "unsent" / "run").exists()


def test_links_in_a_shared_store_are_not_followed(left: Left, database: str, tmp_path: Path) -> None:
    """A link in ``unsent/`` to a file of this machine would have it uploaded."""
    secret = tmp_path / "secrets"
    secret.mkdir()
    (secret / "key.txt").write_text("x")
    folder = left("run", lines=[_artifact("key.txt")])
    (folder / "key.txt").symlink_to(secret / "key.txt")
    left("other")
    (refused,) = _sync(tmp_path)
    assert "'run'" in refused and "is a link" in refused
    assert list(_artifacts(database)) == ["run"]  # the other one's journal names it so
    assert (folder / "tracking.jsonl").is_file()


def test_own_runs_send_no_file_outside_of_their_folder_either(tmp_path: Path, database: str) -> None:
    """A link inside of the folder that leads out of it counts as outside."""
    folder = tmp_path / "own"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("x")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "good.txt").write_text("x")
    lines = [START, *map(_artifact, ("link.txt", "../secret.txt", "good.txt")), FINISH]
    (folder / "tracking.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tracker = Tracker(str(folder), database, "e")
    assert tracker.unsent() == 3 and tracker.sync() == 3 and tracker.unsent() == 0
    assert _artifacts(database) == {"run": ["good.txt"]}


@pytest.mark.parametrize(
    ("tracking", "part"),
    [
        ({"uri": "http://evil.example.org", "experiment": "e"}, "'http://evil.example.org'"),
        ({"uri": "http://${oc.env:HOME}.evil.example.org"}, "--tracking-uri URI"),
        ({"uri": "${oc.env:HOME}"}, "--tracking-uri URI"),
        ({"uri": "sqlite:////tmp/evil.db"}, "--tracking-uri URI"),
        ({"uri": ["x"]}, "--tracking-uri URI"),
        ({"experiment": "${oc.env:HOME}"}, "is no plain text"),
        ({"experiment": "\x1b[31m"}, "is no plain text"),
        ({"experiment": 7}, "tracking:"),
        ({"unknown": 7}, "tracking:"),
        (["x"], "expected a mapping"),
    ],
)
def test_a_run_of_another_machine_does_not_say_where_it_is_sent(
    tracking: Any, part: str, left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server than this user's, or a value of this machine's: one line, and nothing is sent or lost."""
    monkeypatch.setattr("tasks.tracking.runs.client_of", lambda *_: pytest.fail("somebody was asked"))
    folder = left(tracking=tracking)
    for words in ((), (str(folder),)):
        (refused,) = _sync(tmp_path, *words)
        assert part in refused and "\n" not in refused and "run" in refused
    assert (folder / "tracking.jsonl").is_file()


def test_the_servers_that_a_user_names_get_runs_of_other_machines(left: Left, database: str, tmp_path: Path) -> None:
    """By the environment, also where the recipe says just that; by --tracking-uri, whatever the recipe says."""
    left("a", {"uri": "${oc.env:MLFLOW_TRACKING_URI}", "experiment": "e"})
    assert _sync(tmp_path) == [] and len(_artifacts(database)) == 1
    left("b", {"uri": "http://evil.example.org", "experiment": "e"})
    assert _sync(tmp_path, uri=database) == []


def test_the_server_of_a_run_made_here_is_a_users_own(
    left: Left, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe on this machine names it; a password is taken from there, never from the store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    own = tmp_path / "runs" / "own"
    own.mkdir(parents=True)
    (own / "recipe.yaml").write_text(yaml.safe_dump({"tracking": {"uri": database, "experiment": "e"}}))
    (own / "tracking.jsonl").write_text(json.dumps({**START, "name": "own"}))
    left()
    assert _sync(tmp_path) == [] and sorted(_artifacts(database)) == ["own", "run"]
    monkeypatch.setenv("SECRET_URI", "http://me:secret@server")
    (own / "recipe.yaml").write_text(yaml.safe_dump({"tracking": {"uri": "${oc.env:SECRET_URI}"}}))
    folder = left("third", {"uri": "http://me:***@server"})
    assert upkeep._their_tracker(folder, None, [own]).uri == "http://me:secret@server"


def test_a_run_of_another_machine_does_not_go_on_with_a_run_of_somebody_else(
    left: Left, database: str, tmp_path: Path
) -> None:
    """``tracking.json`` may name any MLflow run; only an unfinished one of the same name is continued."""
    client = MlflowClient(database)
    experiment = client.create_experiment("e", artifact_location=str(tmp_path / "art"))
    other = client.create_run(experiment, run_name="other").info.run_id
    done = client.create_run(experiment, run_name="run").info.run_id
    client.set_terminated(done, "FINISHED")
    half = client.create_run(experiment, run_name="run").info.run_id
    for name, run_id in (("a", other), ("b", done), ("c", half), ("d", "no-id")):
        state = json.dumps({"run_id": run_id, "sent": 1})
        left(name, lines=[{"kind": "tags", "time": 1, "values": {"here": name}}], files={"tracking.json": state})
    assert len(_sync(tmp_path)) == 3
    assert [client.get_run(one).data.tags.get("here") for one in (other, done, half)] == [None, None, "c"]


def test_hostile_state_and_names_in_a_shared_store(left: Left, database: str, tmp_path: Path) -> None:
    """State that is no mapping, or 5,000 brackets; folders whose names are none of a run; the others are sent."""
    for name, state in (("a", "[" * 5000), ("b", "[1]"), ("c", '{"sent": -7}'), ("d", '{"sent": "x"}')):
        left(name, files={"tracking.json": state})
    left("-rf", lines=[_artifact("x")])
    left("new\nline")
    refused = _sync(tmp_path)
    assert len(refused) == 2 and all("expected the name of a run's folder" in one for one in refused)
    assert all("\n" not in one for one in refused)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a/..", "..", "a\\..\\x", "a\0b"])
def test_names_that_lead_out_of_a_place_are_refused(name: str, tmp_path: Path) -> None:
    """By every verb, near and far; nothing outside is read, written or removed."""
    with pytest.raises(StorageError, match="leads out of its folder"):
        inside(name)
    (tmp_path / "x").write_text("outside")
    x, y = tmp_path / "x", tmp_path / "y"
    for place in (place_at(str(tmp_path / "place")), place_at(f"memory://hostile{tmp_path}/place")):
        for verb, arguments in (
            (place.read, (name,)),
            (place.write, (name, b"")),
            (place.create, (name, b"")),
            (place.fetch, (name, y)),
            (place.put, (x, name)),
            (place.remove, (name,)),
            (place.clear, (name,)),
            (place.info, (name,)),
        ):
            with pytest.raises(StorageError, match="leads out of its folder"):
                verb(*arguments)
    assert (tmp_path / "x").read_text() == "outside" and not (tmp_path / "y").exists()


def test_names_in_a_listing_that_lead_elsewhere_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bucket may hold the key ``unsent/../../x``: it is named, and not fetched."""
    place = place_at(f"memory://listing{tmp_path.name}")
    place.write("unsent/run/good", b"x")
    found = {
        f"{place.root}/unsent/{name}": {"type": "file", "size": 1} for name in ("run/good", "../../x", "a/../../b")
    }
    monkeypatch.setattr(place.system, "find", lambda *_, **__: found)
    assert [one.name for one in place.files("unsent")] == ["unsent/run/good"]
    assert caplog.text.count("leads out of its folder") == 2


@pytest.mark.parametrize("entry", ['{"object": "../../x"}', '{"object": "/etc/x"}', '{"object": 7}', "[" * 5000, "[]"])
def test_a_stores_entry_names_an_object_of_the_store(entry: str, tmp_path: Path) -> None:
    """What an entry calls its object becomes a file's name; a hostile entry is none at all."""
    (tmp_path / "store" / "keys").mkdir(parents=True)
    (tmp_path / "store" / "keys" / "k.json").write_text(entry)
    store = Store(tmp_path / "store")
    assert store.find("k") is None
    with pytest.raises(StorageError, match="leads out"):
        store.object_path("../../x")
    upkeep.show_store(str(tmp_path / "store"))


def test_an_entry_that_names_itself_ends(tmp_path: Path) -> None:
    """A chain of entries that turns in a circle is walked once."""
    from tasks.upkeep import eviction

    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "a.json").write_text(json.dumps({"object": "o", "input": "a"}))
    found = eviction.inventory(place_at(str(tmp_path)))
    assert list(found.chain("a")) == ["a"]


def test_lines_that_a_tracker_writes_are_lines_that_may_be_sent(tmp_path: Path) -> None:
    """The check knows every kind of line, and numbers that are none."""
    folder = tmp_path / "run"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "a b.svg").write_text("x")
    tracker = Tracker(str(folder), "http://127.0.0.1:9", "e")
    tracker.start("digits-0.25 [1]", {"a": "ü"}, {"folder": "/x/y", "run_id": None})
    tracker.params({"a": {"b": [1, None]}})
    tracker.metrics({"a": float("nan"), "b": float("inf")}, 3)
    tracker.curve("c", [{"epoch": 1, "loss": 2}])
    tracker.tags({"x": "y\n"})
    tracker.artifact(folder / "figures" / "a b.svg", "figures")
    tracker.finish()
    found = [line for _, line in journal.lines(folder / "tracking.jsonl")]
    assert len(found) == 7 and not [one for one in found if isinstance(one, str)]
    with pytest.raises(InputError, match="no file of the run's own folder"):
        journal.own_file(folder, "figures")


def test_a_line_that_never_ends_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer line than any is passed over; those after it keep their numbers."""
    monkeypatch.setattr(journal, "MOST_BYTES", 100)
    path = tmp_path / "tracking.jsonl"
    path.write_text("x" * 1000 + "\n" + json.dumps(FINISH) + "\n")
    found = list(journal.lines(path))
    assert found[0] == (0, "more than 100 bytes") and found[1] == (1, FINISH)
    assert list(journal.lines(path, 1)) == found[1:]
