"""Every error that a command or a child may end with has an exit code that says what to do."""

from channelindex import errors, exits

FAULTS_OF_THE_PROGRAM = {errors.InvariantBroken}
CAUGHT_WHERE_THEY_ARISE = {
    errors.ChannelIndexError,
    errors.OwnershipLost,
    errors.StaleEpoch,
    errors.ReaderClosed,
}
"""Families; what only a worker meets, which deals with it; and what the library alone raises."""


def test_only_a_fault_of_the_program_is_called_one():
    every = {
        each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.ChannelIndexError)
    }
    internal = {each for each in every if exits.code_for(each.__new__(each)) == exits.INTERNAL}
    assert internal - CAUGHT_WHERE_THEY_ARISE == FAULTS_OF_THE_PROGRAM


def test_lost_reply_is_reported_as_one():
    assert exits.code_for(errors.OutcomeUnknown("index.store redis://…: no reply")) == exits.UNKNOWN
