"""What is said of a log: its span, its users, and why it is split as it is."""

import json
import warnings

import pytest
from conftest import every_context_hash, every_feature

from adcascade.records.clicks import read_clicks
from adcascade.records.errors import InputError
from adcascade.records.joined import read_joined
from adcascade.records.log_summary import span_line, summary_lines, warning_lines
from adcascade.terminal.log_display import show_log_read
from adcascade.towers.training.split import split_log
from ranking.data.dataset import load_dataset

DAY = 86_400
T = 1_767_225_600  # 2026-01-01
ROW = {"request_id": "r", "ad_id": "a", "clicks": 0, "impressions": 1}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_at(times, users=("u1", "u2")):
    return [
        {**ROW, "request_id": f"r{row}", "user_id": users[row % len(users)], "clicks": row % 2, "timestamp": time}
        for row, time in enumerate(times)
    ]


def read(tmp_path, rows, **options):
    return read_clicks(write(tmp_path / "clicks.jsonl", rows), None, **options)


def test_the_span_is_told_with_rows_without_a_time(tmp_path):
    log, _ = read(tmp_path, [*rows_at([T, T + 2 * DAY]), ROW])
    assert span_line(log) == (
        "The log has 3 rows, 2026-01-01 00:00 to 2026-01-03 00:00 UTC (3 days); 1 of 3 rows are without a timestamp."
    )
    assert span_line(read(tmp_path, rows_at([T]))[0]).endswith("(1 day).")
    assert span_line(read(tmp_path, [ROW])[0]) == "The log has 1 rows; 1 of 1 rows are without a timestamp."


def test_users_of_the_log_are_counted_in_the_users_file(tmp_path):
    log, report = read(tmp_path, rows_at([T] * 40, [f"u{number}" for number in range(20)]))
    known = {f"u{number}" for number in range(15)}
    assert "15 of 20 users of the log (75% of rows) are in the users file." in summary_lines(log, report, known)
    assert warning_lines(log, known) == []
    (warning,) = warning_lines(log, {"10"})
    assert "none of the log's users is in the users file (there '10', in the log 'u0')" in warning
    assert not any("users file" in line for line in summary_lines(log, report, None))


def test_rows_of_nobody_are_counted(tmp_path):
    log, report = read(tmp_path, [*rows_at([T] * 4), {**ROW, "user_id": "NULL"}])
    assert "1 of 5 rows are without a user_id." in summary_lines(log, report, None)


def test_a_user_who_holds_more_than_a_tenth_of_the_rows_is_named(tmp_path):
    users = ["unknown", *(f"u{number}" for number in range(17))]
    log, _ = read(tmp_path, rows_at([T] * 36, [*users, *users]))
    assert warning_lines(log, None) == []
    log, _ = read(
        tmp_path, rows_at([T] * 20, ["unknown", *(f"u{number}" for number in range(17)), "unknown", "unknown"])
    )
    (warning,) = warning_lines(log, None)
    assert "user 'unknown' has 3 of 20 rows" in warning


