"""One file per claim of the lessons that this project comes from: run it, see it, read the numbers.

python -m lessons lists them, python -m lessons NAME runs one. lesson.py says what a lesson is.
"""
