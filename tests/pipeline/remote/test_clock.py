"""No purchase is made on the word of this machine's clock, of a list that is cut off, or of a row that is gone."""

import sqlite3
import time
from dataclasses import replace

import pytest
from multitalk_pack.pipeline.errors import RemoteError
from multitalk_pack.pipeline.remote import answers, client
from multitalk_pack.pipeline.remote.context import Caps
from multitalk_pack.pipeline.remote.ledger import Ledger, State
from multitalk_pack.pipeline.remote.purchase import DOUBT_S
from support.remote import buy, newest

LIST = "^GET platform"


def lose_answer(fal, context, kind="drop_after"):
    """A POST whose answer is lost; `drop_after` has reached fal, `drop_before` has not."""
    fal.fault("^POST queue", kind)
    with pytest.raises(answers.JobUncertain):
        buy(context)


@pytest.fixture
def shift_clock(monkeypatch):
    """Sets this machine's clock ahead by so many seconds."""
    real_time = time.time

    def shift(seconds):
        monkeypatch.setattr(time, "time", lambda: real_time() + seconds)

    return shift


@pytest.mark.parametrize("ahead_s", [150, -150, 40 * 24 * 3600, -40 * 24 * 3600])
def test_a_job_is_found_whatever_this_machines_clock_says(fal, context, shift_clock, ahead_s):
    shift_clock(ahead_s)
    fal.clock_s = -ahead_s
    lose_answer(fal, context)
    shift_clock(0)
    fal.clock_s = 0.0
    assert buy(context).request_id in fal.jobs
    assert len(fal.submits) == 1


@pytest.mark.parametrize("later_s", [601, 40 * 24 * 3600])
def test_a_jump_of_this_machines_clock_buys_nothing(fal, context, shift_clock, later_s):
    lose_answer(fal, context, "drop_before")
    shift_clock(later_s)
    fal.clock_s = -later_s
    for _ in range(2):
        with pytest.raises(answers.JobUncertain, match=r"does not list it yet.*`always new`"):
            buy(context)
    assert len(fal.submits) == 1


def test_only_fals_own_clock_says_that_a_job_was_never_there(fal, context):
    lose_answer(fal, context, "drop_before")
    fal.clock_s = DOUBT_S - 60
    with pytest.raises(answers.JobUncertain):
        buy(context)
    fal.clock_s = None
    with pytest.raises(answers.JobUncertain):
        buy(context)
    fal.clock_s = DOUBT_S + 60
    buy(context)
    assert len(fal.jobs) == 1 and len(fal.submits) == 2


def test_a_job_that_was_sent_without_a_date_of_fals_is_never_bought_again_by_itself(fal, context):
    fal.clock_s = None
    lose_answer(fal, context, "drop_before")
    fal.clock_s = 90 * 24 * 3600.0
    with pytest.raises(answers.JobUncertain, match="not complete"):
        buy(context)
    assert len(fal.submits) == 1


def test_a_job_that_was_sent_without_a_date_of_fals_is_found(fal, context):
    fal.clock_s = None
    lose_answer(fal, context)
    assert buy(context).request_id in fal.jobs and len(fal.submits) == 1


def test_a_list_that_cannot_be_had_buys_nothing(fal, context):
    lose_answer(fal, context)
    fal.clock_s = DOUBT_S + 60
    fal.fault(LIST, "status", times=9, status=403)
    with pytest.raises(answers.JobUncertain):
        buy(context)
    assert len(fal.submits) == 1


OTHERS = [{"request_id": f"other-{number}", "json_input": {"prompt": "x"}} for number in range(60)]
CUT_LISTS = {
    "more pages than are read": {"other_jobs": OTHERS, "page_size": 2},
    "a job without its inputs": {"other_jobs": [{"request_id": "other", "json_input": None}]},
    "no job at all": {"other_jobs": ["nonsense"]},
}


