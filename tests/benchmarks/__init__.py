"""How fast the package is, against what: `python -m tests.benchmarks`, or `make bench`.

Every figure is a ratio of things measured side by side in one run, or a share of a ceiling
measured in the same run.  Nothing here is a test, and no test asserts a time.
"""
