"""Reading: headers and pixels of untrusted files, read and decoded in a process that may crash alone.

A file can affect pydicom or a decoder only in a child with limits of memory, CPU time and wall-clock time;
this process only gets values of known size. The child is kept for the next series.
"""
