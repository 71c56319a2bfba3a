"""Every bad input ends in one plain sentence: those of benchmarks/bad_inputs.py."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bad_inputs(tmp_path_factory):
    """The script, its files made in the working directory."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        import bad_inputs

        monkeypatch.chdir(tmp_path_factory.mktemp("bad"))
        bad_inputs.prepare(Path.cwd())
        yield bad_inputs


def faults(bad_inputs, cases):
    return {case.wrong + str(case.arguments): fault for case in cases if (fault := bad_inputs.fault_of(case))}


def test_settings_and_files_of_comparisons_are_refused_in_a_sentence(bad_inputs):
    """Some of them, and the run directories whose configuration was changed: the fast ones."""
    some = [*bad_inputs.settings()][::4] + [*bad_inputs.comparisons()][::5]
    some += [case for case in bad_inputs.run_directories() if case.wrong.startswith("config.json")][::9]
    assert len(some) > 40 and faults(bad_inputs, some) == {}


def test_nothing_is_ever_unpickled(bad_inputs):
    assert faults(bad_inputs, [case for case in bad_inputs.cases() if "pickle" in case.wrong]) == {}


def test_a_fault_would_be_seen(bad_inputs):
    fine, failing = (bad_inputs.Case("none", x) for x in (["agents"], ["play", "merlin/TMaze-v0", "--view", "below"]))
    assert bad_inputs.fault_of(fine).startswith("status 0")
    assert bad_inputs.fault_of(failing) is None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_bad_inputs(bad_inputs):
    cases = bad_inputs.cases()
    assert len(cases) >= 220 and faults(bad_inputs, cases) == {}
