"""What a device computes: the step, its loss, optimizer, schedules, state and telemetry."""
