"""Publish over Kafka and print the token: hand it to kafka_ask.py to read what was written here."""

from kithstream import EventPublisher
from kithstream.streams.config import load

with EventPublisher(load().kafka) as publisher:  # KITHSTREAM_KAFKA__SERVERS=host:9092, or 127.0.0.1:9092
    publisher.publish([{"signal": "follow", "actor": fan, "target": "ada"} for fan in ("bob", "cyd", "dan")])
    print(publisher.publish([{"signal": "follow", "actor": "ada", "target": "bob"}]))
