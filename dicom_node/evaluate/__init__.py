"""Evaluation: segmentations of a folder or a model against a truth, as tables, figures and a page.

The measures are in :mod:`inference.evaluation`. Here subjects are paired, read and scored, and their scores averaged,
always with what was compared: data set, split, software, model, resampling order and tool.
"""
