"""A help text is read as argparse wrote it, and what it does not know is complained about."""

import argparse
from enum import Enum

from forge.trtllm import help_texts

HELP = argparse.ArgumentParser(prog="convert_checkpoint.py")
HELP.add_argument("--model_dir", "--model-dir", required=True, help="where it is; see --output_dir for where it goes")
HELP.add_argument("--dtype", choices=["auto", "float16", "bfloat16", "float32"], default="auto")
HELP.add_argument("--use_weight_only", action="store_true")
HELP.add_argument(
    "--a_rather_long_flag_name", choices=[f"choice_number_{number}" for number in range(12)], help="wraps over lines"
)
HELP.add_argument("-w", "--workers", type=int, default=1)
TEXT = HELP.format_help()


def test_every_flag_is_found_under_each_of_its_names() -> None:
    assert set(help_texts.flags(TEXT)) == {
        *("-h", "--help", "--model_dir", "--model-dir", "--dtype", "--use_weight_only", "--a_rather_long_flag_name"),
        *("-w", "--workers"),
    }


def test_choices_are_read_also_where_they_wrap() -> None:
    found = help_texts.flags(TEXT)
    assert found["--dtype"] == ("auto", "float16", "bfloat16", "float32")
    assert found["--a_rather_long_flag_name"][-1] == "choice_number_11"
    assert found["--workers"] == ()


def test_what_it_takes_is_not_complained_about() -> None:
    argv = ("--model_dir", "/forge/model", "--dtype", "float16", "--use_weight_only", "--workers=2")
    assert help_texts.complaints(argv, TEXT) == ()


def test_an_unknown_flag_is_answered_with_what_was_meant() -> None:
    (complaint,) = help_texts.complaints(("--model_dri", "x"), TEXT)
    assert (complaint.flag, complaint.hint) == ("--model_dri", "did you mean '--model_dir'?")


def test_a_value_outside_the_choices_is_answered_with_the_choices() -> None:
    for argv in (("--dtype", "fp16"), ("--dtype=fp16",)):
        (complaint,) = help_texts.complaints(argv, TEXT)
        assert complaint.hint == "it takes auto, float16, bfloat16, float32"


def test_a_negative_number_is_a_value() -> None:
    assert help_texts.complaints(("--workers", "-1"), TEXT) == ()


def test_a_text_that_names_no_flags_says_nothing_about_them() -> None:
    assert help_texts.complaints(("--anything",), "command not found") == ()


def test_members_of_an_enum_are_no_words_to_type() -> None:
    class Kind(str, Enum):  # noqa: UP042  # a StrEnum is shown by its values
        JAX = "jax"
        HF = "hf"

    parser = argparse.ArgumentParser()
    parser.add_argument("--ckpt-type", type=Kind, choices=list(Kind))
    assert "{Kind.JAX,Kind.HF}" in parser.format_help()
    assert help_texts.complaints(("--ckpt-type", "hf"), parser.format_help()) == ()


def test_a_converters_option_in_the_source_is_not_refused() -> None:
    source = 'parser.add_argument("--dtype", type=short, choices=["float16", "float32"])'
    text = "usage: x [--dtype {float16,float32}]\n\noptions:\n  --dtype {float16,float32}\n"
    assert help_texts.complaints(("--dtype", "fp16"), text, source) == ()
    assert help_texts.complaints(("--dtype", "fp16"), text, source.replace("type=short, ", ""))


def test_a_flag_hidden_from_help_is_found_in_source() -> None:
    text = "usage: x [-h]\n\noptions:\n  -h, --help  show this\n"
    source = 'parser.add_argument("--old_name", help=argparse.SUPPRESS)'
    assert help_texts.complaints(("--old_name", "1"), text, source) == ()
    assert help_texts.complaints(("--other_name", "1"), text, source)
    assert help_texts.complaints(("--other_name", "1"), text, "args, rest = parser.parse_known_args()") == ()
