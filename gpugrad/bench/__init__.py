"""`gpugrad bench`: the same training steps in several frameworks, timed only where they give the same numbers.

workloads.py   what is computed: data, initial weights, the loss, written once for every framework; sizes, floors
peers/         one file a framework: its dialect for the models, and how it makes a step
worker.py      one framework on one workload, in a process of its own, that obeys commands
gate.py        whether a peer's first steps agree with the float64 reference
runner.py      processes, interleaved rounds, time limits, what is missing
targets.py     the ratios that are aimed at, as data
report.py      JSON, Markdown tables, pictures, docs/performance.md
"""
