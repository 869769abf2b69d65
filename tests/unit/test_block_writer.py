"""After any error a writer looks for its blocks anew: a request that is still on its way may have moved them."""

import pytest

from channelindex.errors import OutcomeUnknown, StoreUnavailable
from tests.support.stores import Backend, FaultyOperations, append, entry


@pytest.mark.parametrize("fault", ["before", "after", "late"])
def test_writer_whose_request_failed_appends_to_no_block_blindly_before_it_has_found_it_again(fault):
    backend = Backend("memory://")
    operations = FaultyOperations(backend.operations())
    writer = backend.writer(operations=operations)
    writer.write([append("A", 7, entry(1, 1))])
    writer.write([append("A", 7, entry(1, 2))])
    finds, appends_blindly = operations.calls
    assert finds != appends_blindly
    operations.next_faults = [fault]
    with pytest.raises((StoreUnavailable, OutcomeUnknown)):
        writer.write([append("A", 7, entry(1, 3))])
    writer.write([append("A", 7, entry(1, 3))])
    assert operations.calls[2:] == [appends_blindly, finds]
    backend.close()
