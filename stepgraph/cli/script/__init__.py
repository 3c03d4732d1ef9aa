"""Run a user's script and observe one of its training steps.

target.py   `script.py:step`: parse it, find the function, decorate it
observe.py  run the script as `__main__` until the step was called often enough
"""
