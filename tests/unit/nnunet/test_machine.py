"""What the engine finds on this machine."""

from inference.nnunet import machine
from inference.nnunet.machine import available_memory_bytes


def test_inactive_page_cache_is_not_counted_against_a_control_group(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CONTROL_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("9000000\n")
    (tmp_path / "memory.current").write_text("8000000\n")
    assert available_memory_bytes() == 1_000_000
    (tmp_path / "memory.stat").write_text("anon 2000000\ninactive_file 5500000\nactive_file 500000\n")
    assert available_memory_bytes() == 6_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory_bytes() > 100_000_000
