"""The ledger: older versions are taken over; what cannot be read or written is said in a sentence, with every id."""

import os
import sqlite3
import threading
from dataclasses import replace

import pytest
from multitalk_pack.pipeline.errors import RemoteError
from multitalk_pack.pipeline.remote import client, ledger
from multitalk_pack.pipeline.remote.ledger import Ledger, State
from support.remote import buy, make_request, newest

# As the first release wrote it.
FIRST_SCHEMA = """
CREATE TABLE jobs (
    job_key TEXT, attempt INTEGER, endpoint TEXT, state TEXT, request_id TEXT, urls TEXT, seed INTEGER,
    created REAL, updated REAL, usd REAL, units REAL, path TEXT, PRIMARY KEY (job_key, attempt));
CREATE TABLE uploads (sha256 TEXT PRIMARY KEY, url TEXT, created REAL);
"""


def edit(context, *statements):
    with sqlite3.connect(context.private / "fal_ledger.sqlite3") as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def test_a_ledger_of_the_first_release_is_taken_over(fal, context):
    video = buy(context)
    row = newest(context)
    path = context.private / "fal_ledger.sqlite3"
    path.unlink()
    with sqlite3.connect(path) as database:
        database.executescript(FIRST_SCHEMA)
        values = (row.job_key, 1, row.endpoint, "done", row.request_id, "{}", 42, 1e9, 1e9, 1.45, 7.25, str(row.path))
        database.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * 12)})", values)
    database.close()
    num_calls = len(fal.log)
    assert buy(context).path == video.path and len(fal.log) == num_calls
    video.path.write_bytes(b"")
    assert buy(context).path.read_bytes() == fal.video and len(fal.submits) == 1


EDITS = {
    "a state": "UPDATE jobs SET state = 'bought'",
    "no state": "UPDATE jobs SET state = NULL",
    "an address": "UPDATE jobs SET urls = 'none'",
    "a list of addresses": "UPDATE jobs SET urls = '[1]'",
    "an address that is a number": """UPDATE jobs SET urls = '{"image_url": 1}'""",
    "no addresses": "UPDATE jobs SET urls = NULL",
    "a seed": "UPDATE jobs SET seed = 'many'",
    "no seed": "UPDATE jobs SET seed = NULL",
    "dollars": "UPDATE jobs SET usd = 'much'",
    "no dollars": "UPDATE jobs SET usd = NULL",
    "units": "UPDATE jobs SET units = 'some'",
    "a date": "UPDATE jobs SET created = 'yesterday', server_time = 9e99",
    "bytes": "UPDATE jobs SET endpoint = x'ff00'",
    "text that is none": "UPDATE jobs SET state = CAST(x'ff' AS TEXT)",
    "a column less": "ALTER TABLE jobs DROP COLUMN units",
    "no table": "DROP TABLE jobs",
    "no files": "DROP TABLE files",
    "a newer version": "PRAGMA user_version = 99",
}


@pytest.mark.parametrize("statement", EDITS.values(), ids=EDITS)
def test_a_ledger_that_was_edited_is_said_in_a_sentence(fal, context, statement):
    buy(context)
    edit(context, statement)
    num_calls = len(fal.log)
    with pytest.raises(RemoteError, match=r"of another version, or was edited by hand .*move it away"):
        buy(context)
    assert len(fal.log) == num_calls


def test_a_ledger_that_is_none_is_said_in_a_sentence(fal, context):
    context.private.mkdir(parents=True)
    (context.private / "fal_ledger.sqlite3").write_bytes(b"my notes" * 1000)
    with pytest.raises(RemoteError, match="of another version, or was edited by hand"):
        buy(context)
    assert fal.log == []


def test_words_in_the_ledger_are_no_fault_of_the_disk(fal, context):
    buy(context)
    edit(context, "UPDATE jobs SET state = 'full'")
    with pytest.raises(RemoteError, match=r"of another version, or was edited by hand .*move it away"):
        buy(context)


def test_a_column_that_must_be_filled_is_another_version_and_no_other_buyer(fal, context):
    buy(context)
    edit(
        context, "DROP TABLE jobs",
        "CREATE TABLE jobs (job_key TEXT, attempt INTEGER, endpoint TEXT, state TEXT, request_id TEXT, urls TEXT, "
        "seed INTEGER, created REAL, updated REAL, usd REAL, units REAL, path TEXT, content_key TEXT, "
        "server_time REAL, reason TEXT, owner TEXT NOT NULL, PRIMARY KEY (job_key, attempt))",
    )  # fmt: skip
    with pytest.raises(RemoteError, match=r"of another version, or was edited by hand .*move it away"):
        buy(context)
    assert len(fal.submits) == 1


def test_a_column_more_is_none_of_our_business(fal, context):
    buy(context)
    edit(context, "ALTER TABLE jobs ADD COLUMN remark TEXT")
    num_calls = len(fal.log)
    buy(context)
    assert len(fal.log) == num_calls
    buy(context, seed=43)
    assert len(fal.submits) == 2


def lock_during_submit(context, monkeypatch):
    """Has another program hold the ledger while the POST is answered."""
    monkeypatch.setattr(ledger, "LOCK_S", 0.1)
    submit, lock = client.FalClient.submit, []

    def submit_and_lock(self, arguments, wait):
        request_id = submit(self, arguments, wait)
        lock.append(sqlite3.connect(context.private / "fal_ledger.sqlite3"))
        lock[0].execute("BEGIN EXCLUSIVE")
        return request_id

    monkeypatch.setattr(client.FalClient, "submit", submit_and_lock)
    return lock


def test_an_id_that_cannot_be_written_is_in_the_message(fal, context, monkeypatch, caplog):
    caplog.set_level("INFO", "multitalk_pack")
    lock = lock_during_submit(context, monkeypatch)
    with pytest.raises(RemoteError) as failure:
        buy(context)
    (request_id,) = fal.jobs
    assert f"as request {request_id}" in str(failure.value) and request_id in caplog.text
    assert "Collect" in str(failure.value) and "locked" in str(failure.value)
    lock[0].close()
    monkeypatch.undo()


def test_a_job_whose_id_could_not_be_written_is_found_again(fal, context, monkeypatch):
    with monkeypatch.context() as patch:
        lock = lock_during_submit(context, patch)
        with pytest.raises(RemoteError):
            buy(context)
        lock[0].close()
    assert newest(context).state is State.SUBMITTING
    assert buy(context).request_id in fal.jobs and len(fal.submits) == 1


def test_every_error_after_the_purchase_names_the_id(fal, context):
    fal.fault("^GET queue .*/status", "status", status=401, times=99)
    with pytest.raises(RemoteError) as failure:
        buy(context)
    assert next(iter(fal.jobs)) in str(failure.value)


def test_several_processes_may_open_a_new_ledger_at_once(context):
    failures = []

    def open_ledger():
        try:
            Ledger(context.private).newest("x")
        except RemoteError as error:
            failures.append(error)

    threads = [threading.Thread(target=open_ledger) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_an_output_folder_of_any_name_is_kept(fal, context):
    odd = replace(context, output=context.output.with_name(os.fsdecode(b"output\xff")))
    video = buy(odd)
    num_calls = len(fal.log)
    assert buy(odd).path == video.path and len(fal.log) == num_calls
    assert make_request().job_key(context.key.fingerprint) == newest(odd).job_key
