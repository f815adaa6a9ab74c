"""The networks of a part, ready to run: by OpenVINO on a CPU, or by torch on a CPU or CUDA."""
