"""How the CUDA kernels of each op family are called: what is allocated, and the arguments in order.

A file has the stem of its family in `ops` and `kernels`. Each call gets the `Launch` of its kernel and the op's raw
arrays; it returns NotImplemented where no kernel fits, and the op's forward, its twin, runs instead.
"""
