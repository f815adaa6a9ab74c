"""Deliver: sends results to their destinations until each has accepted them."""
