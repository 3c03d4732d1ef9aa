"""Metrics: logged by a module, averaged, written by loggers.

Files, in reading order:

    module_log.py  `self.log`
    metrics.py     averages on the device
    loggers.py     CSV files and TensorBoard
"""
