"""Comparison of models, folders of segmentations and readers, two by two, with a truth or without one.

With a truth, each is evaluated by :mod:`dicom_node.evaluate`, and the scores are compared subject by subject. Without
one, each two are scored against each other, and where they agree least is shown as a picture.
"""
