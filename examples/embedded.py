"""Publish and ask in one process: no server, no broker."""

import tempfile

import kithstream

with kithstream.open(tempfile.mkdtemp()) as live:
    live.publish([{"signal": "follow", "actor": fan, "target": "ada"} for fan in ("bob", "cyd", "dan")])
    token = live.publish([{"signal": "follow", "actor": "ada", "target": "bob"}])
    print([(c.account, *c.reasons) for c in live.candidates("eve", 5, after=token).candidates])

    token = live.publish([{"signal": "block", "actor": "ada", "target": "eve"}])
    print([c.account for c in live.candidates("eve", 5, after=token).candidates])
