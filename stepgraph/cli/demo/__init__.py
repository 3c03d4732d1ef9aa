"""The parts of `stepgraph demo`: model, training loop, picture, progress, comparison.

Files, in reading order:

    gan.py                the two models and their training step
    training.py           the training loop, the same for the eager and the compiled run
    progress.py           a progress bar in a terminal, a few lines elsewhere
    picture.py            the PNG with real and generated digits
    bitwise.py            bit-by-bit comparison of two trained models
    optional_packages.py  imports of scikit-learn and matplotlib, with an error if missing
"""
