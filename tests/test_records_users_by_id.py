"""A users file in memory: what was said is there, users who say nothing take next to nothing, and order stays."""

import json
import random

import pyarrow as pa
import pytest

from adcascade.records.users import UserProfile
from adcascade.records.users_by_id import Users, load_users, who_tell


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_users_are_as_they_were_written(tmp_path):
    ids = [f"u{number}é" for number in range(200)]
    random.Random(0).shuffle(ids)
    rows = [{"user_id": one} | ({"city": f"c{place}"} if place % 3 == 0 else {}) for place, one in enumerate(ids)]
    users, report = load_users(written(tmp_path / "users.jsonl", rows))
    assert isinstance(users, Users)
    assert (list(users), len(users), report.rejected) == (ids, 200, ())
    assert users == {
        one: UserProfile(one, attributes={"city": f"c{place}"} if place % 3 == 0 else {})
        for place, one in enumerate(ids)
    }
    assert list(who_tell(users)) == ids[::3]
    for unknown in ("", "u", "u200é", "zzz", 3, None):
        assert unknown not in users
        assert users.get(unknown) is None
    with pytest.raises(KeyError):
        users["u"]
    asked = pa.array([ids[5], "u", ids[3]], pa.large_string())
    assert users.among(asked).tolist() == [True, False, True]
    assert who_tell({"a": UserProfile("a")}) == {"a": UserProfile("a")}


def test_of_an_id_that_is_there_more_than_once_the_first_row_stands(tmp_path):
    plain, told = {"user_id": "a"}, {"user_id": "a", "age": 3}
    others = [{"user_id": f"u{number}"} for number in range(3)]
    for rows, rejected in (
        ([plain, plain], []),
        ([told, told], []),
        ([plain, told, plain], [2]),
        ([told, plain, {"user_id": True}, told, {"user_id": "a", "age": 4}], [2, 3, 5]),
    ):
        users, report = load_users(written(tmp_path / "users.jsonl", [*rows, *others]), 1)
        assert users["a"].attributes == ({"age": "3"} if rows[0] is told else {})
        assert list(users) == ["a", "u0", "u1", "u2"]
        assert len(report.rejected) == len(rejected)
        assert [said for said in report.rejected if "more than once" not in said] == [
            said for said in report.rejected if "row 3: user_id must be text" in said
        ]


def test_a_file_without_a_user_is_no_users(tmp_path):
    users, report = load_users(written(tmp_path / "users.jsonl", []))
    assert (len(users), list(users), report.rows) == (0, [], 0)
    assert "a" not in users
