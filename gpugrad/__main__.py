"""`python -m gpugrad`: the command line."""

from gpugrad.cli import main

if __name__ == "__main__":
    main(prog_name="gpugrad")
