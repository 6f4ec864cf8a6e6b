"""Ask over Kafka whom eve should follow: `python kafka_ask.py TOKEN`; a worker must be running."""

import sys

from kithstream import RetrievalClient
from kithstream.streams.config import load

with RetrievalClient(load().kafka) as client:  # KITHSTREAM_KAFKA__SERVERS=host:9092, or 127.0.0.1:9092
    answer = client.ask("eve", 5, after="".join(sys.argv[1:]), deadline=5.0)
    print([candidate.account for candidate in answer.candidates])
