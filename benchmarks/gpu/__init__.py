"""The first checks on real GPUs: layers of full size, random weights, no network.

    python3 dev.py python -m benchmarks.gpu [--devices cuda:0,cuda:1] [--models sdxl flux wan]
    python3 dev.py python -m benchmarks.gpu --devices cpu,cpu --models tiny

Each model is written to a file with random weights, as many blocks as say something, and sampled:
by stock ComfyUI on its own device, and by workers on the devices that are named, the same one twice
if there is but one. What is looked at is in `checks.py`. With `--out docs/gpu.md` the figures go
into that page, with the names of the cards.
"""