@pytest.mark.parametrize("cut", CUT_LISTS.values(), ids=CUT_LISTS)
def test_a_list_that_is_cut_off_buys_nothing(fal, context, cut):
    lose_answer(fal, context, "drop_before")
    vars(fal).update(cut, clock_s=DOUBT_S + 60)
    with pytest.raises(answers.JobUncertain, match="not complete"):
        buy(context)
    assert len(fal.submits) == 1


def test_a_job_on_a_later_page_is_found(fal, context):
    lose_answer(fal, context)
    fal.other_jobs, fal.page_size = OTHERS, 10
    assert buy(context).request_id in fal.jobs and len(fal.submits) == 1


@pytest.mark.parametrize("num_jobs", [1, 30])
def test_jobs_with_files_in_their_inputs_do_not_hide_ours(fal, context, num_jobs):
    lose_answer(fal, context)
    inputs = {"image_url": "data:image/png;base64," + "A" * 1_500_000}
    fal.other_jobs = [{"request_id": f"large-{number}", "json_input": inputs} for number in range(num_jobs)]
    assert buy(context).request_id in fal.jobs and len(fal.submits) == 1


def test_a_page_that_is_too_large_is_asked_for_in_smaller_ones(fal, context, monkeypatch):
    monkeypatch.setattr(client, "MAX_LIST_BYTES", 20_000)
    lose_answer(fal, context)
    inputs = {"image_url": "A" * 10_000}
    fal.other_jobs = [{"request_id": f"large-{number}", "json_input": inputs} for number in range(5)]
    assert buy(context).request_id in fal.jobs and len(fal.submits) == 1


def test_a_job_that_is_too_large_to_be_read_buys_nothing(fal, context, monkeypatch):
    monkeypatch.setattr(client, "MAX_LIST_BYTES", 5000)
    lose_answer(fal, context, "drop_before")
    fal.other_jobs, fal.clock_s = [{"request_id": "large", "json_input": {"image_url": "A" * 10_000}}], DOUBT_S + 60
    with pytest.raises(answers.JobUncertain, match="too large"):
        buy(context)
    assert len(fal.submits) == 1


def delete_rows(context):
    with sqlite3.connect(context.private / "fal_ledger.sqlite3") as database:
        database.execute("DELETE FROM jobs")


def test_a_row_that_is_deleted_while_it_is_sent_is_written_anew(fal, context, monkeypatch):
    submit = client.FalClient.submit

    def submit_and_delete(self, arguments, wait):
        request_id = submit(self, arguments, wait)
        delete_rows(context)
        return request_id

    monkeypatch.setattr(client.FalClient, "submit", submit_and_delete)
    first = buy(context)
    assert newest(context).state is State.FINISHED and newest(context).request_id == first.request_id
    assert buy(context).request_id == first.request_id and len(fal.submits) == 1


@pytest.mark.parametrize("later_s", [31 * 24 * 3600, 400 * 24 * 3600])
def test_no_clock_has_a_purchase_forgotten(fal, context, shift_clock, later_s):
    first = buy(context)
    shift_clock(later_s)
    num_calls = len(fal.log)
    assert buy(context).path == first.path and len(fal.log) == num_calls


def test_the_days_cap_goes_by_fals_clock(fal, context, shift_clock):
    fal.units = "10"  # fal bills $2.00
    context = replace(context, caps=Caps(day_usd=3))
    buy(context)
    shift_clock(25 * 3600)
    fal.clock_s = -25 * 3600.0
    with pytest.raises(RemoteError, match=r"\$2\.00 went to fal in the last 24 hours"):
        buy(context, seed=43)
    assert len(fal.submits) == 1
    fal.clock_s = 0.0
    buy(context, seed=43)
    assert len(fal.submits) == 2


def test_an_upload_of_the_future_is_sent_again(fal, context, shift_clock):
    shift_clock(3600)
    Ledger(context.private).remember_upload("x", "https://v3.fal.media/x")
    shift_clock(0)
    assert Ledger(context.private).uploaded("x") is None
