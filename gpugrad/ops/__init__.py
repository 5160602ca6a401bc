"""The op table, one file a family; a family's CUDA kernels have the same stem under kernels/."""
