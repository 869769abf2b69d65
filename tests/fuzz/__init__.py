"""Mutated frames for the client, mutated documents for the decoder: `make fuzz`, and a slice of it in every test run.

A case is made of its number and the seed alone, so that a failure can be repeated: `python -m tests.fuzz --seed S
--first N --frames 1`.
"""
