"""What is read out of Triton's log; the texts are Triton 2.51's own."""

from pathlib import Path

from forge.serve.log import failures, lines, part

LOG = """\
I1123 09:04:57.912229 13122 model_lifecycle.cc:472] "loading: broken:1"
E1123 09:04:58.183224 13122 model_lifecycle.cc:642] "failed to load 'broken' version 1: Internal: \
ValueError: empty folder\\n\\nAt:\\n  /repository/broken/1/model.py(4): initialize\\n"
I1123 09:04:58.183224 13122 model_lifecycle.cc:777] "failed to load 'broken'"
E1123 09:04:58.183300 13122 model_repository_manager.cc:703] "Invalid argument: ensemble 'chain' depends on 'broken' which \
has no loaded version. Model 'broken' loading failed with error: version 1 is at UNAVAILABLE state: Internal: ValueError"
I1123 09:04:58.183383 13122 server.cc:674]
+----------+---------+--------------------------------------------------------+
| Model    | Version | Status                                                 |
+----------+---------+--------------------------------------------------------+
| broken   | 1       | UNAVAILABLE: Internal: ValueError: empty folder        |
|          |         |                                                        |
|          |         | At:                                                    |
|          |         |   /repository/broken/1/model.py(4): initialize         |
| identity | 1       | READY                                                  |
| other    | 1       | UNAVAILABLE: Not found: it needs what is not there     |
+----------+---------+--------------------------------------------------------+

error: creating server: Internal - failed to load all models
"""


def test_models_that_did_not_load_have_their_whole_reason() -> None:
    found = failures(LOG)
    assert list(found) == ["broken", "other", "chain"]
    reason = "Internal: ValueError: empty folder\n\nAt:\n  /repository/broken/1/model.py(4): initialize"
    assert found["broken"] == reason
    assert found["chain"] == "it needs 'broken'"
    assert found["other"] == "Not found: it needs what is not there"


def test_a_log_without_failures_has_none() -> None:
    assert failures('I1123 09:04:57.9 1 model_lifecycle.cc:472] "loading: identity:1"\n') == {}


def test_the_part_of_a_model_holds_what_continues_its_entries() -> None:
    assert "initialize" in part(LOG, "broken")
    assert "| broken" not in part(LOG, "broken")
    assert "loading: broken" not in part(LOG)
    assert part("nothing known", "broken") == "nothing known"


def test_who_follows_a_log_sees_that_of_the_next_start(tmp_path: Path) -> None:
    log, looks = tmp_path / "log", iter((True, False))
    log.write_text("first\n")

    def lives() -> bool:
        if look := next(looks):
            log.replace(tmp_path / "died.log")
            log.write_text("second\n")
        return look

    assert list(lines(log, lives)) == ["first", "second"]


def test_who_follows_the_end_of_a_log_misses_nothing(tmp_path: Path) -> None:
    log, looks = tmp_path / "log", iter((True, True, False))
    log.write_text("first\nsecond\nthird\n")

    def lives() -> bool:
        with log.open("a") as text:
            text.write("later\n")
        return next(looks)

    assert list(lines(log, lives, 2)) == ["second", "third", "later", "later", "later"]
