"""The work of a host around steps: loop, placement, checkpoints, journal, signals, hosts, lock."""
