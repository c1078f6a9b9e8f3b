"""The loop that all engines with workers share, with workers that exist only here."""

from collections import Counter

import pytest

from pipelines.bulk.crew import WorkerDied, run_crew
from pipelines.bulk.encoding import Encoding
from pipelines.bulk.tasks import Ready, ShardWork, Survived, Task, TasksInHand, WantsMore, load_codec
from pipelines.format.layout import Layout
from pipelines.format.ledger import Receipt
from tokenizer.errors import InputError


class Script:
    """Hires workers that answer at once. `dies(shard, attempt)` is how one ends that is given a shard: None when it
    lives, "" when its machine went. `lives` says whether the n-th worker lives to be ready."""

    def __init__(self, dies=lambda shard, attempt: None, lives=lambda number: True, deadly=frozenset(), room=99):
        self.dies, self.lives, self.deadly, self.room = dies, lives, deadly, room
        self.hired, self.stopped, self.attempts, self.most = 0, 0, Counter(), 0
        self.given = []

    def hire(self):
        self.hired += 1
        return Scripted(self, self.hired)

    def heard(self, workers, seconds):
        self.most = max(self.most, len(workers))
        placed = workers[: self.room]  # the others wait for ever for a machine
        assert placed or seconds is not None
        return placed[-1:]


class Scripted(TasksInHand):
    def __init__(self, script, number):
        super().__init__()
        self.script, self.number = script, number
        self.how, self.is_ready, self.has_asked = None, False, False

    def take(self, tasks):
        assert self.has_asked or tasks[0].is_trial
        self.has_asked = False
        self.tasks += tasks
        self.script.given.append([task.shard for task in self.tasks])
        for task in tasks:
            self.script.attempts[task.shard] += not task.is_trial

    def event(self):
        event = self.next_event()
        if event is not None:
            self.count(event)
        return event

    def next_event(self):
        if not self.is_ready:
            self.is_ready = True
            self.how = None if self.script.lives(self.number) else "a bad start"
            return Ready() if self.how is None else None
        if not self.has_asked and (not self.tasks or not self.tasks[0].is_trial):  # before it runs out
            self.has_asked = True
            return WantsMore()
        task = self.tasks[0]
        touched = set(range(4)) - set(task.left_out)
        if task.is_trial:
            self.how = "SIGSEGV" if touched & self.script.deadly else None
            return Survived(task) if self.how is None else None
        for one in self.tasks:  # any of them may be being read
            self.how = self.script.dies(one.shard, self.script.attempts[one.shard])
            if self.script.deadly and not (set(range(4)) - set(one.left_out)) & self.script.deadly:
                self.how = None
            if self.how is not None:
                return None
        return Receipt(task.shard, {}, len(touched), 0, 0.0, ())

    def ending(self):
        return self.how or None

    def stop(self):
        self.script.stopped += 1


@pytest.fixture
def go(monkeypatch, tmp_path):
    monkeypatch.setattr("pipelines.bulk.crew.shard_cuts", lambda layout, shard: [None] * 4)

    def go(script, shards=5, size=3, together=1, claim=list):
        events = []
        groups = [tuple(range(shard - shard % together, shards))[:together] for shard in range(shards)]
        tasks = [Task(shard, together=group) for shard, group in enumerate(groups)]
        run_crew(script, Layout(tmp_path), tasks, events.append, size, claim)
        return [event for event in events if isinstance(event, Receipt)]

    return go


def test_what_others_have_claimed_is_left_to_them(go):
    """And what a dead worker was given stays claimed."""
    asked, first = [], Script(dies=lambda shard, attempt: "SIGSEGV" if (shard, attempt) == (2, 1) else None)

    def claim(bundle):
        asked.append([task.shard for task in bundle])
        return [task for task in bundle if task.shard not in (1, 4, 5, 8)]

    done = go(first, shards=9, size=2, together=2, claim=claim)
    assert sorted(receipt.shard for receipt in done) == [0, 2, 3, 6, 7]
    assert asked.count([4, 5]) == 1 and [2] in asked  # by itself, after the death


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


def test_shards_that_share_batches_are_given_together_and_ahead(go):
    script = Script()
    assert len(go(script, shards=9, size=1, together=4)) == 9
    assert script.given[0] == [0, 1, 2, 3] and script.given[1] == [*range(8)]  # the second before the first is done


def test_after_a_death_each_shard_is_by_itself(go):
    """Reading ahead, a worker may die of a shard whose turn has not come."""
    script = Script(dies=lambda shard, attempt: "SIGSEGV" if shard == 6 else None, deadly=frozenset({1}))
    receipts = {receipt.shard: receipt.cuts for receipt in go(script, shards=9, size=1, together=4)}
    assert receipts == {**dict.fromkeys(range(9), 4), 6: 3}
    before = [given for given in script.given if len(given) > 1]
    assert any(6 in given for given in before) and script.given[: len(before)] == before
    assert set(before[-1]) <= {shard for given in script.given[len(before) :] for shard in given}


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
