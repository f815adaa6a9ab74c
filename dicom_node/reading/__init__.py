"""Reading: headers and pixels of untrusted files, read and decoded in a process that may crash alone.

Whatever a file does to pydicom or to a decoder, it does in a child with limits of memory, CPU time and wall-clock time;
this process only sees values whose size is known. The child is kept for the next series.
"""
