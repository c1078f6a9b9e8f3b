"""Member names are reversible, collision-free, and mean the same to every reader."""

import random
import re

from pipelines.format.member_ids import MAX_MEMBER_ID, RECENT, SeenIds, member_id, original_id


def random_id(rng: random.Random) -> str:
    alphabet = "ab._-~%/ \\2FEü話\n" + "\U0001f600" + "\udc80"  # the last: a byte of a file name that is no UTF-8
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 25)))


def test_reversible_and_collision_free():
    rng = random.Random(0)
    ids = {random_id(rng) for _ in range(20_000)}
    members = {}
    for cut_id in ids:
        for occurrence in (1, 2, 11):
            member = member_id(cut_id, occurrence)
            assert re.fullmatch(r"[A-Za-z0-9_%~-]+", member) and not member.startswith("__")
            assert len(member) <= MAX_MEMBER_ID
            assert original_id(member) in (cut_id, None)
            assert members.setdefault(member, (cut_id, occurrence)) == (cut_id, occurrence)


def test_harmless_ids_stay_as_they_are():
    for cut_id in ("librispeech-84-121123-0000", "A_b-3", "x"):
        assert member_id(cut_id) == cut_id


def test_long_ids_are_short_names_that_keep_apart():
    stem = "a long/id." * 40
    members = {member_id(stem + str(i), occurrence) for i in range(100) for occurrence in (1, 2, 12_345_678)}
    assert len(members) == 300
    for member in members:
        assert len(member) <= MAX_MEMBER_ID and original_id(member) is None
        assert re.fullmatch(r"([A-Za-z0-9_-]|%[0-9A-F]{2})*~h[0-9a-f]{32}(~\d+)?", member)  # no half escape


def test_ids_at_the_limit():
    for length in range(MAX_MEMBER_ID - 12, MAX_MEMBER_ID + 3):
        assert original_id(member_id("a" * length)) == ("a" * length if length <= MAX_MEMBER_ID else None)
        assert len(member_id("a" * length, 7)) <= MAX_MEMBER_ID


def test_occurrences_counted_across_many_ids(monkeypatch):
    monkeypatch.setattr("pipelines.format.member_ids.RECENT", 64)  # so that there are many sorted runs
    rng, seen, truth = random.Random(1), SeenIds(), {}
    assert RECENT > 64
    for _ in range(5000):
        cut_id = f"id{rng.randint(0, 3000)}"
        truth[cut_id] = truth.get(cut_id, 0) + 1
        assert seen.occurrence(cut_id) == truth[cut_id]
    assert seen.duplicates == 5000 - len(truth)
