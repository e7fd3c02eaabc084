"""The scorecard of faults: `python -m tests.reliability` draws each fault many times and writes docs/reliability.md.

A *row* is a fault with a promise. Its *draws* hit a run with the fault, each at another point, and check the promise.
Its *mutants* are changes of the package's code that break the promise; a row that stays green under one of them does
not test what it says.
"""
