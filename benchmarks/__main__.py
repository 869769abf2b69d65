"""`python -m benchmarks`: throughput from end to end."""

from benchmarks.throughput import main

main()
