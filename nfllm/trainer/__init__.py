"""What a host does around a step: loop, placement, checkpoints, journal, signals, hosts, lock."""
