"""Errors about options: what a Python caller reads, and what the command line prints."""

import pickle
import re

import pytest
import torch

from evomoe import cli
from evomoe.support.errors import OptionError, as_flag, foreign, out_of, told_by_others, with_flags, within


def test_python_reads_arguments_and_the_command_line_prints_flags():
    error = OptionError("batch_size", "0 must be at least 1; or choose `gate=straight_through`, `allow_collapsed_experts=True`.")
    assert str(error) == "batch_size: 0 must be at least 1; or choose `gate=straight_through`, `allow_collapsed_experts=True`."
    assert with_flags(error) == (
        "--batch-size: 0 must be at least 1; or choose --gate straight_through, --allow-collapsed-experts."
    )


def test_a_positional_argument_keeps_its_name():
    assert with_flags(OptionError("benchmark", "see `data_root`."), {"benchmark"}) == "benchmark: see --data-root."


def test_commands_in_backticks_stay():
    text = "make one with `evomoe upcycle`, or install `lmms-eval`."
    assert with_flags(ValueError(text)) == text


def test_parts_stand_before_the_option():
    with pytest.raises(OptionError) as raised, within("router_options"), within("inner"):
        raise OptionError("rank", "0 must be at least 1.")
    assert raised.value.option == "router_options.inner.rank"
    with pytest.raises(ValueError, match="^plain$"), within("router_options"):
        raise ValueError("plain")


def test_an_error_crosses_processes():
    error = pickle.loads(pickle.dumps(OptionError("seed", "-1 must not be negative.")))
    assert (error.option, str(error)) == ("seed", "seed: -1 must not be negative.")


def test_what_is_switched_off_is_the_flag_that_switches_it_off():
    assert with_flags("leave out `resume=False`.") == "leave out --no-resume."


def test_what_others_write_in_backticks_is_no_option():
    error = OSError("Use `repo_type` if needed.\nMore of it.")
    assert with_flags(f"it cannot be loaded ({foreign(error)})") == "it cannot be loaded (Use 'repo_type' if needed.)"


def test_backticks_of_others_stay_where_the_options_are_known():
    text = "Should have a `model_type` key; leave out `stage1.steps=3`."
    assert with_flags(text, options={"stage1"}) == "Should have a `model_type` key; leave out --stage1.steps 3."


def test_what_lies_in_a_table_of_names_and_values_stands_after_the_table_s_flag():
    assert as_flag("init_options.std") == "--init-options std"
    assert as_flag("router_options.inner_options.rank") == "--router-options.inner-options rank"


def test_an_option_can_leave_the_part_that_the_caller_does_not_name():
    with pytest.raises(OptionError, match="^rho: too large"), out_of("router_options"):
        raise OptionError("router_options.rho", "too large")


def test_too_little_memory_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr("evomoe.cli.command_line.doctor", lambda: torch.empty(1 << 50))
    assert cli.main(["doctor"]) == 1
    assert re.fullmatch(
        r"evomoe: there is not enough memory: [\d,.]+ MB more were asked for\. .* or take smaller batches\.\n",
        capsys.readouterr().err,
    )
    assert told_by_others(MemoryError()).startswith("there is not enough memory. ")
