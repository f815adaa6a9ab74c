"""Deliver: results go to their destinations until each has said yes."""
