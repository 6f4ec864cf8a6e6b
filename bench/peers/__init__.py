"""kithstream beside other projects that do a part of its work: same events, same vectors, same machine, one run."""
