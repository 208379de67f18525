"""Made-up and mutated inputs for everything that reads what others wrote.

targets.py        what has to hold for any bytes, one function a reader
__main__.py       the coverage-guided fuzzer over these functions (make fuzz)
test_*.py         the same with hypothesis, and the inputs that once failed
"""
