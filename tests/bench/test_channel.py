"""What one end of a connection between the processes of a job says of a message that tells of a failure."""

from __future__ import annotations

from multiprocessing import Pipe

import pytest
import torch

from manifold_bench.bench.running.engines.channel import Channel, PartnerFailed


def test_words_and_tensors_arrive():
    ours, theirs = map(Channel, Pipe())
    ours.send({"call": "answer", "n": 2}, {"images": torch.ones(2, 3)})
    words, tensors = theirs.receive()
    assert words == {"call": "answer", "n": 2} and torch.equal(tensors["images"], torch.ones(2, 3))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"failed": "ValueError: why", "traceback": "lines"}, "ValueError: why"),
        ({"failed": ""}, "the other process failed and gave no reason"),
        ({"failed": " \n\t"}, "the other process failed and gave no reason"),
        ({"failed": None}, "None"),
    ],
)
def test_a_failure_always_has_a_reason(words, reason):
    ours, theirs = map(Channel, Pipe())
    ours.send(words)
    with pytest.raises(PartnerFailed) as failed:
        theirs.receive()
    assert str(failed.value) == reason and failed.value.traceback == words.get("traceback", "")


@pytest.mark.parametrize("content", [(b"{", b""), (b"[]", b""), (b"{}", b"no tensors")])
def test_a_message_that_cannot_be_read_is_a_failure_with_a_reason(content):
    ours, theirs = Pipe()
    for part in content:
        ours.send_bytes(part)
    with pytest.raises(PartnerFailed, match="cannot be read"):
        Channel(theirs).receive()
