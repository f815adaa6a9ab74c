"""Receive: accepts instances, acknowledges them only once they are durable, and decides when a series is complete."""
