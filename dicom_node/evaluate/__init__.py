"""Evaluation: segmentations in a folder or by a model, compared with a truth, as tables, figures and a page.

The measures are in :mod:`inference.evaluation`. Here subjects are paired, read and scored, and their scores averaged,
always stating what was compared: data set, split, software, model, resampling order and tool.
"""
