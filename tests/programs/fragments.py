"""Prints what an imaginary large block, its end, and every other of a hundred small ones take, in bytes."""

import torch

from florence2ner.engine.footprint import Footprint

MIB = 2**20
CPU = torch.device("cpu")

with Footprint(CPU):  # torch loads what imaginary tensors need; and once a block of 8 MiB is free, those of 4 MiB
    torch.empty(2 * MIB)  # are put into malloc's heap, as in any process that has computed for a while
with Footprint(CPU) as footprint:
    block = torch.empty(100 * MIB)
    print(footprint.held)
    del block
    print(footprint.held)
    many = [torch.empty(MIB) for _ in range(100)]
    kept = many[::2]
    del many
    print(footprint.live, footprint.held)
    del kept
