"""The mutations are of the code as it is: `make mutants` would otherwise find out late that some apply no more."""

from tests.mutants.__main__ import ROOT, main, stale_mutations
from tests.mutants.mutations import MUTATIONS, Mutation


def test_every_mutation_stands_in_its_file_once_and_has_tests():
    assert [mutation.name for mutation in stale_mutations(MUTATIONS)] == []
    assert {test for mutation in MUTATIONS for test in mutation.tests if not (ROOT / test).exists()} == set()
    assert len(MUTATIONS) >= 100


def test_line_that_is_not_there_any_more_is_found():
    gone = Mutation("channelindex/epochs.py", "a line that nobody wrote", "another", ())
    assert stale_mutations([gone]) == [gone]


def test_choice_of_nothing_is_an_error(capsys):
    assert main(["--only", "no mutation has this in its name"]) == 2
    assert "nothing to run" in capsys.readouterr().out
