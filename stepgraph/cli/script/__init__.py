"""Run a user's script and observe one of its training steps.

Files, in reading order:

    target.py   `script.py:step`: parse it, find the function, decorate it
    observe.py  run the script as `__main__` until the step was called often enough
"""