def test_columns_that_tell_rows_apart_and_nothing_else_are_named(tmp_path):
    rows = rows_at([T] * 40, [f"u{number}" for number in range(20)])
    told = [
        {**row, "index": number, "event": f"{number:x}", "page_text": f"page {number}", "hour": number // 4}
        for number, row in enumerate(rows)
    ]
    (warning,) = warning_lines(read(tmp_path, told)[0], None)
    assert warning.startswith("Warning: nearly every row has a value of its own of 'event', 'index'")
    assert warning_lines(read(tmp_path, told[:19])[0].take(slice(0, 0)), None) == []


def test_what_owners_wrote_is_printed_as_it_is(tmp_path, capsys):
    log, report = read(tmp_path, [*rows_at([T] * 99), {**ROW, "timestamp": "[/50%] [bold]"}])
    show_log_read(log, report, {"[/x]"}, tmp_path / "rejected.jsonl")
    said = " ".join(capsys.readouterr().err.split())
    assert "[/50%] [bold]" in said
    assert "'[/x]'" in said
    assert "rejected.jsonl" in said


def files_of(tmp_path, rows):
    ads = write(tmp_path / "ads.jsonl", [{"ad_id": "a", "title": "An ad"}, {"ad_id": "bad"}])
    return ads, write(tmp_path / "clicks.jsonl", rows)


def test_a_log_of_one_date_is_split_by_request_and_says_so(tmp_path):
    data = load_dataset(*files_of(tmp_path, rows_at([20260101] * 60)), None)
    assert data.split_by == "request"
    assert "Split by request, not by time: all 60 rows are of 2026-01-01 00:00 UTC." in data.report.notes
    with pytest.raises(InputError, match="rows of several times: all 60 rows are of 2026-01-01"):
        load_dataset(*files_of(tmp_path, rows_at([20260101] * 60)), None, split="time")


def test_a_log_of_two_dates_is_split_by_request_and_says_so(tmp_path):
    data = load_dataset(*files_of(tmp_path, rows_at([20260101] * 3 + [20260102] * 57)), None)
    assert data.split_by == "request"
    assert "Split by request, not by time: too many of the 60 rows share one of 2 times." in data.report.notes


def test_rows_without_a_time_change_no_split_in_silence(tmp_path):
    few = load_dataset(*files_of(tmp_path, [*rows_at(range(T, T + 199)), ROW]), None)
    assert (few.split_by, few.report.rejected, len(few.log)) == ("time", {"missing_time": 1}, 199)
    many = load_dataset(*files_of(tmp_path, [*rows_at(range(T, T + 90)), *[ROW] * 10]), None)
    assert many.split_by == "request"
    assert "Split by request, not by time: 10 of 100 rows are without a timestamp." in many.report.notes
    with pytest.raises(InputError, match="10 of 100 rows are without a timestamp"):
        load_dataset(*files_of(tmp_path, [*rows_at(range(T, T + 90)), *[ROW] * 10]), None, split="time")


def test_no_number_overflows_for_rows_without_a_time(tmp_path):
    rows = [*rows_at(range(T, T + 90)), *rows_at([None] * 10)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset(*files_of(tmp_path, rows), None)
        assert every_context_hash(data).shape == (100, 24)
        assert len(every_feature(data, 0.5)) == 100


def test_towers_say_why_a_log_teaches_them_nothing(tmp_path):
    log, _ = read(tmp_path, rows_at([T] * 50))
    with pytest.raises(InputError, match="over time, but all 50 rows are of 2026-01-01 00:00 UTC"):
        split_log(log, "time", 0)
    log, _ = read(tmp_path, [*rows_at([T] * 5), ROW])
    with pytest.raises(InputError, match="1 of 6 rows are without a timestamp"):
        split_log(log, "time", 0)


def test_what_was_left_out_of_ads_and_users_is_said(tmp_path):
    ads, clicks = files_of(tmp_path, rows_at([T] * 60))
    users = write(tmp_path / "users.jsonl", [*({"user_id": f"u{number}"} for number in range(150)), {"user_id": ""}])
    notes = read_joined(ads, clicks, users).report.notes
    assert "1 empty_text, such as ads.jsonl, row 2" in notes[0]
    assert "1 of 151 users were left out, such as users.jsonl, row 151: there is no user_id" in notes[1]


def test_values_that_a_model_does_not_read_are_known_by_name(tmp_path):
    wide = {f"f{number:02d}": number for number in range(30)}
    ads, clicks = files_of(tmp_path, [{**row, **wide} for row in rows_at(range(T, T + 60))])
    users = write(tmp_path / "users.jsonl", [{"user_id": "u1", "age": 5}])
    data = load_dataset(ads, clicks, users)
    assert data.words_of_context[data.context_words :] == [*(f"f{number}" for number in range(22, 30)), "user age"]
    wider = data.reading(40)
    assert every_context_hash(wider).shape == (60, 40)
    assert (every_context_hash(wider)[:, :24] == every_context_hash(data)).all()
    assert (every_context_hash(wider)[:, 24:32] > 0).all()
