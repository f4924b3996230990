"""What every other package may use: errors, paths, configuration, atomic files.

Imports nothing of the project; `errors`, `atomic` and `tensors` need the standard library (and numpy) only,
because the worker uses them inside the engines' own environments.
"""
