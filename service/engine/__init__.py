"""The device's process: queue, scheduler, bank and forward behind one interface, and that interface's twin."""
