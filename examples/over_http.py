"""Publish and ask over HTTP, with the standard library alone: `kithstream serve` must be running."""

import json
import sys
from urllib.request import Request, urlopen

server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8484"
events = [{"signal": "follow", "actor": fan, "target": "ada"} for fan in ("bob", "cyd", "dan")]
request = Request(f"{server}/v1/events", json.dumps(events).encode(), {"content-type": "application/json"})
with urlopen(request) as reply:
    token = json.load(reply)["token"]
with urlopen(f"{server}/v1/candidates/eve?k=5&after={token}") as reply:
    answer = json.load(reply)
print([candidate["account"] for candidate in answer["candidates"]])
