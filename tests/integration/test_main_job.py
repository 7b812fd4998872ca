# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The main job, from outside: what deploy/quickstart shows, fact by fact, on real worker processes and a real daemon.

main_job.run() checks the same claims as it goes; here they are checked again on the facts that it returns, and it is shown to fail when a wrong
state is planted.
"""
import os
import pathlib
import sys

import pytest

from daemon_process import BINARY, REPOSITORY

sys.path.insert(0, str(REPOSITORY / "client/python/examples/tiny_rwkv"))
import main_job  # noqa: E402

RESUMED_FROM = {"D": "B", "E": "C"}


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    lines = []
    work_dir = tmp_path_factory.mktemp("main_job")
    facts = main_job.run(BINARY, work_dir, lines.append)
    facts["lines"] = lines
    facts["daemons_left"] = daemons_on(work_dir)
    return facts


def daemons_on(work_dir):
    """Processes whose command line names this directory."""
    found = []
    for process in pathlib.Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                command = (process / "cmdline").read_text()
            except OSError:
                continue
            if str(work_dir) in command:
                found.append(process.name)
    return found


def oracle_of(story, who):
    return story["oracles"][RESUMED_FROM[who]]["more"] if who in RESUMED_FROM else story["oracles"][who]


def test_the_prompt_has_at_least_4096_tokens_and_only_a_read_them(story):
    n = story["prompt_tokens"]
    assert n >= 4096
    assert story["workers"]["A"]["steps"] == story["workers"]["A"]["position"] == n


def test_seven_workers_are_seven_processes(story):
    pids = {w["pid"] for w in story["workers"].values()} | {os.getpid()}
    assert sorted(story["workers"]) == ["A", "B", "C", "D", "E", "F", "G"]
    assert len(pids) == 8


@pytest.mark.parametrize("who", ["B", "C"])
def test_a_worker_that_matches_the_prefix_computes_only_its_own_tokens(story, who):
    worker, user = story["workers"][who], main_job.USERS[who]
    assert worker["matched_position"] == story["prompt_tokens"]
    assert len(worker["tokens"]) == main_job.WRITTEN
    assert worker["steps"] == len(user.text) + main_job.WRITTEN


@pytest.mark.parametrize("who", ["D", "E"])
def test_a_worker_that_resumes_computes_only_its_own_tokens(story, who):
    worker = story["workers"][who]
    assert worker["resumed_position"] == story["workers"][RESUMED_FROM[who]]["position"]
    assert worker["steps"] == len(worker["tokens"]) == main_job.MORE


@pytest.mark.parametrize("who", ["B", "C", "D", "E"])
def test_a_continuation_equals_that_of_one_process_token_for_token_and_bit_for_bit(story, who):
    worker, oracle = story["workers"][who], oracle_of(story, who)
    assert worker["tokens"] == oracle["tokens"]
    assert worker["position"] == oracle["position"]
    assert worker["first_logits_sha256"] == oracle["first_logits_sha256"]
    assert worker["logits_sha256"] == oracle["logits_sha256"]


def test_the_oracles_read_everything_themselves(story):
    for who, user in main_job.USERS.items():
        assert story["oracles"][who]["steps"] == story["prompt_tokens"] + len(user.text) + main_job.WRITTEN + main_job.MORE


def test_different_seeds_write_different_texts(story):
    assert story["workers"]["B"]["tokens"] != story["workers"]["C"]["tokens"]


def test_a_full_pool_evicts_b_to_the_cold_store_as_the_metrics_show(story):
    seen = story["eviction"]
    states = story["hot_budget_bytes"] // story["state_bytes"]
    assert (seen["tier_before"], seen["tier_after"]) == ("hot", "cold")
    assert seen["after"]["evictions"] - seen["before"]["evictions"] >= main_job.CROWD - states
    assert seen["after"]["spills"] > seen["before"]["spills"]
    assert seen["after"]["cold_bytes"] - seen["before"]["cold_bytes"] >= (main_job.CROWD - states) * story["state_bytes"]
    assert seen["after"]["hot_bytes"] <= story["hot_budget_bytes"]


def test_resuming_b_promotes_its_state_as_the_metrics_show(story):
    assert story["eviction"]["resumed"]["promotions"] > story["eviction"]["after"]["promotions"]
    assert story["workers"]["D"]["resumed_checksum"] == story["workers"]["B"]["checksum"]


@pytest.mark.parametrize("user", ["B", "C"])
@pytest.mark.parametrize("who", ["F", "G"])
def test_what_is_computed_in_place_equals_that_of_one_process_bit_for_bit(story, who, user):
    """Token for token, in all logits, and in the state that is stored."""
    here = story["workers"][who]["users"][f"shared/{who}/{user}"]
    oracle = story["oracles"][user] if who == "F" else story["oracles"][user]["more"]
    for what in ("position", "tokens", "first_logits_sha256", "logits_sha256"):
        assert here[what] == oracle[what], what
    if who == "F":
        assert here["checksum"] == story["workers"][user]["checksum"]
        assert here["loaded_position"] == story["prompt_tokens"]
    else:
        assert here["loaded_position"] == story["workers"]["F"]["users"][f"shared/F/{user}"]["position"]


def test_no_state_travels_for_what_is_computed_in_place(story):
    seen, f, g = story["in_place"], story["workers"]["F"], story["workers"]["G"]
    rows = len(main_job.USERS) * story["state_bytes"]
    assert (seen["arenas"], seen["message_bytes"], f["checkpoints"], g["checkpoints"]) == ("", 0, 4, 2)
    assert (seen["loaded_bytes"], seen["stored_bytes"]) == (2 * rows, 6 * rows)
    assert f["steps"] == sum(len(u.text) + main_job.WRITTEN for u in main_job.USERS.values()) and g["steps"] == 2 * main_job.MORE


def test_where_the_daemon_has_no_arenas_the_same_is_computed_with_get_and_set(tmp_path):
    lines = []
    facts = main_job.run(BINARY, tmp_path, lines.append, flags=["--arena-socket="])
    seen = facts["in_place"]
    assert (seen["arenas"], seen["loaded_bytes"], seen["stored_bytes"]) == ("ARENAS_OFF", 0, 0)
    assert seen["message_bytes"] // facts["state_bytes"] == 2 * (1 + 4 + 1 + 2)  # and their attachments
    assert any(line.startswith("F  ") and "no arenas (ARENAS_OFF)" in line for line in lines)


def test_c_is_durable_before_the_kill_and_the_same_after_it(story):
    before, after = story["before_kill"], story["after_restart"]
    assert before["durable_revision"] == before["revision"] > 0
    assert after["incarnation"] != before["incarnation"]
    for what in ("revision", "position", "checksum"):
        assert after[what] == before[what], what
    assert after["checksum"] == story["workers"]["E"]["resumed_checksum"] == story["workers"]["C"]["checksum"]


def test_the_published_prefix_survives_the_kill(story):
    assert story["after_restart"]["prefix_position"] == story["prompt_tokens"]


def test_a_volatile_state_is_a_miss_with_a_reason_after_the_kill(story):
    assert story["after_restart"]["volatile_miss"] in ("NOT_DURABLE_AT_RESTART", "UNKNOWN_SINCE_RESTART")


@pytest.mark.parametrize("what", ["zero", "one_token_earlier"])
def test_a_wrong_state_gives_other_logits(story, what):
    wrong, right = story["wrong_states"][what], story["oracles"]["B"]
    assert wrong["first_logits_sha256"] != right["first_logits_sha256"]
    assert wrong["logits_sha256"] != right["logits_sha256"]


def test_a_thousand_forks_use_no_bytes(story):
    forks = story["forks"]
    assert forks["count"] == main_job.BRANCHES
    assert forks["bytes_used"] == 0
    assert forks["bytes_of_copies"] == main_job.BRANCHES * story["state_bytes"]


def test_what_was_saved_is_what_was_not_read_again(story):
    workers, n = story["workers"], story["prompt_tokens"]
    assert story["saved"]["tokens"] == 2 * (2 * n + workers["B"]["position"] + workers["C"]["position"])  # and as much again by F and G
    assert story["saved"]["seconds"] == pytest.approx(story["saved"]["tokens"] / n * workers["A"]["reading_s"])


def test_the_report_names_every_worker_and_what_was_saved(story):
    text = "\n".join(story["lines"])
    assert len(story["lines"]) <= 25
    for who in "ABCDEFG":
        assert any(line.startswith(f"{who}  ") for line in story["lines"]), who
    assert f"{story['saved']['tokens']:,} tokens" in text
    assert "\033" not in text


def test_no_process_outlives_the_story(story):
    assert story["daemons_left"] == []


@pytest.mark.parametrize("wrong", ["zero", "one_token_earlier"])
def test_the_story_fails_when_a_wrong_state_is_published_under_the_right_tokens(tmp_path, wrong):
    def plant(pool, a):
        """Republishes the prompt, at its own position, with a state that is not the prompt's."""
        if wrong == "zero":
            bytes_ = bytes(a["state_bytes"])
        else:
            bytes_ = bytes(pool.get(f"{main_job.DOCUMENT}/one-token-earlier", a["position"] - 1).data)
        pool.delete(pool.name("prefix", a["prefix"]))
        pool.set("planted", bytes_, a["position"], layout=a["fingerprint"])
        planted = pool.publish_prefix(a["fingerprint"], main_job.PROMPT.read_bytes(), "planted")
        assert planted.name == a["prefix"] and not planted.already_published

    lines = []
    with pytest.raises(main_job.MainJobError, match="B's continuation is not that of a process that read everything itself"):
        main_job.run(BINARY, tmp_path, lines.append, after_publishing=plant)
    assert not any(line.startswith("B") for line in lines)
    assert daemons_on(tmp_path) == []


def test_a_missing_daemon_is_a_clear_error(tmp_path):
    with pytest.raises(main_job.MainJobError, match="build it first"):
        main_job.run(tmp_path / "statepoold", tmp_path, print)
