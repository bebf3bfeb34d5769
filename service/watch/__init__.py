"""What people and machines see of a running server: metrics, logs, tracing, health."""
