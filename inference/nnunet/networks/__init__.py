"""Opens the networks of a part with OpenVINO on a CPU, or with torch on a CPU or CUDA."""
