"""Receive: instances come in, nothing is acknowledged before it is durable; and when a series is whole."""
