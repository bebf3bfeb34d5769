"""The device's process: queue, scheduler, pace, faults, and its socket."""
