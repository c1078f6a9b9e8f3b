"""The loop that all engines with workers share, with workers that exist only here."""

from collections import Counter

import pytest

from pipelines.bulk.crew import WorkerDied, run_crew
from pipelines.bulk.encoding import Encoding
from pipelines.bulk.tasks import Progress, Ready, ShardWork, Survived, Task, load_codec
from pipelines.format.layout import Layout
from pipelines.format.ledger import Receipt
from tokenizer.errors import InputError


class Script:
    """Hires workers that answer at once. `dies(shard, attempt)` is how one ends that is given a shard: None when it
    lives, "" when its machine went. `lives` says whether the n-th worker lives to be ready."""

    def __init__(self, dies=lambda shard, attempt: None, lives=lambda number: True, deadly=frozenset(), room=99):
        self.dies, self.lives, self.deadly, self.room = dies, lives, deadly, room
        self.hired, self.stopped, self.attempts, self.most = 0, 0, Counter(), 0

    def hire(self):
        self.hired += 1
        return Scripted(self, self.hired)

    def heard(self, workers, seconds):
        self.most = max(self.most, len(workers))
        placed = workers[: self.room]  # the others wait for ever for a machine
        assert placed or seconds is not None
        return placed[-1:]


class Scripted:
    def __init__(self, script, number):
        self.script, self.task, self.reported, self.number = script, None, 0.0, number
        self.how, self.is_ready = None, False

    def take(self, task):
        self.task = task
        if not task.is_trial:
            self.script.attempts[task.shard] += 1

    def event(self):
        if not self.is_ready:
            self.is_ready = True
            self.how = None if self.script.lives(self.number) else "a bad start"
            return Ready() if self.how is None else None
        touched = set(range(4)) - set(self.task.left_out)
        if self.task.is_trial:
            self.how = "SIGSEGV" if touched & self.script.deadly else None
            return Survived(self.task) if self.how is None else None
        self.how = self.script.dies(self.task.shard, self.script.attempts[self.task.shard])
        if self.script.deadly and not touched & self.script.deadly:
            self.how = None
        return Receipt(self.task.shard, {}, len(touched), 0, 0.0, ()) if self.how is None else None

    def ending(self):
        return self.how or None

    def stop(self):
        self.script.stopped += 1


@pytest.fixture
def go(monkeypatch, tmp_path):
    monkeypatch.setattr("pipelines.bulk.crew.shard_cuts", lambda layout, shard: [None] * 4)

    def go(script, shards=5, size=3):
        events = []
        run_crew(script, Layout(tmp_path), [Task(shard) for shard in range(shards)], events.append, size)
        return [event for event in events if not isinstance(event, (Ready, Progress))]

    return go


def test_every_shard_once_and_nobody_is_kept_for_nothing(go):
    script = Script()
    assert sorted(receipt.shard for receipt in go(script)) == [0, 1, 2, 3, 4]
    assert script.hired <= 5 and script.stopped == script.hired and script.most == 3


def test_workers_that_never_get_a_machine_hold_nobody_up(go):
    assert len(go(Script(room=1))) == 5


def test_lost_machines_are_not_held_against_a_shard(go):
    script = Script(dies=lambda shard, attempt: "" if shard == 2 and attempt < 6 else None)
    assert len(go(script)) == 5 and script.attempts[2] == 6


def test_what_kills_is_found_and_left_out(go):
    script = Script(dies=lambda shard, attempt: "SIGSEGV" if shard == 2 else None, deadly=frozenset({1, 3}))
    receipts = {receipt.shard: receipt.cuts for receipt in go(script)}
    assert receipts == {0: 4, 1: 4, 2: 2, 3: 4, 4: 4} and script.attempts[2] == 3


def test_what_kills_without_a_guilty_cut_ends_the_run(go):
    script = Script(dies=lambda shard, attempt: "SIGKILL" if shard == 2 else None)
    with pytest.raises(WorkerDied, match=r"shard 2 killed 2 workers \(the last by SIGKILL\)"):
        go(script)
    assert script.hired - script.stopped <= 3  # the dead ones


def test_workers_that_die_before_any_task(go):
    assert len(go(Script(lives=lambda number: number > 2))) == 5
    with pytest.raises(WorkerDied, match="as they load the codec"):
        go(Script(lives=lambda number: False))


def test_a_worker_that_sees_another_out_or_another_codec_says_so(tiny_codec_dir, tmp_path):
    work = ShardWork(tmp_path, str(tiny_codec_dir), "0" * 64, Encoding(), False)
    with pytest.raises(InputError, match=r"does not see the plan there.*memory:// needs --executor inline"):
        load_codec(work)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/plan.json").write_text("{}")
    with pytest.raises(InputError, match=r"finds the fingerprint .*, the run began with 000000000000"):
        load_codec(work)
