"""Print pushed lists as they come, each once for all who run this; a worker must be running."""

from kithstream import CandidateConsumer
from kithstream.streams.clients import Withdrawn
from kithstream.streams.config import load

with CandidateConsumer(load().kafka, group="example") as lists:  # KITHSTREAM_KAFKA__SERVERS=host:9092
    for pushed in lists:
        shown = [] if isinstance(pushed, Withdrawn) else [c.account for c in pushed.candidates]
        print(pushed.account, shown, flush=True)
